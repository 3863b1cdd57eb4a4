// Numbers as page.py writes them and tokens as text/display.py shows them: the same text, character
// by character.

const SIGNS = new Map([["\n", "\u23ce"], ["\r", "\u27e8CR\u27e9"], ["\t", "\u21e5"]]);

// Three digits, or a whole number from 100 on; ties go to the even digit as in numpy.
const ROUNDING = { useGrouping: true, roundingMode: "halfEven" };
const ROUNDED = new Intl.NumberFormat("en", { ...ROUNDING, maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat("en", { ...ROUNDING, maximumFractionDigits: 0 });

function decimal(x) {
  const format = x === 0 || Math.abs(x) >= 100 ? WHOLE : ROUNDED, exact = x.toPrecision(60);
  return format.format(exact).replaceAll(",", "\u2009");
}

const percent = (share) => `${decimal(100 * share)} %`;
const signed = (x) => (x < 0 ? "-" : "+") + decimal(Math.abs(x));

function sign_of(c, at_start, every_blank) {
  // [is it a stand-in, what is shown] of a run of blanks or a character.
  if (c[0] === " ") {
    const dots = every_blank || c.length > 1;
    return [dots, dots ? "\u00b7".repeat(c.length) : " "];
  }
  if (SIGNS.has(c)) return [true, SIGNS.get(c)];
  const code = c.codePointAt(0), hexadecimal = code.toString(16);
  if (code >= 0xdc80 && code <= 0xdcff)
    return [true, `\u27e8${(code - 0xdc00).toString(16).padStart(2, "0")}\u27e9`];
  if (UNICODE.shapeless.test(c))
    return [true, `\u27e8U+${hexadecimal.toUpperCase().padStart(4, "0")}\u27e9`];
  return [false, at_start && UNICODE.combining.test(c) ? "\u25cc" + c : c];
}

function pieces(text, every_blank = false) {
  // [[is it a stand-in, text]]: neighbours of one kind are one piece.
  const runs = [];
  for (const match of text.matchAll(/ +|[^ ]/gu)) {
    const [quiet, part] = sign_of(match[0], match.index === 0, every_blank);
    if (runs.length && runs.at(-1)[0] === quiet) runs.at(-1)[1] += part;
    else runs.push([quiet, part]);
  }
  return runs;
}

const plain = (text, every_blank = false) =>
  pieces(text, every_blank).map(([, part]) => part).join("");
const isolated = (text) => (UNICODE.right_to_left.test(text) ? `\u2068${text}\u2069` : text);

// --- tokens as bytes ---

const ENCODER = new TextEncoder();
const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
// first bytes below → how many bytes the character has
const LENGTHS = [[0x80, 1], [0xc2, 0], [0xe0, 2], [0xf0, 3], [0xf5, 4], [0x100, 0]];

function bytes_of(text) {
  // UTF-8, with lone surrogates U+DC80 to U+DCFF standing for single bytes (Python's
  // surrogateescape)
  return [...text].flatMap((c) => {
    const code = c.codePointAt(0);
    return code >= 0xdc80 && code <= 0xdcff ? code - 0xdc00 : [...ENCODER.encode(c)];
  });
}

function text_of_bytes(bytes) {
  // The other way; each byte that is no part of a character becomes such a surrogate.
  let text = "", i = 0;
  while (i < bytes.length) {
    const length = LENGTHS.find(([below]) => bytes[i] < below)[1];
    let c = "";
    try {
      c = STRICT.decode(Uint8Array.from(bytes.slice(i, i + length)));
    } catch { /* no character */ }
    text += c || String.fromCharCode(0xdc00 + bytes[i]);
    i += c ? length : 1;
  }
  return text;
}

class Vocabulary {
  constructor(texts) {
    this.texts = texts;
    this.partial = texts.map((t) => /[\udc80-\udcff]/u.test(t));
  }
  text(id) { return this.texts[id] ?? `\u27e8#${id}\u27e9`; }
  name(id) { return plain(this.text(id), true); }
  joined(ids) {
    const text = ids.map((t) => this.text(t)).join("");
    return ids.some((t) => this.partial[t]) ? text_of_bytes(bytes_of(text)) : text;
  }

  characters(ids) {
    // Place → the character, for tokens that are only a part of one that the sequence holds
    // whole.
    const found = new Map();
    if (!ids.some((t) => this.partial[t])) return found;
    const bytes = ids.map((t) => bytes_of(this.texts[t] ?? ""));
    const owner = bytes.flatMap((of, i) => of.map(() => i));
    let at = 0;
    for (const c of text_of_bytes(bytes.flat())) {
      const { length } = bytes_of(c);
      if (owner[at] !== owner[at + length - 1])
        for (const i of owner.slice(at, at + length)) if (this.partial[ids[i]]) found.set(i, c);
      at += length;
    }
    return found;
  }
}

const total_of = (values) => values.reduce((sum, value) => sum + value, 0);
const average = (values) => total_of(values) / values.length;

function mulberry32(seed) {
  // A small random generator with a seed (Tommy Ettinger, public domain): numbers in [0, 1).
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled(values, random) {
  const drawn = values.map((value) => [random(), value]).sort(([a], [b]) => a - b);
  return drawn.map(([, value]) => value);
}

function top_of(values, k, above = -Infinity) {
  // Places of the k largest, the largest first.
  const places = [];
  for (let i = 0; i < values.length; i++) if (values[i] > above) places.push(i);
  return places.sort((a, b) => values[b] - values[a] || a - b).slice(0, k);
}
