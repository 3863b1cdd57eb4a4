// The language model (GPT-2's shape, one layer, ReLU) and the autoencoder, in float32 from int8 weights. Matrices are [out, in].

class Model {
  constructor(buffer) {
    let [header, at] = with_binary(buffer);
    Object.assign(this, header);
    this.tokenizer = new Tokenizer(this.tokenizer);
    this.sizes = this.layout;
    for (const [name, [rows]] of Object.entries(this.layout)) { // vectors, and the scales of matrices
      this[name] = new Float32Array(buffer.slice(at, at + 4 * rows));
      at += 4 * rows;
    }
    for (const [name, [rows, columns]] of Object.entries(this.layout)) {
      if (columns === undefined) continue;
      const levels = new Int8Array(buffer, at, rows * columns), scale = this[name], weight = new Float32Array(rows * columns);
      for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < columns; c++, i++) weight[i] = levels[i] * scale[r];
      this[name] = weight;
      at += rows * columns;
    }
    this.head ??= this.token_embedding; // tied
    this.sizes.head ??= this.sizes.token_embedding;
    this.d_model = this.sizes.token_embedding[1];
    this.vocabulary_size = this.sizes.head[0];
  }

  encode_text(text) {
    // At most `context` tokens, from the beginning.
    const ids = this.tokenizer.encode(text);
    return ids.slice(0, this.context);
  }

  run(ids, change = () => {}, last_only = true) {
    // Logits [position][token] of the last position, or of all. `change(x, d)` sees, and may write into, what passes the hook.
    const n = ids.length, d = this.d_model;
    let x = new Float32Array(n * d);
    for (let t = 0; t < n; t++) for (let i = 0; i < d; i++) x[t * d + i] = this.token_embedding[ids[t] * d + i] + this.position_embedding[t * d + i];
    this.at("hook_resid_pre", x, d, change);
    const attended = affine(this.attention(normalised(x, n, d, this.norm_1, this.norm_1_bias, this.epsilon), n), n, this.attention_out, this.attention_out_bias);
    for (let i = 0; i < x.length; i++) x[i] += attended[i];
    const hidden = affine(normalised(x, n, d, this.norm_2, this.norm_2_bias, this.epsilon), n, this.mlp_in, this.mlp_in_bias), width = this.mlp_in_bias.length;
    this.at("mlp.hook_pre", hidden, width, change);
    for (let i = 0; i < hidden.length; i++) if (!(hidden[i] > 0)) hidden[i] = 0;
    this.at("mlp.hook_post", hidden, width, change);
    const written = affine(hidden, n, this.mlp_out, this.mlp_out_bias);
    this.at("hook_mlp_out", written, d, change);
    for (let i = 0; i < x.length; i++) x[i] += written[i];
    this.at("hook_resid_post", x, d, change);
    if (last_only) x = x.slice((n - 1) * d);
    const rows = x.length / d, logits = affine(normalised(x, rows, d, this.norm_final, this.norm_final_bias, this.epsilon), rows, this.head, null);
    return Array.from({ length: rows }, (_, t) => logits.subarray(t * this.vocabulary_size, (t + 1) * this.vocabulary_size));
  }

  at(name, x, d, change) {
    if (name === this.hook) change(x, d);
  }

  attention(x, n) {
    const d = this.d_model, size = d / this.heads, qkv = affine(x, n, this.attention_in, this.attention_in_bias), out = new Float32Array(n * d);
    const weights = new Float64Array(n), root = Math.sqrt(size);
    for (let h = 0; h < this.heads; h++) {
      for (let t = 0; t < n; t++) {
        let largest = -Infinity, total = 0;
        for (let s = 0; s <= t; s++) {
          let dot = 0;
          for (let i = 0; i < size; i++) dot += qkv[t * 3 * d + h * size + i] * qkv[s * 3 * d + d + h * size + i];
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

  hooked(ids) {
    // What passes the hook: [position, d_in], flat.
    let seen;
    this.run(ids, (x) => { seen = x.slice(); });
    return seen;
  }

  features(x, d) {
    // Activations of all features of one activation vector.
    if (this.architecture === "neurons") return Float32Array.from(x);
    const centred = x.map((value, i) => value - this.b_dec[i]);
    const z = affine(centred, 1, this.W_enc, this.b_enc);
    if (this.architecture === "topk") {
      const kept = new Set(Array.from(z.keys()).sort((a, b) => z[b] - z[a]).slice(0, this.k));
      return z.map((value, f) => (kept.has(f) && value > 0 ? value : 0));
    }
    return z.map((value, f) => (value > 0 && (!this.threshold || value > this.threshold[f]) ? value : 0));
  }

  feature(x, d, number) {
    // One feature's activation, without the others where it does not depend on them.
    if (this.architecture === "neurons") return x[number];
    if (this.architecture === "topk") return this.features(x, d)[number];
    let z = this.b_enc[number];
    for (let i = 0; i < d; i++) z += (x[i] - this.b_dec[i]) * this.W_enc[number * d + i];
    return z > Math.max(0, this.threshold ? this.threshold[number] : 0) ? Math.fround(z) : 0;
  }

  clamp(number, value) {
    // A change for `run`: the feature is pinned to `value` at every position; the autoencoder's error stays as it is.
    return (x, d) => {
      for (let t = 0; t < x.length / d; t++) {
        const row = x.subarray(t * d, (t + 1) * d), by = value - this.feature(row, d, number);
        if (this.architecture === "neurons") row[number] += by;
        else for (let i = 0; i < d; i++) row[i] += by * this.W_dec[number * d + i];
      }
    };
  }

  generate(ids, new_tokens, temperature, seed, change) {
    // Sampled continuation by Gumbel noise: the same seed gives every token the same noise at every step, clamped or not.
    const random = mulberry32(seed), last = Math.min(this.context, ids.length + new_tokens);
    ids = ids.slice();
    while (ids.length < last) {
      let best = -Infinity, next = 0;
      this.run(ids, change)[0].forEach((logit, t) => {
        const drawn = logit / temperature - Math.log(-Math.log(random() + 1e-12));
        if (drawn > best) [best, next] = [drawn, t];
      });
      ids.push(next);
      if (next === this.tokenizer.end) break;
    }
    return ids;
  }
}

function affine(x, n, weight, bias) {
  // [n, in] × [out, in]ᵀ + bias → [n, out]
  const d_in = x.length / n, d_out = weight.length / d_in, out = new Float32Array(n * d_out);
  for (let o = 0; o < d_out; o++) {
    const row = o * d_in, start = bias ? bias[o] : 0;
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
    let mean = 0, variance = 0;
    for (let i = 0; i < d; i++) mean += x[t * d + i];
    mean /= d;
    for (let i = 0; i < d; i++) variance += (x[t * d + i] - mean) ** 2;
    const inverse = 1 / Math.sqrt(variance / d + epsilon);
    for (let i = 0; i < d; i++) out[t * d + i] = (x[t * d + i] - mean) * inverse * weight[i] + bias[i];
  }
  return out;
}

function softmax(logits) {
  const p = new Float64Array(logits.length);
  let largest = -Infinity, total = 0;
  for (const l of logits) largest = Math.max(largest, l);
  for (let i = 0; i < p.length; i++) total += p[i] = Math.exp(logits[i] - largest);
  for (let i = 0; i < p.length; i++) p[i] /= total;
  return p;
}

function divergence(p, q) {
  // KL(p ‖ q) in nats
  let sum = 0;
  for (let i = 0; i < p.length; i++) if (p[i] > 0) sum += p[i] * Math.log(p[i] / Math.max(q[i], 1e-300));
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
