// The application: the address, turning pages, keys. The parts are in list.js, start.js, try.js
// and rate.js. The address says all that is shown.

const VIEWS = ["start", "list", "feature", "compare", "try", "rate"];
const WIDE = 820; // px: from there on, list and page are side by side
const STATE = ["feature", "view", "q", "sort", "text", "clamps", "pins", "row", "position"];

async function mount(element, source) {
  // Draws the page into a shadow root of the element; resolves when it is shown.
  const root = element.attachShadow({ mode: "open" }), style = new CSSStyleSheet();
  style.replaceSync(STYLE);
  root.adoptedStyleSheets = [style];
  // what is typed here is no shortcut of JupyterLab
  element.setAttribute("data-lm-suppress-shortcuts", "true");
  root.innerHTML = FRAME;
  // the first sentence at once, before the data is read
  if (!source.address.get()) root.getElementById("start").classList.add("shown");
  const late = setTimeout(() => {
    root.getElementById("count").textContent = source.in_kernel
      ? "Waiting for the kernel: it is busy, or there is none." : "reading the features…";
  }, 3000);
  try {
    if (typeof DecompressionStream === "undefined")
      throw new Error("This browser is too old for this page: it needs DecompressionStream.");
    const features = await Features.open(source).finally(() => clearTimeout(late));
    const app = new App(element, root, source, features);
    await app.start();
    return app;
  } catch (error) {
    root.textContent = error.message;
    throw error;
  }
}

async function mount_file() {
  const source = new FileSource(document.title), tools = { page_html, draw_blind, matches };
  const app = await mount(document.querySelector("main"), source);
  document.documentElement.dataset.ready = "yes";
  const texts = { parse_query, decimal, percent, signed, pieces, plain, isolated, Vocabulary };
  globalThis.sae = { app, source, ...tools, ...texts }; // for the console, and the tests
}

function render({ model, el }) {
  // What anywidget calls.
  const host = document.createElement("div"), themed = () => {
    const schemes = { true: "light", false: "dark" };
    host.style.colorScheme = schemes[document.body.dataset.jpThemeLight] ?? "light dark";
  };
  host.style.cssText = "display: block; height: 780px";
  themed();
  const watch = new MutationObserver(themed);
  watch.observe(document.body, { attributes: true });
  el.append(host);
  mount(host, new KernelSource(model)).catch((error) => console.error(error));
  return () => watch.disconnect();
}

function rested(milliseconds, action) {
  // Called when that long nobody called.
  let wait;
  return () => { clearTimeout(wait); wait = setTimeout(action, milliseconds); };
}

function one_at_a_time(action) {
  // While it runs, only the last of further calls is kept.
  let running = false, again = false;
  return async function call() {
    again = running;
    if (running) return;
    running = true;
    try { await action(); } finally { running = false; if (again) call(); }
  };
}

class App {
  constructor(host, root, source, features) {
    Object.assign(this, { host, root, source, features, number: -1, page: null });
    this.texts = new WeakMap(); // a text whose tokens can be chosen → what is known of them
    features.whole = source.in_kernel || !features.no_model;
    source.features = features;
    this.state = this.read(source.address.get());
    Object.assign(this, { list: new List(this), map: new FeatureMap(this) });
    Object.assign(this, { try: new Try(this), rate: new Rate(this) });
  }

  $(id) { return this.root.getElementById(id); }

  ask(question, given, ahead) { return this.source.ask(question, given, ahead); }

  async start() {
    const { features } = this, { title, facts, score, kind, count } = features;
    const fields = Object.keys(FIELDS).filter((name) => features.columns[FIELDS[name]]).join(", ");
    const texts = { title, facts, fields, "how-many": decimal(count), kind };
    texts["map-y"] = score ? "rule’s score" : "maximum";
    for (const [id, text] of Object.entries(texts)) this.$(id).textContent = text;
    this.$("promise").hidden = !features.whole;
    this.$("map-box").open = this.host.clientWidth >= WIDE;
    this.draw_start();
    this.listen();
    await this.follow_address();
    // what takes long is begun while the reader reads; where it fails, the question will say so
    setTimeout(() => { this.source.warmed = this.source.warm_up().catch(() => {}); }, 300);
  }

  draw_start() {
    show(this.$("first"), first_html(this.features));
    show(this.$("kept"), kept_html(this.features));
  }

  listen() {
    const on = (id, event, act) => this.$(id).addEventListener(event, act);
    this.source.address.listen(() => this.follow_address());
    on("query", "input", rested(80, () => this.search(true)));
    on("query", "keydown", (e) => e.key === "Enter" && this.turn_to(this.list.found[0], ""));
    on("rows", "click", (e) => this.turn_to(e.target.closest("[data-number]")?.dataset.number));
    on("rows", "scroll", () => this.list.draw());
    new ResizeObserver(() => this.list.draw()).observe(this.$("rows"));
    this.root.addEventListener("click", (e) => this.clicked(e));
    this.root.addEventListener("change", ({ target: { dataset: { act }, value } }) => {
      const names = value?.split(",").map((name) => name.trim()).filter(Boolean);
      if (act === "name") this.keep({ name: value.trim() });
      else if (act === "lists") this.keep({ lists: [...new Set(names)] });
    });
    const keys = this.source.in_kernel ? this.root : document; // keys of a notebook are its own
    keys.addEventListener("keydown", (e) => this.keys(e));
    on("pins", "change", (e) => this.go({ view: "compare", pins: e.target.value }));
    for (const panel of [this.map, this.try, this.rate]) panel.listen(on);
  }

  // --- address ---

  read(text) {
    const given = new URLSearchParams(text);
    return Object.fromEntries(STATE.map((key) => [key, given.get(key) ?? ""]));
  }

  address(changes) {
    const given = Object.entries({ ...this.state, ...changes }).filter(([, value]) => value !== "");
    return new URLSearchParams(given).toString();
  }

  go(changes) { this.source.address.set(this.address({ row: "", position: "", ...changes })); }

  note(changes) {
    // What is shown already, so that a copied address shows it too.
    const address = this.address(changes);
    Object.assign(this.state, changes);
    this.source.address.replace(address);
  }

  async follow_address() {
    const { q, sort } = this.state;
    this.state = this.read(this.source.address.get());
    const { state } = this, number = Number(state.feature);
    const numbered = /^\d+$/.test(state.feature) && number < this.features.count;
    const view = VIEWS.includes(state.view) ? state.view : state.feature ? "feature" : "start";
    this.host.dataset.view = this.$("body").dataset.view = this.view = view;
    for (const part of this.root.querySelectorAll("section.panel")) // beside the list: the feature
      part.classList.toggle("shown", part.id === (view === "list" ? "feature" : view));
    for (const a of this.root.querySelectorAll("nav a"))
      a.toggleAttribute("aria-current", a.dataset.view === view);
    if (this.turn === undefined || state.q !== q || state.sort !== sort) {
      this.turn = true;
      if (this.$("query").value !== state.q) this.$("query").value = state.q;
      const searched = this.search();
      if (!numbered) await searched;
    }
    if (numbered) await this.show(number);
    else if (state.feature) this.say_missing(state.feature);
    else if (this.number < 0 && view !== "start") await this.show(this.list.found[0] ?? -1);
    if (state.row) await this.expand_place(Number(state.row), Number(state.position));
    if (view === "list") this.list.draw();
    else await ({ try: () => this.try.open(), compare: () => this.draw_pins() })[view]?.();
  }

  say_missing(wanted) {
    const { kind, count } = this.features;
    this.number = -1;
    const number = /^\d+$/.test(wanted) ? decimal(Number(wanted)) : wanted;
    show(this.$("page"), html`<h2>There is no ${kind} ${number}</h2>
      <p>There are ${decimal(count)}, numbered 0 to ${decimal(count - 1)}.</p>`);
  }

  // --- the page ---

  async search(to_first = false) {
    const query = this.$("query").value;
    if (!(await this.list.search(query)) || !to_first) return;
    const [first] = this.list.found, view = this.view === "start" ? "feature" : this.view;
    if (first === undefined) return this.note({ q: query });
    // the best match at once; it goes into the history when somebody chooses
    this.note({ q: query, feature: String(first), view: view === "feature" ? "" : view });
    await this.follow_address();
  }

  async show(number) {
    if (number === this.number) return;
    this.number = number;
    const page = number >= 0 ? await this.features.page(number) : null;
    if (number !== this.number) return; // another was asked for meanwhile
    this.page = page && Object.assign(page, { opens: true });
    if (page) this.draw_page();
    else this.$("page").textContent = "Nothing matches.";
    const { kind, title } = this.features, named = number >= 0 ? `${kind} ${number} - ` : "";
    if (!this.source.in_kernel) document.title = named + title;
    this.$("feature").scrollTop = 0;
    this.list.reveal();
    this.list.draw();
  }

  async draw_page() {
    const { page, features } = this;
    show(this.$("page"), page_html(features, page));
    if (!features.has_logits) return;
    const effects = await features.logits(page.number);
    const figure = page === this.page && this.$("page").querySelector(".logits");
    if (figure) show(figure, logits_html(page, effects));
  }

  step(by) {
    const { found } = this.list, at = found.indexOf(this.number), n = found.length;
    this.turn_to(found[at < 0 ? 0 : (at + by + n) % n]);
  }

  draw_one() {
    const { found } = this.list, { n_active } = this.features.columns;
    const others = found.filter((i) => i !== this.number && n_active[i] > 0);
    this.turn_to((others.length ? others : found)[Math.floor(Math.random() * others.length)]);
  }

  turn_to(feature, view = this.view === "try" ? "try" : "") {
    if (feature !== undefined) this.go({ feature, view });
  }

  // --- examples and tokens ---

  async expand_place(row, position) {
    const at = this.page?.all.findIndex((e) => e.row === row && e.position === position);
    const tr = this.$("page").querySelector(`tr[data-example="${at}"]`);
    if (tr && !tr.querySelector("[aria-expanded=true]")) await this.expand(tr);
  }

  async expand(tr) {
    // Opens an example, or closes it.
    const open = tr.querySelector("[aria-expanded=true]");
    tr.querySelector("button").setAttribute("aria-expanded", String(!open));
    if (open) return tr.nextElementSibling.remove();
    const { page, features } = this, e = page.all[tr.dataset.example];
    const more = document.createElement("tr");
    more.className = "expanded";
    show(more, html`<td colspan="2">reading the whole text…</td>`);
    tr.after(more);
    const cell = more.firstElementChild;
    this.note({ feature: String(this.number), row: String(e.row), position: String(e.position) });
    const question = { row: e.row, feature: page.number, ablate: true };
    const absent = `The whole text needs the language model; it is not here: ${features.no_model}.`;
    const given = !features.whole ? { problem: absent } :
      await this.ask("context", question).catch((error) => ({ problem: error.message }));
    show(cell, expanded_html(features, e, given, features.maximum(page.number)));
    if (!given.ids) return;
    this.enliven(cell, given);
    await this.explain(cell.querySelector(".live"), given.ids, e.position);
  }

  async explain(text, ids, position) {
    // Why the shown feature is at what it is there, below the text.
    const feature = this.number, box = text.nextElementSibling.nextElementSibling;
    const content = await this.ask("why", { ids, feature, position }).then(
      (found) => why_html(this.features, ids, position, feature, found), problem_html);
    if (this.number === feature) show(box, content);
  }

  enliven(box, given) { this.texts.set(box.querySelector(".live"), { given, at: -1 }); }

  choose(text, at) {
    // A token of a text: what is known of it is shown below.
    const chosen = this.texts.get(text);
    if (!chosen || at < 0 || at >= text.children.length) return;
    text.children[chosen.at]?.classList.remove("at");
    text.children[at].classList.add("at");
    chosen.at = at;
    show(text.nextElementSibling, here_html(this.features, chosen.given, at));
    this.explain(text, chosen.given.ids, at);
    if (text.closest("#tried")) this.try.draw_graph(at);
  }

  // --- keeping ---

  async keep(change) {
    await this.features.note(this.number, change);
    this.draw_page();
    this.list.draw();
    this.draw_start();
  }

  async copy(text, what) {
    // Where the clipboard is not to be had, the text is left to be copied by hand.
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    const beside = { try: "clamp-note", compare: "compare-note" }[this.view] ?? "said";
    this.$(beside).textContent = done ? `${what} copied` : text;
  }

  async save() {
    const { title, notes, lists } = this.features, ratings = await this.ask("ratings", {});
    const kept = { title, notes, lists, ratings };
    download("features.json", "application/json", JSON.stringify(kept, null, 1));
  }

  act({ act, kind, number, tenth, title }, button) {
    const { features, page } = this, pins = kind && this.toggled(kind, Number(number));
    const actions = {
      previous: () => this.step(-1), next: () => this.step(1), random: () => this.draw_one(),
      sort: () => this.list.sort_by(button.dataset.sort),
      star: () => this.keep({ star: !features.notes[page.number]?.star }),
      pin: () => this.go({ pins, view: "compare" }),
      link: () => this.copy(this.source.address.link(), "The address"),
      markdown: () => this.copy(markdown_of(features, page), "Markdown"),
      export: () => this.save(),
      tenth: () => this.choose_tenth(button, tenth),
      svg: () => save_svg(button.closest("figure").querySelector("svg"), title),
    };
    actions[act]?.();
  }

  choose_tenth(button, tenth) {
    const article = button.closest("article"), off = button.getAttribute("aria-pressed") === "true";
    for (const other of article.querySelectorAll("[data-act=tenth]"))
      other.setAttribute("aria-pressed", String(other === button && !off));
    for (const part of article.querySelectorAll("tbody[data-tenth], .examples, .examples-head"))
      part.hidden = !off && part.dataset.tenth !== tenth;
  }

  // --- features side by side ---

  get pins() { return this.state.pins.split(/[,\s]+/).filter(Boolean); } // "12", "neuron-3"

  toggled(kind, number) {
    const pin = kind === this.features.kind ? `${number}` : `${kind}-${number}`;
    const others = this.pins.filter((p) => p !== pin), pinned = others.length < this.pins.length;
    return (pinned ? others : [...others, pin].slice(-4)).join(",");
  }

  async draw_pins() {
    const { features } = this;
    this.$("pins").value = this.pins.join(", ");
    const pages = this.pins.map(async (pin) => {
      const [, kind = features.kind, number] = pin.match(/^(?:([a-z]+)-)?(\d+)$/) ?? [];
      const page = await features.page(Number(number), kind).catch(() => ({}));
      return page.feature === Number(number) ? page_html(features, page) :
        html`<article><h2>There is no ${pin}.</h2></article>`;
    });
    show(this.$("pinned"), html`${await Promise.all(pages)}`);
  }

  // --- pointer and keys ---

  clicked(e) {
    const link = e.target.closest("a[href^='#']"), button = e.target.closest("button[data-act]");
    const text = e.target.closest(".live"), cell = e.target.closest("[data-token]");
    const tr = e.target.closest("tr[data-example]");
    if (link) {
      e.preventDefault();
      const changes = this.read(link.getAttribute("href").slice(1));
      if (link.closest("#try") && !link.dataset.view) changes.view = "try";
      for (const key of STATE) if (key !== "view" && !changes[key]) delete changes[key];
      this.go(changes);
    } else if (button) this.act(button.dataset, button);
    else if (text) this.choose(text, [...text.children].indexOf(e.target.closest(".live > bdi")));
    else if (cell) this.choose(this.$("tried").querySelector(".live"), Number(cell.dataset.token));
    else if (tr && !String(getSelection())) this.expand(tr);
  }

  keys(e) {
    const [target] = e.composedPath(), { activeElement } = this.root;
    if (e.ctrlKey || e.metaKey || e.altKey || target.closest?.("input, textarea, select")) {
      if (e.key === "Escape") target.blur?.();
      return;
    }
    const way = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[e.key];
    const button = (act) => () => this.$("page").querySelector(`button[data-act=${act}]`)?.click();
    const letters = { j: () => this.step(1), k: () => this.step(-1), r: () => this.draw_one(),
      s: button("star"), p: button("pin"), "/": () => this.$("query").focus() };
    let act = letters[e.key];
    if (way && activeElement?.matches(".live"))
      act = () => this.choose(activeElement, (this.texts.get(activeElement)?.at ?? 0) + way);
    else if (way && (activeElement === this.$("rows") || /Left|Right/.test(e.key)))
      act = () => this.step(way);
    else if (e.key === "Enter" && activeElement === this.$("rows"))
      act = () => this.go({ feature: this.number, view: "" });
    if (!act || this.view === "rate") return;
    e.preventDefault();
    act();
  }
}

function save_svg(svg, name) {
  // With the colours that the page's style gives it.
  const copy = svg.cloneNode(true), all = (element) => [element, ...element.querySelectorAll("*")];
  all(svg).forEach((element, i) => {
    const { fill, stroke, strokeWidth, strokeLinecap, font } = getComputedStyle(element);
    Object.assign(all(copy)[i].style, { fill, stroke, strokeWidth, strokeLinecap, font });
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  download(`${name}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copy));
}

function download(name, type, text) {
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}
