// The application: list, search and turning pages; the panels are in try.js, rate.js and
// context.js.
// The address says what is shown: feature=123, view=list, feature, try, context or rate, and the
// row and position of a context.

const VIEWS = {
  list: "List",
  feature: "Feature",
  try: "Try a text",
  context: "Context",
  rate: "Rate",
};
const SORTS = [
  ["number", "feature"],
  ["density", "density"],
  ["maximum", "maximum"],
  ["auroc", "auroc"],
  ["balanced accuracy", "balanced_accuracy"],
];
const COLUMNS = [
  ["density", "density", percent],
  ["maximum", "maximum", decimal],
  ["auroc", "AUROC", decimal],
];
const NARROW = 820; // px: below, one view at a time

async function mount(element, source) {
  // Draws the page into a shadow root of the element; resolves when the first feature is shown.
  const root = element.attachShadow({ mode: "open" }),
    style = new CSSStyleSheet();
  style.replaceSync(STYLE);
  root.adoptedStyleSheets = [style];
  // what is typed here is no shortcut of JupyterLab
  element.setAttribute("data-lm-suppress-shortcuts", "true");
  const box = document.createElement("div");
  box.className = "app";
  root.append(box);
  const late = setTimeout(() => {
    box.textContent = "Waiting for the kernel: it is busy, or there is none.";
  }, 3000);
  try {
    if (typeof DecompressionStream === "undefined")
      throw new Error("This browser is too old for this page: it needs DecompressionStream.");
    const app = new App(element, root, source, await Features.open(source));
    source.features = app.features;
    clearTimeout(late);
    show(box, app.frame());
    await app.start();
    return app;
  } catch (error) {
    clearTimeout(late);
    box.textContent = error.message;
    throw error;
  }
}

function mount_file() {
  const source = new FileSource(document.title);
  return mount(document.querySelector("main"), source).then((app) => {
    document.documentElement.dataset.ready = "yes";
    globalThis.sae = {
      app,
      source,
      decimal,
      percent,
      signed,
      pieces,
      plain,
      isolated,
      Vocabulary,
      matches,
      parse_query,
      page_html,
      draw_blind,
    }; // for the console, and the tests
  });
}

function render({ model, el }) {
  // What anywidget calls.
  const host = document.createElement("div"),
    themed = () => {
      const light = document.body.dataset.jpThemeLight;
      host.style.colorScheme =
        light === undefined ? "light dark" : light === "true" ? "light" : "dark";
    };
  host.style.cssText = "display: block; height: 780px";
  themed();
  const watch = new MutationObserver(themed);
  watch.observe(document.body, { attributes: true });
  el.append(host);
  mount(host, new KernelSource(model)).catch((error) => console.error(error));
  return () => watch.disconnect();
}

function one_at_a_time(action) {
  // While it runs, only the last of further calls is kept.
  let running = false,
    again = null;
  return async function call(...given) {
    if (running) {
      again = given;
      return;
    }
    running = true;
    try {
      await action(...given);
    } finally {
      running = false;
      if (again) {
        const next = again;
        again = null;
        call(...next);
      }
    }
  };
}

class App {
  constructor(host, root, source, features) {
    Object.assign(this, {
      host,
      root,
      source,
      features,
      number: -1,
      matches: [],
      turn: 0,
      page: null,
    });
    features.whole = source.in_kernel || !features.no_model;
    this.try = new Try(this);
    this.context = new Context(this);
    this.rate = new Rate(this);
  }

  $(id) {
    return this.root.getElementById(id);
  }

  get narrow() {
    return this.host.clientWidth < NARROW;
  }

  ask(question, given) {
    return this.source.ask(question, given);
  }

  frame() {
    const { title, facts } = this.features;
    return html`<header>
        <h1>${title}</h1>
        <p>${facts}</p>
        <nav aria-label="Parts of this page">
          ${Object.entries(VIEWS).map(
            ([view, name]) => html`<a href="#view=${view}" data-view="${view}">${name}</a>`,
          )}
        </nav>
      </header>
      <div id="body">
        <section id="list" aria-label="List">
          <div id="search">
            <input
              id="query"
              type="search"
              placeholder='import  density<0.1%  auroc>0.9  text:"def main"  #12'
              aria-label="Search"
              autocomplete="off"
              autocapitalize="off"
              spellcheck="false"
            />
            <div class="row">
              <label
                >Sort
                <select id="sort"></select></label
              ><button
                id="direction"
                type="button"
                aria-label="Sorted from the largest; turn round"
                data-descending="yes"
              >
                largest first
              </button>
            </div>
            <p class="row">
              <span id="count" role="status"></span
              ><button
                id="help"
                type="button"
                class="quiet"
                aria-expanded="false"
                aria-controls="help-text"
              >
                how to search
              </button>
            </p>
            <p id="help-text" hidden>${HELP}</p>
          </div>
          <div id="heads" aria-hidden="true"></div>
          <div id="rows" role="listbox" tabindex="0" aria-label="Features found">
            <div id="spacer"></div>
          </div>
        </section>
        <section id="feature" class="panel" aria-label="Feature">
          <div class="row bar">
            <button id="previous" type="button" title="key: left arrow, or k">← Previous</button
            ><button id="next" type="button" title="key: right arrow, or j">Next →</button
            ><button id="random" type="button" title="key: r">Random</button
            ><a id="try-it" href="#view=try" data-view="try">Try it on a text</a>
          </div>
          <div id="page" tabindex="-1"></div>
        </section>
        <section id="try" class="panel" aria-label="Try a text">${this.try.frame()}</section>
        <section id="context" class="panel" aria-label="Whole context">
          ${this.context.frame()}
        </section>
        <section id="rate" class="panel" aria-label="Rate, blind">${this.rate.frame()}</section>
      </div>
      <div id="bubble" role="status" hidden></div>`;
  }

  async start() {
    for (const [name, column] of SORTS)
      if (this.features.columns[column]) this.$("sort").append(new Option(name, column));
    this.$("sort").value = "density";
    this.draw_heads();
    await this.search();
    this.listen();
    await this.follow_address();
  }

  listen() {
    let wait;
    const { $ } = this,
      on = (id, event, act) => $.call(this, id).addEventListener(event, act);
    this.source.address.listen(() => this.follow_address());
    on("query", "input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => this.search(true), 120);
    });
    on("query", "keydown", (e) => {
      if (e.key === "Enter" && this.matches.length) this.go(this.matches[0], "feature");
    });
    on("sort", "change", () => this.search());
    on("direction", "click", () => {
      this.turn_round();
      this.search();
    });
    on("help", "click", () => {
      const text = this.$("help-text");
      text.hidden = !text.hidden;
      this.$("help").setAttribute("aria-expanded", String(!text.hidden));
    });
    on("rows", "scroll", () => this.draw_rows());
    new ResizeObserver(() => this.draw_rows()).observe(this.$("rows"));
    on("previous", "click", () => this.step(-1));
    on("next", "click", () => this.step(1));
    on("random", "click", () => this.draw_one());
    this.root.addEventListener("click", (e) => {
      this.follow_link(e);
      this.tell(e);
    });
    const listener = this.source.in_kernel ? this.root : document; // keys of a notebook are its own
    listener.addEventListener("keydown", (e) => this.keys(e));
    for (const panel of [this.try, this.context, this.rate]) panel.listen(on);
  }

  // --- address ---

  read_address(text = this.source.address.get()) {
    const given = new URLSearchParams(text),
      integer = (key) => (/^\d{1,9}$/.test(given.get(key) ?? "") ? Number(given.get(key)) : -1);
    const number = integer("feature") < this.features.count ? integer("feature") : -1;
    const view = Object.hasOwn(VIEWS, given.get("view") ?? "")
      ? given.get("view")
      : number >= 0
        ? "feature"
        : "list";
    return { number, view, row: integer("row"), position: integer("position") };
  }

  go(number, view, more = "") {
    this.source.address.set(
      (number >= 0 ? `feature=${number}` : "") +
        (view === "feature" && number >= 0 ? "" : `&view=${view}`) +
        more,
    );
  }

  follow_link(e) {
    const link = e.target.closest("a[href^='#']");
    if (!link) return;
    e.preventDefault();
    const { number, view, row, position } = this.read_address(link.getAttribute("href").slice(1));
    // a feature named beside the text: stay with the text
    const beside_text = link.closest("#try") && !link.dataset.view;
    this.go(
      number >= 0 ? number : this.number,
      beside_text ? "try" : view,
      row >= 0 ? `&row=${row}&position=${position}` : "",
    );
  }

  async follow_address() {
    const { number, view, row, position } = this.read_address();
    this.host.dataset.view = this.view = view;
    for (const part of this.root.querySelectorAll("section"))
      if (part.id)
        part.classList.toggle(
          "shown",
          part.id === view || (view === "list" && part.id === "feature"),
        );
    this.$("body").dataset.view = view;
    for (const a of this.root.querySelectorAll("nav a"))
      a.toggleAttribute("aria-current", a.dataset.view === view);
    await this.show(
      number >= 0 ? number : this.number >= 0 ? this.number : (this.matches[0] ?? -1),
    );
    if (view === "try") await this.try.open();
    if (view === "context") await this.context.open(row, position);
    if (view === "list") this.draw_rows();
  }

  // --- the page ---

  async show(number) {
    if (number === this.number) return;
    this.number = number;
    const page = number >= 0 ? await this.features.page(number) : null;
    if (number !== this.number) return; // another was asked for meanwhile
    if (page) show(this.$("page"), page_html(this.features, page));
    else this.$("page").textContent = "Nothing matches.";
    this.page = page;
    if (!this.source.in_kernel)
      document.title =
        number >= 0
          ? `${this.features.kind} ${number} - ${this.features.title}`
          : this.features.title;
    this.$("feature").scrollTop = 0;
    this.reveal();
    this.draw_rows();
  }

  step(by) {
    const at = this.matches.indexOf(this.number),
      n = this.matches.length;
    if (n) this.go(this.matches[at < 0 ? 0 : (at + by + n) % n], this.view_to_stay);
  }

  draw_one() {
    const alive = this.matches.filter((i) => this.features.columns.n_active[i] > 0),
      pool = alive.length ? alive : this.matches;
    const others = pool.filter((i) => i !== this.number),
      from = others.length ? others : pool;
    if (from.length) this.go(from[Math.floor(Math.random() * from.length)], this.view_to_stay);
  }

  get view_to_stay() {
    return this.view === "try" ? "try" : "feature";
  }

  // --- the list ---

  turn_round() {
    const button = this.$("direction"),
      descending = button.dataset.descending !== "yes";
    button.dataset.descending = descending ? "yes" : "no";
    button.textContent = descending ? "largest first" : "smallest first";
  }

  async search(to_first = false) {
    const turn = ++this.turn,
      { features } = this,
      descending = this.$("direction").dataset.descending === "yes";
    const waiting = () => {
      this.$("count").textContent = "reading all texts\u2026";
    };
    const found = await matches(
      features,
      this.$("query").value,
      this.$("sort").value,
      descending,
      waiting,
    );
    if (turn !== this.turn) return; // typed on meanwhile
    this.matches = found;
    const all = `${decimal(features.count)} ${features.kind}s`;
    this.$("count").textContent =
      found.length === features.count
        ? all
        : found.length
          ? `${decimal(found.length)} of ${all}`
          : `none of ${all}`;
    for (const id of ["previous", "next", "random"]) this.$(id).disabled = found.length === 0;
    this.$("rows").scrollTop = 0;
    if (to_first && found.length) {
      // the best match at once; the address follows when somebody chooses
      await this.show(found[0]);
      this.source.address.replace(
        `feature=${found[0]}${this.view === "feature" ? "" : `&view=${this.view}`}`,
      );
    }
    this.reveal();
    this.draw_rows();
  }

  get columns() {
    return COLUMNS.filter(([column]) => this.features.columns[column]);
  }

  draw_heads() {
    this.$("list").style.setProperty("--columns", this.columns.length);
    show(
      this.$("heads"),
      html`${[this.features.kind, "strongest on", ...this.columns.map(([, name]) => name)].map(
        (name) => html`<span>${name}</span>`,
      )}`,
    );
  }

  get row_height() {
    return parseFloat(getComputedStyle(this.$("rows")).getPropertyValue("--row"));
  }

  draw_rows() {
    // Only the rows in sight exist.
    const height = this.row_height,
      box = this.$("rows"),
      n = this.matches.length,
      spacer = this.$("spacer");
    spacer.style.height = `${n * height}px`;
    const first = Math.max(0, Math.floor(box.scrollTop / height) - 6),
      last = Math.min(n, Math.ceil((box.scrollTop + box.clientHeight) / height) + 6);
    spacer.replaceChildren(
      ...this.matches.slice(first, last).map((number, i) => this.row(number, first + i, height)),
    );
    if (this.number >= 0) box.setAttribute("aria-activedescendant", `row-${this.number}`);
  }

  row(number, at, height) {
    const element = document.createElement("div"),
      token = this.features.token(number),
      { columns } = this.features;
    const values = this.columns.map(
      ([column, , format]) =>
        html`<bdi>${columns[column][number] === null ? "" : format(columns[column][number])}</bdi>`,
    );
    show(
      element,
      html`<bdi>${number}</bdi
        ><bdi class="${token ? "name" : "dead"}">${token || "dead"}</bdi>${values}`,
    );
    element.className = "feature-row";
    element.id = `row-${number}`;
    element.style.top = `${at * height}px`;
    const said = {
      role: "option",
      "aria-selected": number === this.number,
      "aria-posinset": at + 1,
      "aria-setsize": this.matches.length,
    };
    for (const [key, value] of Object.entries(said)) element.setAttribute(key, String(value));
    element.addEventListener("click", () =>
      this.go(number, this.narrow ? "feature" : this.view_to_stay),
    );
    return element;
  }

  reveal() {
    // Scroll the list to the feature shown.
    const at = this.matches.indexOf(this.number),
      height = this.row_height,
      box = this.$("rows");
    if (at < 0 || !box.clientHeight) return;
    if (at * height < box.scrollTop || (at + 1) * height > box.scrollTop + box.clientHeight)
      box.scrollTop = (at + 0.5) * height - box.clientHeight / 2;
  }

  // --- keys and hover ---

  keys(e) {
    const target = e.composedPath()[0];
    if (e.ctrlKey || e.metaKey || e.altKey || target.closest?.("input, textarea, select")) {
      if (e.key === "Escape") target.blur?.();
      return;
    }
    const in_list = this.root.activeElement === this.$("rows"),
      rate = this.view === "rate";
    const act =
      {
        "/": () => this.$("query").focus(),
        ArrowRight: () => this.step(1),
        j: () => this.step(1),
        ArrowLeft: () => this.step(-1),
        k: () => this.step(-1),
        r: () => this.draw_one(),
      }[e.key] ??
      (in_list
        ? {
            ArrowDown: () => this.step(1),
            ArrowUp: () => this.step(-1),
            Enter: () => this.go(this.number, "feature"),
          }[e.key]
        : undefined);
    if (!act || (rate && e.key !== "/")) return;
    e.preventDefault();
    act();
  }

  tell(e) {
    // A tap shows what a pointer held over it would: a phone has no hover.
    const named = e.target.closest("[title]"),
      bubble = this.$("bubble");
    bubble.hidden = !(named?.closest(".panel") && matchMedia("(hover: none)").matches);
    if (bubble.hidden) return;
    bubble.textContent = named.getAttribute("title");
    const { left, bottom } = named.getBoundingClientRect(),
      box = this.host.getBoundingClientRect();
    bubble.style.top = `${bottom - box.top + 4}px`;
    const rightmost = box.width - bubble.offsetWidth - 8;
    bubble.style.left = `${Math.max(8, Math.min(left - box.left, rightmost))}px`;
  }
}
