"""Tokens as a reader can see them: bytes that are no character, blanks, control and direction marks
all get a sign.

Text is data: nothing here is markup.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache, partial

SIGNS = {"\n": "⏎", "\r": "⟨CR⟩", "\t": "⇥"}
# Unicode categories that a page would swallow, or obey
SHAPELESS = frozenset("Cc Cf Cn Co Cs Zl Zp Zs".split())


class Vocabulary:
    """Every token of a tokeniser as the bytes it stands for."""

    def __init__(self, tokenizer):
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        strings = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = set(tokenizer.get_added_vocab().values())
        decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
        letters = bytes_to_unicode() if "ByteLevel" in json.dumps(decoder) else {}
        byte_of = {letter: byte for byte, letter in letters.items()}
        self.bytes = [_bytes(s or "", {} if i in added else byte_of) for i, s in enumerate(strings)]
        self.texts = [b.decode("utf-8", "surrogateescape") for b in self.bytes]

    def __len__(self) -> int:
        return len(self.bytes)

    def text(self, token_id: int) -> str:
        """The token's text; a byte that is no character of its own becomes a lone surrogate, as in
        `surrogateescape`.
        """
        return self.texts[token_id] if 0 <= token_id < len(self) else f"⟨#{token_id}⟩"

    def joined(self, token_ids: Iterable[int]) -> str:
        """Tokens as one text: bytes that spell a character together are that character."""
        data = "".join(map(self.text, token_ids)).encode("utf-8", "surrogateescape")
        return data.decode("utf-8", "surrogateescape")

    def name(self, token_id: int) -> str:
        """The token on its own as plain text, every blank visible: `·import`, `⟨e2⟩`, `⏎`."""
        return plain(self.text(token_id), every_blank=True)

    def characters(self, token_ids: list[int]) -> dict[int, str]:
        """Place in the sequence → the character, for those tokens that are only a part of one that
        the sequence holds whole.
        """
        known = [(i, self.bytes[t]) for i, t in enumerate(token_ids) if 0 <= t < len(self)]
        owner = [i for i, data in known for _ in data]
        text = b"".join(data for _, data in known).decode("utf-8", "surrogateescape")
        found, at = {}, 0
        for character in text:
            owners = owner[at : at + len(character.encode("utf-8", "surrogateescape"))]
            if owners[0] != owners[-1]:
                found |= dict.fromkeys(owners, character)
            at += len(owners)
        return found


@lru_cache(maxsize=65536)
def plain(text: str, every_blank: bool = False) -> str:
    """`text` with every shapeless character replaced by its sign. A single space is left alone
    unless `every_blank`; two or more become ·.
    """
    return re.sub(" +|[^ ]", partial(_sign, every_blank=every_blank), text)


def isolated(text: str) -> str:
    """`text` for places without markup: right-to-left letters in it cannot reorder what stands
    around it.
    """
    reordered = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text)
    return f"\u2068{text}\u2069" if reordered else text


def _sign(run: re.Match, every_blank: bool) -> str:
    c = run[0]
    if c[0] == " ":
        return "·" * len(c) if every_blank or len(c) > 1 else " "
    if c in SIGNS:
        return SIGNS[c]
    if "\udc80" <= c <= "\udcff":
        return f"⟨{ord(c) - 0xDC00:02x}⟩"
    if unicodedata.category(c) in SHAPELESS:
        return f"⟨U+{ord(c):04X}⟩"
    return "◌" + c if run.start() == 0 and unicodedata.combining(c) else c


def _bytes(string: str, byte_of: dict[str, int]) -> bytes:
    """The bytes of a token in GPT-2's letters for them, or else in SentencePiece's spelling."""
    if byte_of:
        return bytes(map(byte_of.get, string)) if set(string) <= byte_of.keys() else string.encode()
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", string):
        return bytes([int(byte[1], 16)])
    return string.replace("▁", " ").encode()
