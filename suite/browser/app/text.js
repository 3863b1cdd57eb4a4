// Numbers as page.py writes them and tokens as text/display.py shows them: the same text, character
// by character.

const SIGNS = new Map([
  ["\n", "\u23ce"],
  ["\r", "\u27e8CR\u27e9"],
  ["\t", "\u21e5"],
]);

function exponent_and_digits(x, digits) {
  // [exponent, decimal digits] of |x|, ties to the even digit as in numpy; JavaScript alone would
  // take the larger one.
  let [mantissa, exponent] = x.toExponential(digits - 1).split("e");
  const exact = x
    .toExponential(digits + 22)
    .split("e")[0]
    .replace(".", "");
  mantissa = mantissa.replace(".", "");
  if (
    /^50*$/.test(exact.slice(digits)) &&
    exact.slice(0, digits) !== mantissa &&
    Number(exact[digits - 1]) % 2 === 0
  ) {
    return [Number(x.toExponential(digits + 22).split("e")[1]), exact.slice(0, digits)];
  }
  return [Number(exponent), mantissa];
}

function fixed(x, digits) {
  // toFixed with Python's ties: to even.
  const text = x.toFixed(digits),
    exact = Math.abs(x).toFixed(digits + 25);
  if (!/^50*$/.test(exact.slice(exact.length - 25))) return text;
  const down = exact.slice(0, exact.length - 25).replace(/\.$/, "");
  return Number(down.at(-1)) % 2 === 0 ? (x < 0 ? "-" : "") + down : text;
}

function decimal(x) {
  if (x === 0 || Math.abs(x) >= 100) return fixed(x, 0).replace(/\B(?=(\d{3})+$)/g, "\u2009");
  const [exponent, digits] = exponent_and_digits(Math.abs(x), 3);
  const point = exponent + 1;
  const whole = point > 0 ? digits.slice(0, point).padEnd(point, "0") : "0";
  const rest = (point > 0 ? digits.slice(point) : "0".repeat(-point) + digits).replace(/0+$/, "");
  return (x < 0 ? "-" : "") + whole + (rest ? "." + rest : "");
}

const percent = (share) => `${decimal(100 * share)} %`;
const signed = (x) => (x < 0 ? "-" : "+") + decimal(Math.abs(x));
function signs(text, every_blank) {
  const found = [];
  for (const match of text.matchAll(/ +|[^ ]/gu)) {
    const c = match[0];
    if (c[0] === " ")
      found.push(every_blank || c.length > 1 ? [true, "\u00b7".repeat(c.length)] : [false, " "]);
    else if (SIGNS.has(c)) found.push([true, SIGNS.get(c)]);
    else if (c >= "\udc80" && c <= "\udcff" && c.length === 1)
      found.push([true, `\u27e8${(c.charCodeAt(0) - 0xdc00).toString(16).padStart(2, "0")}\u27e9`]);
    else if (UNICODE.shapeless.test(c))
      found.push([
        true,
        `\u27e8U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`,
      ]);
    else if (match.index === 0 && UNICODE.combining.test(c)) found.push([false, "\u25cc" + c]);
    else found.push([false, c]);
  }
  return found;
}

function pieces(text, every_blank = false) {
  const runs = [];
  for (const [quiet, part] of signs(text, every_blank)) {
    if (runs.length && runs.at(-1)[0] === quiet) runs.at(-1)[1] += part;
    else runs.push([quiet, part]);
  }
  return runs;
}

const plain = (text, every_blank = false) =>
  signs(text, every_blank)
    .map(([, part]) => part)
    .join("");
const isolated = (text) => (UNICODE.right_to_left.test(text) ? `\u2068${text}\u2069` : text);

// --- tokens as bytes ---

const ENCODER = new TextEncoder();

function bytes_of(text) {
  // UTF-8, with lone surrogates U+DC80 to U+DCFF standing for single bytes (Python's
  // surrogateescape)
  const bytes = [];
  for (const c of text) {
    const code = c.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) bytes.push(code - 0xdc00);
    else bytes.push(...ENCODER.encode(c));
  }
  return bytes;
}

function text_of_bytes(bytes) {
  // The other way; each byte that is no part of a character becomes such a surrogate.
  let text = "",
    i = 0;
  while (i < bytes.length) {
    const first = bytes[i];
    const length =
      first < 0x80
        ? 1
        : first < 0xc2
          ? 0
          : first < 0xe0
            ? 2
            : first < 0xf0
              ? 3
              : first < 0xf5
                ? 4
                : 0;
    let c;
    try {
      c =
        length && i + length <= bytes.length
          ? STRICT.decode(Uint8Array.from(bytes.slice(i, i + length)))
          : undefined;
    } catch {
      c = undefined;
    }
    text += c === undefined ? String.fromCharCode(0xdc00 + first) : c;
    i += c === undefined ? 1 : length;
  }
  return text;
}

const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

class Vocabulary {
  constructor(texts) {
    this.texts = texts;
    this.partial = texts.map((t) => /[\udc80-\udcff]/u.test(t));
  }
  text(id) {
    return id >= 0 && id < this.texts.length ? this.texts[id] : `\u27e8#${id}\u27e9`;
  }
  name(id) {
    return plain(this.text(id), true);
  }
  known(id) {
    return id >= 0 && id < this.texts.length;
  }

  characters(ids) {
    // Place → the character, for tokens that are only a part of one that the sequence holds
    // whole.
    const found = new Map();
    if (!ids.some((t) => this.known(t) && this.partial[t])) return found;
    const owner = [],
      bytes = [];
    ids.forEach((t, i) => {
      if (this.known(t))
        for (const b of bytes_of(this.texts[t])) {
          owner.push(i);
          bytes.push(b);
        }
    });
    let at = 0;
    for (const c of text_of_bytes(bytes)) {
      const length =
        c >= "\udc80" && c <= "\udcff" && c.length === 1 ? 1 : ENCODER.encode(c).length;
      if (owner[at] !== owner[at + length - 1])
        for (const i of owner.slice(at, at + length)) if (this.partial[ids[i]]) found.set(i, c);
      at += length;
    }
    return found;
  }
}
