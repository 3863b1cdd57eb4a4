"""Readers of the text files that a user names: each document with its kind and position,
errors with the line.
"""

import codecs
import glob
import io
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from sae_lib.errors import CorpusError, printable

TEXT = (".txt", ".md", ".rst", ".py")
JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst")
READABLE = (*TEXT, *JSON, ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
PIECE = 20_000  # characters of a document where the whole corpus is one plain text
LONGEST = 1 << 29  # bytes of one line, or of a file that is read whole
INFLATION, ALWAYS = 500, 1 << 24  # bytes from each compressed byte; so many bytes may come anyway
MOST_FILES, LONGEST_KIND = 200_000, 100  # the latter in characters
CONVERT = "expected UTF-8 text, convert it, for example with iconv"
UNREADABLE = (OSError, EOFError, pyarrow.ArrowException)


def read_files(where: str) -> Iterator[tuple[str, str, str]]:
    """(text, kind, origin) of every document in a file, folder or glob; raises `CorpusError`."""
    paths, root = _find(where)
    for path in paths:
        name, suffix = printable(path.relative_to(root).as_posix()), _suffix(path)
        try:
            size = path.stat().st_size
            if size == 0:
                if len(paths) > 1:  # such as an empty __init__.py
                    continue
                raise CorpusError(f"{name} is empty; expected text")
            if suffix == ".parquet":
                yield from _read_parquet(path, name)
                continue
            most = max(ALWAYS, INFLATION * size)
            with _opened(path) as f:
                if ".jsonl" in suffix:
                    yield from _read_lines(f, name, most)
                elif ".json" in suffix:
                    yield from _read_json(_whole(f, name, most), name)
                else:
                    text = _whole(f, name, most)
                    yield from _read_text(text, name, suffix[1:], cut=len(paths) == 1)
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
            raise CorpusError(
                f"{name} cannot be read as {suffix} ({printable(reason)}); check that it is whole "
                "and of that kind"
            ) from None


def _find(where: str) -> tuple[list[Path], Path]:
    """The files that a path or glob means, and the folder that their names are shown relative to:
    for a glob the one before its first sign. Links to folders are not followed.
    """
    shown = printable(where)[:300]
    if "://" in where:
        raise CorpusError(
            f"{shown} is an address; expected a path after corpus=files:, so download it first, or "
            "use hub:DATASET"
        )
    try:
        path = Path(where).expanduser()
        signs = [i for i, part in enumerate(path.parts) if glob.has_magic(part)]
        root, pattern = path, "**/*"
        if path.is_file():
            root, pattern = path.parent, glob.escape(path.name)
        elif signs and not path.is_dir():
            root, pattern = Path(*path.parts[: signs[0]]), os.path.join(*path.parts[signs[0] :])
        elif not path.is_dir():
            problem = "is a special file" if path.exists() else "does not exist"
            raise CorpusError(
                f"{shown} {problem}; expected a file, folder or glob after corpus=files:"
            )
        files = (p for p in root.glob(pattern) if p.is_file())
        found = sorted(islice(files, MOST_FILES + 1))
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or printable(str(error))[:200]
        raise CorpusError(
            f"{shown} cannot be looked up ({reason}); expected a file, folder or glob"
        ) from None
    if len(found) > MOST_FILES:
        raise CorpusError(f"{shown}: over {MOST_FILES:,} files; name a smaller folder")
    if chosen := [p for p in found if _suffix(p) in READABLE]:
        return chosen, root
    problem = f"none of its {len(found)} files can be read"
    if path in found:
        problem = f"unknown kind of file {path.suffix or '(no suffix)'!r}"
    raise CorpusError(f"{shown}: {problem}; expected {', '.join(READABLE)}")


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:] if path.suffix in COMPRESSED else path.suffixes[-1:]).lower()


def _opened(path: Path) -> io.BufferedIOBase:
    if path.suffix in COMPRESSED:
        stream = pyarrow.input_stream(str(path), compression=COMPRESSED[path.suffix])
        return io.BufferedReader(stream, 1 << 20)
    return open(path, "rb")


def _check_inflation(n_bytes: int, most: int, name: str) -> None:
    if n_bytes > most:
        raise CorpusError(
            f"{name}: over {INFLATION} bytes come out of each byte in it; no text is so "
            "repetitive, unpack it and look"
        )


def _whole(f: io.BufferedIOBase, name: str, most: int) -> str:
    data = f.read(min(LONGEST, most) + 1)
    if len(data) > LONGEST:
        raise CorpusError(f"{name}: over {LONGEST:,} bytes; split it, or give .jsonl")
    _check_inflation(len(data), most, name)
    return _decoded(data, name)


def _decoded(data: bytes, where: str, offset: int = 0) -> str:
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorpusError(f"{where}: UTF-16 by its first bytes; {CONVERT}")
    if (nul := data.find(b"\0")) >= 0:
        raise CorpusError(
            f"{where}: a binary file (zero byte at offset {offset + nul}); expected UTF-8 text"
        )
    return _utf8(data.removeprefix(codecs.BOM_UTF8) if offset == 0 else data, where, offset)


def _utf8(data: bytes, where: str, offset: int = 0) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        raise CorpusError(f"{where}: not UTF-8 ({found}); {CONVERT}") from None


def _read_text(text: str, name: str, kind: str, cut: bool) -> Iterator[tuple[str, str, str]]:
    if not cut or len(text) <= PIECE:
        yield text, kind, name
        return
    # one long text alone: cut at line ends, else there would be nothing to hold out
    start, part = 0, 1
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end], kind, f"{name}: part {part}"
        start, part = end, part + 1


def _read_lines(f: io.BufferedIOBase, name: str, most: int) -> Iterator[tuple[str, str, str]]:
    offset, limit = 0, min(LONGEST, most)
    for number, line in enumerate(iter(partial(f.readline, limit + 1), b""), 1):
        where = f"{name}: line {number}"
        if len(line) > LONGEST:
            raise CorpusError(f"{where}: over {LONGEST:,} bytes; expected one document a line")
        _check_inflation(offset + len(line), most, name)
        decoded = _decoded(line, where, offset)
        offset += len(line)
        if decoded.strip():
            yield from_json(_parsed(decoded, where), where)


def _read_json(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    data = _parsed(text, name)
    if not isinstance(data, list):
        yield from_json(data, name)
        return
    for number, item in enumerate(data, 1):
        yield from_json(item, f"{name}: item {number}")


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Only the text and The Pile's kind are read: what else a row holds may be broken or of any
    type.
    """
    file, number = pyarrow.parquet.ParquetFile(path), 0
    columns, leaves = file.schema_arrow.names, {c.path for c in file.schema}
    if columns.count("text") != 1:
        raise CorpusError(f"{name}: found columns {_listed(columns)}; expected one named text")
    kind_is_there = "meta.pile_set_name" in leaves and columns.count("meta") == 1
    for batch in file.iter_batches(100, columns=["text"] + ["meta.pile_set_name"] * kind_is_there):
        texts = _bytes(batch.column("text"), f"{name}: column text")
        kinds = [None] * len(texts)
        if kind_is_there:
            field = pyarrow.compute.struct_field(batch.column("meta"), "pile_set_name")
            kinds = _bytes(field, f"{name}: column meta.pile_set_name")
        for text, kind in zip(texts, kinds, strict=True):
            number += 1
            where = f"{name}: row {number}"
            item = {"text": None if text is None else _utf8(text, f"{where}, text")}
            if kind is not None:
                item["meta"] = {"pile_set_name": _utf8(kind, f"{where}, meta.pile_set_name")}
            yield from_json(item, where)


def _bytes(column: pyarrow.Array, where: str) -> list[bytes | None]:
    """Strings as they are stored, for Arrow checks no UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise CorpusError(f"{where} holds {str(kind)[:100]}; expected strings")
    return column.cast(pyarrow.large_binary()).to_pylist()


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = str(error)
    except RecursionError:
        reason = "brackets nested too deeply"
    except ValueError:
        reason = "a number of more digits than Python reads"
    raise CorpusError(
        f'{where}: malformed JSON ({reason}); expected an object such as {{"text": "..."}}'
    )


def _listed(names: list) -> str:
    shown = ", ".join(printable(str(n))[:40] for n in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"


def from_json(item: Any, where: str) -> tuple[str, str, str]:
    """(text, kind, origin) of one parsed document; The Pile's `meta.pile_set_name` is its kind."""
    fields = item if isinstance(item, dict) else {"text": item}
    text, meta = fields.get("text"), fields.get("meta")
    if not isinstance(text, str):
        found = type(item).__name__
        if fields is item:
            found = f"an object with the keys {_listed(list(map(repr, item)))}"
            found += f", and text a {type(text).__name__}" * ("text" in item)
        raise CorpusError(f'{where}: found {found}; expected an object with text under "text"')
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 can't
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    kind = meta.get("pile_set_name") if isinstance(meta, dict) else None
    if not isinstance(kind, str):
        return text, "text", where
    kind = printable(kind)[:LONGEST_KIND]
    return text, kind, f"{where} ({kind})"
