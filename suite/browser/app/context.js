// The whole row of text around an example, and what ablating the feature there does to the loss on
// each of its tokens.

class Context {
  constructor(app) {
    this.app = app;
    this.look = one_at_a_time(() =>
      this.app.try.said.call(this, "context-note", () => this.read()),
    );
  }

  frame() {
    if (!this.app.features.whole)
      return html`<p class="note">
        The whole text needs the language model, which is not in this page:
        ${this.app.features.no_model}.
      </p>`;
    return html`<div class="row">
        <label
          >Example
          <select id="example-of" aria-label="Example"></select
        ></label>
        <label><input id="ablate" type="checkbox" /> change of the loss when ablated</label>
      </div>
      <p id="context-note" class="note" role="status"></p>
      <div id="whole"></div>`;
  }

  $(id) {
    return this.app.$(id);
  }

  listen(on) {
    if (!this.$("ablate")) return;
    on("ablate", "change", () => this.look());
    on("example-of", "change", () =>
      this.app.go(this.app.number, "context", this.$("example-of").value),
    );
  }

  async open(row, position) {
    // Without a row: the strongest example.
    const { page, features } = this.app;
    if (!this.$("ablate") || !page) return;
    const examples = [...page.examples, ...page.samples],
      address = (e) => `&row=${e.row}&position=${e.position}`;
    const name = (e, i) =>
      `${e.tenth < 0 ? `top ${i + 1}` : `tenth ${e.tenth + 1}`}: ${decimal(e.activation)} ` +
      `on ${isolated(features.vocabulary.name(e.token_id))}${e.marked ? ", marked" : ""}`;
    this.$("example-of").replaceChildren(
      ...examples.map((e, i) => new Option(name(e, i), address(e))),
    );
    const chosen = row >= 0 ? { row, position } : examples[0];
    this.at = chosen && { ...chosen, number: this.app.number };
    this.$("example-of").value = chosen ? address(chosen) : "";
    if (this.at) await this.look();
    else this.$("whole").textContent = "No examples.";
  }

  async read() {
    const { row, position, number } = this.at,
      { features } = this.app;
    const answer = await this.app.ask("context", {
      row,
      feature: number,
      ablate: this.$("ablate").checked,
    });
    show(this.$("whole"), context_html(features, answer, features.maximum(number), row, position));
    return "";
  }
}
