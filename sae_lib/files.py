"""Files written whole or not at all, and the record beside an artefact that says what it was made
from.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_lib.errors import ArtefactError, in_plain_words

RECORD = "made_from.json"


def scratch_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses, and that tells whose it is."""
    whose = f"{socket.gethostname()}.{os.getpid()}.{os.urandom(3).hex()}"
    return path.with_name(f".{path.name}.{whose}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch path to write to, flushed to disk and renamed to `path` at the end: a reader sees
    the old file or the new one, never half of it.
    """
    scratch = scratch_name(path)
    try:
        with in_plain_words(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield scratch
            with open(scratch, "rb+") as f:
                os.fsync(f.fileno())
            os.replace(scratch, path)
    finally:
        with suppress(OSError):
            scratch.unlink()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` as a `whole_file`."""
    with whole_file(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def append_line(path: Path, line: str) -> None:
    """Append a line and flush it to disk; what an interrupted write left behind stays a line of
    its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as f:
        torn = f.tell() and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n"
        f.write(("\n" * bool(torn) + line + "\n").encode())
        f.flush()
        os.fsync(f.fileno())


# --- records ---


def read_record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text())
        found["files"] = {name: (size, digest) for name, (size, digest) in found["files"].items()}
        found["settings"]
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ArtefactError(
            f"{folder} has no readable {RECORD}, so it was not made (whole) by a run; "
            "delete the folder and run again"
        ) from None


def verify(folder: Path) -> None:
    """`ArtefactError` that names the file where an artefact's files are not those that were
    written.
    """
    for name, (size, digest) in read_record(folder)["files"].items():
        path, problem = folder / name, ""
        found = path.stat() if path.exists() else None
        if found is None or found.st_size != size:
            has = f"{found.st_size} bytes" if found else "nothing"
            problem = f"{has} where {size} bytes were written"
        elif sha256(path, size, found.st_mtime_ns) != digest:
            problem = "its content changed since it was written"
        if problem:
            raise ArtefactError(f"{path} is damaged: {problem}; delete {folder} and run again")


@lru_cache(maxsize=256)
def sha256(path: Path, size: int, mtime: int) -> str:
    """`file_digest`, once as long as the file has this size and time."""
    return file_digest(path)


def file_digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_same(where: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """`ArtefactError` naming the settings that differ between what is on disk and what is
    requested.
    """
    found, wanted = flat(found), flat(wanted)
    differ = [k for k in sorted(found | wanted) if found.get(k) != wanted.get(k)]
    if differ:
        shown = [f"{k}: {found.get(k)!r} in the folder, {wanted.get(k)!r} now" for k in differ[:4]]
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise ArtefactError(
            f"{where} was made with other settings ({'; '.join(shown)}{more}); "
            "choose another folder with --run, or delete this one"
        )


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by dotted names; an empty dictionary is a value."""
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    values = {}
    for key, value in data.items():
        values |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return values


def digest(made_from: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(made_from), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """numpy and torch scalars and arrays as plain Python with seven significant digits, for JSON;
    NaN becomes null.
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else value
