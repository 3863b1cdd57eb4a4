// What lies in the page: blocks of base64, deflated. The index is inflated at once, a feature's page when somebody turns to it.

const parsed = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done, { once: true });
  else done();
});

async function block(id) {
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

const json_block = async (id) => JSON.parse(new TextDecoder().decode(await block(id)));

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
      this.chunks.set(at, json_block(`pages-${at}`));
      if (this.chunks.size > 8) this.chunks.delete(this.chunks.keys().next().value);
    }
    return this.chunks.get(at);
  }

  filled(value) {
    // Texts are stored as token ids and the activations that are not 0; the template wants a list of tokens.
    if (Array.isArray(value)) return value.map((v) => this.filled(v));
    if (value === null || typeof value !== "object") return value;
    if (value.ids && value.focus) {
      const values = new Array(value.ids.length).fill(0);
      value.at.forEach((place, i) => { values[place] = value.values[i]; });
      return this.vocabulary.tokens(value.ids, values, value.focus[0]);
    }
    return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, this.filled(v)]));
  }

  async load_texts() {
    // The examples' texts, folded, one string per feature: only a search in texts needs them.
    if (this.texts) return;
    const bytes = this.folded.map(bytes_of), spelled = ({ ids }) => text_of_bytes(ids.flatMap((t) => bytes[t] ?? [])), found = [];
    for (let at = 0; at * CONSTANTS.chunk < this.count; at++) {
      for (const page of await json_block(`pages-${at}`)) {
        const examples = [...page.examples, ...page.tenths.flatMap((t) => t.examples)];
        found.push(examples.map((e) => spelled(e.tokens)).join(END_OF_EXAMPLE));
      }
    }
    this.texts = found;
  }
}
