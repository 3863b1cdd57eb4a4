"""In which bracket, string, comment or code span a place of a text lies: one cheap pass that knows no language in particular."""

import re

import numpy as np
from jaxtyping import Int

AROUND = (
    "outside brackets and quotes",
    "inside (…)",
    "inside […]",
    "inside {…}",
    "inside <…>",
    "inside a string",
    "inside a string of several lines",
    "in a comment",
    "inside `…`",
)
ROUND, ANGLE, STRING, LONG_STRING, COMMENT, CODE = 1, 4, 5, 6, 7, 8
SIGNS = re.compile(
    rb"\\."  # escaped: means nothing
    rb"|(?P<long>\"\"\"|''')|(?P<code>`+)|(?P<string>\"|')|(?P<open>[(\[{])|(?P<close>[)\]}])"
    rb"|(?P<tag></?[A-Za-z][^<>\n]{0,200}>)|(?P<block>/\*|<!--)|(?P<unblock>\*/|-->)|(?P<line>(?<![^\s])#|(?<!:)//)|(?P<paragraph>\n\s*\n(?=\S))|(?P<end>\n)",
    re.DOTALL,
)
OPENING = {b")": b"(", b"]": b"[", b"}": b"{"}
KIND = {b"(": ROUND, b"[": ROUND + 1, b"{": ROUND + 2}


def surroundings(
    text: bytes, places: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each of the byte offsets `places`, as indices of `AROUND`: the innermost thing around it; and how many brackets are open.

    A quotation mark left open ends with its line, a bracket left open with the next unindented line after an empty one: prose closes neither.
    """
    at, kinds, depths = [0], [0], [0]
    stack: list[bytes] = []
    inside, closing = 0, b""  # a string, comment or code span that we are in, and what ends it
    for sign in SIGNS.finditer(text):
        group, found, after = sign.lastgroup, sign[0], sign.end()
        if group is None:
            continue
        if inside:
            ends = (
                found == closing
                or (closing == b"\n" and found.startswith(b"\n"))
                or (
                    inside in (STRING, CODE) and closing != b"```" and group in ("end", "paragraph")
                )
            )
            if not ends:
                continue
            after = sign.start() if group in ("end", "paragraph") else after
            inside = 0
            if group == "paragraph":
                stack.clear()
        elif group == "open":
            stack.append(found)
        elif group == "close":
            if OPENING[found] in stack[-3:]:  # one that was forgotten in between is closed with it
                while stack.pop() != OPENING[found]:
                    pass
        elif group == "long":
            inside, closing = LONG_STRING, found
        elif group == "code":
            inside, closing = CODE, found
        elif group == "string":
            if found == b"'" and _in_word(text, sign.start()):
                continue
            inside, closing = STRING, found
        elif group == "block":
            inside, closing = COMMENT, b"*/" if found == b"/*" else b"-->"
        elif group == "line":
            inside, closing = COMMENT, b"\n"
        elif group == "paragraph":
            stack.clear()
        elif group == "tag":
            at += [sign.start() + 1, after]
            kinds += [ANGLE, KIND[stack[-1]] if stack else 0]
            depths += [len(stack)] * 2
            continue
        else:
            continue
        at.append(after)
        kinds.append(inside or (KIND[stack[-1]] if stack else 0))
        depths.append(len(stack))
    last = np.searchsorted(at, places, side="right") - 1
    return np.array(kinds)[last], np.array(depths)[last]


def _in_word(text: bytes, at: int) -> bool:
    """Whether the mark at this place is an apostrophe: letters stand before it, more than a string's prefix such as rb."""
    word = re.search(rb"\w*$", text[max(0, at - 3) : at])[0]
    return bool(word) and not re.fullmatch(rb"[rbfuRBFU]{1,2}", word)
