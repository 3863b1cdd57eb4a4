// Blind ratings: features and neurons, mixed and without a sign of which is which, one page after
// the other.

const SCALE = { 1: "no pattern", 2: "a hint", 3: "in part", 4: "exceptions", 5: "one meaning" };

function draw_blind(units, n, seed) {
  // `n` of each kind, shuffled together. More of them have the same ones among them.
  const drawn = Object.entries(units).flatMap(([kind, numbers], i) =>
    shuffled(numbers, mulberry32(2 * seed + i)).slice(0, n).map((unit) => ({ kind, unit })),
  );
  return shuffled(drawn, mulberry32(seed + 2 ** 31));
}

class Rate {
  constructor(app) { Object.assign(this, { app, items: [], at: 0 }); }

  $(id) { return this.app.$(id); }

  listen(on) {
    const { rated } = this.app.features;
    this.$("rate-absent").hidden = rated;
    this.$("rate-body").hidden = !rated;
    const item = ([r, text]) => html`<button data-rating="${r}">${r} ${text}</button> `;
    show(this.$("scale"), html`${Object.entries(SCALE).map(item)}<button id="back">Back</button>`);
    const said = (action) => this.app.try.said.call(this, "rate-note", action);
    on("begin", "click", () => said(() => this.begin()));
    on("back", "click", () => said(() => this.show(this.at - 1)));
    on("scale", "click", ({ target: { dataset } }) => {
      if (dataset.rating) said(() => this.save(Number(dataset.rating)));
    });
  }

  async begin() {
    // To the first that this rater has not rated with this seed.
    const number = (id) => Math.max(0, Math.round(this.$(id).value));
    const rater = this.$("rater").value.trim(), seed = number("rate-seed");
    if (!/^[^=+\-@\p{C}][^\p{C}]{0,59}$/u.test(rater))
      throw new Error("A name of 1 to 60 printable characters is needed, no formula.");
    const units = json_of(await this.app.source.block("rating"));
    const known = await this.app.ask("ratings", {}), key = ({ kind, unit }) => `${kind} ${unit}`;
    const drawn = draw_blind(units, number("each"), seed);
    const rated = new Set(known.filter((r) => r.rater === rater && r.seed === seed).map(key));
    const done = drawn.filter((item) => rated.has(key(item)));
    this.session = { rater, seed };
    this.items = [...done, ...drawn.filter((item) => !rated.has(key(item)))];
    return this.show(done.length);
  }

  async save(rating) {
    await this.app.ask("rate", { ...this.session, ...this.items[this.at], rating });
    return this.show(this.at + 1);
  }

  async show(at) {
    const { items } = this, done = at >= items.length, { features } = this.app;
    this.$("scale").hidden = done;
    this.$("back").disabled = at <= 0;
    this.at = at;
    if (!items.length) return "Nothing fires often enough to be rated.";
    const content = done ? this.summary(await this.app.ask("ratings", {})) :
      page_html(features, await features.page(items[at].unit, items[at].kind), at + 1);
    show(this.$("unit"), content);
    this.$("rate").scrollTop = 0;
    return done ? `All ${items.length} are rated.` : `${at + 1} of ${items.length}`;
  }

  summary(ratings) {
    // All raters' ratings, by kind. Several ratings of one unit are not independent: its mean
    // counts once.
    const row = ([kind, original]) => {
      const own = ratings.filter((r) => r.kind === kind);
      if (!own.length) return "";
      const of_unit = Object.values(Object.groupBy(own, (r) => r.unit));
      const units = of_unit.map((of) => average(of.map((r) => r.rating))), mean = average(units);
      const variance = average(units.map((u) => (u - mean) ** 2));
      const error = 1.96 * Math.sqrt(variance / Math.max(units.length - 1, 1));
      const share = (r) => own.filter((o) => o.rating === Number(r)).length / own.length;
      const cell = (r) => html`<td style="background:${tone(share(r))}">${percent(share(r))}</td>`;
      return html`<tr><td>${kind}s</td><td>${own.length}</td>
        <td><b>${mean.toFixed(2)}</b> ± ${error.toFixed(2)}</td><td>${original}</td>
        ${Object.keys(SCALE).map(cell)}</tr>`;
    };
    const heads = ["", "ratings", "mean, 95 % interval", "the original's mean",
      ...Object.entries(SCALE).map((pair) => pair.join(" "))];
    return html`<table class="ratings"><thead><tr>${heads.map((head) => html`<th>${head}</th>`)}
      </tr></thead><tbody>${Object.entries(this.app.features.original_ratings).map(row)}</tbody>
      </table>`;
  }
}
