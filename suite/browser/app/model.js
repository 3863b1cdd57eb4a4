// The language model (GPT-2's shape, one layer, ReLU) and the autoencoder, in float32 from int8
// weights. Matrices are [out, in].

const PER_TOKEN = 5, STRIP = 12; // features named for each token, and shown on every one
const NEXT = 12, DRAWS = 3; // tokens listed; random directions that a clamp is held against
const IN_GRAPH = 8; // features named in an attribution graph
const SOON = 60; // ms after which the answer for the first tokens is sent ahead of the rest

class Model {
  constructor(buffer) {
    let [header, at] = with_binary(buffer);
    const tokenizer = new Tokenizer(header.tokenizer);
    Object.assign(this, header, { tokenizer, weights: {}, cache: [], kept: {} });
    const shapes = Object.entries(this.layout);
    let levels = at + 4 * total_of(shapes.map(([, [rows]]) => rows)); // of all matrices
    for (const [name, [rows, columns = 0]] of shapes) {
      // a vector, or the scales of a matrix's rows
      const vector = new Float32Array(buffer.slice(at, at + 4 * rows));
      const weight = new Float32Array(new Int8Array(buffer, levels, rows * columns));
      for (let i = 0; i < weight.length; i++) weight[i] *= vector[Math.floor(i / columns)];
      this.weights[name] = columns ? weight : vector;
      at += 4 * rows;
      levels += rows * columns;
    }
    const w = this.weights, embedding = this.layout["wte.weight"];
    w["lm_head.weight"] ??= w["wte.weight"]; // tied
    [this.vocabulary_size, this.d_model] = this.layout["lm_head.weight"] ?? embedding;
    this.turn_encoder();
  }

  turn_encoder() {
    // The encoder as [d_in, d_sae], so that what is silent at the hook costs nothing, and what it
    // adds for an activation of zero.
    const w = this.weights, [d_sae, d_in] = this.layout.W_enc_T;
    w.W_enc = new Float32Array(d_in * d_sae);
    for (let f = 0; f < d_sae; f++)
      for (let i = 0; i < d_in; i++) w.W_enc[i * d_sae + f] = w.W_enc_T[f * d_in + i];
    this.at_zero = w.b_enc.map((bias, f) => bias - dot(w.b_dec, w.W_enc_T, f));
    delete w.W_enc_T;
  }

  // --- the questions of a source ---

  activations({ text, feature }, ahead = () => {}) {
    // `ahead` gets the answer as far as it is known: tokens not yet read are silent.
    const all = this.tokenizer.encode(text), ids = all.slice(0, this.n_positions);
    const answer = (acts) => {
      const most = new Float32Array(acts[0]?.length ?? 0), of = (n) => acts.map((row) => row[n]);
      for (const row of acts)
        for (let n = 0; n < row.length; n++) if (row[n] > most[n]) most[n] = row[n];
      const strip = top_of(most, STRIP, 0).map((n) => [n, of(n)]);
      return { cut: all.length - ids.length, strip, ...this.of_tokens(ids, acts, feature) };
    };
    return answer(this.acts(ids, (acts) => ahead(answer(acts))));
  }

  of_tokens(ids, acts, feature) {
    const named = (row) => top_of(row, PER_TOKEN, 0).map((n) => [n, row[n]]);
    const strongest = ids.map((_, t) => named(acts[t] ?? []));
    return { ids, values: ids.map((_, t) => acts[t]?.[feature] ?? 0), strongest };
  }

  clamp({ text, clamps, keep_error = true, new_tokens = 0, temperature = 0.8, seed = 0 }) {
    const ids = this.tokenizer.encode(text), change = this.clamped(clamps, keep_error);
    if (!ids.length) throw new Error("the prompt is empty: give at least one token of text");
    if (ids.length + (new_tokens ? 1 : 0) > this.n_positions)
      throw new Error(`the prompt has ${ids.length} tokens and the model's context is ` +
        `${this.n_positions}; shorten the prompt`);
    const kept = [{}, {}], changes = [undefined, change];
    const [before, after] = changes.map((how, i) => softmax(this.run(ids, how, true, kept[i])[0]));
    const moved = before.map((p, i) => Math.abs(after[i] - p));
    const likely = [...new Set([before, after, moved].flatMap((p) => top_of(p, NEXT)))];
    likely.sort((a, b) => moved[b] - moved[a] || a - b);
    const null_kl = Array.from({ length: DRAWS }, (_, draw) => {
      const random = clamps.map((c, i) => this.random_direction(c.feature, 97 * draw + i));
      const [logits] = this.run(ids, this.clamped(clamps, keep_error, random));
      return divergence(before, softmax(logits));
    });
    const sides = (new_tokens ? changes : []).map((how, i) => {
      kept[i].n = ids.length - 1; // what the last token says is needed again
      const continued = this.generate(ids, new_tokens, temperature, seed, how, kept[i]);
      const value = (x) => Math.max(0, this.feature(x, clamps[0].feature));
      return { ids: continued, values: this.rows_at_hook(continued).map(value) };
    });
    return {
      kl: divergence(before, after),
      null: null_kl,
      next: likely.slice(0, NEXT).map((t) => [t, before[t], after[t]]),
      sides, prompt: ids.length,
    };
  }

  context({ ids, feature, ablate }) {
    const found = this.of_tokens(ids, this.acts(ids), feature);
    if (!ablate) return { effects: [], ...found };
    const [before, after] = [undefined, this.clamped([{ feature, how: "ablate" }])]
      .map((change) => this.losses(ids, change));
    return { effects: [0, ...after.map((loss, t) => loss - before[t])], ...found };
  }

  why({ ids, feature, position }) {
    // What its token, its position and every head's sources add to a feature's pre-activation: the
    // split of features/attribution.py, with the pattern, the norms' scales and the gates held.
    const held = this.held(ids.slice(0, position + 1)), { own, tokens, positions } =
      this.traced(held, this.reading(held, feature));
    const total = this.feature(held.hidden, feature, true);
    const sources = tokens.map((heads, s) => heads.map((value, h) => value + positions[s][h]));
    return { total, own, sources };
  }

  graph({ ids, tokens }) {
    // What adds to the difference of two logits at the end of a text, by default the likeliest two:
    // features/logit_graph.py, with the autoencoder between neurons and logits.
    const held = this.held(ids), { hidden, mid } = held, d = this.d_model, w = this.weights;
    const last = this.linear("mlp.c_proj", hidden, 1).map((value, i) => value + mid[i]);
    const head = w["lm_head.weight"], logits = affine(this.norm("ln_f", last, 1), 1, head);
    const [better, worse] = tokens ?? top_of(logits, 2), total = logits[better] - logits[worse];
    const [up, down] = [better, worse].map((token) => head.subarray(token * d, (token + 1) * d));
    const wanted = Float64Array.from(up, (value, i) => value - down[i]);
    const onto = this.through_norm(wanted, "ln_f", this.scale(last)), f = this.features(hidden);
    const neurons = rows_times(onto, w["mlp.c_proj.weight"], hidden.length);
    const onward = (n) => dot(neurons, w.W_dec, n), past = this.traced(held, onto);
    const by_token = ({ own, tokens: of }) =>
      of.map((heads, s) => total_of(heads) + (s === ids.length - 1 ? own[0] : 0));
    const on = [...f.keys()].filter((n) => f[n] > 0).map((n) => [n, f[n] * onward(n)]);
    on.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    const features = on.splice(0, IN_GRAPH).map(([n, value]) => {
      const parts = by_token(this.traced(held, this.reading(held, n)));
      return [n, value, parts.map((part) => part * onward(n))];
    });
    const direct = by_token(past), missed = this.decoded(f).map((value, j) => hidden[j] - value);
    const other = {
      "other features": total_of(on.map(([, value]) => value)),
      "position embeddings": past.own[1] + total_of(past.positions.flat()),
      "the features' error": dot(neurons, missed, 0),
    };
    const edges = [...features.map(([, value]) => value), ...direct, ...Object.values(other)];
    other.biases = total - total_of(edges);
    return { tokens: [better, worse], total, features, direct, other };
  }

  held(ids) {
    // What is held at the end of a text: the attention pattern, the norms' scales, the gates.
    if (this.architecture === "neurons" || this.hook !== "mlp.hook_post")
      throw new Error("only features of an autoencoder can be split into their causes");
    const kept = {}, hidden = this.rows_at_hook(ids, kept).at(-1);
    return { ids, x: this.embedded(ids), hidden, ...kept };
  }

  reading({ hidden, mid }, feature) {
    // What a unit of the residual stream before the MLP adds to a feature's pre-activation.
    const { W_enc, "mlp.c_fc.weight": inner } = this.weights, d_sae = this.at_zero.length;
    const encoder = hidden.map((value, j) => (value > 0 ? W_enc[j * d_sae + feature] : 0));
    return this.through_norm(rows_times(encoder, inner, mid.length), "ln_2", this.scale(mid));
  }

  through_norm(effect, name, scale = 1) {
    // What a unit before a norm adds, of what a unit behind it does; its scale is held.
    const out = effect.map((value, i) => value * scale * this.weights[`${name}.weight`][i]);
    const mean = total_of(out) / out.length;
    return out.map((value) => value - mean);
  }

  scale(x, at = 0) { return moments(x, at * this.d_model, this.d_model, this.epsilon)[1]; }

  traced({ ids, x, qkv }, effect) {
    // What the last token and its position, and tokens and positions of each [source][head], add to
    // a number of which a unit of the residual stream before the MLP adds `effect`.
    const d = this.d_model, w = this.weights, size = d / this.heads, p = ids.length - 1;
    const heard = rows_times(effect, w["attn.c_proj.weight"], d);
    const heads = Array.from({ length: this.heads }, (_, h) => {
      const own = heard.slice(h * size, (h + 1) * size);
      const value = rows_times(own, w["attn.c_attn.weight"], d, 2 * d + h * size);
      return [this.through_norm(value, "ln_1"), this.pattern(qkv, h, p)];
    });
    const scales = ids.map((_, s) => this.scale(x, s));
    const of = (weight, row) => ids.map((_, s) => heads.map(([value, pattern]) =>
      pattern[s] * scales[s] * dot(value, weight, row(s))));
    const own = [dot(effect, w["wte.weight"], ids[p]), dot(effect, w["wpe.weight"], p)];
    const tokens = of(w["wte.weight"], (s) => ids[s]), positions = of(w["wpe.weight"], (s) => s);
    return { own, tokens, positions };
  }

  // --- the language model ---

  embedded(ids, first = 0) {
    const d = this.d_model, x = new Float32Array((ids.length - first) * d), w = this.weights;
    for (let t = first, at = 0; t < ids.length; t++)
      for (let i = 0; i < d; i++, at++)
        x[at] = w["wte.weight"][ids[t] * d + i] + w["wpe.weight"][t * d + i];
    return x;
  }

  run(ids, change = () => {}, last_only = true, kept = {}) {
    // Logits [position][token] of the last position, or of all. `change(x, d)` sees, and may write
    // into, what passes the hook. `kept` has queries, keys and values of the first `kept.n`
    // tokens, which are not run again, and what the MLP's norm was last given.
    const d = this.d_model, { n: first = 0 } = kept, n = ids.length - first;
    let x = this.embedded(ids, first);
    const add = (written) => { for (let i = 0; i < x.length; i++) x[i] += written[i]; };
    this.at("hook_resid_pre", x, d, change);
    kept.qkv ??= new Float32Array(this.n_positions * 3 * d);
    kept.qkv.set(this.linear("attn.c_attn", this.norm("ln_1", x, n), n), first * 3 * d);
    kept.n = ids.length;
    add(this.linear("attn.c_proj", this.attention(kept.qkv, ids.length, first), n));
    kept.mid = x.slice(-d);
    const hidden = this.linear("mlp.c_fc", this.norm("ln_2", x, n), n), width = hidden.length / n;
    this.at("mlp.hook_pre", hidden, width, change);
    for (let i = 0; i < hidden.length; i++) if (!(hidden[i] > 0)) hidden[i] = 0;
    this.at("mlp.hook_post", hidden, width, change);
    const written = this.linear("mlp.c_proj", hidden, n);
    this.at("hook_mlp_out", written, d, change);
    add(written);
    this.at("hook_resid_post", x, d, change);
    if (last_only) x = x.slice((n - 1) * d);
    const rows = x.length / d, head = this.weights["lm_head.weight"];
    const all = affine(this.norm("ln_f", x, rows), rows, head);
    return Array.from({ length: rows }, (_, t) =>
      all.subarray(t * this.vocabulary_size, (t + 1) * this.vocabulary_size));
  }

  norm(name, x, n) {
    const { [`${name}.weight`]: weight, [`${name}.bias`]: bias } = this.weights;
    const d = this.d_model, out = new Float32Array(n * d);
    for (let t = 0; t < n; t++) {
      const [mean, inverse] = moments(x, t * d, d, this.epsilon);
      for (let i = 0, at = t * d; i < d; i++, at++)
        out[at] = (x[at] - mean) * inverse * weight[i] + bias[i];
    }
    return out;
  }

  linear(name, x, n) {
    return affine(x, n, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  losses(ids, change) {
    // Nats, of predicting each token but the first.
    const logits = this.run(ids, change, false);
    return ids.slice(1).map((token, t) => -Math.log(Math.max(softmax(logits[t])[token], 1e-300)));
  }

  at(name, x, d, change) { if (name === this.hook) change(x, d); }

  attention(qkv, n, first = 0) {
    // What the heads give to each position from `first` on.
    const d = this.d_model, size = d / this.heads, out = new Float32Array((n - first) * d);
    for (let h = 0; h < this.heads; h++) {
      for (let t = first; t < n; t++) {
        const pattern = this.pattern(qkv, h, t), to = (t - first) * d + h * size;
        for (let s = 0; s <= t; s++)
          for (let i = 0, at = (3 * s + 2) * d + h * size; i < size; i++, at++)
            out[to + i] += pattern[s] * qkv[at];
      }
    }
    return out;
  }

  pattern(qkv, h, t) {
    // How a head shares its attention at position t.
    const { heads } = this, size = this.d_model / heads, from = (3 * t * heads + h) * size;
    const query = qkv.subarray(from, from + size), scores = new Float64Array(t + 1);
    for (let s = 0; s <= t; s++)
      scores[s] = dot(query, qkv, (3 * s + 1) * heads + h) / Math.sqrt(size);
    return softmax(scores);
  }

  // --- the autoencoder ---

  rows_at_hook(ids, kept = {}) {
    // What passes the hook: an activation vector per position that is not kept.
    const rows = [], n = ids.length - (kept.n ?? 0);
    const copy = (x, d) => { for (let t = 0; t < n; t++) rows.push(x.slice(t * d, (t + 1) * d)); };
    if (n) this.run(ids, copy, true, kept);
    return rows;
  }

  acts(ids, ahead = () => {}) {
    // All features on each token. What a text begins with is kept: the next one is mostly the same
    // with a few tokens more. `ahead` gets those of the first tokens while the others are awaited.
    const { cache, kept } = this, known = cache.findIndex(([id], t) => id !== ids[t]);
    let sent = performance.now();
    cache.length = Math.min(known < 0 ? cache.length : known, ids.length);
    kept.n = cache.length;
    for (const x of this.rows_at_hook(ids, kept)) {
      cache.push([ids[cache.length], this.features(x)]);
      if (performance.now() < sent + SOON || cache.length === ids.length) continue;
      ahead(cache.map(([, acts]) => acts));
      sent = performance.now();
    }
    return cache.map(([, acts]) => acts);
  }

  features(x) {
    // Activations of all features of one activation vector.
    const { W_enc: w, threshold } = this.weights, z = this.at_zero.slice(), d_sae = z.length;
    const on = [...x.entries()].filter(([, value]) => value !== 0);
    while (on.length % 4) on.push([0, 0]);
    for (let at = 0; at < on.length; at += 4) { // four at a time: a sum is read once for them
      const [[i, a], [j, b], [k, c], [l, d]] = on.slice(at, at + 4);
      let [p, q, r, s] = [i, j, k, l].map((input) => input * d_sae);
      for (let f = 0; f < d_sae; f++, p++, q++, r++, s++)
        z[f] += a * w[p] + b * w[q] + c * w[r] + d * w[s];
    }
    if (this.architecture === "topk") {
      const kept = new Set(top_of(z, this.k, 0));
      return z.map((value, f) => (kept.has(f) ? value : 0));
    }
    for (let f = 0; f < d_sae; f++) if (!(z[f] > (threshold?.[f] ?? 0))) z[f] = 0;
    return z;
  }

  feature(x, number, before = false) {
    // One feature's activation, or its pre-activation, without the others where it does not depend
    // on them.
    if (this.architecture === "topk" && !before) return this.features(x)[number];
    const { W_enc, threshold } = this.weights, d_sae = this.at_zero.length;
    let z = this.at_zero[number];
    for (let i = 0; i < x.length; i++) z += x[i] * W_enc[i * d_sae + number];
    return before || z > (threshold?.[number] ?? 0) ? Math.fround(z) : 0;
  }

  clamped(clamps, keep_error = true, directions = []) {
    // A change for `run`, as in features/clamping.py: at every position, the autoencoder's error
    // kept or dropped. `directions` are written in place of the features' own.
    const after = ({ how, value }, f) => ({ pin: value, scale: value * f, ablate: 0 })[how];
    return (x, d) => {
      for (let t = 0; t < x.length / d; t++) {
        const row = x.subarray(t * d, (t + 1) * d);
        const f = clamps.map((c) => this.feature(row, c.feature));
        if (!keep_error) row.set(this.decoded(this.features(row)));
        clamps.forEach((c, i) => this.add(row, c.feature, after(c, f[i]) - f[i], directions[i]));
      }
    };
  }

  direction(feature) {
    const [, d] = this.layout.W_dec;
    return this.weights.W_dec.subarray(feature * d, (feature + 1) * d);
  }

  add(row, feature, by, direction = this.direction(feature)) {
    for (let i = 0; i < row.length; i++) row[i] += by * direction[i];
  }

  random_direction(feature, seed) {
    // Of the norm of the feature's own: normal numbers by Box and Muller.
    const own = this.direction(feature);
    const random = mulberry32(seed), length = (v) => Math.hypot(...v);
    const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    const drawn = own.map(normal), scale = length(own) / length(drawn);
    return drawn.map((x) => x * scale);
  }

  decoded(f) {
    const x = this.weights.b_dec.slice();
    f.forEach((value, number) => { if (value) this.add(x, number, value); });
    return x;
  }

  generate(ids, new_tokens, temperature, seed, change, kept = {}) {
    // Sampled continuation by Gumbel noise: the same seed gives every token the same noise at every
    // step, clamped or not.
    const random = mulberry32(seed), last = Math.min(this.n_positions, ids.length + new_tokens);
    ids = ids.slice();
    while (ids.length < last) {
      let best = -Infinity, next = 0;
      this.run(ids, change, true, kept)[0].forEach((logit, t) => {
        const drawn = logit - temperature * Math.log(-Math.log(random() + 1e-12));
        if (drawn > best) [best, next] = [drawn, t];
      });
      ids.push(next);
      if (next === this.end) break;
    }
    return ids;
  }
}

function affine(x, n, weight, bias) {
  // [n, in] × [out, in]ᵀ + bias → [n, out]; of four rows at a time, each weight is read once.
  const d_in = x.length / n, d_out = weight.length / d_in, out = new Float32Array(n * d_out);
  for (let t = 0, four; t < n; t += four ? 4 : 1) {
    four = n - t >= 4;
    for (let o = 0, to = t * d_out; o < d_out; o++, to++) {
      const row = o * d_in, first = t * d_in, start = bias ? bias[o] : 0;
      let a = start, b = start, c = start, d = start;
      if (!four) for (let i = 0; i < d_in; i++) a += weight[row + i] * x[first + i];
      else
        for (let i = 0, at = first; i < d_in; i++, at++) {
          const w = weight[row + i];
          a += w * x[at];
          b += w * x[at + d_in];
          c += w * x[at + 2 * d_in];
          d += w * x[at + 3 * d_in];
        }
      out[to] = a;
      if (four) [out[to + d_out], out[to + 2 * d_out], out[to + 3 * d_out]] = [b, c, d];
    }
  }
  return out;
}

function moments(x, from, d, epsilon) {
  // [mean, what a norm multiplies by]
  let mean = 0, variance = 0;
  for (let i = 0; i < d; i++) mean += x[from + i];
  mean /= d;
  for (let i = 0; i < d; i++) variance += (x[from + i] - mean) ** 2;
  return [mean, 1 / Math.sqrt(variance / d + epsilon)];
}

function rows_times(v, weight, width, first = 0) {
  // v × weight[first …], of rows of `width`.
  const out = new Float64Array(width);
  v.forEach((value, j) => {
    if (value) for (let i = 0; i < width; i++) out[i] += value * weight[(first + j) * width + i];
  });
  return out;
}

function dot(v, matrix, row) {
  // A vector by the row of a matrix.
  let sum = 0;
  for (let i = 0, at = row * v.length; i < v.length; i++, at++) sum += v[i] * matrix[at];
  return sum;
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const p = new Float64Array(logits).map((logit) => Math.exp(logit - largest)), total = total_of(p);
  return p.map((value) => value / total);
}

function divergence(p, q) {
  // KL(p ‖ q) in nats
  const nats = (value, i) => (value ? value * Math.log(value / Math.max(q[i], 1e-300)) : 0);
  return total_of(p.map(nats));
}
