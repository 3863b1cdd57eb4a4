// The search's language: `import`, `" import" density<0.1%`, `text:"def main" auroc>0.9`, `#12`.
// All parts must hold.

const FIELDS = { // name in a query → column
  number: "feature", density: "density", active: "n_active", maximum: "maximum", star: "star",
  mean: "mean_active", marked: "marked_share", information: "information", auroc: "auroc",
  accuracy: "balanced_accuracy", conditions: "n_conditions",
};
// name in a query → the lists of tokens that it looks into: column, weight in the relevance, chip
const TOKENS = {
  token: [["strongest", 8, "strongest on"], ["top_tokens", 4, "high on"]],
  raises: [["top_logits", 2, "raises"]], lowers: [["bottom_logits", 2, "lowers"]],
  before: [["before_tokens", 2, "after"]],
};
TOKENS[""] = [...TOKENS.token, ...TOKENS.raises];
// name in a query → weight, and the text of a feature
const TEXTS = {
  name: [16, (features, i) => features.notes[i]?.name],
  list: [8, (features, i) => features.notes[i]?.lists?.join(", ")],
  explanation: [3, (features, i) => features.explanations[i]],
  rule: [1, (features, i) => features.columns.rule?.[i]],
};
const PLACES = ["text", ...Object.keys(TOKENS).filter(Boolean), ...Object.keys(TEXTS)];
const PART = new RegExp(`(?:(${PLACES.join("|")}):)?(?:"([^"]+)"(?=\\s|$)|(\\S+))`, "g");
const COMPARISON = /^([a-z_]{3,})(<=|>=|<|>|=)(\d+\.?\d*|\.\d+)(%?)$/i;
// which signs the difference of the two sides may have
const HOLDS = { "<": [-1], "<=": [-1, 0], "=": [0], ">=": [0, 1], ">": [1] };
// what a reader copies from the page, back to the characters that it shows
const SHOWN = { "\u23ce": "\n", "\u00b7": " ", "\u21e5": "\t" };
// how well a token answers a word; in running text a word begins with its blank
const EXACT = 1, ALONE = 0.9, BEGINS = 0.4, CONTAINS = 0.2;

const folded = (text) => text.replace(/[\u23ce\u00b7\u21e5]/g, (c) => SHOWN[c]).toLowerCase();

function near(a, b) {
  // Whether one is the other without one or two letters, or with another in a letter's place.
  const [short, long] = [a, b].sort((x, y) => x.length - y.length);
  const differ = [...long].filter((letter, i) => letter !== short[i]).length;
  const without = long.length - short.length < 3 && new RegExp([...short].join(".*")).test(long);
  return differ === 1 || without;
}

function unknown(word, known, what) {
  const meant = known.find((name) => near(word, name)), all = `there are ${known.join(", ")}`;
  return `no ${what} ${word}; ${meant ? `did you mean ${meant}?` : all}`;
}

function parse_query(query) {
  // [{field, sign, value}, {place, wanted} or {problem}]; all of them have to hold.
  const parts = [], starts_blank = query.startsWith(" ");
  for (const [, place, quoted, word] of query.matchAll(PART)) {
    const bare = place ? undefined : word, compared = bare?.match(COMPARISON);
    const misspelt = bare?.match(/^([a-z]{3,}):./)?.[1];
    if (compared) {
      const [, name, sign, digits, per_cent] = compared, field = name.toLowerCase();
      if (!FIELDS[field]) parts.push({ problem: unknown(field, Object.keys(FIELDS), "field") });
      else parts.push({ field, sign, value: Number(digits) / (per_cent ? 100 : 1) });
    } else if (misspelt && PLACES.some((p) => near(p, misspelt))) {
      parts.push({ problem: unknown(misspelt, PLACES, "place") });
    } else if (/^#\d+$/.test(bare)) {
      parts.push({ field: "number", sign: "=", value: Number(bare.slice(1)) });
    } else {
      const blank = bare && !parts.length && starts_blank ? " " : "";
      parts.push({ place: place ?? "", wanted: blank + folded(quoted ?? word) });
    }
  }
  return parts;
}

function problem_of(features, parts) {
  // What cannot be answered, as a sentence; empty where all can.
  const { count, columns, kind } = features;
  for (const { problem, field, sign, value } of parts) {
    if (problem) return problem;
    if (field && !columns[FIELDS[field]])
      return `no ${field} here: these ${kind}s have no such number`;
    if (field === "number" && sign === "=" && value >= count)
      return `no ${kind} ${value}: there are ${decimal(count)}, numbered from 0`;
  }
  return "";
}

async function matches(features, query, column = "relevance", descending = true) {
  // {found, parts, problem}: numbers of the features found, sorted; the dead and those without a
  // value last. The feature whose number the query is comes first.
  const parts = parse_query(query), problem = problem_of(features, parts), relevance = new Map();
  const named = /^\s*\d+\s*$/.test(query) ? Number(query) : -1;
  if (problem) return { found: [], parts, problem };
  for (const part of parts) await prepare(features, part);
  for (let i = 0; i < features.count; i++) {
    const scores = parts.map((part) => relevance_of(features, part, i));
    if (i === named || scores.every((score) => score > 0))
      relevance.set(i, scores.reduce((sum, score) => sum + score, 0));
  }
  const by_word = parts.some((part) => "place" in part && part.place !== "text");
  const value = (i) => (by_word ? relevance.get(i) : features.columns.clarity[i]);
  const keys = column === "relevance" ? value : (i) => features.columns[column][i];
  const order = sorted(features, [...relevance.keys()], keys, descending, column === "feature");
  const found = relevance.has(named) ? [named, ...order.filter((i) => i !== named)] : order;
  return { found, parts, problem };
}

async function prepare(features, part) {
  // How well each token answers a word; the features whose examples hold a text.
  if (!("place" in part)) return;
  const { place, wanted } = part;
  if (place === "text") part.owners = new Set(await features.source.ask("texts", { wanted }));
  part.quality = features.folded.map((text) => {
    if (text === ` ${wanted}` || (text === wanted && wanted[0] === " ")) return EXACT;
    if (text === wanted) return ALONE;
    const at = text.indexOf(wanted);
    return at < 0 ? 0 : text.trimStart().startsWith(wanted) ? BEGINS : CONTAINS;
  });
}

function relevance_of(features, part, i) {
  // Zero where the part does not hold.
  if ("field" in part) {
    const value = features.columns[FIELDS[part.field]][i];
    return value !== null && HOLDS[part.sign].includes(Math.sign(value - part.value)) ? 1e-9 : 0;
  }
  const scores = hits(features, part, i).map(([score]) => score);
  return Math.max(0, ...scores) + 0.05 * scores.reduce((sum, score) => sum + score, 0);
}

function hits(features, { place, wanted, quality, owners }, i) {
  // Why a feature matches a word or a text: [[score, chip, token or nothing]].
  if (place === "text") return owners.has(i) ? [[1, "in an example"]] : [];
  const found = [], counts = features.columns.strongest_counts[i];
  const total = total_of(counts);
  for (const [column, weight, says] of TOKENS[place] ?? []) {
    let best = 0, token = -1;
    (features.columns[column]?.[i] ?? []).forEach((t, at) => {
      const share = column === "strongest" ? 0.6 + (0.4 * counts[at]) / total : 1 / (1 + at / 4);
      if (quality[t] * share > best) [best, token] = [quality[t] * share, t];
    });
    if (best) found.push([weight * best, says, token]);
  }
  for (const name of place === "" ? Object.keys(TEXTS) : [place]) {
    const [weight, text] = TEXTS[name] ?? [0, () => ""];
    if (text(features, i)?.toLowerCase().includes(wanted)) found.push([weight, `in its ${name}`]);
  }
  return found;
}

function sorted(features, found, value, descending, by_number) {
  const { n_active } = features.columns, sign = descending ? -1 : 1;
  const last = (i) => value(i) === null || (n_active[i] === 0 && !by_number);
  return found.sort((a, b) => last(a) - last(b) || sign * (value(a) - value(b)) || a - b);
}
