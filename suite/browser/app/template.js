// What the compiled template calls: Jinja's escaping, truth and built-in filters, as Python has them.

class Safe {
  // HTML that a macro made: the only thing that is not escaped.
  constructor(html) { this.html = html; }
  toString() { return this.html; }
}

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;" };

function escaped(value) {
  if (value === undefined) throw new Error("the template prints a value that is not there");
  if (value instanceof Safe) return value.html;
  return text_of(value).replace(/[&<>'"]/g, (c) => ESCAPES[c]);
}

function text_of(value) {
  return value === null ? "None" : value === true ? "True" : value === false ? "False" : String(value);
}

function float_text(value) {
  // str(float) of Python
  if (Number.isInteger(value) && Math.abs(value) < 1e16) return value.toFixed(1);
  const magnitude = Math.abs(value);
  if (magnitude >= 1e-4 && magnitude < 1e16) return String(value);
  return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
}

function truthy(value) {
  if (value === undefined) throw new Error("the template asks for a value that is not there");
  if (value instanceof Safe) return value.html !== "";
  if (Array.isArray(value)) return value.length > 0;
  if (value !== null && typeof value === "object") return Object.keys(value).length > 0;
  return Boolean(value);
}

function maybe(owner, key) {
  if (owner === undefined || owner === null) throw new Error(`the template looks for ${key} in nothing`);
  if (Array.isArray(owner) || typeof owner === "string") return owner.at(key);
  return Object.hasOwn(owner, key) ? owner[key] : undefined;
}

function item(owner, key) {
  const value = maybe(owner, key);
  if (value === undefined) throw new Error(`the template looks for ${key}, which is not there`);
  return value;
}

const and = (left, right) => (truthy(left) ? right() : left);
const or = (left, right) => (truthy(left) ? left : right());
const add = (a, b) => (Array.isArray(a) ? [...a, ...b] : a + b);
const contains = (container, value) =>
  Array.isArray(container) || typeof container === "string" ? container.includes(value) : Object.hasOwn(container, value);
const iterable = (value) => (typeof value === "string" || Array.isArray(value) ? value : Object.keys(value));
const loop_of = (i, n) => ({ index: i + 1, index0: i, first: i === 0, last: i === n - 1, length: n, revindex: n - i, revindex0: n - i - 1 });

function concatenated(parts) {
  return parts.some((p) => p instanceof Safe) ? new Safe(parts.map(escaped).join("")) : parts.map(text_of).join("");
}

const builtin = {
  max: (values) => values.reduce((a, b) => (b > a ? b : a)),
  min: (values) => values.reduce((a, b) => (b < a ? b : a)),
  length: (value) => (typeof value === "string" ? [...value].length : Array.isArray(value) ? value.length : Object.keys(value).length),
  capitalize: (text) => text.slice(0, 1).toUpperCase() + text.slice(1).toLowerCase(),
  first: (values) => values[0],
  last: (values) => values.at(-1),
  join: (values, by = "") => (values.some((v) => v instanceof Safe) ? new Safe(values.map(escaped).join(escaped(by))) : values.map(text_of).join(by)),
  default: (value, instead = "", also_false = false) => (value === undefined || (also_false && !truthy(value)) ? instead : value),
  abs: Math.abs,
  round: (x, digits = 0) => Number(fixed(x, digits)),
  sum: (values) => values.reduce((a, b) => a + b, 0),
  upper: (text) => text.toUpperCase(),
  lower: (text) => text.toLowerCase(),
};
