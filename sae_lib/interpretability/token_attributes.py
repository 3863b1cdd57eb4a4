"""What a rule may ask about a token: the token itself, what stands before it, its shape, its
place, the brackets and quotes around it.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from sae_lib.text.display import Vocabulary, plain

Array = np.ndarray
NONE = -1  # raw value of an attribute where there is nothing, as before the first token of a row


def _table(text: str) -> list[list[str]]:
    """A row per line; columns are two or more blanks apart."""
    return [re.split(" {2,}", line) for line in text.strip().splitlines()]


def _names(text: str) -> list[str]:
    return text.strip().splitlines()


# each shape with the pattern of a whole token that has it: of several the first
SHAPES, SHAPE_PATTERNS = zip(
    *_table(r"""
lower-case letters              [a-z]{2,}
capitalised letters             [A-Z][a-z]+
capitals                        [A-Z]{2,}
letters of mixed case           [A-Za-z]{2,}
a single letter                 [A-Za-z]
digits                          \d+
letters and digits              [A-Za-z\d]+
an underscore                   \w*_\w*
an opening bracket              [\"'.]*[(\[{]+
a closing bracket               [)\]}]+[.,:;]*
a quotation mark                [\"'`]+
a comma, semicolon or colon     [,;:]
a full stop                     \.
signs                           [^\w\s]+
blanks                          [ \t]*
a line break                    \r?\n
a line break with indentation   \r?\n[ \t]+
several line breaks             \s+
letters beyond ASCII            [^\W\d_]+
mixed characters                (?s:.*)
"""),
    strict=True,
)
# how the token itself begins; else what the character before it is: the same names, and which
# characters
OWN_BEGINNINGS = ["with a leading blank", "with a leading line break"]
AFTER = _table(r"""
at the start of a line            [\0\n\r]
right after a letter              [^\W\d_]|[\x80-\xff]
right after a digit               [0-9]
right after an underscore         _
right after a blank               [ \t]
right after a full stop           \.
right after an opening bracket    [(\[{<]
right after a quotation mark      [\"'`]
right after another sign          (?s:.)
""")
BEGINNINGS = OWN_BEGINNINGS + [name for name, _ in AFTER]
DEPTHS = _names("""
outside of brackets
one bracket deep
two brackets deep
three or more brackets deep
""")
PLACES = _names("""
at the start of the text
first on its line
second on its line
within columns 3 to 20
within columns 20 to 40
within columns 40 to 80
beyond column 80
""")
INDENTS = _names("none\n1 to 3\n4\n5 to 7\n8\n9 to 11\n12\n13 or more")
INDENT_STARTS = [1, 4, 5, 8, 9, 12, 13]  # of all but the first
POSITIONS = _names("""
first
second
3rd or 4th
5th to 8th
9th to 16th
17th to 32nd
33rd to 64th
65th or later
""")
FIRST_WORD = re.compile(rb"^[ \t]*(\w+|[^\w\s]{1,3})", re.MULTILINE)

AROUND = _names("""
outside brackets and quotes
inside (…)
inside […]
inside {…}
inside <…>
inside a string
inside a string of several lines
in a comment
inside `…`
""")
ROUND, ANGLE, STRING, LONG_STRING, COMMENT, CODE = 1, 4, 5, 6, 7, 8
SIGNS = re.compile(
    rb"\\."  # escaped: means nothing
    rb"|(?P<long>\"\"\"|''')|(?P<code>`+)|(?P<string>\"|')|(?P<open>[(\[{])|(?P<close>[)\]}])"
    rb"|(?P<tag></?[A-Za-z][^<>\n]{0,200}>)|(?P<block>/\*|<!--)|(?P<unblock>\*/|-->)"
    rb"|(?P<line>(?<![^\s])#|(?<!:)//)|(?P<paragraph>\n\s*\n(?=\S))|(?P<end>\n)",
    re.DOTALL,
)
OPENING = {b")": b"(", b"]": b"[", b"}": b"{"}
KIND = {b"(": ROUND, b"[": ROUND + 1, b"{": ROUND + 2}
SPANS = {"long": LONG_STRING, "code": CODE, "string": STRING, "block": COMMENT, "line": COMMENT}
CLOSING = {b"/*": b"*/", b"<!--": b"-->", b"#": b"\n", b"//": b"\n"}  # else by what it opened with


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

    return [
        Attribute("token", "{}", True, token),
        Attribute("previous", "after {}", False, token),
        Attribute("second", "two after {}", False, token),
        Attribute("pair", "{}", True, pair),
        Attribute("characters", "after the characters {}", False, _characters),
        Attribute("line", "on a line that begins with {}", False, _characters),
        Attribute("shape", "{}", True, SHAPES.__getitem__),
        Attribute("beginning", "{}", False, BEGINNINGS.__getitem__),
        Attribute("place", "{}", False, PLACES.__getitem__),
        Attribute("indent", "on a line with indentation {}", False, INDENTS.__getitem__),
        Attribute("around", "{}", False, AROUND.__getitem__),
        Attribute("depth", "{}", False, DEPTHS.__getitem__),
        Attribute("position", "{} in the row", False, POSITIONS.__getitem__),
    ]


def raw_values(
    ids: Int[Array, " n"],
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
    bounds = np.concatenate([[0], np.cumsum(np.array([len(b) for b in texts])[ids])])
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
    columns = [
        ids,
        previous,
        second,
        np.where(previous == NONE, NONE, previous * len(vocabulary) + ids),
        np.where(before[0] == 0, NONE, (before[2] << 16) + (before[1] << 8) + before[0]),
        word,
        np.array(shapes(vocabulary))[ids],
        np.where(own == NONE, _after()[before[0]], own),
        place,
        np.searchsorted(INDENT_STARTS, indent, side="right"),
        inside,
        np.minimum(depth, len(DEPTHS) - 1),
        np.searchsorted(2 ** np.arange(len(POSITIONS) - 1), in_row, side="right"),
    ]
    return np.stack(columns, axis=1)


def _lines(
    text: bytes, data: UInt8[Array, " byte"], starts: Int[Array, " n"]
) -> tuple[Array, Array, Array]:
    """Per token: a number for the word that its line begins with (`NONE` up to that word), the
    line's indentation, and its place on the line.
    """
    breaks = np.flatnonzero(data == 10)
    # a token that begins with a line break still belongs to the line that it ends
    line = np.searchsorted(breaks, starts, side="left")
    line_start = np.concatenate([[0], breaks + 1])
    first, end = np.full((2, len(line_start)), len(data), dtype=np.int64)
    word = np.full(len(line_start), NONE, dtype=np.int64)
    for found in FIRST_WORD.finditer(text):
        at = np.searchsorted(breaks, found.start(), side="left")
        # a word as a number that arrays can hold: its first seven bytes
        first[at], end[at], word[at] = *found.span(1), int.from_bytes(found[1][:7], "big")
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
    """The shape of every token, as an index of `SHAPES`; a leading blank is no part of it."""
    bare = [text.lstrip(" ") if text.strip(" ") else text for text in vocabulary.texts]
    return [_first_match(SHAPE_PATTERNS, text) for text in bare]


def _first_match(patterns: Sequence[str], text: str) -> int:
    return next(i for i, pattern in enumerate(patterns) if re.fullmatch(pattern, text))


def beginnings(vocabulary: Vocabulary, special: Collection[int] = ()) -> list[int]:
    """Of tokens that begin with a blank or a line break themselves which it is, as an index of
    `BEGINNINGS`; else `NONE`.
    """
    kinds = {b" ": 0, b"\t": 0, b"\n": 1, b"\r": 1}
    own = [kinds.get(token[:1], NONE) for token in vocabulary.bytes]
    return [1 if t in special else kind for t, kind in enumerate(own)]


def _after() -> Int[Array, " byte"]:
    """For each byte before a token, the index of `BEGINNINGS` that it makes."""
    patterns = [pattern for _, pattern in AFTER]
    kinds = [_first_match(patterns, chr(byte)) for byte in range(256)]
    return np.array(kinds) + len(OWN_BEGINNINGS)


def surroundings(
    text: bytes, places: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each of the byte offsets `places`, as indices of `AROUND`: the innermost thing around it;
    and how many brackets are open.

    A quotation mark left open ends with its line, a bracket left open with the next unindented line
    after an empty one: prose closes neither.
    """
    at, kinds, depths = map(np.array, zip((0, 0, 0), *_changes(text), strict=True))
    last = np.searchsorted(at, places, side="right") - 1
    return kinds[last], depths[last]


def _changes(text: bytes) -> Iterator[tuple[int, int, int]]:
    """(offset, index of `AROUND`, number of open brackets from there on): one cheap pass that
    knows no language in particular.
    """
    stack: list[bytes] = []
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
            stack.append(found)
        elif group == "close":
            if OPENING[found] in stack[-3:]:  # one that was forgotten in between is closed with it
                while stack.pop() != OPENING[found]:
                    pass
        elif group in SPANS:
            if found == b"'" and _in_word(text, start):
                continue
            inside, closing = SPANS[group], CLOSING.get(found, found)
        elif group == "tag":
            yield start + 1, ANGLE, len(stack)
        elif group != "paragraph":
            continue
        if group == "paragraph":
            stack.clear()
        yield end, inside or (KIND[stack[-1]] if stack else 0), len(stack)


def _in_word(text: bytes, at: int) -> bool:
    """Whether the mark at this place is an apostrophe: letters stand before it, more than a
    string's prefix such as rb.
    """
    word = re.search(rb"\w*$", text[max(0, at - 3) : at])[0]
    return bool(word) and not re.fullmatch(rb"[rbfuRBFU]{1,2}", word)
