"""What a rule may ask about a token: the token itself, what stands before it, its shape, its place, the brackets and quotes around it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from sae_lib.interpretability.syntax import AROUND, surroundings
from sae_lib.visible import Vocabulary, plain

Array = np.ndarray
NONE = -1  # raw value of an attribute where there is nothing, as before the first token of a row
SHAPES = (
    "lower-case letters",
    "capitalised letters",
    "capitals",
    "letters of mixed case",
    "a single letter",
    "digits",
    "letters and digits",
    "an underscore",
    "an opening bracket",
    "a closing bracket",
    "a quotation mark",
    "a comma, semicolon or colon",
    "a full stop",
    "signs",
    "blanks",
    "a line break",
    "a line break with indentation",
    "several line breaks",
    "letters beyond ASCII",
    "mixed characters",
)
SHAPE_PATTERNS = (
    r"[a-z]{2,}",
    r"[A-Z][a-z]+",
    r"[A-Z]{2,}",
    r"[A-Za-z]{2,}",
    r"[A-Za-z]",
    r"\d+",
    r"[A-Za-z\d]+",
    r"\w*_\w*",
    r"[\"'.]*[(\[{]+",
    r"[)\]}]+[.,:;]*",
    r"[\"'`]+",
    r"[,;:]",
    r"\.",
    r"[^\w\s]+",
    r"[ \t]*",
    r"\r?\n",
    r"\r?\n[ \t]+",
    r"\s+",
    r"[^\W\d_]+",
)
BEGINNINGS = (
    "with a leading blank",
    "with a leading line break",
    "at the start of a line",
    "right after a letter",
    "right after a digit",
    "right after an underscore",
    "right after a blank",
    "right after a full stop",
    "right after an opening bracket",
    "right after a quotation mark",
    "right after another sign",
)
OF_THE_TOKEN = 2  # the first two say how the token itself begins
DEPTHS = (
    "outside of brackets",
    "one bracket deep",
    "two brackets deep",
    "three or more brackets deep",
)
PLACES = (
    "at the start of the text",
    "first on its line",
    "second on its line",
    "within columns 3 to 20",
    "within columns 20 to 40",
    "within columns 40 to 80",
    "beyond column 80",
)
INDENTS = ("none", "1 to 3", "4", "5 to 7", "8", "9 to 11", "12", "13 or more")
FIRST_WORD = re.compile(rb"^[ \t]*(\w+|[^\w\s]{1,3})", re.MULTILINE)
POSITIONS = (
    "first",
    "second",
    "3rd or 4th",
    "5th to 8th",
    "9th to 16th",
    "17th to 32nd",
    "33rd to 64th",
    "65th or later",
)


@dataclass(frozen=True)
class Attribute:
    """One thing that a rule may ask about: its name, how a condition on it reads, and the names of its values."""

    name: str
    phrase: str  # with {} for the values
    is_noun: bool  # whether the phrase names the token, or says where it stands
    value: Callable[[int], str]  # raw value → its name


def attributes(vocabulary: Vocabulary) -> list[Attribute]:
    """The attributes in the order of the columns of `raw_values`."""
    token = lambda t: f"`{vocabulary.name(t)}`"  # noqa: E731
    size = len(vocabulary)
    listed = lambda names: lambda v: names[v]  # noqa: E731
    return [
        Attribute("token", "{}", True, token),
        Attribute("previous", "after {}", False, token),
        Attribute("second", "two after {}", False, token),
        Attribute("pair", "{}", True, lambda v: f"{token(v % size)} after {token(v // size)}"),
        Attribute("characters", "after the characters {}", False, lambda v: f"`{_characters(v)}`"),
        Attribute("line", "on a line that begins with {}", False, lambda v: f"`{_characters(v)}`"),
        Attribute("shape", "{}", True, listed(SHAPES)),
        Attribute("beginning", "{}", False, listed(BEGINNINGS)),
        Attribute("place", "{}", False, listed(PLACES)),
        Attribute("indent", "on a line with indentation {}", False, listed(INDENTS)),
        Attribute("around", "{}", False, listed(AROUND)),
        Attribute("depth", "{}", False, listed(DEPTHS)),
        Attribute("position", "{} in the row", False, listed(POSITIONS)),
    ]


def raw_values(
    ids: Int[Array, " n"],
    first_tokens: Int[Array, " document"],
    context: int,
    vocabulary: Vocabulary,
    special: set[int],
) -> Int[Array, "n attribute"]:
    """Every attribute of every token of a split whose documents begin at `first_tokens` and which the model reads in rows of `context` tokens.

    Brackets, quotes and lines are those of the document, as a reader sees it; tokens and characters before are those of the row, as the model sees it.
    """
    n, size = len(ids), len(vocabulary)
    in_row = np.arange(n) % context
    previous, second = (np.where(in_row >= back, np.roll(ids, back), NONE) for back in (1, 2))
    texts = [
        b"\n" if t in special else b for t, b in enumerate(vocabulary.bytes)
    ]  # a separator ends whatever line it stands on
    text = b"".join([texts[t] for t in ids.tolist()])
    data = np.frombuffer(text, dtype=np.uint8)
    bounds = np.concatenate([[0], np.cumsum(np.array([len(b) for b in texts])[ids])])
    starts, row_starts = bounds[:-1], bounds[np.arange(n) // context * context]
    before = [
        np.where(starts - back >= row_starts, data[np.maximum(starts - back, 0)], 0).astype(
            np.int64
        )
        for back in (1, 2, 3)
    ]
    inside, depth = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for a, b in zip(first_tokens, np.append(first_tokens[1:], n), strict=True):
        inside[a:b], depth[a:b] = surroundings(text[bounds[a] : bounds[b]], starts[a:b] - bounds[a])
    word, indent, place = _lines(text, data, starts)
    place[first_tokens] = 0
    columns = [
        ids,
        previous,
        second,
        np.where(previous == NONE, NONE, previous * size + ids),
        np.where(before[0] == 0, NONE, (before[2] << 16) + (before[1] << 8) + before[0]),
        word,
        np.array(shapes(vocabulary))[ids],
        _beginning(texts, ids, before[0]),
        place,
        np.searchsorted([1, 4, 5, 8, 9, 12, 13], indent, side="right"),
        inside,
        np.minimum(depth, 3),
        np.searchsorted([1, 2, 4, 8, 16, 32, 64], in_row, side="right"),
    ]
    return np.stack(columns, axis=1)


def _lines(
    text: bytes, data: UInt8[Array, " byte"], starts: Int[Array, " n"]
) -> tuple[Array, Array, Array]:
    """Per token: a number for the word that its line begins with (`NONE` up to that word), the line's indentation, and its place on the line."""
    breaks = np.flatnonzero(data == 10)
    line = np.searchsorted(
        breaks, starts, side="left"
    )  # a token that begins with a line break still belongs to the line that it ends
    line_start = np.concatenate([[0], breaks + 1])
    first, end, word = (
        np.full(len(line_start), v, dtype=np.int64) for v in (len(data), len(data), NONE)
    )
    for found in FIRST_WORD.finditer(text):
        at = np.searchsorted(breaks, found.start(), side="left")
        first[at], end[at], word[at] = found.start(1), found.end(1), _number(found[1])
    column = starts - line_start[line]
    up_to_first = starts <= first[line]
    second = np.roll(up_to_first, 1) & ~up_to_first
    place = np.where(
        up_to_first, 1, np.where(second, 2, 3 + np.searchsorted([20, 40, 80], column, side="right"))
    )
    return (
        np.where(starts >= end[line], word[line], NONE),
        np.maximum(0, first[line] - line_start[line]),
        place,
    )


def _number(word: bytes) -> int:
    """A short word as a number, its first seven bytes, so that arrays can hold it."""
    return int.from_bytes(word[:7], "big")


def _characters(number: int) -> str:
    return plain(
        number.to_bytes(8, "big").lstrip(b"\0").decode("utf-8", "surrogateescape"), every_blank=True
    )


def shapes(vocabulary: Vocabulary) -> list[int]:
    """The shape of every token, as an index of `SHAPES`; a leading blank is no part of it."""
    return [_shape(text) for text in vocabulary.texts]


def _shape(text: str) -> int:
    bare = text.lstrip(" ") if text.strip(" ") else text
    return next(
        (i for i, pattern in enumerate(SHAPE_PATTERNS) if re.fullmatch(pattern, bare)),
        len(SHAPE_PATTERNS),
    )


def _beginning(
    texts: list[bytes], ids: Int[Array, " n"], before: Int[Array, " n"]
) -> Int[Array, " n"]:
    by_character = np.full(256, BEGINNINGS.index("right after another sign"))
    letters = bytes(c for c in range(256) if chr(c).isalpha() or c > 127)
    for characters, name in (
        (b"\0\n\r", 2),
        (letters, 3),
        (b"0123456789", 4),
        (b"_", 5),
        (b" \t", 6),
        (b".", 7),
        (b"([{<", 8),
        (b"\"'`", 9),
    ):
        by_character[list(characters)] = name
    own = np.array([_own_beginning(b) for b in texts])[ids]
    return np.where(own == NONE, by_character[before], own)


def beginnings(vocabulary: Vocabulary) -> list[int]:
    """Of tokens that begin with a blank or a line break themselves which it is, as an index of `BEGINNINGS`; else `NONE`."""
    return [_own_beginning(b) for b in vocabulary.bytes]


def _own_beginning(token: bytes) -> int:
    return 0 if token[:1] in (b" ", b"\t") else 1 if token[:1] in (b"\n", b"\r") else NONE
