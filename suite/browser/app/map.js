// The map: every feature as a dot, by density and by how well a rule predicts it. A second index:
// dragging over a part of it searches there, and a dot opens its feature.

const MAP = { width: 400, height: 132, left: 40, right: 394, top: 8, bottom: 112 };
const NEAR = 12; // of the map's units: how far from a dot a click may be

class Axis {
  // One column of the index between two edges of the map; beyond them a value is shown at the edge.
  constructor(features, column, from, to, logarithmic) {
    const values = features.columns[column], known = values.filter((v) => v !== null && v > 0);
    const [scale, back] = logarithmic ? [Math.log10, (v) => 10 ** v] : [(v) => v, (v) => v];
    known.sort((a, b) => a - b); // the rarest two hundredths share the edge
    const rare = known[Math.floor(known.length / 50)] ?? 0.1, most = known.at(-1) ?? 1;
    const [low, high] = logarithmic || column === "maximum" ? [rare, most] : [0, 1];
    const first = scale(low), size = scale(high) - first || 1;
    Object.assign(this, { column, values, low, high, shares: /density|information/.test(column) });
    this.at = (v) => from + (to - from) * Math.min(1, Math.max(0, (scale(v) - first) / size));
    this.value = (place) => back(first + (size * (place - from)) / (to - from));
    this.ticks = logarithmic ? [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1] : [low, (low + high) / 2, high];
    this.ticks = this.ticks.filter((v) => v >= low && v <= high);
  }

  written(value) { return this.shares ? percent(value) : decimal(value); }

  query(places) {
    // The comparisons that hold between two places; none at the axis' own ends.
    const [from, to] = places.map(this.value).sort((a, b) => a - b);
    const rounded = (v) => Number(v.toPrecision(2));
    const number = (v) => (this.shares ? `${rounded(100 * v)}%` : rounded(v));
    return [from > this.low && `${this.column}>=${number(from)}`,
      to < this.high && `${this.column}<=${number(to)}`].filter(Boolean);
  }
}

class FeatureMap {
  constructor(app) {
    const { features } = app, { left, right, top, bottom } = MAP;
    this.app = app;
    this.x = new Axis(features, "density", left, right, true);
    this.y = new Axis(features, features.score ?? "maximum", bottom, top, false);
    this.shown = features.columns.feature.filter((i) =>
      this.x.values[i] > 0 && (this.y.values[i] ?? null) !== null);
  }

  place(i) { return [this.x.at(this.x.values[i]), this.y.at(this.y.values[i])]; }

  draw() {
    // The features found are in colour.
    const { x, y, app } = this, hit = new Set(app.list.found), { left, right, top, bottom } = MAP;
    const dot = (i) => `M${this.place(i).map((v) => v.toFixed(1)).join(" ")}h0`;
    const dots = (found) => this.shown.filter((i) => hit.has(i) === found).map(dot).join("");
    show(app.$("map"), html`<rect class="field" x="${left}" y="${top - 4}"
      width="${right - left}" height="${bottom - top + 8}"/>
      ${x.ticks.map((v) => svg_text(x.at(v), bottom + 16, "middle", x.written(v)))}
      ${y.ticks.map((v) => svg_text(left - 5, y.at(v) + 4, "end", y.written(v)))}
      <path d="${dots(false)}"/><path class="hit" d="${dots(true)}"/>
      <circle id="map-here" r="5"/><path id="brush"/>`);
    this.mark();
  }

  mark() {
    // A ring around the feature shown.
    const { app } = this, at = this.shown.includes(app.number) ? this.place(app.number) : [-9, -9];
    app.$("map-here")?.setAttribute("transform", `translate(${at})`);
  }

  listen(on) {
    const place = (e) => {
      const { x, y, width, height } = this.app.$("map").getBoundingClientRect();
      return [((e.clientX - x) * MAP.width) / width, ((e.clientY - y) * MAP.height) / height];
    };
    const box = (e) => [this.from, place(e)].map(([x, y]) => [
      Math.min(MAP.right, Math.max(MAP.left, x)), Math.min(MAP.bottom, Math.max(MAP.top, y))]);
    on("map", "pointerdown", (e) => {
      this.from = place(e);
      this.app.$("map").setPointerCapture(e.pointerId);
    });
    on("map", "pointermove", (e) => {
      if (!this.from) return;
      const [[a, b], [c, d]] = box(e);
      this.app.$("brush").setAttribute("d", `M${a} ${b}H${c}V${d}H${a}z`);
    });
    on("map", "pointerup", (e) => {
      const corners = box(e), [[a, b], [c, d]] = corners;
      this.from = undefined;
      if (Math.hypot(c - a, d - b) < 4) this.open(c, d);
      else this.search(corners);
    });
  }

  open(x, y) {
    const far = (i) => Math.hypot(this.place(i)[0] - x, this.place(i)[1] - y);
    const [nearest] = this.shown.map((i) => [far(i), i]).sort(([a], [b]) => a - b);
    if (nearest?.[0] < NEAR) this.app.turn_to(nearest[1]);
  }

  search(corners) {
    // Writes the part chosen into the query, in place of what it said of these columns.
    const { x, y, app } = this, box = app.$("query");
    const own = new RegExp(`(?<=^|\\s)(${x.column}|${y.column})[<>=]\\S+\\s*`, "g");
    const parts = [x.query(corners.map(([at]) => at)), y.query(corners.map(([, at]) => at))];
    box.value = [box.value.replace(own, "").trimEnd(), ...parts.flat()].filter(Boolean).join(" ");
    app.search(true);
  }
}
