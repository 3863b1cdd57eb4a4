// The language model (GPT-2's shape, one layer, ReLU) and the autoencoder, in float32 from int8
// weights. Matrices are [out, in].

const PER_TOKEN = 5,
  NEXT = 12; // features named for each token; tokens listed

class Model {
  constructor(buffer) {
    let [header, at] = with_binary(buffer);
    Object.assign(this, header, { tokenizer: new Tokenizer(header.tokenizer), weights: {} });
    for (const [name, [rows]] of Object.entries(this.layout)) {
      // vectors, and the scales of matrices
      this.weights[name] = new Float32Array(buffer.slice(at, at + 4 * rows));
      at += 4 * rows;
    }
    for (const [name, [rows, columns]] of Object.entries(this.layout)) {
      if (columns === undefined) continue;
      const levels = new Int8Array(buffer, at, rows * columns),
        scale = this.weights[name],
        weight = new Float32Array(rows * columns);
      for (let r = 0, i = 0; r < rows; r++)
        for (let c = 0; c < columns; c++, i++) weight[i] = levels[i] * scale[r];
      this.weights[name] = weight;
      at += rows * columns;
    }
    this.weights["lm_head.weight"] ??= this.weights["wte.weight"]; // tied
    [this.vocabulary_size, this.d_model] =
      this.layout["lm_head.weight"] ?? this.layout["wte.weight"];
  }

  // --- the questions of a source ---

  activations({ text, feature }) {
    const all = this.tokenizer.encode(text),
      ids = all.slice(0, this.n_positions),
      rows = this.rows_at_hook(ids);
    const strongest = rows.map((x) => {
      const f = this.features(x);
      return top_of(f, PER_TOKEN)
        .filter((n) => f[n] > 0)
        .map((n) => [n, f[n]]);
    });
    return { ids, cut: all.length - ids.length, values: this.on_rows(rows, feature), strongest };
  }

  clamp({ text, clamp, keep_error = true, new_tokens = 0, temperature = 0.8, seed = 0 }) {
    const ids = this.tokenizer.encode(text),
      change = this.clamped(clamp, keep_error);
    if (!ids.length) throw new Error("the prompt is empty: give at least one token of text");
    if (ids.length + (new_tokens ? 1 : 0) > this.n_positions)
      throw new Error(
        `the prompt has ${ids.length} tokens and the model's context is ${this.n_positions}; ` +
          "shorten the prompt",
      );
    const before = softmax(this.run(ids)[0]),
      after = softmax(this.run(ids, change)[0]),
      moved = before.map((p, i) => Math.abs(after[i] - p));
    const likely = [...new Set([before, after, moved].flatMap((p) => top_of(p, NEXT)))]
      .sort((a, b) => moved[b] - moved[a] || a - b)
      .slice(0, NEXT);
    const sides = new_tokens
      ? [undefined, change].map((how) => {
          const continued = this.generate(ids, new_tokens, temperature, seed, how);
          return {
            ids: continued,
            values: this.on_rows(this.rows_at_hook(continued), clamp.feature),
          };
        })
      : [];
    return {
      kl: divergence(before, after),
      next: likely.map((t) => [t, before[t], after[t]]),
      sides,
      prompt: ids.length,
    };
  }

  context({ feature, ablate }, ids) {
    const values = this.on_rows(this.rows_at_hook(ids), feature);
    if (!ablate) return { ids, values, effects: [] };
    const [before, after] = [undefined, this.clamped({ feature, how: "ablate" })].map((change) =>
      this.losses(ids, change),
    );
    return { ids, values, effects: [0, ...after.map((loss, t) => loss - before[t])] };
  }

  // --- the language model ---

  run(ids, change = () => {}, last_only = true) {
    // Logits [position][token] of the last position, or of all. `change(x, d)` sees, and may write
    // into, what passes the hook.
    const n = ids.length,
      d = this.d_model,
      w = this.weights;
    let x = new Float32Array(n * d);
    const norm = (name, values, rows) =>
      normalised(values, rows, d, w[`${name}.weight`], w[`${name}.bias`], this.epsilon);
    const linear = (name, values) => affine(values, n, w[`${name}.weight`], w[`${name}.bias`]);
    const add = (written) => {
      for (let i = 0; i < x.length; i++) x[i] += written[i];
    };
    for (let t = 0; t < n; t++)
      for (let i = 0; i < d; i++)
        x[t * d + i] = w["wte.weight"][ids[t] * d + i] + w["wpe.weight"][t * d + i];
    this.at("hook_resid_pre", x, d, change);
    add(linear("attn.c_proj", this.attention(linear("attn.c_attn", norm("ln_1", x, n)), n)));
    const hidden = linear("mlp.c_fc", norm("ln_2", x, n)),
      width = hidden.length / n;
    this.at("mlp.hook_pre", hidden, width, change);
    for (let i = 0; i < hidden.length; i++) if (!(hidden[i] > 0)) hidden[i] = 0;
    this.at("mlp.hook_post", hidden, width, change);
    const written = linear("mlp.c_proj", hidden);
    this.at("hook_mlp_out", written, d, change);
    add(written);
    this.at("hook_resid_post", x, d, change);
    if (last_only) x = x.slice((n - 1) * d);
    const rows = x.length / d,
      logits = affine(norm("ln_f", x, rows), rows, w["lm_head.weight"], null);
    return Array.from({ length: rows }, (_, t) =>
      logits.subarray(t * this.vocabulary_size, (t + 1) * this.vocabulary_size),
    );
  }

  losses(ids, change) {
    // Nats, of predicting each token but the first.
    const logits = this.run(ids, change, false);
    return ids.slice(1).map((token, t) => -Math.log(Math.max(softmax(logits[t])[token], 1e-300)));
  }

  at(name, x, d, change) {
    if (name === this.hook) change(x, d);
  }

  attention(qkv, n) {
    const d = this.d_model,
      size = d / this.heads,
      out = new Float32Array(n * d);
    const weights = new Float64Array(n),
      root = Math.sqrt(size);
    for (let h = 0; h < this.heads; h++) {
      for (let t = 0; t < n; t++) {
        let largest = -Infinity,
          total = 0;
        for (let s = 0; s <= t; s++) {
          let dot = 0;
          for (let i = 0; i < size; i++)
            dot += qkv[t * 3 * d + h * size + i] * qkv[s * 3 * d + d + h * size + i];
          weights[s] = dot / root;
          largest = Math.max(largest, weights[s]);
        }
        for (let s = 0; s <= t; s++) total += weights[s] = Math.exp(weights[s] - largest);
        for (let i = 0; i < size; i++) {
          let sum = 0;
          for (let s = 0; s <= t; s++) sum += weights[s] * qkv[s * 3 * d + 2 * d + h * size + i];
          out[t * d + h * size + i] = sum / total;
        }
      }
    }
    return out;
  }

  // --- the autoencoder ---

  rows_at_hook(ids) {
    // What passes the hook: an activation vector per position.
    let rows = [];
    if (ids.length)
      this.run(ids, (x, d) => {
        rows = ids.map((_, t) => x.slice(t * d, (t + 1) * d));
      });
    return rows;
  }

  on_rows(rows, number) {
    return rows.map((x) => Math.max(0, this.feature(x, number)));
  }

  features(x) {
    // Activations of all features of one activation vector.
    if (this.architecture === "neurons") return Float32Array.from(x);
    const w = this.weights,
      centred = x.map((value, i) => value - w.b_dec[i]),
      z = affine(centred, 1, w.W_enc_T, w.b_enc);
    if (this.architecture === "topk") {
      const kept = new Set(top_of(z, this.k));
      return z.map((value, f) => (kept.has(f) && value > 0 ? value : 0));
    }
    return z.map((value, f) => (value > (w.threshold?.[f] ?? 0) && value > 0 ? value : 0));
  }

  feature(x, number) {
    // One feature's activation, without the others where it does not depend on them.
    if (this.architecture === "neurons") return x[number];
    if (this.architecture === "topk") return this.features(x)[number];
    const w = this.weights,
      d = x.length;
    let z = w.b_enc[number];
    for (let i = 0; i < d; i++) z += (x[i] - w.b_dec[i]) * w.W_enc_T[number * d + i];
    return z > Math.max(0, w.threshold?.[number] ?? 0) ? Math.fround(z) : 0;
  }

  clamped({ feature, how = "pin", value = 0 }, keep_error = true) {
    // A change for `run`, as in features/clamping.py: at every position, the autoencoder's error
    // kept or dropped.
    const after = (f) => ({ pin: value, scale: value * f, ablate: 0 })[how];
    return (x, d) => {
      for (let t = 0; t < x.length / d; t++) {
        const row = x.subarray(t * d, (t + 1) * d),
          f = this.feature(row, feature);
        if (!keep_error) row.set(this.decoded(this.features(row)));
        this.add(row, feature, after(f) - f);
      }
    };
  }

  add(row, feature, by) {
    const { W_dec } = this.weights,
      d = row.length;
    if (this.architecture === "neurons") row[feature] += by;
    else for (let i = 0; i < d; i++) row[i] += by * W_dec[feature * d + i];
  }

  decoded(f) {
    if (this.architecture === "neurons") return f;
    const x = this.weights.b_dec.slice();
    f.forEach((value, number) => {
      if (value) this.add(x, number, value);
    });
    return x;
  }

  generate(ids, new_tokens, temperature, seed, change) {
    // Sampled continuation by Gumbel noise: the same seed gives every token the same noise at every
    // step, clamped or not.
    const random = mulberry32(seed),
      last = Math.min(this.n_positions, ids.length + new_tokens);
    ids = ids.slice();
    while (ids.length < last) {
      let best = -Infinity,
        next = 0;
      this.run(ids, change)[0].forEach((logit, t) => {
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
  // [n, in] × [out, in]ᵀ + bias → [n, out]
  const d_in = x.length / n,
    d_out = weight.length / d_in,
    out = new Float32Array(n * d_out);
  for (let o = 0; o < d_out; o++) {
    const row = o * d_in,
      start = bias ? bias[o] : 0;
    for (let t = 0; t < n; t++) {
      const from = t * d_in;
      let sum = 0;
      for (let i = 0; i < d_in; i++) sum += x[from + i] * weight[row + i];
      out[t * d_out + o] = sum + start;
    }
  }
  return out;
}

function normalised(x, n, d, weight, bias, epsilon) {
  const out = new Float32Array(n * d);
  for (let t = 0; t < n; t++) {
    let mean = 0,
      variance = 0;
    for (let i = 0; i < d; i++) mean += x[t * d + i];
    mean /= d;
    for (let i = 0; i < d; i++) variance += (x[t * d + i] - mean) ** 2;
    const inverse = 1 / Math.sqrt(variance / d + epsilon);
    for (let i = 0; i < d; i++)
      out[t * d + i] = (x[t * d + i] - mean) * inverse * weight[i] + bias[i];
  }
  return out;
}

function softmax(logits) {
  const p = new Float64Array(logits.length);
  let largest = -Infinity,
    total = 0;
  for (const l of logits) largest = Math.max(largest, l);
  for (let i = 0; i < p.length; i++) total += p[i] = Math.exp(logits[i] - largest);
  for (let i = 0; i < p.length; i++) p[i] /= total;
  return p;
}

function divergence(p, q) {
  // KL(p ‖ q) in nats
  let sum = 0;
  for (let i = 0; i < p.length; i++)
    if (p[i] > 0) sum += p[i] * Math.log(p[i] / Math.max(q[i], 1e-300));
  return sum;
}

function mulberry32(seed) {
  // A small random generator with a seed (Tommy Ettinger, public domain): numbers in [0, 1).
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function top_of(values, k) {
  // Places of the k largest, the largest first.
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === k && values[i] <= values[best[k - 1]]) continue;
    let at = best.length;
    while (at > 0 && values[best[at - 1]] < values[i]) at--;
    best.splice(at, 0, i);
    if (best.length > k) best.pop();
  }
  return best;
}
