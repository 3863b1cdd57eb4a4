// The attribution graph of a text: from its tokens through features to the difference of the logits
// of two tokens that may follow.

const GRAPH = { token: 190, feature: [300, 500], end: 590, width: 800, row: 27 }; // of the drawing

function graph_html(features, ids, at, { tokens, total, features: through, direct, other }) {
  const names = (t) => features.vocabulary.name(t), [better, worse] = tokens.map(names);
  const size = Math.abs, { token, feature: [left, right], end, width } = GRAPH;
  const weight = (s) => size(direct[s]) + total_of(through.map(([, , paths]) => size(paths[s])));
  const sources = top_of(direct.map((_, s) => weight(s)), SOURCES).sort((a, b) => a - b);
  const y = (i) => GRAPH.row * (i + 1), rows = Math.max(sources.length, through.length);
  const middle = y((rows - 1) / 2), to_end = [...direct, ...through.map(([, value]) => value)];
  const most = Math.max(...to_end.map(size));
  const edge = (x, from, to, end, value) => size(value) > 0.02 * most && html`<path
    d="M${x} ${from}C${(x + to) / 2} ${from} ${(x + to) / 2} ${end} ${to} ${end}" fill="none"
    stroke="rgb(${value > 0 ? ACTIVE[0] : LOSS[1]})" stroke-width="${(8 * size(value)) / most}"/>`;
  const edges = [
    ...sources.map((s, i) => edge(token, y(i), end, middle, direct[s])),
    ...through.map(([, value], j) => edge(right, y(j), end, middle, value)),
    ...through.flatMap(([, , paths], j) =>
      sources.map((s, i) => edge(token, y(i), left, y(j), paths[s]))),
  ];
  const label = (x, row, anchor, text) => svg_text(x, row + 4, anchor, text);
  const named = (n) => `${n} ${features.notes[n]?.name ?? features.token(n)}`.slice(0, 18);
  const box = ([n, value], j) => html`<a href="#feature=${n}"><rect x="${left}" y="${y(j) - 11}"
    width="${right - left}" height="22" rx="4"/>${label(left + 6, y(j), "start", named(n))}
    ${label(right - 6, y(j), "end", signed(value))}</a>`;
  const rest = Object.entries(other).map(([name, value]) => `${name} ${signed(value)}`).join(", ");
  const text = (s) => `${names(ids[s]).slice(0, 14)} ${signed(direct[s])}`;
  return html`<h2>Why ${token_html(better)} rather than ${token_html(worse)} after
      ${token_html(names(ids[at]))}</h2>
    <p class="note">The two likeliest next tokens; the first is ahead by ${signed(total)} in the
      logits. That is exactly the sum of what tokens add past the MLP, what ${features.kind}s add
      (orange for the first token, blue against it; lines as wide as what they carry) and: ${rest}.
      ${at < ids.length - 1 && "Choose another token above for what follows there."}</p>
    <figure class="graph"><svg viewBox="0 0 ${width} ${y(rows)}" role="group"
      aria-label="Attribution graph">${edges}${sources.map((s, i) =>
      label(token - 6, y(i), "end", text(s)))}${through.map(box)}
      ${label(end + 6, middle - 10, "start", better)}
      ${label(end + 6, middle + 10, "start", `over ${worse}`)}</svg>
      ${svg_button("attribution graph")}</figure>`;
}
