"""Numbers and text as one block of bytes: how everything reaches the page."""

import json
import struct
from typing import Any

import numpy as np
import pandas as pd

DIGITS = 8  # behind the point, of every number that is written as text


def as_json(parts: dict[str, Any]) -> str:
    """An object as JSON; a table in it becomes a list of records, in which what is not finite is
    null.
    """
    texts = [
        part.to_json(orient="records", double_precision=DIGITS)
        if isinstance(part, pd.DataFrame)
        else json.dumps(part)
        for part in parts.values()
    ]
    return f"{{{','.join(map('{}:{}'.format, map(json.dumps, parts), texts))}}}"


def with_binary(head: dict[str, Any], *arrays: np.ndarray) -> bytes:
    """Length of the head, the head as JSON, then the arrays' little-endian numbers."""
    text = as_json(head).encode()
    text += b" " * (-len(text) % 4)
    data = [a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays]
    return b"".join([struct.pack("<I", len(text)), text, *data])
