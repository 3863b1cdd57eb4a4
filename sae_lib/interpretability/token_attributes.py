"""What a rule may ask about a token: the token itself, what stands before it, its shape, its
place, the brackets and quotes around it. `token_attributes.yaml` names the attributes and values.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Int

from sae_lib.text.display import Vocabulary, plain

Array = np.ndarray
Ints = Int[Array, " n"]
NONE = -1  # raw value of an attribute where there is nothing, as before the first token of a row
TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
NAMES = {name: list(row["values"]) for name, row in TABLE.items() if "values" in row}
OWN_BEGINNINGS = 2  # so many of the beginnings are of the token itself
INDENT_STARTS = [1, 4, 5, 8, 9, 12, 13]  # of all but the first
FIRST_WORD = re.compile(rb"^[ \t]*(\w+|[^\w\s]{1,3})", re.MULTILINE)

# indices of the values of "around"; 1 to 3 are the brackets in the order of `OPENING`
ANGLE, STRING, LONG_STRING, COMMENT, CODE = 4, 5, 6, 7, 8
OPENING, CLOSING = b"([{", b")]}"
SIGNS = re.compile(
    rb"\\."  # escaped: means nothing
    rb"|(?P<long>\"\"\"|''')|(?P<code>`+)|(?P<string>\"|')|(?P<open>[(\[{])|(?P<close>[)\]}])"
    rb"|(?P<tag></?[A-Za-z][^<>\n]{0,200}>)|(?P<block>/\*|<!--)|(?P<unblock>\*/|-->)"
    rb"|(?P<line>(?<![^\s])#|(?<!:)//)|(?P<paragraph>\n\s*\n(?=\S))|(?P<end>\n)",
    re.DOTALL,
)
SPANS = {"long": LONG_STRING, "code": CODE, "string": STRING, "block": COMMENT, "line": COMMENT}
ENDS = {b"/*": b"*/", b"<!--": b"-->", b"#": b"\n", b"//": b"\n"}  # else a span ends as it began


@dataclass(frozen=True)
class Attribute:
    """One thing that a rule may ask about: its name, how a condition on it reads, and the names
    of its values.
    """

    name: str
    phrase: str  # with {} for the values
    is_noun: bool  # whether the phrase names the token, or says where it stands
    value: Callable[[int], str]  # raw value → its name


def attributes(vocabulary: Vocabulary) -> list[Attribute]:
    """The attributes in the order of the columns of `raw_values`."""
    size = len(vocabulary)

    def token(t: int) -> str:
        return f"`{vocabulary.name(t)}`"

    def pair(v: int) -> str:
        return f"{token(v % size)} after {token(v // size)}"

    value = {"pair": pair, "characters": _characters, "line": _characters}
    value |= {name: names.__getitem__ for name, names in NAMES.items()}
    return [
        Attribute(name, row["phrase"], row.get("noun", False), value.get(name, token))
        for name, row in TABLE.items()
    ]


def raw_values(
    ids: Ints,
    first_tokens: Int[Array, " document"],
    context: int,
    vocabulary: Vocabulary,
    special: set[int],
) -> Int[Array, "n attribute"]:
    """Every attribute of every token of a split whose documents begin at `first_tokens` and which
    the model reads in rows of `context` tokens.

    Brackets, quotes and lines are those of the document, as a reader sees it; tokens and characters
    before are those of the row, as the model sees it.
    """
    n, in_row = len(ids), np.arange(len(ids)) % context
    previous, second = (np.where(in_row >= back, np.roll(ids, back), NONE) for back in (1, 2))
    # a separator ends whatever line it stands on
    texts = [b"\n" if t in special else b for t, b in enumerate(vocabulary.bytes)]
    text = b"".join([texts[t] for t in ids.tolist()])
    data = np.frombuffer(text, dtype=np.uint8)
    bounds = np.append(0, np.cumsum(np.array([len(b) for b in texts])[ids]))
    starts, row_starts = bounds[:-1], bounds[np.arange(n) // context * context]
    before = []
    for back in (1, 2, 3):
        character = data[np.maximum(starts - back, 0)].astype(np.int64)
        before.append(np.where(starts - back >= row_starts, character, 0))
    inside, depth = np.zeros((2, n), dtype=np.int64)
    for a, b in zip(first_tokens, np.append(first_tokens[1:], n), strict=True):
        document = text[bounds[a] : bounds[b]]
        inside[a:b], depth[a:b] = surroundings(document, starts[a:b] - bounds[a])
    word, indent, place = _lines(text, data, starts)
    place[first_tokens] = 0
    own = np.array(beginnings(vocabulary, special))[ids]
    after = np.array(_first_matches("beginning", map(chr, range(256))))
    columns = [
        ids,
        previous,
        second,
        np.where(previous == NONE, NONE, previous * len(vocabulary) + ids),
        np.where(before[0] == 0, NONE, sum(c << 8 * i for i, c in enumerate(before))),
        word,
        np.array(shapes(vocabulary))[ids],
        np.where(own == NONE, after[before[0]], own),
        place,
        np.searchsorted(INDENT_STARTS, indent, side="right"),
        inside,
        np.minimum(depth, len(NAMES["depth"]) - 1),
        np.searchsorted(2 ** np.arange(len(NAMES["position"]) - 1), in_row, side="right"),
    ]
    return np.stack(columns, axis=1)


def _lines(text: bytes, data: Array, starts: Ints) -> tuple[Ints, Ints, Ints]:
    """Per token: a number for the word that its line begins with (`NONE` up to that word), the
    line's indentation, and its place on the line.
    """
    breaks = np.flatnonzero(data == 10)
    # a token that begins with a line break still belongs to the line that it ends
    line = np.searchsorted(breaks, starts, side="left")
    line_start = np.append(0, breaks + 1)
    first, end = np.full((2, len(line_start)), len(data), dtype=np.int64)
    word = np.full(len(line_start), NONE, dtype=np.int64)
    for match in FIRST_WORD.finditer(text):
        at = np.searchsorted(breaks, match.start(), side="left")
        # a word as a number that arrays can hold: its first seven bytes
        first[at], end[at], word[at] = *match.span(1), int.from_bytes(match[1][:7], "big")
    up_to_first = starts <= first[line]
    second = np.roll(up_to_first, 1) & ~up_to_first
    column = np.searchsorted([20, 40, 80], starts - line_start[line], side="right")
    place = np.where(up_to_first, 1, np.where(second, 2, 3 + column))
    indent = np.maximum(0, first[line] - line_start[line])
    return np.where(starts >= end[line], word[line], NONE), indent, place


def _characters(number: int) -> str:
    """The bytes that a number was made from, visible."""
    characters = number.to_bytes(8, "big").lstrip(b"\0").decode("utf-8", "surrogateescape")
    return f"`{plain(characters, every_blank=True)}`"


def shapes(vocabulary: Vocabulary) -> list[int]:
    """The shape of every token, as an index of its names; a leading blank is no part of it."""
    bare = (text.lstrip(" ") if text.strip(" ") else text for text in vocabulary.texts)
    return _first_matches("shape", bare)


def _first_matches(attribute: str, texts: Iterable[str]) -> list[int]:
    """Of each text the first value of an attribute whose pattern it matches, as an index."""
    patterns = [(i, p) for i, p in enumerate(TABLE[attribute]["values"].values()) if p]
    return [next(i for i, pattern in patterns if re.fullmatch(pattern, text)) for text in texts]


def beginnings(vocabulary: Vocabulary, special: Collection[int] = ()) -> list[int]:
    """Of tokens that begin with a blank or a line break themselves which it is, as an index of the
    names of beginnings; else `NONE`.
    """
    kinds = {b" ": 0, b"\t": 0, b"\n": 1, b"\r": 1}
    own = [kinds.get(token[:1], NONE) for token in vocabulary.bytes]
    return [1 if t in special else kind for t, kind in enumerate(own)]


def surroundings(text: bytes, places: Ints) -> tuple[Ints, Ints]:
    """For each of the byte offsets `places`: the innermost thing around it, as an index of the
    names of "around"; and how many brackets are open.

    A quotation mark left open ends with its line, a bracket left open with the next unindented line
    after an empty one: prose closes neither.
    """
    at, kinds, depths = map(np.array, zip((0, 0, 0), *_changes(text), strict=True))
    last = np.searchsorted(at, places, side="right") - 1
    return kinds[last], depths[last]


def _changes(text: bytes) -> Iterator[tuple[int, int, int]]:
    """(offset, index of what is around, number of open brackets from there on): one cheap pass
    that knows no language in particular.
    """
    stack: list[int] = []  # which of `OPENING` are open
    inside, closing = 0, b""  # a string, comment or code span that we are in, and what ends it
    for sign in SIGNS.finditer(text):
        group, found, (start, end) = sign.lastgroup, sign[0], sign.span()
        at_break = group in ("end", "paragraph")
        if inside:
            one_line = closing == b"\n" or (inside in (STRING, CODE) and closing != b"```")
            if found != closing and not (at_break and one_line):
                continue
            inside, end = 0, start if at_break else end
        elif group == "open":
            stack.append(OPENING.index(found))
        elif group == "close":
            bracket = CLOSING.index(found)
            if bracket in stack[-3:]:  # one that was forgotten in between is closed with it
                while stack.pop() != bracket:
                    pass
        elif group in SPANS:
            if found == b"'" and _in_word(text, start):
                continue
            inside, closing = SPANS[group], ENDS.get(found, found)
        elif group == "tag":
            yield start + 1, ANGLE, len(stack)
        elif group != "paragraph":
            continue
        if group == "paragraph":
            stack.clear()
        yield end, inside or (stack[-1] + 1 if stack else 0), len(stack)


def _in_word(text: bytes, at: int) -> bool:
    """Whether the mark at this place is an apostrophe: letters stand before it, more than a
    string's prefix such as rb.
    """
    word = re.search(rb"\w*$", text[max(0, at - 3) : at])[0]
    return bool(word) and not re.fullmatch(rb"[rbfuRBFU]{1,2}", word)
