// The feature table: the index is read at once, the pages of 64 features when somebody turns to one
// of them.

const json_of = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

function with_binary(buffer) {
  // [JSON, place of the numbers behind it]
  const length = new DataView(buffer).getUint32(0, true);
  return [json_of(new Uint8Array(buffer, 4, length)), 4 + length];
}

function integers(buffer, at, count) {
  // Token ids of two bytes each, or four.
  return buffer.byteLength - at >= 4 * count && count
    ? new Uint32Array(buffer, at, count)
    : new Uint16Array(buffer, at, count);
}

class Features {
  static async open(source) {
    const [index, texts] = (
      await Promise.all([source.block("index"), source.block("vocabulary")])
    ).map(json_of);
    return new Features(source, index, new Vocabulary(texts));
  }

  constructor(source, index, vocabulary) {
    const column = (name) => index.features.map((f) => f[name]),
      names = Object.keys(index.features[0] ?? {});
    Object.assign(this, index, {
      source,
      vocabulary,
      count: index.features.length,
      chunks: new Map(),
      texts: null,
    });
    this.columns = Object.fromEntries(names.map((name) => [name, column(name)]));
    this.strongest = this.columns.strongest.map((ids) => ids ?? []);
    this.folded = vocabulary.texts.map((t) => t.toLowerCase());
  }

  token(number) {
    // Name of the strongest token; empty for a dead feature.
    return this.strongest[number]?.length ? this.vocabulary.name(this.strongest[number][0]) : "";
  }

  maximum(number) {
    return this.columns.maximum[number] || this.columns.maximum_all?.[number] || 1;
  }

  async page(number, kind = this.kind) {
    // A row of the table, with `examples`, the strongest first, and `samples` of the tenths of its
    // range, the highest first.
    const { features, examples } = await this.pages(kind, Math.floor(number / this.chunk));
    const own = examples.filter((e) => e.feature === number);
    const samples = own.filter((e) => e.tenth >= 0).sort((a, b) => b.tenth - a.tenth);
    return {
      ...features[number % this.chunk],
      number,
      examples: own.filter((e) => e.tenth < 0),
      samples,
    };
  }

  pages(kind, at) {
    const name = `${kind}-${at}`;
    if (!this.chunks.has(name)) {
      const read = this.source.block(name).then(unpacked);
      read.catch(() => this.chunks.delete(name));
      this.chunks.set(name, read);
      if (this.chunks.size > 8) this.chunks.delete(this.chunks.keys().next().value);
    }
    return this.chunks.get(name);
  }

  async row(number) {
    // Token ids of a row of the held-out text.
    const buffer = await this.source.block(`rows-${Math.floor(number / this.rows)}`),
      [{ context, count }, start] = with_binary(buffer);
    const all = integers(buffer, start, count),
      first = (number % this.rows) * context;
    return Array.from(all.subarray(first, first + context));
  }

  async load_texts() {
    // The examples' texts, folded, one string per feature: only a search in texts needs them.
    if (this.texts) return;
    const bytes = this.folded.map(bytes_of),
      found = Array.from({ length: this.count }, () => []);
    for (let at = 0; at * this.chunk < this.count; at++) {
      const { examples } = await this.pages(this.kind, at);
      for (const e of examples)
        found[e.feature].push(text_of_bytes(e.ids.flatMap((t) => bytes[t] ?? [])));
    }
    this.texts = found.map((texts) => texts.join(END_OF_EXAMPLE));
  }
}

function unpacked(buffer) {
  const [head, start] = with_binary(buffer),
    total = head.examples.reduce((sum, e) => sum + e.length, 0);
  const values = new Float32Array(buffer, start, total),
    ids = integers(buffer, start + 4 * total, total);
  let at = 0;
  for (const e of head.examples) {
    const end = at + e.length;
    Object.assign(e, {
      ids: Array.from(ids.subarray(at, end)),
      values: Array.from(values.subarray(at, end)),
    });
    at = end;
  }
  return head;
}
