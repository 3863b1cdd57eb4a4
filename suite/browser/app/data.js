// What lies in the page: blocks of base64, deflated. The index is inflated at once, a feature's page when somebody turns to it.

const parsed = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done, { once: true });
  else done();
});

async function block(id) { // → its bytes
  let element = document.getElementById(id);
  if (!element) {
    await parsed; // blocks stand behind the script
    element = document.getElementById(id);
  }
  const text = atob(element.textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const json_of = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const json_block = async (id) => json_of(await block(id));

function with_binary(buffer) {
  // [JSON, place of the numbers behind it]
  const length = new DataView(buffer).getUint32(0, true);
  return [json_of(new Uint8Array(buffer, 4, length)), 4 + length];
}

async function page_block(at) {
  // [pages, token ids of all their texts, one after the other]
  const buffer = await block(`pages-${at}`), [pages, start] = with_binary(buffer);
  return [pages, CONSTANTS.id_bytes === 2 ? new Uint16Array(buffer, start) : new Uint32Array(buffer, start)];
}

function with_ids(value, cursor) {
  // Every text gets its part of the ids: they lie in the order in which the pages name the texts.
  if (Array.isArray(value)) return value.map((v) => with_ids(v, cursor));
  if (value === null || typeof value !== "object") return value;
  if (value.ids !== undefined) return { ...value, ids: Array.from(cursor.ids.subarray(cursor.at, (cursor.at += value.ids))) };
  return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, with_ids(v, cursor)]));
}

class Features {
  static async open() {
    const [index, texts] = await Promise.all([json_block("index"), json_block("vocabulary")]);
    return new Features(index, new Vocabulary(texts));
  }

  constructor(index, vocabulary) {
    Object.assign(this, index);
    this.vocabulary = vocabulary;
    this.count = this.strongest.length;
    this.folded = vocabulary.texts.map((t) => t.toLowerCase());
    this.chunks = new Map();
    this.texts = null;
  }

  token(number) {
    // Name of the strongest token; empty for a dead feature.
    return this.strongest[number].length ? this.vocabulary.name(this.strongest[number][0]) : "";
  }

  async page(number) {
    // What the template draws.
    const pages = await this.chunk(Math.floor(number / CONSTANTS.chunk));
    return this.filled(pages[number % CONSTANTS.chunk]);
  }

  chunk(at) {
    if (!this.chunks.has(at)) {
      this.chunks.set(at, page_block(at).then(([pages, ids]) => {
        const cursor = { ids, at: 0 };
        return pages.map((page) => with_ids(page, cursor));
      }));
      if (this.chunks.size > 8) this.chunks.delete(this.chunks.keys().next().value);
    }
    return this.chunks.get(at);
  }

  filled(value) {
    // Texts are stored as token ids and the activations that are not 0; the template wants a list of tokens.
    if (Array.isArray(value)) return value.map((v) => this.filled(v));
    if (value === null || typeof value !== "object") return value;
    if (value.ids !== undefined) {
      const values = new Array(value.ids.length).fill(0);
      value.at.forEach((place, i) => { values[place] = value.values[i]; });
      return this.vocabulary.tokens(value.ids, values, value.focus);
    }
    return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, this.filled(v)]));
  }

  async load_texts() {
    // The examples' texts, folded, one string per feature: only a search in texts needs them.
    if (this.texts) return;
    const bytes = this.folded.map(bytes_of), spelled = ({ ids }) => text_of_bytes(ids.flatMap((t) => bytes[t] ?? [])), found = [];
    for (let at = 0; at * CONSTANTS.chunk < this.count; at++) {
      for (const page of await this.chunk(at)) {
        const examples = [...page.examples, ...page.tenths.flatMap((t) => t.examples)];
        found.push(examples.map((e) => spelled(e.tokens)).join(END_OF_EXAMPLE));
      }
    }
    this.texts = found;
  }
}
