// What runs in a Worker beside `browser.html`: the model in the file, and the search in the texts
// of all examples. A message {id, question, arguments} is answered by {id, answer} or {id, error},
// and maybe by some {id, part} before that.

class Engine {
  async load_model(text) { this.model = new Model(await inflated(text)); }

  async load_vocabulary(text) {
    this.vocabulary = new Vocabulary(json_of(await inflated(text)));
    this.found = [];
  }

  async load_texts(text) {
    // Adds the texts of a block of features, in lower case, one string per feature.
    const { features, examples } = unpacked(await inflated(text));
    for (const { feature } of features) this.found[feature] = "";
    for (const { feature, ids } of examples)
      this.found[feature] += this.vocabulary.joined(ids).toLowerCase() + "\uffff";
  }

  texts({ wanted }) { return this.found.flatMap((text, i) => (text.includes(wanted) ? [i] : [])); }
}

const engine = new Engine();
onmessage = async ({ data: { id, question, arguments: given } }) => {
  try {
    const owner = question in engine ? engine : engine.model;
    const ahead = (part) => postMessage({ id, part });
    postMessage({ id, answer: await owner[question](given, ahead) });
  } catch (error) { postMessage({ id, error: error.message }); }
};
