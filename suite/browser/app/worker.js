// What runs in a Worker beside `browser.html`: the model in the file, and the search in the texts
// of all examples. A message {id, question, given} is answered by {id, answer} or {id, error}, and
// maybe by some {id, part} before that.

const END_OF_EXAMPLE = ENCODER.encode("\uffff");

class Engine {
  load_model(buffer) {
    this.model = new Model(buffer);
  }

  load_vocabulary(buffer) {
    this.bytes = json_of(buffer).map((text) => Uint8Array.from(bytes_of(text)));
    this.found = [];
  }

  load_texts(buffer) {
    // Adds the texts of a block of features, in lower case, one string per feature.
    const [{ features, examples }, start] = with_binary(buffer), decoder = new TextDecoder();
    const total = examples.reduce((sum, e) => sum + e.length, 0), parts = new Map();
    const ids = integers(buffer, start + 4 * total, total);
    for (const { feature } of features) parts.set(feature, []);
    let at = 0;
    for (const { feature, length } of examples) {
      const own = parts.get(feature);
      for (const end = at + length; at < end; at++) own.push(this.bytes[ids[at]] ?? []);
      own.push(END_OF_EXAMPLE);
    }
    for (const [feature, own] of parts) {
      const text = new Uint8Array(own.reduce((sum, bytes) => sum + bytes.length, 0));
      let place = 0;
      for (const bytes of own) {
        text.set(bytes, place);
        place += bytes.length;
      }
      this.found[feature] = decoder.decode(text).toLowerCase();
    }
  }

  texts({ wanted }) {
    return this.found.flatMap((text, i) => (text.includes(wanted) ? [i] : []));
  }
}

const engine = new Engine();
onmessage = ({ data: { id, question, given } }) => {
  try {
    const owner = question in engine ? engine : engine.model;
    const ahead = (part) => postMessage({ id, part });
    postMessage({ id, answer: owner[question](given, ahead) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
