// A text of the reader's own: the chosen feature on it, the strongest features of each token, and
// what clamping changes.

class Try {
  constructor(app) {
    Object.assign(this, { app, number: -1, listening: false });
    this.look = one_at_a_time(() => this.said("text-note", () => this.read()));
    this.clamp = one_at_a_time((continued) =>
      this.said("clamp-note", () => this.draw_clamped(continued)),
    );
  }

  frame() {
    const { no_model, text, temperature } = this.app.features;
    if (no_model && !this.app.source.in_kernel)
      return html`<p id="model-note" class="note">
        The language model is not in this page: ${no_model}.
      </p>`;
    return html`<label for="text">Your own text <small id="tokens"></small></label>
      <button id="example" type="button" class="quiet">the feature's strongest example</button>
      <textarea id="text" rows="5" spellcheck="false" autocapitalize="off">${text}</textarea>
      <p id="text-note" class="note" role="status"></p>
      <div id="tried"></div>
      <h2>Clamp <span id="clamp-name"></span></h2>
      <p class="note">
        Hold the feature at every token of the text, and see what the model expects next.
      </p>
      <div class="row">
        <label
          >How
          <select id="how" aria-label="How">
            <option value="pin">pin to a value</option>
            <option value="scale">scale by a factor</option>
            <option value="ablate">ablate</option>
          </select></label
        >
        <label>value <input id="value" type="range" aria-label="Value" /></label
        ><input id="value-number" type="number" step="any" aria-label="Value as a number" /><button
          id="zero"
          type="button"
        >
          0</button
        ><button id="maximum" type="button">its maximum</button>
        <label title="what the autoencoder does not explain goes on unchanged"
          ><input id="keep-error" type="checkbox" checked /> keep the error term</label
        >
      </div>
      <div class="row">
        <label
          >Continue by
          <input id="new-tokens" type="number" value="24" min="1" max="4096" /> tokens</label
        ><label
          >temperature
          <input id="temperature" type="number" value="${temperature}" min="0" step="0.05" /></label
        ><label>seed <input id="seed" type="number" value="0" min="0" step="1" /></label
        ><button id="generate" type="button">Continue the text</button>
      </div>
      <p id="clamp-note" class="note" role="status"></p>
      <div id="clamped"></div>
      <h2>Strongest on each token</h2>
      <div id="per-token"></div>`;
  }

  $(id) {
    return this.app.$(id);
  }

  listen(on) {
    if (!this.$("text")) return;
    let wait;
    on("text", "input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => this.look(), 200);
    });
    on("example", "click", () => {
      const example = this.app.page.examples[0],
        { vocabulary } = this.app.features;
      const bytes = example ? example.ids.flatMap((t) => bytes_of(vocabulary.text(t))) : [];
      this.$("text").value = text_of_bytes(bytes).replace(/[\udc80-\udcff]/gu, "");
      this.look();
    });
    const to = (value) => {
      this.$("value").value = this.$("value-number").value = value;
      this.clamp();
    };
    on("value", "input", () => to(this.$("value").value));
    on("value-number", "input", () => {
      this.$("value").value = this.$("value-number").value;
      this.clamp();
    });
    on("zero", "click", () => to(0));
    on("maximum", "click", () => to(Number(this.largest.toPrecision(3))));
    on("how", "change", () => {
      this.propose();
      this.clamp();
    });
    on("keep-error", "change", () => this.clamp());
    on("generate", "click", () => this.clamp(true));
  }

  async open() {
    if (!this.$("text") || this.number === this.app.number) return;
    this.number = this.app.number;
    this.propose();
    this.$("clamp-name").textContent = `${this.app.features.kind} ${this.number}`;
    await this.look();
  }

  get largest() {
    return this.app.features.maximum(this.number);
  }

  propose() {
    // A range and a value that do something: the feature's maximum to pin it at, twice as much to
    // scale it by.
    const how = this.$("how").value,
      top = how === "scale" ? 2 : this.largest;
    const value = how === "ablate" ? 0 : Number(top.toPrecision(3)),
      [range, number] = [this.$("value"), this.$("value-number")];
    Object.assign(range, {
      min: 0,
      max: Number((2 * top).toPrecision(3)),
      step: Number((top / 50).toPrecision(2)),
    });
    range.value = number.value = value;
    for (const id of ["value", "value-number", "zero", "maximum"])
      this.$(id).disabled = how === "ablate";
  }

  async said(id, action) {
    // What went wrong is shown beside the question.
    const late = setTimeout(() => {
      this.$(id).textContent = "asking the model\u2026";
    }, 300);
    try {
      this.$(id).textContent = (await action()) ?? "";
    } catch (error) {
      this.$(id).textContent = error.message;
    } finally {
      clearTimeout(late);
    }
  }

  async read() {
    const { features } = this.app,
      feature = this.number,
      given = await this.app.ask("activations", { text: this.$("text").value, feature });
    if (feature !== this.number) return "";
    const { ids, cut, values } = given,
      all = ids.length + cut,
      here = Math.max(0, ...values);
    this.ids = ids;
    this.$("tokens").textContent = cut
      ? `${all} tokens; the model reads the first ${ids.length}`
      : `${all} tokens`;
    show(
      this.$("tried"),
      html`<p class="facts">
          <span>${features.kind} <b>${feature}</b></span>
          <span
            >strongest here <b>${decimal(here)}</b>
            <small>of ${decimal(this.largest)} on the evaluation text</small></span
          >
        </p>
        ${text_html(features.vocabulary, given, this.largest)}`,
    );
    show(this.$("per-token"), per_token_html(features, given));
    this.clamp();
    return "";
  }

  async draw_clamped(continued = false) {
    const number = (id) => Number(this.$(id).value),
      how = this.$("how").value,
      feature = this.number,
      value = how === "ablate" ? 0 : number("value-number");
    const given = {
      text: this.$("text").value,
      clamp: { feature, how, value },
      keep_error: this.$("keep-error").checked,
    };
    if (continued)
      Object.assign(given, {
        new_tokens: Math.round(number("new-tokens")),
        temperature: number("temperature"),
        seed: Math.round(number("seed")),
      });
    else if (!given.text) {
      show(this.$("clamped"), html``);
      return this.$("clamp-note").textContent;
    } // nothing typed: no message either, nor one fewer
    await new Promise((done) => setTimeout(done, 20)); // let the page be drawn
    const answer = await this.app.ask("clamp", given);
    const done = {
      pin: `pinned at ${decimal(value)}`,
      scale: `times ${decimal(value)}`,
      ablate: "ablated",
    }[how];
    const left_out = given.keep_error ? "" : ", what the autoencoder does not explain left out";
    const what = `${this.app.features.kind} ${feature} ${done}${left_out}`;
    show(this.$("clamped"), clamped_html(this.app.features, answer, this.largest, what));
    return "";
  }
}
