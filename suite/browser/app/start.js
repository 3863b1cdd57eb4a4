// What a newcomer sees first, and features side by side.

const SHOWN_FIRST = 6;

function chosen_first(features) {
  // [the clearest with tokens of their own, as many drawn uniformly] of those that fire often
  // enough to be judged.
  const { n_active, clarity, feature: all } = features.columns, tokens = new Set(), clear = [];
  const often = all.filter((i) => clarity[i] >= -1);
  const pool = often.length ? often : all.filter((i) => n_active[i] > 0);
  for (const i of pool.toSorted((a, b) => clarity[b] - clarity[a])) {
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

function kept_html({ lists, columns }) {
  // What the reader keeps: stars, lists, and all of it as a file.
  const stars = columns.star.filter((star) => star).length;
  const link = (query, said, n) => html`<a href="#view=list&q=${encodeURIComponent(query)}">${said}
    (${n})</a> `;
  const named = Object.entries(lists).map(([name, of]) => link(`list:"${name}"`, name, of.length));
  return html`Yours: ${stars > 0 && link("star=1", "★", stars)}${named}
    ${!stars && !named.length && "no stars and no lists yet."}`;
}
