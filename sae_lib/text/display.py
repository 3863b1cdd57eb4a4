"""Tokens as a reader can see them: bytes that are no character, blanks, control and direction marks
all get a sign.

Text is data: nothing here is markup. A piece is (quiet, text); quiet pieces stand for something
that has no shape of its own.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

Pieces = tuple[tuple[bool, str], ...]
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
        self.partial = [any("\udc80" <= c <= "\udcff" for c in t) for t in self.texts]

    def __len__(self) -> int:
        return len(self.bytes)

    def text(self, token_id: int) -> str:
        """The token's text; a byte that is no character of its own becomes a lone surrogate, as in
        `surrogateescape`.
        """
        return self.texts[token_id] if 0 <= token_id < len(self) else f"⟨#{token_id}⟩"

    def name(self, token_id: int) -> str:
        """The token on its own as plain text, every blank visible: `·import`, `⟨e2⟩`, `⏎`."""
        return plain(self.text(token_id), every_blank=True)

    def characters(self, token_ids: list[int]) -> dict[int, str]:
        """Place in the sequence → the character, for those tokens that are only a part of one that
        the sequence holds whole.
        """
        known = [(i, t) for i, t in enumerate(token_ids) if 0 <= t < len(self)]
        partial = {i for i, t in known if self.partial[t]}
        if not partial:
            return {}
        owner = [i for i, t in known for _ in self.bytes[t]]
        data = b"".join(self.bytes[t] for _, t in known)
        found, at = {}, 0
        for character in data.decode("utf-8", "surrogateescape"):
            length = 1 if "\udc80" <= character <= "\udcff" else len(character.encode())
            owners = owner[at : at + length]
            if owners[0] != owners[-1]:
                found |= dict.fromkeys(partial.intersection(owners), character)
            at += length
        return found


@lru_cache(maxsize=65536)
def pieces(text: str, every_blank: bool = False) -> Pieces:
    """`text` in runs of (quiet, text). A single space is left alone unless `every_blank`; two or
    more become ·.
    """
    runs = groupby(_signs(text, every_blank), key=itemgetter(0))
    return tuple((quiet, "".join(t for _, t in run)) for quiet, run in runs)


def plain(text: str, every_blank: bool = False) -> str:
    """`text` with every shapeless character replaced by its sign, as one string."""
    return "".join(t for _, t in pieces(text, every_blank))


def isolated(text: str) -> str:
    """`text` for places without markup: right-to-left letters in it cannot reorder what stands
    around it.
    """
    reordered = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text)
    return f"\u2068{text}\u2069" if reordered else text


def _signs(text: str, every_blank: bool) -> Iterator[tuple[bool, str]]:
    for run in re.finditer(r" +|[^ ]", text):
        c = run[0]
        if c[0] == " ":
            yield (True, "·" * len(c)) if every_blank or len(c) > 1 else (False, " ")
        elif c in SIGNS:
            yield True, SIGNS[c]
        elif "\udc80" <= c <= "\udcff":
            yield True, f"⟨{ord(c) - 0xDC00:02x}⟩"
        elif unicodedata.category(c) in SHAPELESS:
            yield True, f"⟨U+{ord(c):04X}⟩"
        elif run.start() == 0 and unicodedata.combining(c):
            yield False, "◌" + c
        else:
            yield False, c


def _bytes(string: str, byte_of: dict[str, int]) -> bytes:
    """The bytes of a token in GPT-2's letters for them, or else in SentencePiece's spelling."""
    if byte_of:
        return bytes(map(byte_of.get, string)) if set(string) <= byte_of.keys() else string.encode()
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", string):
        return bytes([int(byte[1], 16)])
    return string.replace("▁", " ").encode()
