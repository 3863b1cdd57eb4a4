// Where the page's data and answers come from: the file that it lies in, or the kernel of a
// notebook. See suite/browser/__init__.py.

class FileSource {
  constructor(title) {
    this.key = `ratings: ${title}`;
    this.address = {
      get: () => location.hash.slice(1),
      set: (text) => {
        location.hash = text;
      },
      replace: (text) => history.replaceState(null, "", `#${text}`),
      listen: (changed) => addEventListener("hashchange", changed),
    };
  }

  async block(name) {
    if (document.readyState === "loading")
      await new Promise((done) =>
        document.addEventListener("DOMContentLoaded", done, { once: true }),
      );
    const element = document.getElementById(name);
    if (!element) throw new Error(`this file has no ${name}`);
    const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
    return new Response(
      new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")),
    ).arrayBuffer();
  }

  async ask(question, given) {
    if (question === "ratings") return this.ratings();
    if (question === "rate") return this.rate(given);
    this.model ??= new Model(await this.block("model"));
    const ids = question === "context" ? await this.features.row(given.row) : undefined;
    return this.model[question](given, ids);
  }

  ratings() {
    try {
      return JSON.parse(localStorage.getItem(this.key) ?? "[]");
    } catch {
      return this.kept ?? []; // a browser that stores nothing for files
    }
  }

  rate(given) {
    const rater = given.rater.trim();
    if (!/^[^=+\-@\p{C}][^\p{C}]{0,59}$/u.test(rater))
      throw new Error(
        "A name of 1 to 60 printable characters is needed, " +
          "which a spreadsheet does not take for a formula.",
      );
    const same = (r) =>
      r.rater === rater && ["seed", "kind", "unit"].every((key) => r[key] === given[key]);
    const all = [
      ...this.ratings().filter((r) => !same(r)),
      { ...given, rater, time: new Date().toISOString().slice(0, 19) + "+00:00" },
    ];
    this.kept = all;
    try {
      localStorage.setItem(this.key, JSON.stringify(all));
    } catch {
      /* kept as long as the page is open; the button saves them */
    }
  }
}

class KernelSource {
  constructor(model) {
    Object.assign(this, { model, waiting: new Map(), asked: 0, in_kernel: true });
    let now = "";
    const listeners = [],
      set = (text) => {
        now = text;
        listeners.forEach((changed) => changed());
      };
    this.address = {
      get: () => now,
      set,
      replace: (text) => {
        now = text;
      },
      listen: (changed) => listeners.push(changed),
    };
    model.on("msg:custom", (message, buffers) => {
      const answered = this.waiting.get(message.id);
      if (!answered) return; // another view of the same widget asked
      this.waiting.delete(message.id);
      answered(message, buffers);
    });
  }

  send(question, given) {
    const id = `${(this.prefix ??= Math.random().toString(36).slice(2))}-${this.asked++}`;
    return new Promise((done, failed) => {
      this.waiting.set(id, (message, buffers) =>
        message.error ? failed(new Error(message.error)) : done([message.answer, buffers]),
      );
      this.model.send({ id, question, arguments: given });
    });
  }

  async block(name) {
    const [, [data]] = await this.send("block", { name });
    return data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength); // aligned
  }

  async ask(question, given) {
    return (await this.send(question, given))[0];
  }
}
