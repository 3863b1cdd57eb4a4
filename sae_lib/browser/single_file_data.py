"""What the one-file browser carries of the feature table: a small index for list and search, and the pages in chunks."""

import json
import struct
import sys
import unicodedata
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from sae_lib.browser.query import FIELDS
from sae_lib.browser.table import FeatureTable
from sae_lib.visible import SHAPELESS

CHUNK = 64  # features whose pages are inflated together
TOP, DIGITS = 10, 6  # true top examples of each feature; significant digits of every number


class CompactTable(FeatureTable):
    """The same pages, with only what the page keeps of each text: token ids, and the activations that are not 0."""

    def __init__(self, table: FeatureTable):
        self.__dict__.update(table.__dict__)

    def tokens(self, ids: list[int], values: list[float], focus: int = -1) -> dict[str, Any]:
        at = [i for i, value in enumerate(values) if value != 0]
        return {"ids": ids, "at": at, "values": [values[i] for i in at], "focus": int(focus)}


def packed(content: bytes) -> str:
    """Deflated, as base64: the page inflates it with the browser's own DecompressionStream."""
    return b64encode(zlib.compress(content, 9)).decode()


def as_json(data: Any) -> bytes:
    return json.dumps(rounded(data), separators=(",", ":"), allow_nan=False).encode()


def with_binary(head: Any, *arrays: np.ndarray) -> bytes:
    """Length of the head, the head as JSON, then the arrays' little-endian numbers; app/data.js reads it."""
    text = as_json(head)
    text += b" " * (-len(text) % 4)
    return (
        struct.pack("<I", len(text))
        + text
        + b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays)
    )


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
    """What the list, the search and the sorting need: columns of numbers, and lists of token ids, an entry per feature."""
    columns = [column for column in FIELDS.values() if column in table.features]
    strongest = np.split(table._strongest, table._starts[1:-1])
    lists = {
        column: [np.asarray(ids).tolist() for ids in table.features[column]]
        for column in ("top_tokens", "before_tokens")
        if column in table.features
    }
    return {
        "numbers": {column: table.features[column].astype(float).tolist() for column in columns},
        "strongest": [
            list(dict.fromkeys(ids.tolist())) for ids in strongest
        ],  # in the order of strength
        "raised": table.raised.tolist(),
        "lowered": table.lowered.tolist(),
        "rule": table.features["rule"].fillna("").tolist() if "rule" in table.features else [],
    } | lists


def pages(
    table: FeatureTable, progress: Callable = iter
) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
    """For `CHUNK` features at a time: their pages as the template takes them but for the texts' tokens, and the ids of these.

    The ids of one text after the other, in the order in which the pages name the texts: as binary numbers they deflate best.
    """
    compact = CompactTable(table)
    for first in progress(range(0, len(table), CHUNK)):
        ids: list[int] = []
        drawn = [
            _without_ids(compact.page(number, TOP, per_tenth=1), ids)
            for number in range(first, min(first + CHUNK, len(table)))
        ]
        yield drawn, np.array(ids, dtype=id_type(table))


def _without_ids(value: Any, ids: list[int]) -> Any:
    if isinstance(value, list):
        return [_without_ids(v, ids) for v in value]
    if not isinstance(value, dict):
        return value
    if "ids" in value and "focus" in value:
        ids += value["ids"]
        return value | {"ids": len(value["ids"])}
    return {key: _without_ids(v, ids) for key, v in value.items()}


def id_type(table: FeatureTable) -> type[np.unsignedinteger]:
    return np.uint16 if len(table.vocabulary) <= 1 << 16 else np.uint32


@lru_cache(maxsize=1)
def unicode_classes() -> dict[str, str]:
    """Regular expressions for what `visible` asks of Unicode, so that a browser with other tables gives the same text."""
    tests = {
        "shapeless": lambda c: unicodedata.category(c) in SHAPELESS,
        "combining": lambda c: unicodedata.combining(c) > 0,
        "right_to_left": lambda c: unicodedata.bidirectional(c) in ("R", "AL", "AN"),
    }
    characters = [chr(i) for i in range(sys.maxunicode + 1)]
    return {
        name: _ranges(np.fromiter(map(test, characters), dtype=bool))
        for name, test in tests.items()
    }


def _ranges(member: np.ndarray) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], member, [False]]).astype(np.int8)))
    return (
        "["
        + "".join(
            f"\\u{{{a:x}}}" if a + 1 == b else f"\\u{{{a:x}}}-\\u{{{b - 1:x}}}"
            for a, b in edges.reshape(-1, 2).tolist()
        )
        + "]"
    )
