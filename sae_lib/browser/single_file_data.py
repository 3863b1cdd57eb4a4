"""What the one-file browser carries of the feature table: a small index for list and search, and the pages in chunks."""

import json
import sys
import unicodedata
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from pandas.api.types import is_numeric_dtype

from sae_lib.browser.table import FeatureTable
from sae_lib.browser.visible import SHAPELESS

CHUNK = 64  # features whose pages are inflated together
TOP, DIGITS = 10, 6  # true top examples of each feature; significant digits of every number


class CompactTable(FeatureTable):
    """The same pages, with only what the page keeps of each text: token ids, and the activations that are not 0."""

    def chosen(self, number: int) -> Any:
        """Examples for the page: the strongest, then one of each tenth of the range where there are any."""
        examples = self.examples.iloc[self._starts[number] : self._starts[number + 1]]
        if "tenth" not in examples:
            return examples.head(TOP)
        return examples[((examples["tenth"] < 0) & (examples["rank"] < TOP)) | ((examples["tenth"] >= 0) & (examples["rank"] == 0))]

    def tokens(self, ids: Any, values: Any, focus: int) -> dict[str, list]:
        values = np.asarray(values, dtype=np.float32)
        at = np.flatnonzero(values)
        return {"ids": np.asarray(ids).tolist(), "at": at.tolist(), "values": values[at].tolist(), "focus": [focus]}


def packed(data: Any) -> str:
    """Bytes, or anything JSON can hold, deflated, as base64: the page inflates it with the browser's own DecompressionStream."""
    content = data if isinstance(data, bytes) else json.dumps(rounded(data), separators=(",", ":"), allow_nan=False).encode()
    return b64encode(zlib.compress(content, 9)).decode()


def rounded(value: Any) -> Any:
    """Plain data with numbers to `DIGITS` significant digits; what is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def index(table: FeatureTable) -> dict[str, Any]:
    """Columns that the list, the search and the sorting need, one entry per feature."""
    numbers = {name: table.features[name].astype(float).tolist() for name in table.features if name != "feature" and is_numeric_dtype(table.features[name])}
    strongest = [table._strongest[start:end] for start, end in zip(table._starts[:-1], table._starts[1:], strict=True)]
    return {
        "numbers": numbers,
        "strongest": [list(dict.fromkeys(ids.tolist())) for ids in strongest],  # in the order of strength
        "raised": table.raised.tolist(),
        "rule": table.features["rule"].fillna("").tolist() if "rule" in table.features else [],
    }


def pages(table: FeatureTable, progress: Callable = iter) -> Iterator[list[dict[str, Any]]]:
    """The pages of `CHUNK` features at a time, as the template takes them but for the texts' tokens."""
    for first in progress(range(0, len(table), CHUNK)):
        yield [table.page(number) for number in range(first, min(first + CHUNK, len(table)))]


@lru_cache(maxsize=1)
def unicode_classes() -> dict[str, str]:
    """Regular expressions for what `visible` asks of Unicode, so that a browser with other tables gives the same text."""
    tests = {
        "shapeless": lambda c: unicodedata.category(c) in SHAPELESS,
        "combining": lambda c: unicodedata.combining(c) > 0,
        "right_to_left": lambda c: unicodedata.bidirectional(c) in ("R", "AL", "AN"),
    }
    characters = [chr(i) for i in range(sys.maxunicode + 1)]
    return {name: _ranges(np.fromiter(map(test, characters), dtype=bool)) for name, test in tests.items()}


def _ranges(member: np.ndarray) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], member, [False]]).astype(np.int8)))
    return "[" + "".join(f"\\u{{{a:x}}}" if a + 1 == b else f"\\u{{{a:x}}}-\\u{{{b - 1:x}}}" for a, b in edges.reshape(-1, 2).tolist()) + "]"
