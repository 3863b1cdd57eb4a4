// Byte-level BPE as GPT-2 has it: split the text by the rule below, then merge bytes pair by pair,
// the earliest learned merge first.

const SPLIT = new RegExp([
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+`,
  String.raw`\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`,
].join("|"), "gu");

class Tokenizer {
  constructor({ bytes, merges, added }) {
    // As everywhere in this project special tokens in a text are ordinary text, so they are left
    // out.
    this.bytes = bytes;
    this.ranks = new Map(); // left id · 2^20 + right id → [rank, merged id]
    merges.forEach(([left, right, both], rank) =>
      this.ranks.set(left * 2 ** 20 + right, [rank, both])); // of a pair listed twice the last
    this.added = new Map(added);
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
    if (!this.cache.has(word))
      this.cache.set(word, this.merge(Array.from(ENCODER.encode(word), (b) => this.bytes[b])));
    return this.cache.get(word);
  }

  merge(ids) {
    // The pair learned first, wherever it is, then the next.
    for (;;) {
      const pairs = ids.slice(1).map((right, i) => this.ranks.get(ids[i] * 2 ** 20 + right) ?? []);
      const first = Math.min(...pairs.map(([rank]) => rank ?? Infinity)), merged = [];
      if (first === Infinity) return ids;
      for (let i = 0; i < ids.length; i++) {
        const [rank, both] = pairs[i] ?? [];
        merged.push(rank === first ? both : ids[i]);
        if (rank === first) i++;
      }
      ids = merged;
    }
  }
}
