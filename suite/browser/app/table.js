// The feature table: the index is read at once, the pages of 64 features when somebody turns to one
// of them.

const json_of = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

function inflated(text) {
  // A block as the file holds it: deflated, as base64.
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function with_binary(buffer) {
  // [JSON, place of the numbers behind it]
  const length = new DataView(buffer).getUint32(0, true);
  return [json_of(new Uint8Array(buffer, 4, length)), 4 + length];
}

function integers(buffer, at, count) {
  // Token ids of two bytes each, or four.
  const Wide = buffer.byteLength - at >= 4 * count && count ? Uint32Array : Uint16Array;
  return new Wide(buffer, at, count);
}

function unpacked(buffer) {
  // {features, examples}, each example with its ids and values.
  const [head, first] = with_binary(buffer);
  const total = total_of(head.examples.map((e) => e.length));
  const values = new Float32Array(buffer, first, total);
  const ids = integers(buffer, first + 4 * total, total);
  let end = 0;
  for (const e of head.examples) {
    const start = end;
    end += e.length;
    [e.ids, e.values] = [ids, values].map((of) => Array.from(of.subarray(start, end)));
  }
  return head;
}

class Features {
  static async open(source) {
    const blocks = Promise.all([source.block("index"), source.block("vocabulary")]);
    const [index, texts] = (await blocks).map(json_of);
    return new Features(source, index, new Vocabulary(texts), await source.ask("notes", {}));
  }

  constructor(source, index, vocabulary, notes) {
    Object.assign(this, { explanations: {}, medians: "" }, index, { source, vocabulary, notes });
    this.count = index.features.length;
    this.chunks = new Map();
    const names = Object.keys(index.features[0] ?? {});
    this.columns = Object.fromEntries(names.map((c) => [c, index.features.map((f) => f[c])]));
    for (const c of ["strongest", "strongest_counts"])
      this.columns[c] = this.columns[c].map((of) => of ?? []);
    this.columns.star = this.columns.feature.map((i) => Number(Boolean(notes[i]?.star)));
    this.folded = vocabulary.texts.map((t) => t.toLowerCase());
  }

  get score() {
    // The column that says how well a rule predicts a feature, where there is one.
    return ["information", "auroc"].find((c) => this.columns[c]);
  }

  token(number) {
    // Name of the token that it is strongest on; empty for a dead feature.
    const [first] = this.columns.strongest[number] ?? [];
    return first === undefined ? "" : this.vocabulary.name(first);
  }

  label(number) {
    // The reader's name for it, else that token.
    const name = this.notes[number]?.name, token = this.token(number);
    return name ? html`<b>${name}</b>` : token ? token_html(token) : html`<small>dead</small>`;
  }

  maximum(number) {
    return this.columns.maximum[number] || this.columns.maximum_all?.[number] || 1;
  }

  get lists() {
    // The reader's lists: name → features.
    const lists = {};
    for (const [number, note] of Object.entries(this.notes))
      for (const name of note.lists ?? []) (lists[name] ??= []).push(Number(number));
    return lists;
  }

  note(number, change) {
    // Keep a name, a star, or the lists that it is in.
    this.notes[number] = { ...this.notes[number], ...change };
    this.columns.star[number] = Number(Boolean(this.notes[number].star));
    return this.source.ask("note", { notes: this.notes });
  }

  async page(number, kind = this.kind) {
    // A row of the table, with `examples`, the strongest first, `samples` of the tenths of its
    // range, the highest first, and `all` of both.
    const { features, examples: every } = await this.pages(kind, Math.floor(number / this.chunk));
    const own = every.filter((e) => e.feature === number);
    const samples = own.filter((e) => e.tenth >= 0).sort((a, b) => b.tenth - a.tenth);
    const examples = own.filter((e) => e.tenth < 0), all = [...examples, ...samples];
    return { ...features[number % this.chunk], kind, number, examples, samples, all };
  }

  async logits(number) {
    // {low, high, counts}: how many tokens' logits a feature moves by how much.
    const block = await this.source.block(`logits-${Math.floor(number / this.chunk)}`);
    return json_of(block).rows[number % this.chunk];
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
    const buffer = await this.source.block(`rows-${Math.floor(number / this.rows)}`);
    const [{ context, count }, start] = with_binary(buffer), first = (number % this.rows) * context;
    return Array.from(integers(buffer, start, count).subarray(first, first + context));
  }
}
