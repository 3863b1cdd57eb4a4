// What a newcomer sees first, and features side by side.

const SHOWN_FIRST = 6;

function chosen_first(features) {
  // [the clearest with tokens of their own, as many drawn uniformly] of those that fire often
  // enough to be judged.
  const { n_active, strongest } = features.columns, all = features.columns.feature;
  const often = all.filter((i) => n_active[i] >= 100), alive = all.filter((i) => n_active[i] > 0);
  const pool = often.length ? often : alive, tokens = new Set(), clear = [];
  for (const i of [...pool].sort((a, b) => features.clarity(b) - features.clarity(a))) {
    const token = features.token(i).replace("·", "").toLowerCase();
    if (strongest[i].length && !tokens.has(token) && clear.length < SHOWN_FIRST) clear.push(i);
    tokens.add(token);
  }
  return [clear, shuffled(pool, mulberry32(0)).slice(0, SHOWN_FIRST)];
}

function start_html(features, whole) {
  const { kind, vocabulary, count, columns } = features, [clear, drawn] = chosen_first(features);
  const raised = (i) => (columns.top_logits?.[i] ?? []).slice(0, 4);
  const card = (i) => html`<a class="card" href="#feature=${i}">
    <span><b>${features.label(i)}</b> <small>${kind} ${i}</small></span>
    <span class="text">${snippet_html(features, i)}</span>
    <small>raises ${raised(i).map((t) => html`${token_html(vocabulary.name(t))} `)}</small></a>`;
  const group = (title, note, numbers) => html`<section><h2>${title}</h2><p class="note">${note}</p>
    ${numbers.map(card)}</section>`;
  const search = (q) => html`<a href="#q=${encodeURIComponent(q)}&view=list"><code>${q}</code></a> `;
  const stars = Object.values(features.notes).filter((n) => n.star).length;
  const by_score = features.score ? `how much a short rule tells about when the ${kind} fires` :
    "how far their strongest examples agree";
  const tones = [0, 0.35, 1].map((v) => html`<bdi style="background-color:${tone(v)}"> text </bdi>`);
  return html`<p class="lead">A <b>${kind}</b> is a direction in what a language model computes; it fires on some
      tokens and raises the chances of others. Search ${decimal(count)} of them, read where each fires,
      ${whole ? "and hold one at a value in a text of your own to see what the model writes then" : "and compare them"}.</p>
    <p class="legend"><span><span class="text">${tones}</span> silent, weak, strong: activation as a share of the
      ${kind}'s maximum</span> <span class="text"><bdi><b>token</b></bdi></span> <span>the token that an example was
      chosen for</span> <span>${["⏎", "·", "⇥"].map((s) => token_html(s))} line end, blank, tab</span></p>
    <p>Search, for example: ${search("import")} ${search("density<0.1% auroc>0.9")} ${search('text:"def main"')}</p>
    <div class="two-lists">${group("Six clear ones", `Highest by ${by_score}.`, clear)}
      ${group("Six drawn uniformly", `Seed 0; uninterpretable ones are included.`, drawn)}</div>
    <p class="row"><button type="button" data-act="export">Save names, stars and ratings as JSON</button>
      ${stars > 0 && html`<a href="#q=star%3D1&view=list">your ${stars} with a star</a>`}</p>`;
}

class Compare {
  constructor(app) {
    this.app = app;
  }

  get pins() {
    // [[kind, number]]: "12" is a feature, "neuron-3" is what it says.
    const { kind } = this.app.features, all = this.app.state.pins.split(",").filter(Boolean);
    return all.map((pin) => (/^\d+$/.test(pin) ? [kind, Number(pin)] : [pin.split("-")[0], Number(pin.split("-")[1])]));
  }

  toggle(kind, number) {
    const pin = kind === this.app.features.kind ? `${number}` : `${kind}-${number}`;
    const pins = this.app.state.pins.split(",").filter(Boolean), kept = pins.filter((p) => p !== pin);
    return (kept.length < pins.length ? kept : [...pins, pin].slice(-4)).join(",");
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
    for (const [kind, number] of this.pins) {
      const page = await features.page(number, kind).catch(() => ({}));
      pages.push(page.examples && page.feature === number ? page_html(features, page) :
        html`<article><h2>There is no ${kind} ${number}.</h2></article>`);
    }
    show(this.app.$("pinned"), html`${pages}`);
  }
}
