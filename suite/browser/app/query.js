// The search's language: `import`, `" import" density<0.1%`, `text:"def main" auroc>0.9`, `#12`.
// All parts must hold.

const FIELDS = {
  // name in a query → column
  number: "feature",
  density: "density",
  active: "n_active",
  maximum: "maximum",
  mean: "mean_active",
  marked: "marked_share",
  auroc: "auroc",
  accuracy: "balanced_accuracy",
  conditions: "n_conditions",
};
// where a text is looked for; without one: token, raises and rule
const PLACES = ["token", "text", "before", "raises", "lowers", "rule"];
const HELP =
  'Parts, all of which must hold: a token or a piece of one (in "quotes" where it has blanks) is ' +
  "looked for in the tokens that features are strongest on, in the logits that they raise and in " +
  "their rules; text:, token:, before:, raises:, lowers: or rule: in front says where; " +
  `text:"def main" looks at the examples. Numbers: ${Object.keys(FIELDS).join(", ")} ` +
  "with <, <=, =, >= or >, as in density<0.1% auroc>0.9. #12 is feature 12.";
const PART = new RegExp(`(?:(${PLACES.join("|")}):)?(?:"([^"]+)"(?=\\s|$)|(\\S+))`, "g");
const COMPARISON = new RegExp(
  `^(${Object.keys(FIELDS).join("|")})(<=|>=|<|>|=)(\\d+\\.?\\d*|\\.\\d+)(%?)$`,
  "i",
);
const HOLDS = {
  "<": (a, b) => a < b,
  ">": (a, b) => a > b,
  "<=": (a, b) => a <= b,
  ">=": (a, b) => a >= b,
  "=": (a, b) => a === b,
};
// what a reader copies from the page, back to the characters that it shows
const SHOWN = { "\u23ce": "\n", "\u00b7": " ", "\u21e5": "\t" };
const END_OF_EXAMPLE = "\uffff";

const folded = (text) => text.replace(/[\u23ce\u00b7\u21e5]/g, (c) => SHOWN[c]).toLowerCase();

function parse_query(query) {
  // [{field, sign, value} or {place, wanted}]; all of them have to hold.
  const parts = [];
  for (const [, place, quoted, word] of query.matchAll(PART)) {
    const compared = word && !place ? word.match(COMPARISON) : null;
    if (compared)
      parts.push({
        field: compared[1].toLowerCase(),
        sign: compared[2],
        value: Number(compared[3]) / (compared[4] ? 100 : 1),
      });
    else if (word && !place && /^#\d+$/.test(word))
      parts.push({ field: "number", sign: "=", value: Number(word.slice(1)) });
    else
      parts.push({
        place: place ?? "",
        wanted:
          (word && !place && !parts.length && query.startsWith(" ") ? " " : "") +
          folded(quoted ?? word),
      });
  }
  return parts;
}

function named_feature(query) {
  const digits = query.trim().match(/^#?(\d+)$/);
  return digits ? Number(digits[1]) : -1;
}

async function matches(features, query, column, descending, waiting = () => {}) {
  // Numbers of the features found, sorted; the dead and those without a value last. The feature
  // that the query names is first.
  const parts = parse_query(query),
    named = named_feature(query),
    found = [];
  if (parts.some((part) => part.place === "text") && !features.texts) {
    waiting();
    await features.load_texts();
  }
  const tests = parts.map((part) =>
    "place" in part ? with_text(features, part) : compared(features, part),
  );
  for (let i = 0; i < features.count; i++)
    if (i === named || tests.every((test) => test(i))) found.push(i);
  const order = sorted(features, found, column, descending).filter((i) => i !== named);
  return found.includes(named) ? [named, ...order] : order;
}

function compared(features, { field, sign, value }) {
  const column = features.columns[FIELDS[field]];
  return (i) => column !== undefined && column[i] !== null && HOLDS[sign](column[i], value);
}

function with_text(features, { place, wanted }) {
  if (place === "text") return (i) => features.texts[i].includes(wanted);
  const hit = features.folded.map((text) => text.includes(wanted)),
    tests = [];
  const in_list = (column) =>
    tests.push((i) => (features.columns[column]?.[i] ?? []).some((t) => hit[t]));
  if (place === "" || place === "token") {
    tests.push((i) => features.strongest[i].some((t) => hit[t]));
    in_list("top_tokens");
  }
  if (place === "" || place === "raises") in_list("top_logits");
  if (place === "lowers") in_list("bottom_logits");
  if (place === "before") in_list("before_tokens");
  if (place === "" || place === "rule")
    tests.push((i) => (features.columns.rule?.[i] ?? "").toLowerCase().includes(wanted));
  return (i) => tests.some((test) => test(i));
}

function sorted(features, found, column, descending) {
  const keys = features.columns[column],
    dead = features.columns.n_active,
    sign = descending ? -1 : 1;
  const last = (i) => keys[i] === null || (dead[i] === 0 && column !== "feature");
  return found
    .slice()
    .sort(
      (a, b) => last(a) - last(b) || (keys[a] === null ? 0 : sign * (keys[a] - keys[b])) || a - b,
    );
}
