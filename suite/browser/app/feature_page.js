// A feature's page and its parts as HTML. Texts are token ids with an activation for each.

// opacity of the strongest colour: text stays readable on it, on white and on black
const DARKEST = 0.62;
const ACTIVE = ["240,125,20", ""],
  LOSS = ["208,60,60", "50,110,200"]; // colours above and below zero
const TOKENS = 12; // tokens listed that the strongest examples are strongest on
const MARKED =
  "first token of a row, padding, or an activation of outlying norm: left out of the strongest";

const token_html = (name) => html`<bdi class="token">${name}</bdi>`;
const link_html = (number) => html`<a href="#feature=${number}">${number}</a>`;
const signs_html = (text, every_blank) =>
  pieces(text, every_blank).map(([quiet, part]) => (quiet ? html`<i>${part}</i>` : part));

function tokens_html(
  vocabulary,
  { ids, values },
  largest,
  { focus = -1, prompt = 0, colours = ACTIVE, written = decimal } = {},
) {
  const whole = vocabulary.characters(ids);
  return ids.map((id, i) => {
    const value = values[i],
      share = largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0,
      colour = colours[value < 0 ? 1 : 0];
    const style =
      colour && share > 0.01
        ? html` style="background-color:rgba(${colour},${(DARKEST * share).toFixed(2)})"`
        : "";
    const part = whole.has(i) ? `  (part of ${isolated(plain(whole.get(i)))})` : "",
      hint = `${isolated(vocabulary.name(id))}  ${written(value)}${part}`;
    const text = signs_html(vocabulary.text(id), i === focus);
    return html`<bdi title="${hint}" ${i < prompt ? html` class="prompt"` : ""}${style}
      >${i === focus ? html`<b>${text}</b>` : text}</bdi
    >`;
  });
}

const text_html = (...given) => html`<div class="text" dir="ltr">${tokens_html(...given)}</div>`;

function example_html(vocabulary, e, scale, factor, number) {
  const values = e.values.map((v) => Math.max(0, v) * factor),
    value = decimal(e.activation * factor),
    address = `#feature=${number}&view=context&row=${e.row}&position=${e.position}`;
  const text = tokens_html(vocabulary, { ids: e.ids, values }, scale, { focus: e.focus });
  const linked = html`<a href="${address}" title="the whole text around it">${value}</a>`;
  const marked = e.marked && html`<br /><small title="${MARKED}">marked</small>`;
  return html`<tr>
    <td class="value">${number === undefined ? value : linked}${marked}</td>
    <td class="text" dir="ltr">${text}</td>
  </tr>`;
}

function strongest_on(examples) {
  const counts = new Map();
  for (const { token_id: token } of examples) counts.set(token, (counts.get(token) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, TOKENS);
}

function histogram_html(counts, maximum) {
  // Heights on a logarithmic scale: the few strong activations are what one looks for.
  const tallest = Math.log1p(Math.max(...counts)),
    bars = counts.map((c, i) => [10 * i, (40 * Math.log1p(c)) / tallest, c]);
  return html`<figure>
    <figcaption><small>activations by strength, counted on a logarithmic scale</small></figcaption>
    <svg
      class="histogram"
      viewBox="0 0 ${10 * counts.length} 40"
      preserveAspectRatio="none"
      role="img"
      aria-label="histogram of activations"
    >
      ${bars.map(
        ([x, h, c]) =>
          html`<rect x="${x}" y="${(40 - h).toFixed(1)}" width="9" height="${h.toFixed(1)}">
            <title>${decimal(c)}</title>
          </rect>`,
      )}
    </svg>
    <div class="axis"><small>0</small><small>${decimal(maximum)}</small></div>
  </figure>`;
}

function facts_html(f) {
  if (!f.n_active)
    return html`<p>
      Dead: silent on the whole evaluation text. No examples; the logits below are what it would
      move.
    </p>`;
  const score =
    f.rule &&
    html`<p class="rule">
      Rule ${token_html(plain(f.rule))}
      <small
        >learnt on one half of the documents; on the other half: balanced accuracy
        <b>${decimal(f.balanced_accuracy)}</b>, AUROC <b>${decimal(f.auroc)}</b></small
      >
    </p>`;
  return html`<p class="facts">
      <span
        >density <b>${percent(f.density)}</b>
        <small
          >${decimal(f.n_active)} of ${decimal(Math.round(f.n_active / f.density))} tokens</small
        ></span
      >
      <span>maximum <b>${decimal(f.maximum)}</b></span>
      <span>mean when active <b>${decimal(f.mean_active)}</b></span>
      ${
        f.marked_share > 0 &&
        html`<span title="${MARKED}">on marked positions <b>${percent(f.marked_share)}</b></span>`
      }
    </p>
    ${score}
    ${f.histogram && Math.max(...f.histogram) > 0 && histogram_html(f.histogram, f.maximum_all)}`;
}

function lists_html(features, f, blind) {
  // What a page lists: title, what it means, and the entries, each a name and a value.
  const name = (t) => token_html(features.vocabulary.name(t)),
    near = (n) => html`${link_html(n)} ${features.token(n) ? token_html(features.token(n)) : ""}`;
  const pairs = (keys, values, named, written) =>
    (f[keys] ?? []).map((key, i) => [named(key), written(f[values][i], i)]);
  const mean = (v, i) =>
    html`<span
      title="over its ${decimal(f.top_token_counts[i])} occurrences, the silent ones counted as 0"
      >${decimal(v)}</span
    >`;
  const lists = [
    [
      "Strongest on",
      `of the top ${f.examples.length} examples`,
      strongest_on(f.examples).map(([t, n]) => [name(t), n]),
    ],
    [
      "By mean",
      "mean activation over all occurrences of the token, silent ones counted as 0",
      blind ? [] : pairs("top_tokens", "top_token_means", name, mean),
    ],
    [
      "Before it",
      "tokens most often directly before an active one",
      pairs("before_tokens", "before_counts", name, decimal),
    ],
    [
      "Raises",
      "its direct effect on the next token's logits",
      pairs("top_logits", "top_logit_values", name, signed),
    ],
    [
      "Lowers",
      "its direct effect on the next token's logits",
      pairs("bottom_logits", "bottom_logit_values", name, signed),
    ],
    [
      "Nearest",
      "largest cosine between decoder directions",
      blind ? [] : pairs("near_features", "near_cosines", near, signed),
    ],
    [
      "Neurons",
      "with the largest components of the unit decoder direction",
      blind ? [] : pairs("aligned_neurons", "aligned_values", String, signed),
    ],
    [
      "Correlated",
      "neurons whose activations correlate most with it",
      blind ? [] : pairs("correlated_neurons", "correlated_values", String, signed),
    ],
  ];
  const entry = ([key, value], title) =>
    html`<span class="pair"
      >${key}${(!blind || title === "Strongest on") && html` <small>${value}</small>`}</span
    > `;
  return html`<dl>
    ${lists
      .filter(([, , entries]) => entries.length)
      .map(
        ([title, meaning, entries]) =>
          html`<dt title="${meaning}">${title}</dt>
            <dd>${entries.map((e) => entry(e, title))}</dd>`,
      )}
  </dl>`;
}

function page_html(features, f, blind = 0) {
  // Blind, as unit `blind` of a session: without what gives a unit's kind away, and activations as
  // per cent of the maximum.
  const maximum = f.maximum || f.maximum_all,
    factor = blind ? 100 / maximum : 1,
    scale = maximum * factor,
    width = ((f.maximum_all ?? maximum) * factor) / 10;
  const row = (e) =>
      example_html(
        features.vocabulary,
        e,
        scale,
        factor,
        blind || !features.whole ? undefined : f.number,
      ),
    tenths = [];
  for (const e of f.samples)
    if (tenths.at(-1)?.[0].tenth === e.tenth) tenths.at(-1).push(e);
    else tenths.push([e]);
  const head = ([{ tenth }]) =>
    html`<tr class="tenth">
      <th colspan="2">
        ${decimal(width * tenth)} to
        ${decimal(width * (tenth + 1))}${
          !blind &&
          f.tenths &&
          html` <small>${percent(f.tenths[tenth])} of its activations</small>`
        }
      </th>
    </tr>`;
  const kind = blind ? "Unit" : features.kind[0].toUpperCase() + features.kind.slice(1);
  return html`<section data-feature="${blind ? "" : f.number}">
    <h3>${kind} ${blind || f.number}</h3>
    ${!blind && facts_html(f)} ${lists_html(features, f, blind)}
    ${
      f.examples.length > 0 &&
      html`<h4>Strongest examples</h4>
        <table class="examples">
          <tbody>
            ${f.examples.map(row)}
          </tbody>
        </table>`
    }
    ${
      tenths.length > 0 &&
      html`<h4>Over the whole range <small>drawn at random from each tenth of it</small></h4>
        <table class="tenths">
          <tbody>
            ${tenths.map((t) => html`${head(t)}${t.map(row)}`)}
          </tbody>
        </table>`
    }
  </section>`;
}

function per_token_html(features, { ids, strongest }) {
  const entry = ([number, value]) =>
    html`<span class="pair"
      >${link_html(number)}
      <small>${decimal(value)}</small>
      ${features.token(number) && token_html(features.token(number))}</span
    > `;
  return html`<table class="per-token">
    <thead>
      <tr>
        <th>token</th>
        <th>
          strongest ${features.kind}s, their activations, and the token that each is strongest on
          elsewhere
        </th>
      </tr>
    </thead>
    <tbody>
      ${ids.map(
        (id, i) =>
          html`<tr>
            <td>${token_html(features.vocabulary.name(id))}</td>
            <td>${strongest[i].map(entry)}</td>
          </tr>`,
      )}
    </tbody>
  </table>`;
}

function clamped_html(features, { kl, next, sides, prompt }, largest, what) {
  const side = (title, given) =>
    html`<div>
      <h4>${title}</h4>
      ${text_html(features.vocabulary, given, largest, { prompt })}
    </div>`;
  const clamped = () => side(html`Clamped <small>${what}</small>`, sides[1]);
  return html`${
    sides.length > 0 && html`<div class="sides">${side("As it is", sides[0])}${clamped()}</div>`
  }
    <h4>
      The next token after the text <small>KL(as it is ‖ clamped) ${decimal(kl)} nats</small>
    </h4>
    <table class="next">
      <thead>
        <tr>
          <th>token</th>
          <th>as it is</th>
          <th>clamped</th>
          <th>change</th>
        </tr>
      </thead>
      <tbody>
        ${next.map(
          ([id, before, after]) =>
            html`<tr>
              <td>${token_html(features.vocabulary.name(id))}</td>
              <td>${percent(before)}</td>
              <td>${percent(after)}</td>
              <td class="${after > before ? "up" : "down"}">
                ${signed(100 * (after - before))} points
              </td>
            </tr>`,
        )}
      </tbody>
    </table>`;
}

function context_html(features, given, largest, row, position) {
  const { ids, values, effects } = given,
    most = Math.max(...effects.map(Math.abs)),
    total = effects.reduce((a, b) => a + b, 0),
    lost = { ids, values: effects };
  const nats = (v) => `${signed(v)} nats`;
  return html`<p class="facts">
      <span>row <b>${row}</b></span> <span>position <b>${position}</b> of ${ids.length}</span>
      <span>activation there <b>${decimal(values[position])}</b></span>
    </p>
    ${text_html(features.vocabulary, given, largest, { focus: position })}
    ${
      effects.length > 0 &&
      html`<h4>
          Change of the loss on each token when it is ablated here
          <small
            >red: the model needs it there; point at a token for nats; sum ${signed(total)}, largest
            ${decimal(most)}</small
          >
        </h4>
        ${text_html(features.vocabulary, lost, most, {
          focus: position,
          colours: LOSS,
          written: nats,
        })}`
    }`;
}
