// What a newcomer sees first, and features side by side.

const SHOWN_FIRST = 6;

function chosen_first(features) {
  // [the clearest with tokens of their own, as many drawn uniformly] of those that fire often
  // enough to be judged.
  const { n_active, feature: all } = features.columns;
  const often = all.filter((i) => n_active[i] >= OFTEN), alive = all.filter((i) => n_active[i] > 0);
  const pool = often.length ? often : alive, tokens = new Set(), clear = [];
  for (const i of [...pool].sort((a, b) => features.clarity(b) - features.clarity(a))) {
    const token = features.token(i).replace("·", "").toLowerCase();
    if (token && !tokens.has(token) && clear.length < SHOWN_FIRST) clear.push(i);
    tokens.add(token);
  }
  return [clear, shuffled(pool, mulberry32(0)).slice(0, SHOWN_FIRST)];
}

function first_html(features) {
  const { kind, vocabulary, columns, score } = features, [clear, drawn] = chosen_first(features);
  const raised = (i) => (columns.top_logits?.[i] ?? []).slice(0, NAMED).map((t) =>
    html`${token_html(vocabulary.name(t))} `);
  const card = (i) => html`<a class="card" href="#feature=${i}">
    <span><b>${features.label(i)}</b> <small>${kind} ${i}</small></span>
    <span class="text">${snippet_html(features, i)}</span>
    <small>raises ${raised(i)}</small></a>`;
  const by_score = score ? "how much a short rule tells about when they fire" :
    "how far their strongest examples agree";
  const group = (title, note, numbers) => html`<section><h2>${title}</h2>
    <p class="note">${note}</p>${numbers.map(card)}</section>`;
  return html`${group("Six clear ones", `Highest by ${by_score}.`, clear)}
    ${group("Six drawn uniformly", "Seed 0; uninterpretable ones are included.", drawn)}`;
}

class Compare {
  constructor(app) {
    this.app = app;
  }

  get pins() {
    // "12" is a feature, "neuron-3" is what it says.
    return this.app.state.pins.split(",").filter(Boolean);
  }

  toggle(kind, number) {
    const pin = kind === this.app.features.kind ? `${number}` : `${kind}-${number}`;
    const others = this.pins.filter((p) => p !== pin), pinned = others.length < this.pins.length;
    return (pinned ? others : [...others, pin].slice(-4)).join(",");
  }

  listen(on) {
    const { kind, rated } = this.app.features;
    for (const name of new Set([kind, ...(rated ? ["neuron"] : [])]))
      this.app.$("pin-kind").append(new Option(name, name));
    on("pin-form", "submit", (e) => {
      e.preventDefault();
      const [own, number] = ["pin-kind", "pin-number"].map((id) => this.app.$(id).value);
      this.app.go({ view: "compare", pins: this.toggle(own, number) });
    });
  }

  async open() {
    const { features } = this.app, pages = [];
    this.app.$("compare-note").textContent = this.pins.length
      ? `${this.pins.length} pinned, side by side`
      : `Nothing is pinned yet: pin ${features.kind}s here, or with the button on their pages.`;
    for (const pin of this.pins) {
      const kind = pin.match(/^[a-z]+(?=-)/)?.[0] ?? features.kind;
      const number = Number(pin.match(/\d*$/)[0]);
      const page = await features.page(number, kind).catch(() => ({}));
      pages.push(page.examples && page.feature === number ? page_html(features, page) :
        html`<article><h2>There is no ${kind} ${number}.</h2></article>`);
    }
    show(this.app.$("pinned"), html`${pages}`);
  }
}
