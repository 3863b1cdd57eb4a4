// Where the page's data and answers come from: the file that it lies in, or the kernel of a
// notebook. See suite/browser/__init__.py.

class Source {
  // Sends questions with `post`, and knows by their numbers who waits for the answers.
  constructor() { Object.assign(this, { waiting: new Map(), prefix: Math.random(), asked: 0 }); }

  ask(question, given, ahead) {
    const id = `${this.prefix}-${this.asked++}`;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed, ahead });
      this.post({ id, question, arguments: given });
    });
  }

  answered({ id, error, answer, part }, buffers) {
    const { done, failed, ahead } = this.waiting.get(id) ?? {};
    if (!done) return; // another view of the same widget asked
    if (part) return ahead?.(part);
    this.waiting.delete(id);
    if (error) failed(new Error(error));
    else done(buffers?.length ? buffers[0] : answer);
  }
}

class FileSource extends Source {
  constructor(title) {
    super();
    Object.assign(this, { title, kept: {}, progress: () => {} });
    this.address = {
      get: () => location.hash.slice(1), set: (text) => { location.hash = text; },
      replace: (text) => history.replaceState(null, "", `#${text}`),
      listen: (changed) => addEventListener("hashchange", changed), link: () => location.href,
    };
  }

  async text(name) {
    if (document.readyState === "loading")
      await new Promise((done) => addEventListener("DOMContentLoaded", done, { once: true }));
    const element = document.getElementById(name);
    if (!element) throw new Error(`this file has no ${name}`);
    return element.textContent;
  }

  async block(name) { return inflated(await this.text(name)); }

  async ask(question, given, ahead) {
    if (["notes", "note", "ratings", "rate"].includes(question)) return this[question](given);
    await (question === "texts" ? this.index() : this.load_model());
    if (question === "context") given.ids = await this.features.row(given.row);
    return super.ask(question, given, ahead);
  }

  async warm_up() {
    // Before anybody asks.
    if (!this.features.no_model) await this.load_model();
    await this.index();
  }

  load_model() { return (this.loaded ??= this.hand_over("load_model", "model")); }

  post(message) {
    if (!this.worker) {
      const url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
      this.worker = new Worker(url);
      this.worker.onmessage = ({ data }) => this.answered(data);
    }
    this.worker.postMessage(message);
  }

  async hand_over(question, name) {
    return super.ask(question, await this.text(name)); // inflated there, beside the page
  }

  index() {
    // Hands the texts of all examples to the Worker, once.
    const { kind, count, chunk } = this.features, n = Math.ceil(count / chunk);
    return (this.indexed ??= (async () => {
      await this.hand_over("load_vocabulary", "vocabulary");
      for (let at = 0; at < n; at++) {
        this.progress(at / n);
        await this.hand_over("load_texts", `${kind}-${at}`);
      }
    })());
  }

  // --- what a reader wrote: in the browser's own storage, and in `kept` where that has none ---

  stored(name, empty) {
    try {
      return JSON.parse(localStorage.getItem(`${name}: ${this.title}`)) ?? this.kept[name] ?? empty;
    } catch {
      return this.kept[name] ?? empty;
    }
  }

  store(name, value) {
    this.kept[name] = value;
    try {
      localStorage.setItem(`${name}: ${this.title}`, JSON.stringify(value));
    } catch { /* kept as long as the page is open; a button saves it */ }
  }

  notes() { return this.stored("notes", {}); }

  note({ notes }) { this.store("notes", notes); }

  ratings() { return this.stored("ratings", []); }

  rate(given) {
    const rater = given.rater.trim(), time = new Date().toISOString().slice(0, 19) + "+00:00";
    const keys = ["seed", "kind", "unit"];
    const same = (r) => r.rater === rater && keys.every((key) => r[key] === given[key]);
    const others = this.ratings().filter((r) => !same(r));
    this.store("ratings", [...others, { ...given, rater, time }]);
  }
}

class KernelSource extends Source {
  constructor(model) {
    super();
    Object.assign(this, { model, in_kernel: true });
    const now = () => model.get("address");
    let shown = now(), changed = () => {};
    const replace = (text) => {
      shown = text;
      model.set("address", text);
      model.save_changes();
    };
    const set = (text) => { replace(text); changed(); };
    const listen = (act) => { changed = act; }, link = () => `#${now()}`;
    this.address = { get: now, set, replace, listen, link };
    model.on("change:address", () => now() !== shown && set(now())); // Python set it
    model.on("msg:custom", (message, buffers) => this.answered(message, buffers));
  }

  post(message) { this.model.send(message); }

  async block(name) {
    const data = await this.ask("block", { name });
    return data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength); // aligned
  }

  warm_up() {
    return this.ask("texts", { wanted: "\uffff\uffff" }); // nowhere, but now there is an index
  }
}
