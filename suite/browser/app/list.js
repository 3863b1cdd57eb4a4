// The list: sortable heads, and rows of which only those in sight exist.

class List {
  constructor(app) {
    Object.assign(this, { app, found: [], parts: [] });
    const { columns, score, kind } = app.features;
    const scores = { information: "explained", auroc: "AUROC" };
    this.heads = Object.entries({ feature: kind, relevance: "strongest on", maximum: "maximum",
      density: "density", ...(score && { [score]: scores[score] }) });
    this.heads = this.heads.filter(([column]) => columns[column] || column === "relevance");
  }

  get sort() {
    // [column, largest first], as the address says it: "density", or "density-up".
    const [column, up] = this.app.state.sort.split("-");
    return this.heads.some(([name]) => name === column) ? [column, !up] : ["relevance", true];
  }

  draw_heads() {
    const [column, descending] = this.sort, arrow = descending ? " ↓" : " ↑";
    const first = this.parts.some((p) => "wanted" in p) ? "best match" : "clearest";
    const head = ([name, text]) => html`<button type="button" data-act="sort" data-sort="${name}"
      aria-pressed="${name === column}">${name === "relevance" ? first : text}${
      name === column && arrow}</button>`;
    show(this.app.$("heads"), html`${this.heads.map(head)}`);
  }

  sort_by(column) {
    // A second click turns the order round; numbers begin with the smallest.
    const [now, descending] = this.sort, first_up = column === "feature";
    const up = column === now ? descending : first_up;
    this.app.go({ sort: column === "relevance" && !up ? "" : column + (up ? "-up" : "") });
  }

  async search(query) {
    const turn = (this.turn = (this.turn ?? 0) + 1), { features, $ } = this.app, app = this.app;
    const said = (text) => { $.call(app, "count").textContent = text; };
    app.source.progress = (share) =>
      query.includes("text:") && said(`reading all texts: ${Math.round(100 * share)} %`);
    const { found, parts, problem } = await matches(features, query, ...this.sort);
    if (turn !== this.turn) return false; // typed on meanwhile
    Object.assign(this, { found, parts });
    const all = `${decimal(features.count)} ${features.kind}s`;
    const some = `${found.length ? decimal(found.length) : "none"} of ${all}`;
    said(problem || (found.length === features.count ? all : some));
    for (const id of ["previous", "next", "random"]) app.$(id).disabled = found.length === 0;
    app.$("rows").scrollTop = 0;
    this.draw_heads();
    app.map.draw();
    this.reveal();
    this.draw();
    return true;
  }

  get height() {
    return parseFloat(getComputedStyle(this.app.$("rows")).getPropertyValue("--row"));
  }

  draw() {
    this.app.map.mark();
    const { height, found } = this, box = this.app.$("rows"), spacer = this.app.$("spacer");
    spacer.style.height = `${found.length * height}px`;
    const first = Math.max(0, Math.floor(box.scrollTop / height) - 4);
    const last = Math.ceil((box.scrollTop + box.clientHeight) / height) + 4;
    const rows = found.slice(first, last).map((number, i) => this.row(number, first + i, height));
    show(spacer, html`${rows}`);
    box.setAttribute("aria-activedescendant", `row-${this.app.number}`);
  }

  row(number, at, height) {
    const { app, found } = this, { features } = app, { columns, score } = features;
    const value = columns[score]?.[number] ?? null, star = columns.star[number] > 0 && "★ ";
    return html`<div class="feature-row" id="row-${number}" data-number="${number}" role="option"
      style="top:${at * height}px" aria-selected="${String(number === app.number)}"
      aria-posinset="${at + 1}" aria-setsize="${found.length}"><bdi>${number}</bdi>
      <span class="label">${star}${features.label(number)}${this.chips(number)}</span>
      ${sparkline_html(columns.histogram?.[number])}<bdi>${percent(columns.density[number])}</bdi>
      <bdi>${value !== null && (score === "information" ? percent : decimal)(value)}</bdi>
      <div class="text">${snippet_html(features, number)}</div></div>`;
  }

  chips(number) {
    // Why a row matches, of each word the best reason.
    const { features } = this.app, [own] = features.columns.strongest[number];
    const named = (token) => token >= 0 && token_html(features.vocabulary.name(token));
    const chip = ([, says, token]) => html` <small class="chip">${
      token === own ? says.replace(/ on$/, "") : html`${says} ${named(token)}`}</small>`;
    return this.parts
      .filter((part) => "place" in part && (part.quality || part.owners))
      .map((part) => hits(features, part, number).sort((a, b) => b[0] - a[0])[0])
      .map((hit) => hit && chip(hit));
  }

  reveal() {
    // Scroll to the feature shown.
    const at = this.found.indexOf(this.app.number), { height } = this, box = this.app.$("rows");
    if (at < 0 || !box.clientHeight) return;
    if (at * height < box.scrollTop || (at + 1) * height > box.scrollTop + box.clientHeight)
      box.scrollTop = (at + 0.5) * height - box.clientHeight / 2;
  }
}

function sparkline_html(digits) {
  // Activations by strength, weak to strong, counted on a logarithmic scale.
  const bars = [...(digits ?? "")].map((h, x) => (h > 0 ? `M${x} 9v-${h}h1v${h}z` : "")).join("");
  return html`<svg class="spark" viewBox="0 0 ${digits?.length ?? 9} 9" preserveAspectRatio="none"
    aria-hidden="true"><path d="${bars}"/></svg>`;
}

function snippet_html(features, number) {
  const [focus, ids, levels] = features.columns.snippet?.[number] ?? [0, [], ""];
  return tokens_html(features.vocabulary, { ids, values: [...levels].map(Number) }, 9, { focus });
}
