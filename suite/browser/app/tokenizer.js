// Byte-level BPE as GPT-2 has it: split the text by the rule below, then merge bytes pair by pair,
// the earliest learned merge first.

const SPLIT = new RegExp(
  [
    String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+`,
    String.raw`\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`,
  ].join("|"),
  "gu",
);

function byte_letters() {
  // GPT-2's letters for the 256 bytes: printable ones stand for themselves, the rest follow from
  // U+0100.
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
}

class Tokenizer {
  constructor({ model, added_tokens }) {
    // What `tokenizers` saves. As everywhere in this project special tokens in a text are ordinary
    // text, so they are left out.
    const ids = model.vocab;
    this.bytes = byte_letters().map((letter) => ids[letter]);
    this.ranks = new Map(); // left id · 2^20 + right id → [rank, merged id]
    model.merges.forEach((merge, rank) => {
      const [left, right] = typeof merge === "string" ? merge.split(" ") : merge;
      // as in tokenizers, a pair listed twice has its last rank
      this.ranks.set(ids[left] * 2 ** 20 + ids[right], [rank, ids[left + right]]);
    });
    this.added = new Map(added_tokens.filter((t) => !t.special).map((t) => [t.content, t.id]));
    const contents = [...this.added.keys()]
      .sort((a, b) => b.length - a.length)
      .map((t) => t.replace(/[.*+?^${}()|[\]\\\/-]/g, "\\$&"));
    this.special = contents.length ? new RegExp(`(${contents.join("|")})`, "u") : null;
    this.cache = new Map();
  }

  encode(text) {
    const parts = this.special ? text.split(this.special) : [text], ids = [];
    parts.forEach((part, i) => {
      if (i % 2 === 1) ids.push(this.added.get(part));
      else for (const [word] of part.matchAll(SPLIT)) ids.push(...this.word(word));
    });
    return ids;
  }

  word(word) {
    let ids = this.cache.get(word);
    if (ids === undefined) {
      ids = this.merge(Array.from(ENCODER.encode(word), (b) => this.bytes[b]));
      this.cache.set(word, ids);
    }
    return ids;
  }

  merge(ids) {
    for (;;) {
      let best = null, pair = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const key = ids[i] * 2 ** 20 + ids[i + 1], found = this.ranks.get(key);
        if (found && (best === null || found[0] < best[0])) [best, pair] = [found, key];
      }
      if (best === null) return ids;
      const merged = [];
      for (let i = 0; i < ids.length; i++) {
        if (i + 1 < ids.length && ids[i] * 2 ** 20 + ids[i + 1] === pair) {
          merged.push(best[1]);
          i++;
        } else merged.push(ids[i]);
      }
      ids = merged;
    }
  }
}
