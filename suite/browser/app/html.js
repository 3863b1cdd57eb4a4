// HTML as a tagged template: html`<b>${text}</b>`. Every value is escaped, but for what html`…`
// itself made.

class Safe {
  constructor(text) { this.text = text; }
}

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;" };

function escaped(value) {
  if (value instanceof Safe) return value.text;
  if (Array.isArray(value)) return value.map(escaped).join("");
  if (value === undefined || value === null || value === false) return "";
  return String(value).replace(/[&<>'"]/g, (c) => ESCAPES[c]);
}

function html(strings, ...values) {
  return new Safe(String.raw({ raw: strings }, ...values.map(escaped)));
}

const svg_text = (x, y, anchor, text) =>
  html`<text x="${x}" y="${y}" text-anchor="${anchor}">${text}</text>`;
const problem_html = (error) => html`<p class="note">${error.message}</p>`;

function show(element, content) {
  // The only place where HTML is parsed, beside the page's own frame.
  if (!(content instanceof Safe)) throw new Error("only what html`…` made is shown");
  element.innerHTML = content.text;
}
