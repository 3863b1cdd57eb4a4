// Search: words, "quoted words", #12, text:word, rule:word, and conditions such as density<0.001. All of them have to hold.

const TERM = /(?:(text|token|rule):)?(?:"([^"]*)"|(\S+))/g;
const CONDITION = /^([a-z_]+)(<=|>=|<|>|=)([-+]?[\d.]+(?:e[-+]?\d+)?)(%?)$/i;
const COMPARE = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };
const SHOWN = { "\u23ce": "\n", "\u00b7": " ", "\u21e5": "\t" }; // what a reader copies from the page, back to what it stands for

function parse_query(text, columns) {
  // [{where, value} or {column, holds}]; `unknown` names what looks like a condition on a column that is not there.
  const terms = [], unknown = [];
  for (const [, where, quoted, bare] of text.matchAll(TERM)) {
    const condition = !where && bare !== undefined && bare.match(CONDITION);
    if (condition && columns.includes(condition[1].toLowerCase())) {
      const [, column, operator, number, share] = condition, limit = Number(number) / (share ? 100 : 1);
      terms.push({ column: column.toLowerCase(), holds: (x) => x !== null && COMPARE[operator](x, limit) });
      continue;
    }
    if (condition) unknown.push(condition[1]);
    const value = (quoted ?? bare).replace(/[\u23ce\u00b7\u21e5]/g, (c) => SHOWN[c]).toLowerCase();
    if (value) terms.push({ where: where ?? "any", value });
  }
  return { terms, unknown };
}

function named_feature(text) {
  const digits = text.trim().match(/^#?(\d+)$/);
  return digits ? Number(digits[1]) : -1;
}

async function matches(features, text, sort, descending, waiting = () => {}) {
  // Numbers of the features found, sorted; the dead and those without a value last. The feature that the query names is first.
  const { terms, unknown } = parse_query(text, Object.keys(features.numbers));
  if (terms.some((t) => t.where === "text") && !features.texts) {
    waiting();
    await features.load_texts();
  }
  const keep = terms.map((term) => test_of(features, term)), found = [];
  for (let i = 0; i < features.count; i++) if (keep.every((holds) => holds(i))) found.push(i);
  const named = named_feature(text), order = sorted(features, found, sort, descending).filter((i) => i !== named);
  return { numbers: found.includes(named) ? [named, ...order] : order, unknown };
}

function test_of(features, { column, holds, where, value }) {
  if (column) return (i) => holds(features.numbers[column][i]);
  if (where === "text") return (i) => features.texts[i].includes(value);
  if (where === "rule") return (i) => (features.rule[i] ?? "").toLowerCase().includes(value);
  if (/^#\d+$/.test(value)) return (i) => i === Number(value.slice(1));
  const number = named_feature(value), hit = features.lower.map((t) => t.includes(value));
  return (i) =>
    i === number || features.strongest[i].some((t) => hit[t]) || features.raised[i].some((t) => hit[t]) ||
    (where === "any" && (features.rule[i] ?? "").toLowerCase().includes(value));
}

function sorted(features, found, sort, descending) {
  if (sort === "feature") return descending ? found.slice().reverse() : found;
  const keys = features.numbers[sort], last = (i) => features.numbers.n_active[i] === 0 || keys[i] === null, sign = descending ? -1 : 1;
  return found.slice().sort((a, b) => last(a) - last(b) || (last(a) ? 0 : sign * (keys[a] - keys[b])) || a - b);
}
