// Blind ratings: features and neurons, mixed and without a sign of which is which, one page after
// the other.

const SCALE = { 1: "no pattern", 2: "a hint", 3: "in part", 4: "exceptions", 5: "one meaning" };

function shuffled(values, random) {
  const result = [...values];
  for (let i = result.length - 1; i > 0; i--) {
    const other = Math.floor(random() * (i + 1));
    [result[i], result[other]] = [result[other], result[i]];
  }
  return result;
}

function draw_blind(units, n, seed) {
  // `n` of each kind, shuffled together. More of them have the same ones among them.
  const drawn = Object.entries(units).flatMap(([kind, numbers], i) =>
    shuffled(numbers, mulberry32(2 * seed + i))
      .slice(0, n)
      .map((unit) => ({ kind, unit })),
  );
  return shuffled(drawn, mulberry32(seed + 2 ** 31));
}

class Rate {
  constructor(app) {
    Object.assign(this, { app, items: [], at: 0 });
  }

  frame() {
    if (!this.app.features.rated)
      return html`<p class="note">
        Features and neurons are rated together, in the page of the features.
      </p>`;
    return html`<p class="note">
        Features and neurons, mixed and without a sign of which is which. How clearly does what you
        see mean one thing? Begun again with the same name and seed, it goes on where it
        stopped.
      </p>
      <div class="row">
        <label>Your name <input id="rater" maxlength="60" /></label
        ><label>Of each kind <input id="each" type="number" value="20" min="1" max="500" /></label
        ><label>Seed <input id="rate-seed" type="number" value="0" min="0" /></label
        ><button id="begin" type="button">Begin</button>
        ${
          !this.app.source.in_kernel &&
          html`<button id="download" type="button" title="as the run's ratings folder has them">
            Download all ratings
          </button>`
        }
      </div>
      <p id="rate-note" class="note" role="status"></p>
      <div id="scale" class="row" hidden>
        ${Object.entries(SCALE).map(
          ([r, text]) => html`<button type="button" data-rating="${r}">${r} ${text}</button>`,
        )}<button
          id="back"
          type="button"
        >
          Back
        </button>
      </div>
      <div id="unit"></div>`;
  }

  $(id) {
    return this.app.$(id);
  }

  listen(on) {
    if (!this.$("begin")) return;
    const said = (action) => this.app.try.said.call(this, "rate-note", action);
    on("begin", "click", () => said(() => this.begin()));
    on("back", "click", () => said(() => this.show(this.at - 1)));
    on("scale", "click", (e) => {
      const { rating } = e.target.dataset;
      if (rating) said(() => this.save(Number(rating)));
    });
    if (this.$("download")) on("download", "click", () => this.download());
  }

  async begin() {
    // To the first that this rater has not rated with this seed.
    const rater = this.$("rater").value.trim(),
      seed = Math.max(0, Math.round(Number(this.$("rate-seed").value)));
    if (!rater) throw new Error("A name of 1 to 60 printable characters is needed.");
    const units = json_of(await this.app.source.block("rating")),
      known = await this.app.ask("ratings", {});
    this.session = { rater, seed };
    const rated = new Set(
        known.filter((r) => r.rater === rater && r.seed === seed).map((r) => `${r.kind} ${r.unit}`),
      ),
      done = (item) => rated.has(`${item.kind} ${item.unit}`);
    const drawn = draw_blind(units, Math.round(Number(this.$("each").value)), seed);
    this.items = [...drawn.filter(done), ...drawn.filter((item) => !done(item))];
    return this.show(drawn.filter(done).length);
  }

  async save(rating) {
    await this.app.ask("rate", { ...this.session, ...this.items[this.at], rating });
    return this.show(this.at + 1);
  }

  async show(at) {
    const { items } = this,
      done = at >= items.length;
    this.$("scale").hidden = done;
    this.$("back").disabled = at <= 0;
    this.at = at;
    if (done) {
      show(this.$("unit"), items.length ? this.summary(await this.app.ask("ratings", {})) : html``);
      return items.length
        ? `All ${items.length} are rated.`
        : "Nothing fires often enough to be rated.";
    }
    const { kind, unit } = items[at],
      page = await this.app.features.page(unit, kind);
    show(this.$("unit"), page_html(this.app.features, page, at + 1));
    this.$("rate").scrollTop = 0;
    return `${at + 1} of ${items.length}`;
  }

  summary(ratings) {
    // All raters' ratings, by kind. Several ratings of one unit are not independent: its mean
    // counts once.
    const average = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
    const share = (own, r) => own.filter((o) => o.rating === r).length / own.length;
    const row = ([kind, original]) => {
      const own = ratings.filter((r) => r.kind === kind),
        of_unit = {};
      for (const r of own) (of_unit[r.unit] ??= []).push(r.rating);
      const units = Object.values(of_unit).map(average),
        mean = average(units),
        variance = average(units.map((u) => (u - mean) ** 2)),
        error = 1.96 * Math.sqrt(variance / Math.max(units.length - 1, 1));
      return (
        own.length > 0 &&
        html`<tr>
          <td>${kind}s</td>
          <td>${own.length}</td>
          <td><b>${mean.toFixed(2)}</b> ± ${error.toFixed(2)}</td>
          <td>${original}</td>
          ${Object.keys(SCALE).map((r) => {
            const part = share(own, Number(r));
            const colour = `rgba(240,125,20,${(0.6 * part).toFixed(2)})`;
            return html`<td style="background:${colour}">${percent(part)}</td>`;
          })}
        </tr>`
      );
    };
    return html`<table class="ratings">
      <thead>
        <tr>
          <th></th>
          <th>ratings</th>
          <th>mean, 95 % interval</th>
          <th>the original's mean</th>
          ${Object.entries(SCALE).map(([r, text]) => html`<th>${r} ${text}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${Object.entries(this.app.features.original_ratings).map(row)}
      </tbody>
    </table>`;
  }

  async download() {
    const columns = ["time", "rater", "seed", "kind", "unit", "rating"],
      quoted = (v) => (/[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v);
    const lines = [
      columns,
      ...(await this.app.ask("ratings", {})).map((r) => columns.map((c) => quoted(r[c]))),
    ].map((line) => line.join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "ratings.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }
}
