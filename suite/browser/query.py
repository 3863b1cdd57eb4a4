"""The list's query language: `import`, `" import" density<0.1%`, `text:"def main" auroc>0.9`, `#12`. All parts must hold."""

import operator
import re
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

SHOWN = {
    "⏎": "\n",
    "·": " ",
    "⇥": "\t",
}  # what a reader copies from the page, back to what it stands for
FIELDS = {  # name in a query → column
    "number": "feature",
    "density": "density",
    "active": "n_active",
    "maximum": "maximum",
    "mean": "mean_active",
    "marked": "marked_share",
    "auroc": "auroc",
    "accuracy": "balanced_accuracy",
    "conditions": "n_conditions",
}
PLACES = (
    "token",
    "text",
    "before",
    "raises",
    "lowers",
    "rule",
)  # where a text is looked for; without one: token, raises and rule
HELP = f"""Parts, all of which must hold: a token or a piece of one (in "quotes" where it has blanks) is looked for in the tokens that features are strongest on,
in the logits that they raise and in their rules; text:, token:, before:, raises:, lowers: or rule: in front says where; text:"def main" looks at the examples.
Numbers: {", ".join(f"{field}" for field in FIELDS)} with <, <=, =, >= or >, as in density<0.1% auroc>0.9. #12 is feature 12."""
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}
PART = re.compile(rf'(?:({"|".join(PLACES)}):)?(?:"([^"]+)"(?=\s|$)|(\S+))')
COMPARISON = re.compile(rf"({'|'.join(FIELDS)})(<=|>=|<|>|=)(\d+\.?\d*|\.\d+)(%?)", re.IGNORECASE)


@dataclass(frozen=True)
class Text:
    """A piece of text, case folded, and where it is looked for ("" for the usual places)."""

    place: str
    wanted: str


@dataclass(frozen=True)
class Comparison:
    field: str
    operator: str
    value: float


def parse(query: str) -> list[Text | Comparison]:
    """The parts of a query. Whatever is no comparison of a known field is text; a blank before the first word belongs to it."""
    parts: list[Text | Comparison] = []
    for found in PART.finditer(query):
        place, quoted, word = found.groups()
        compared = COMPARISON.fullmatch(word) if word and not place else None
        if compared:
            field, sign, value, percent = compared.groups()
            parts.append(Comparison(field.lower(), sign, float(value) / (100 if percent else 1)))
        elif word and not place and re.fullmatch(r"#\d+", word, re.ASCII):
            parts.append(Comparison("number", "=", int(word[1:])))
        else:
            blank = " " if word and not place and not parts and query.startswith(" ") else ""
            parts.append(Text(place or "", blank + folded(quoted or word)))
    return parts


def folded(text: str) -> str:
    """As it is compared: case folded, the page's signs turned back into what they stand for."""
    return "".join(SHOWN.get(c, c) for c in text).casefold()


class ExampleTexts:
    """All examples' texts as one array of bytes, to be searched at the speed of memory."""

    def __init__(self, token_ids: list[np.ndarray], owner: np.ndarray, texts: list[str]):
        encoded = [t.casefold().encode("utf-8", "surrogateescape") for t in texts] + [
            b"\xff"
        ]  # the last stands for ids without a token
        self._alphabet = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._lengths = np.array([len(e) for e in encoded], dtype=np.int32)
        self._starts = (self._lengths.cumsum() - self._lengths).astype(np.int32)
        sizes = np.array([len(ids) for ids in token_ids], dtype=np.int64)
        ids = (
            np.minimum(np.concatenate(token_ids).astype(np.int32), len(encoded) - 1)
            if len(token_ids)
            else np.zeros(0, np.int32)
        )
        ends = np.concatenate([[0], self._lengths[ids].cumsum(dtype=np.int64)])
        self._ends = ends[sizes.cumsum()].tolist()  # where each example ends
        last = np.flatnonzero(np.diff(owner, append=-1))  # of each feature
        self._feature_ends, self._features = [self._ends[i] for i in last], owner[last].tolist()
        self._data = b"".join(
            self._spelled(ids[i : i + (1 << 20)]).tobytes() for i in range(0, len(ids), 1 << 20)
        )

    def _spelled(self, ids: np.ndarray) -> np.ndarray:
        lengths = self._lengths[ids]
        ends = lengths.cumsum(dtype=np.int32)
        return self._alphabet[
            np.repeat(self._starts[ids] - (ends - lengths), lengths)
            + np.arange(ends[-1], dtype=np.int32)
        ]

    def owners(self, wanted: str) -> list[int]:
        """The features of which an example contains `wanted`."""
        needle, at, found = wanted.encode("utf-8", "surrogateescape"), 0, []
        while (at := self._data.find(needle, at)) >= 0:
            if (
                at + len(needle) > self._ends[bisect_right(self._ends, at)]
            ):  # runs into the next example
                at += 1
                continue
            nth = bisect_right(self._feature_ends, at)
            found.append(self._features[nth])
            at = self._feature_ends[nth]
        return found


def compared(comparison: Comparison, values: np.ndarray) -> np.ndarray:
    """Where the comparison holds; nowhere that the value is not known (NaN)."""
    return OPERATORS[comparison.operator](values, comparison.value)
