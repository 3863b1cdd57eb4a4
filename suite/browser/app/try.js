// A text of the reader's own: which features fire on each of its tokens, and what the model writes
// when features are held at a value.

const HOW = { pin: "hold at", scale: "multiply by", ablate: "switch off" };

class Try {
  constructor(app) {
    this.app = app;
    this.look = one_at_a_time(() => this.said("text-note", () => this.read()));
    this.clamp = one_at_a_time(() => this.said("clamp-note", () => this.draw_clamped()));
    this.graph_later = rested(700, () => this.draw_graph(this.ids.length - 1));
  }

  $(id) { return this.app.$(id); }

  get clamps() {
    // Those of the address, "12:pin:8.5,40:ablate:0", or else the shown feature at its maximum.
    const { features, state, number } = this.app, parts = state.clamps.split(",");
    const found = parts.map((part) => part.match(/^(\d+):(pin|scale|ablate):([-\d.]+)$/))
      .filter((part) => part && Number(part[1]) < features.count)
      .map(([, n, how, value]) => ({ feature: Number(n), how, value: Number(value) || 0 }));
    return found.length || number < 0 ? found : [this.proposed(number)];
  }

  set clamps(clamps) {
    const written = clamps.map(({ feature, how, value }) => `${feature}:${how}:${value}`);
    this.app.note({ clamps: written.join(",") });
  }

  proposed(feature, how = "pin") {
    const top = Number(this.app.features.maximum(feature).toPrecision(3));
    return { feature, how, value: { pin: top, scale: 2, ablate: 0 }[how] };
  }

  listen(on) {
    const { no_model, text, temperature } = this.app.features, missing = !this.app.features.whole;
    this.$("model-note").hidden = !missing;
    this.$("model-note").textContent = `The language model is not in this page: ${no_model}.`;
    this.$("try-body").hidden = missing;
    Object.assign(this.$("text"), { value: text });
    this.$("temperature").value = temperature;
    const typed = rested(250, () => {
      this.app.note({ text: this.$("text").value });
      this.clamp();
    });
    on("text", "input", () => { this.look(); typed(); });
    on("example", "click", () => {
      const [{ ids } = { ids: [] }] = this.app.page?.examples ?? [];
      const text = this.app.features.vocabulary.joined(ids);
      this.$("text").value = text.replace(/[\udc80-\udcff]/gu, "");
      this.$("text").dispatchEvent(new Event("input"));
    });
    on("clamps", "input", (e) => this.changed(e.target));
    on("clamps", "click", (e) => {
      const at = e.target.closest("[data-remove]")?.dataset.remove;
      if (at !== undefined) this.set(this.clamps.filter((_, i) => i !== Number(at)));
    });
    on("add-clamp", "click", () => {
      const others = this.clamps.filter((c) => c.feature !== this.app.number);
      this.set([...others, this.proposed(this.app.number)]);
    });
    for (const id of ["keep-error", "new-tokens", "temperature", "seed"])
      on(id, "change", () => this.clamp());
    on("generate", "click", () => { this.pressed = true; this.clamp(); });
  }

  set(clamps) {
    this.clamps = clamps;
    this.draw_clamps();
    this.clamp();
  }

  changed(field) {
    // A clamp was changed: the slider and the number beside it agree.
    const row = field.closest("[data-clamp]"), at = Number(row.dataset.clamp), { clamps } = this;
    const { feature } = clamps[at];
    if (field.name === "how") return this.set(clamps.with(at, this.proposed(feature, field.value)));
    for (const other of row.querySelectorAll("input")) other.value = field.value;
    this.clamps = clamps.with(at, { ...clamps[at], value: Number(field.value) });
    this.clamp();
  }

  draw_clamps() {
    const { features } = this.app;
    const row = ({ feature, how, value }, i) => {
      const top = how === "scale" ? 2 : features.maximum(feature), step = (top / 50).toPrecision(2);
      const off = how === "ablate" && html` disabled`;
      const option = ([name, text]) => html`<option value="${name}"${
        name === how && html` selected`}>${text}</option>`;
      return html`<div class="row" data-clamp="${i}">
        <span>${features.kind} ${link_html(feature)} ${features.label(feature)}</span>
        <select name="how" aria-label="How">${Object.entries(HOW).map(option)}</select>
        <input type="range" aria-label="Value" min="0" max="${(2 * top).toPrecision(3)}"
          value="${value}" step="${step}"${off}>
        <input type="number" step="any" aria-label="Value as a number" value="${value}"${off}>
        <small>its maximum is ${decimal(features.maximum(feature))}</small>
        <button type="button" data-remove="${i}">remove</button></div>`;
    };
    show(this.$("clamps"), html`${this.clamps.map(row)}`);
  }

  async open() {
    const { state, number } = this.app, key = `${number} ${state.text} ${state.clamps}`;
    if (!this.app.features.whole || number < 0 || this.key === key) return;
    this.key = key;
    if (state.text) this.$("text").value = state.text;
    this.draw_clamps();
    await this.look();
    this.clamp();
  }

  async said(id, action) {
    // What went wrong is shown beside the question.
    const late = setTimeout(() => { this.$(id).textContent = "asking the model\u2026"; }, 300);
    this.$(id).textContent = await action().catch((error) => error.message) ?? "";
    clearTimeout(late);
  }

  async read() {
    const { number } = this.app, text = this.$("text").value;
    const draw = (given) => number === this.app.number && this.draw_read(given, number);
    draw(await this.app.ask("activations", { text, feature: number }, draw));
    this.graph_later();
  }

  draw_read(given, number) {
    const { features } = this.app, { ids, cut, values } = given, largest = features.maximum(number);
    this.ids = ids;
    this.$("tokens").textContent =
      `${ids.length + cut} tokens${cut ? `; the model reads the first ${ids.length}` : ""}`;
    show(this.$("tried"), html`${strip_html(features, given, number)}<p class="facts">
      <span>${features.kind} <b>${number}</b> ${features.label(number)}</span>
      <span>strongest here <b>${decimal(Math.max(0, ...values))}</b> <small>of ${decimal(largest)}
        on the evaluation text; choose a token for the ${features.kind}s on it</small></span></p>
      ${live_html("your text", features.vocabulary, given, largest)}`);
    this.app.enliven(this.$("tried"), given);
  }

  async draw_graph(at) {
    // For what follows the token at a place of the text.
    const { ids } = this;
    if (!ids.length) return show(this.$("graph"), html``);
    const content = await this.app.ask("graph", { ids: ids.slice(0, at + 1) }).then(
      (found) => graph_html(this.app.features, ids, at, found), problem_html);
    if (this.ids === ids) show(this.$("graph"), content);
  }

  async draw_clamped() {
    const number = (id) => Math.max(0, Number(this.$(id).value)), { clamps } = this;
    const text = this.$("text").value, keep_error = this.$("keep-error").checked;
    if (!text && !this.pressed) {
      show(this.$("clamped"), html``);
      return this.$("clamp-note").textContent; // nothing typed: no message more, and none fewer
    }
    this.pressed = false;
    const [new_tokens, seed] = [number("new-tokens"), number("seed")].map(Math.round);
    const sampling = { new_tokens, seed, temperature: number("temperature") };
    const answer = await this.app.ask("clamp", { text, clamps, keep_error, ...sampling });
    show(this.$("clamped"), clamped_html(this.app.features, answer, clamps));
  }
}

function strip_html(features, { ids, strip, values: shown }, number) {
  // Features × tokens, the feature shown first: each cell is an activation as a share of that
  // feature's maximum.
  if (!ids.length) return html``;
  const head = (id, i) => html`<th scope="col" data-token="${i}"><bdi>${
    features.vocabulary.name(id)}</bdi></th>`;
  const cell = (n) => (v, i) => {
    const share = Math.min(1, v / features.maximum(n));
    const style = v > 0 && html` style="background-color:${tone(share)}"`;
    return html`<td data-token="${i}" title="${decimal(v)}"${style}></td>`;
  };
  const rows = [[number, shown], ...strip.filter(([n]) => n !== number)].slice(0, 12);
  const row = ([n, values]) => html`<tr${n === number && html` class="chosen"`}>
    <th scope="row">${link_html(n)} ${features.label(n)}</th>${values.map(cell(n))}</tr>`;
  return html`<h2>The strongest ${features.kind}s of this text, token by token</h2>
    <div class="strip" tabindex="0" role="group" aria-label="${features.kind}s by tokens"><table>
    <thead><tr><td></td>${ids.map(head)}</tr></thead>
    <tbody>${rows.map(row)}</tbody></table></div>`;
}

function clamped_html(features, { kl, null: random, next, sides, prompt }, clamps) {
  const { vocabulary, kind } = features, mean = average(random);
  const told = { pin: "held at ", scale: "times ", ablate: "switched off" };
  const what = clamps.map(({ feature, how, value }) =>
    `${kind} ${feature} ${told[how]}${how === "ablate" ? "" : decimal(value)}`);
  const row = ([id, p, q]) => html`<tr><td>${token_html(vocabulary.name(id))}</td>
    <td>${percent(p)}</td><td>${percent(q)}</td>
    <td class="${q > p ? "up" : "down"}">${signed(100 * (q - p))} points</td></tr>`;
  const heads = ["token", "baseline", "clamped", "change"].map((head) => html`<th>${head}</th>`);
  return html`${sides.length > 0 && aligned_html(features, sides, prompt, what, clamps[0].feature)}
    <h3>The next token after the text <small>KL(baseline ‖ clamped) ${decimal(kl)} nats; the same
      change along random directions of the same norm: ${decimal(mean)}</small></h3>
    <table class="next"><thead><tr>${heads}</tr></thead><tbody>${next.map(row)}</tbody></table>`;
}

function aligned_html(features, sides, prompt, what, feature) {
  // Baseline above clamped, token under token; where they part is marked.
  const [before, after] = sides, largest = features.maximum(feature);
  const parted = before.ids.findIndex((id, i) => id !== after.ids[i]);
  const token = ({ ids, values }, i) => i < ids.length &&
    tokens_html(features.vocabulary, { ids: [ids[i]], values: [values[i]] }, largest);
  const column = (_, at) => {
    const i = at + prompt, name = parted < 0 || i < parted ? "same" : i === parted && "parts";
    const cells = [before, after].map((side) => html`<span>${token(side, i)}</span>`);
    return html`<span class="${name}">${cells}</span>`;
  };
  const tells = parted < 0 ? "they stay the same" : `they part at new token ${parted - prompt + 1}`;
  const length = Math.max(before.ids.length, after.ids.length) - prompt;
  return html`<h3>What the model writes
      <small>baseline above, below with ${what.join(", ")}; ${tells}</small></h3>
    <div class="sides text" dir="ltr">${Array.from({ length }, column)}</div>`;
}
