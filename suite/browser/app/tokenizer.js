// Byte-level BPE as GPT-2 has it: split the text by the rule below, then merge bytes pair by pair, the earliest learned merge first.

const SPLIT = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

class Tokenizer {
  constructor({ merges, bytes, added, end }) {
    this.bytes = bytes;
    this.end = end;
    this.ranks = new Map(); // left id · 2^20 + right id → [rank, merged id]
    for (let i = 0; i < merges.length; i += 3) {
      const pair = merges[i] * 2 ** 20 + merges[i + 1];
      this.ranks.set(pair, [i, merges[i + 2]]); // as in tokenizers, a pair listed twice has its last rank
    }
    this.added = new Map(added);
    const contents = [...this.added.keys()].sort((a, b) => b.length - a.length).map((t) => t.replace(/[.*+?^${}()|[\]\\\/-]/g, "\\$&"));
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
        if (i + 1 < ids.length && ids[i] * 2 ** 20 + ids[i + 1] === pair) { merged.push(best[1]); i++; }
        else merged.push(ids[i]);
      }
      ids = merged;
    }
  }
}
