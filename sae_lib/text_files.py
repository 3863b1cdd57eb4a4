"""Readers of the text files that a user names: each document with its kind and where it stands, errors with the line."""

import glob
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from sae_lib.errors import CorpusError

TEXT = (".txt", ".md", ".rst", ".py")
JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst")
READABLE = (*TEXT, *JSON, ".parquet")
PIECE = 20_000  # characters of a document where the whole corpus is one plain text
UNREADABLE = (OSError, EOFError, zstandard.ZstdError, pyarrow.ArrowException)


def read_files(where: str) -> Iterator[tuple[str, str, str]]:
    """(text, kind, origin) of every document in a file, folder or glob; raises `CorpusError`."""
    paths, root = _find(where)
    for path in paths:
        name = path.relative_to(root).as_posix()
        suffix = _suffix(path)
        try:
            if path.stat().st_size == 0:
                raise CorpusError(f"{name} is empty; expected text")
            if suffix == ".parquet":
                yield from _read_parquet(path, name)
                continue
            with _opened(path) as f:
                if suffix in TEXT:
                    yield from _read_text(f, name, suffix[1:], cut=len(paths) == 1)
                elif ".jsonl" in suffix:
                    yield from _read_lines(f, name)
                else:
                    yield from _read_json(f, name)
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or error
            raise CorpusError(
                f"{name} cannot be read as {suffix} ({reason}); check that it is whole and of that kind"
            ) from None


def _find(where: str) -> tuple[list[Path], Path]:
    """The files that a path or glob means and the folder that their names are shown relative to."""
    path = Path(where).expanduser()
    expected = f"expected {', '.join(READABLE)}"
    if path.is_file():
        if _suffix(path) not in READABLE:
            raise CorpusError(
                f"{path.name}: unknown kind of file {path.suffix or '(no suffix)'!r}; {expected}"
            )
        return [path], path.parent
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file())
    elif glob.has_magic(where):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        fixed = [part for part in path.parts]
        path = Path(*fixed[: next(i for i, part in enumerate(fixed) if glob.has_magic(part))])
    else:
        raise CorpusError(
            f"{where} does not exist; expected a file, folder or glob after corpus.source=files:"
        )
    if chosen := [p for p in found if _suffix(p) in READABLE]:
        return chosen, path
    raise CorpusError(f"{where}: none of its {len(found)} files can be read; {expected}")


def _suffix(path: Path) -> str:
    return "".join(
        path.suffixes[-2:] if path.suffix in (".gz", ".zst") else path.suffixes[-1:]
    ).lower()


def _opened(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".zst":
        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(
                open(path, "rb"), read_across_frames=True, closefd=True
            ),
            1 << 20,
        )
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _decoded(data: bytes, where: str, offset: int = 0) -> str:
    if (nul := data.find(b"\0")) >= 0:
        raise CorpusError(
            f"{where}: a binary file (zero byte at offset {offset + nul}); expected UTF-8 text"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        raise CorpusError(
            f"{where}: not UTF-8 ({found}); expected UTF-8 text, convert it, for example with iconv"
        ) from None


def _read_text(
    f: io.BufferedIOBase, name: str, kind: str, cut: bool
) -> Iterator[tuple[str, str, str]]:
    text = _decoded(f.read(), name)
    if not cut or len(text) <= PIECE:
        yield text, kind, name
        return
    start = part = (
        0  # one long text alone: cut at line ends, else there would be nothing to hold out
    )
    while start < len(text):
        end = text.rfind("\n", start, start + PIECE) + 1 if start + PIECE < len(text) else len(text)
        end = end if end > start else start + PIECE
        part += 1
        yield text[start:end], kind, f"{name}: part {part}"
        start = end


def _read_lines(f: io.BufferedIOBase, name: str) -> Iterator[tuple[str, str, str]]:
    offset, where = 0, name
    for number, line in enumerate(f, 1):
        where = f"{name}: line {number}"
        decoded = _decoded(line, where, offset)
        offset += len(line)
        if decoded.strip():
            yield from_json(_parsed(decoded, where), where)


def _read_json(f: io.BufferedIOBase, name: str) -> Iterator[tuple[str, str, str]]:
    data = _parsed(_decoded(f.read(), name), name)
    for number, item in enumerate(data if isinstance(data, list) else [data], 1):
        yield from_json(item, f"{name}: item {number}" if isinstance(data, list) else name)


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, str, str]]:
    file, number = pyarrow.parquet.ParquetFile(path), 0
    columns = file.schema_arrow.names
    if "text" not in columns:
        raise CorpusError(f"{name}: found columns {', '.join(columns)}; expected one named text")
    for batch in file.iter_batches(1000, columns=[c for c in ("text", "meta") if c in columns]):
        for item in batch.to_pylist():
            number += 1
            yield from_json(item, f"{name}: row {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorpusError(
            f'{where}: malformed JSON ({error}); expected an object such as {{"text": "..."}}'
        ) from None


def from_json(item: Any, where: str) -> tuple[str, str, str]:
    """(text, kind, origin) of one parsed document; The Pile's `meta.pile_set_name` is its kind."""
    text = item if isinstance(item, str) else item.get("text") if isinstance(item, dict) else None
    if not isinstance(text, str):
        found = (
            f"an object with {', '.join(map(repr, item)) or 'no keys'}"
            if isinstance(item, dict)
            else type(item).__name__
        )
        raise CorpusError(f'{where}: found {found}; expected an object with text under "text"')
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 can't
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    meta = item.get("meta") if isinstance(item, dict) else None
    kind = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return (text, kind, f"{where} ({kind})") if isinstance(kind, str) else (text, "text", where)
