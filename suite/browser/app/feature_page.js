// A feature's page and its parts as HTML. Texts are token ids with an activation for each.

// opacity of the strongest colour: text stays readable on it, on white and on black
const DARKEST = 0.62;
const ACTIVE = ["240,125,20", ""], LOSS = ["208,60,60", "50,110,200"]; // above and below zero
const TOKENS_LISTED = 12, NAMED = 4; // tokens of the strongest examples; of the sentence at the top
const SOURCES = 8; // tokens named of those that make a feature fire
const MARKED = "row starts, padding, outliers: not among the strongest";

const token_html = (name) => html`<bdi class="token">${name}</bdi>`;
const link_html = (number) => html`<a href="#feature=${number}">${number}</a>`;
const signs_html = (text, every_blank) =>
  pieces(text, every_blank).map(([quiet, part]) => (quiet ? html`<i>${part}</i>` : part));
const tone = (share, colour = ACTIVE[0]) => `rgba(${colour},${(DARKEST * share).toFixed(2)})`;

function tokens_html(vocabulary, { ids, values }, largest, options = {}) {
  const { focus = -1, prompt = 0, colours = ACTIVE, written = decimal } = options;
  const whole = vocabulary.characters(ids);
  return ids.map((id, i) => {
    const share = largest > 0 ? Math.min(1, Math.abs(values[i]) / largest) : 0;
    const colour = colours[values[i] < 0 ? 1 : 0], coloured = colour && share > 0.01;
    const style = coloured && html` style="background-color:${tone(share, colour)}"`;
    const part = whole.has(i) ? `  (part of ${isolated(plain(whole.get(i)))})` : "";
    const hint = `${isolated(vocabulary.name(id))}  ${written(values[i])}${part}`;
    const text = signs_html(vocabulary.text(id), i === focus);
    return html`<bdi title="${hint}"${i < prompt && html` class="prompt"`}${style}>${
      i === focus ? html`<b>${text}</b>` : text}</bdi>`;
  });
}

const joined = (items) => items.map((item, i) => html`${i > 0 && " "}${item}`);

function live_html(name, ...given) {
  // A text whose tokens can be chosen, by pointer or arrow keys, and what is known of the chosen.
  return html`<div class="text live" dir="ltr" tabindex="0" role="group"
    aria-label="${name}; arrow keys choose a token">${tokens_html(...given)}</div>
    <div class="here" role="status"></div><div class="why"></div>`;
}

function example_html(vocabulary, e, scale, factor, at) {
  // `at`, its place among the page's examples, makes it a row that opens.
  const values = e.values.map((v) => Math.max(0, v) * factor);
  const text = tokens_html(vocabulary, { ids: e.ids, values }, scale, { focus: e.focus });
  const value = decimal(e.activation * factor), closed = at === undefined;
  const opens = html`<button type="button" aria-expanded="false"
    aria-label="${value}: show the whole text">${value}</button>`;
  const marked = e.marked && html`<br><small title="${MARKED}">marked</small>`;
  return html`<tr${!closed && html` data-example="${at}"`}>
    <td class="value">${closed ? value : opens}${marked}</td>
    <td class="text" dir="ltr">${text}</td></tr>`;
}

function strongest_on(examples) {
  const counts = [...Map.groupBy(examples, (e) => e.token_id)].map(([t, of]) => [t, of.length]);
  return counts.sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, TOKENS_LISTED);
}

const svg_button = (title) => html`<button type="button" class="quiet" data-act="svg"
  data-title="${title}">save SVG</button>`;

function bars_svg(counts, ends, said) {
  // Heights on a logarithmic scale: the few at the ends are what one looks for. `ends` are what is
  // written below the first and the last bar.
  const tallest = Math.log1p(Math.max(...counts)) || 1, width = 280 / counts.length;
  const bar = (count, i) => {
    const height = (50 * Math.log1p(count)) / tallest;
    return html`<rect x="${(i * width).toFixed(1)}" y="${(50 - height).toFixed(1)}"
      width="${(0.9 * width).toFixed(1)}" height="${height.toFixed(1)}"/>`;
  };
  return html`<svg viewBox="0 0 280 66" role="img" aria-label="${said}">${counts.map(bar)}
    ${svg_text(0, 63, "start", ends[0])}${svg_text(280, 63, "end", ends[1])}</svg>`;
}

function histograms_html(features, f) {
  // Activations, with a button over each tenth that chooses its examples; effects on the logits are
  // put beside them when they are known.
  if (!f.histogram || !f.n_active) return html``;
  const maximum = f.maximum_all, edge = (t) => decimal((maximum * t) / 10);
  const button = (share, t) => {
    const said = `from ${edge(t)} to ${edge(t + 1)}: ${percent(share)} of its activations`;
    return html`<button type="button" data-act="tenth" data-tenth="${t}" aria-pressed="false"
      aria-label="examples ${said}" title="${said}"></button>`;
  };
  return html`<div class="histograms"><figure><figcaption>Activations by strength
      <small>(log count; choose a range)</small>
      ${svg_button(`${f.kind} ${f.number}: activations`)}</figcaption>
    <div class="histogram">${bars_svg(f.histogram, [0, decimal(maximum)], "Activations")}
      <div>${(f.tenths ?? []).map(button)}</div></div></figure>
    <figure class="logits"></figure></div>`;
}

function logits_html(f, { counts, low, high }) {
  const ends = [`${signed(low)} lowered`, `raised ${signed(high)}`];
  return html`<figcaption>Effect on each token’s logit <small>(log count of tokens)</small>
      ${svg_button(`${f.kind} ${f.number}: logits`)}</figcaption>
    <div class="histogram">${bars_svg(counts, ends, "Effects on logits")}</div>`;
}

function rule_html(features, f) {
  // The rule with its scores, beside the medians of what was scored in the same way.
  const explained = (f.information ?? null) !== null &&
    html`uncertainty explained <b>${percent(f.information)}</b>, `;
  return html`<details class="rule"><summary>Rule ${token_html(plain(f.rule))}</summary></details>
    <p><small>On the half of the documents that it was not learnt on: ${explained}balanced accuracy
    <b>${decimal(f.balanced_accuracy)}</b>, AUROC <b>${decimal(f.auroc)}</b>.
    ${features.medians}</small></p>`;
}

function meaning_html(features, f) {
  // Fires on X → raises Y, the rule, and what a chat model said.
  const n = f.examples.length, on = strongest_on(f.examples), more = on.length - NAMED;
  const name = (t) => token_html(features.vocabulary.name(t));
  const fires = on.slice(0, NAMED).map(([t, c]) => html`${name(t)} <small>${c} of ${n}</small>`);
  const spread = more > 0 && html` <small>and ${more} other tokens</small>`;
  const raised = (f.top_logits ?? []).slice(0, NAMED).map(name);
  const said = f.kind === "feature" && features.explanations[f.number];
  return html`${n > 0 && html`<p class="meaning">Fires on ${joined(fires)}${spread} → raises
      ${joined(raised)}</p>`}
    ${f.rule && rule_html(features, f)}
    ${said && html`<p>A chat model says: <q>${plain(said)}</q></p>`}
    ${!f.n_active && html`<p>Dead: silent on the whole evaluation text. No examples; the logits are
      what it would move.</p>`}`;
}

function actions_html(features, f) {
  const note = features.notes[f.number] ?? {};
  const act = (name, text) => html`<button type="button" data-act="${name}" data-kind="${f.kind}"
    data-number="${f.number}">${text}</button>`;
  if (!f.opens) return html`<p class="row actions">${act("pin", "Unpin")}</p>`;
  return html`<p class="row actions">${features.whole && html`<a class="button" id="try-it"
      href="#feature=${f.number}&view=try" data-view="try">Make the model write it</a>`}
    ${act("star", note.star ? "★ starred" : "☆ star")}
    <label>name <input data-act="name" maxlength="80" value="${note.name}"
      placeholder="your own words"></label>
    <label>lists <input data-act="lists" maxlength="200" value="${note.lists?.join(", ")}"
      placeholder="code, to check"></label>
    ${act("pin", "Pin to compare")} ${act("link", "Copy link")}
    ${act("markdown", "Copy as Markdown")}</p>`;
}

function facts_html(f) {
  const fact = (name, value, more) =>
    html`<dt>${name}</dt><dd><b>${value}</b></dd>${more && html`<dd><small>${more}</small></dd>`}`;
  const [active, all] = [f.n_active, Math.round(f.n_active / f.density)].map(decimal);
  return html`<dl class="facts">${f.n_active > 0 && html`
    ${fact("density", percent(f.density), `${active} of ${all} tokens`)}
    ${fact("maximum", decimal(f.maximum))} ${fact("mean when active", decimal(f.mean_active))}
    ${f.marked_share > 0 && fact("on marked positions", percent(f.marked_share), MARKED)}`}</dl>`;
}

function lists_html(features, f, blind) {
  // What a page lists: title, what it means, and the entries, each a name and a value.
  const name = (t) => token_html(features.vocabulary.name(t)), own = f.kind === features.kind;
  const near = (n) => (own ? html`${link_html(n)} ${token_html(features.token(n))}` : n);
  const compared = (n) => html`<a href="#view=compare&pins=${f.number},neuron-${n}">${n}</a>`;
  const neuron = (n) => (features.rated && own ? compared(n) : n);
  const count = (v, i) => html`${decimal(v)} of ${decimal(f.top_token_counts[i])}`;
  const direct = "direct effect on the next token's logits";
  const mean = "over all occurrences of the token, silent ones as 0";
  // title, meaning, columns of the entries and of their values, how each is written
  const lists = [
    ["By mean", mean, "top_tokens", "top_token_means", name, count],
    ["Before it", "before an active token", "before_tokens", "before_counts", name, decimal],
    ["Raises", direct, "top_logits", "top_logit_values", name, signed],
    ["Lowers", direct, "bottom_logits", "bottom_logit_values", name, signed],
    ["Nearest", "cosine of decoder directions", "near_features", "near_cosines", near, signed],
    ["Neurons", "in its decoder direction", "aligned_neurons", "aligned_values", neuron, signed],
    ["Correlated", "neurons", "correlated_neurons", "correlated_values", neuron, signed],
  ].filter(([title]) => !blind || /^(Before it|Raises|Lowers)$/.test(title));
  const pair = (key, value) =>
    html`<span class="pair">${key}${value !== "" && html` <small>${value}</small>`}</span> `;
  const list = ([title, meaning, keys, values, named, written]) => f[keys]?.length > 0 &&
    html`<dt>${title} <small>${meaning}</small></dt><dd>${f[keys].map((key, i) =>
      pair(named(key), blind ? "" : written(f[values][i], i)))}</dd>`;
  const strongest = strongest_on(f.examples).map(([t, n]) => pair(name(t), n));
  return html`<dl class="lists">${strongest.length > 0 && html`<dt>Strongest on
    <small>of the top ${f.examples.length} examples</small></dt><dd>${strongest}</dd>`}
    ${lists.map(list)}</dl>`;
}

function examples_html(features, f, blind, factor) {
  // The strongest, and those of each tenth of the range.
  const maximum = f.maximum || f.maximum_all;
  const width = ((f.maximum_all ?? maximum) * factor) / 10, scale = maximum * factor;
  const place = (e) => (f.opens ? f.all.indexOf(e) : undefined);
  const row = (e) => example_html(features.vocabulary, e, scale, factor, place(e));
  const tenths = [...Map.groupBy(f.samples, (e) => e.tenth)];
  const share = (t) => !blind && f.tenths &&
    html` <small>${percent(f.tenths[t])} of its activations</small>`;
  const group = ([t, samples]) => html`<tbody data-tenth="${t}"><tr class="tenth"><th colspan="2">
    ${decimal(width * t)} to ${decimal(width * (t + 1))}${share(t)}</th></tr>
    ${samples.map(row)}</tbody>`;
  return html`${f.examples.length > 0 && html`<h3 class="examples-head">Strongest examples
      ${f.opens && html`<small>choose one for its whole text</small>`}</h3>
    <table class="examples"><tbody>${f.examples.map(row)}</tbody></table>`}
    ${tenths.length > 0 && html`<h3>Over the whole range
      <small>drawn at random from each tenth of it</small></h3>
    <table class="tenths">${tenths.map(group)}</table>`}`;
}

function page_html(features, f, blind = 0) {
  // Blind, as unit `blind` of a session: without what gives a unit's kind away, and activations as
  // per cent of the maximum.
  const factor = blind ? 100 / (f.maximum || f.maximum_all) : 1;
  const kind = blind ? "Unit" : f.kind[0].toUpperCase() + f.kind.slice(1);
  const named = !blind && f.kind === features.kind && features.notes[f.number]?.name;
  const title = named ? html`${named} <small>${f.kind} ${f.number}</small>` :
    `${kind} ${blind || f.number}`;
  return html`<article data-feature="${blind ? "" : f.number}">
    <div class="meaning-card"><h2>${title}</h2>
      ${!blind && html`${meaning_html(features, f)} ${actions_html(features, f)}`}</div>
    <div class="columns"><div>${!blind && histograms_html(features, f)}
    ${examples_html(features, f, blind, factor)}</div>
    <aside>${!blind && facts_html(f)} ${lists_html(features, f, blind)}</aside></div></article>`;
}

function expanded_html(features, e, { problem, ...given }, largest) {
  // The whole row of text around an example, where it is from, and the loss when the feature is
  // ablated.
  const from = html`<p class="facts">${e.origin && html`<span>from <b>${e.origin}</b></span>`}
    <span>row <b>${e.row}</b></span> <span>position <b>${e.position}</b></span></p>`;
  if (problem) return html`${from}<p class="note">${problem}</p>`;
  const { ids, effects } = given, most = Math.max(...effects.map(Math.abs), 0), focus = e.position;
  const total = signed(total_of(effects)), nats = (v) => `${signed(v)} nats`;
  const lost = { ids, values: effects }, how = { focus, colours: LOSS, written: nats };
  const name = "activation on the whole text", { vocabulary, kind } = features;
  return html`${from}${live_html(name, vocabulary, given, largest, { focus })}
    ${effects.length > 0 && html`<h4>Change of the loss when the ${kind} is ablated
      <small>red: the model needs it there; sum ${total}, largest ${decimal(most)} nats</small></h4>
      <div class="text" dir="ltr">${tokens_html(vocabulary, lost, most, how)}</div>`}`;
}

function why_html(features, ids, at, number, { total, own, sources }) {
  // What makes a feature fire at a place, the largest parts first; shares are of what pushes.
  const token = (t) => token_html(features.vocabulary.name(t)), sums = sources.map(total_of);
  const largest = (values, k) => top_of(values.map(Math.abs), k), chosen = largest(sums, SOURCES);
  const through = (heads) => largest(heads, 3).map((h) => `head ${h} ${signed(heads[h])}`);
  const where = (s) => (s === at ? "itself" : `${at - s} before`), n = sums.length - chosen.length;
  const rest = total_of(sums.filter((_, s) => !chosen.includes(s)));
  const push = total_of(own) + total_of(sums);
  const row = (title, value, heads, share = push > 0 && percent(value / push)) => html`<tr>
    <th scope="row">${title}</th><td>${signed(value)}</td><td>${share}</td>
    <td><small>${heads}</small></td></tr>`;
  const part = (s) => row(html`token ${s} ${token(ids[s])} ${where(s)}`, sums[s],
    through(sources[s]).join(", "));
  return html`<h4>Why ${features.kind} ${number} is at ${signed(total)} on ${token(ids[at])}
      <small>exact with the attention pattern, the norms’ scales and the MLP’s gates of this
      place held; the biases act as a threshold</small></h4>
    <table class="next"><thead><tr><th>part</th><th>adds</th><th>share</th><th>through</th></tr>
    </thead><tbody>${row(html`own token ${token(ids[at])}`, own[0])}
    ${row(`own position ${at}`, own[1])}
    ${chosen.map(part)} ${n > 0 && row(`${n} other tokens`, rest)}
    ${row("biases", total - push, "", "")}</tbody></table>`;
}

function here_html(features, { ids, values, strongest, strip = [], effects = [] }, i) {
  // What is known of one token of a text: "features here", and those of the strip.
  const shown = strip.map(([n, on]) => [n, on[i]]).filter(([, v]) => v > 0);
  const here = [...new Map([...strongest[i], ...shown])];
  const entry = ([n, v]) => html`<span class="pair">${link_html(n)} <small>${decimal(v)}</small>
    ${features.label(n)}</span> `;
  const lost = effects.length > 0 && html`, loss when ablated <b>${signed(effects[i])}</b> nats`;
  return html`${token_html(features.vocabulary.name(ids[i]))} activation
    <b>${decimal(values[i])}</b>${lost}; ${features.kind}s here:
    ${here.length ? here.map(entry) : "none"}`;
}

function markdown_of(features, f) {
  // A page in short, for a message or notes. Code spans, so that no text is markup.
  const code = (text) => {
    const fence = "`".repeat(1 + Math.max(0, ...[...text.matchAll(/`+/g)].map((m) => m[0].length)));
    return fence.length > 1 ? `${fence} ${text} ${fence}` : `\`${text}\``;
  };
  const name = (t) => code(features.vocabulary.name(t)), own = features.notes[f.number]?.name;
  const names = (ids) => (ids ?? []).map(name).join(", "), n = f.examples.length;
  const text = (e) => code(plain(features.vocabulary.joined(e.ids)));
  const example = (e) => `${decimal(e.activation)} on ${name(e.token_id)}: ${text(e)}`;
  const on = strongest_on(f.examples).map(([t, count]) => `${name(t)} (${count} of ${n})`);
  const items = [
    `fires on ${on.join(", ")}`,
    `raises ${names(f.top_logits)}; lowers ${names(f.bottom_logits)}`,
    f.rule && `rule ${code(plain(f.rule))}: AUROC ${decimal(f.auroc)}`,
    `density ${percent(f.density)}, maximum ${decimal(f.maximum)}`,
    ...f.examples.slice(0, 5).map(example),
  ];
  const title = `### ${features.kind} ${f.number}${own ? `: ${code(own)}` : ""}\n`;
  return [title, ...items.filter(Boolean).map((item) => `- ${item}`), ""].join("\n");
}
