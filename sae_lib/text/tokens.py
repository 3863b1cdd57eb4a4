"""Text to token ids in memory-mapped arrays, and from every token back to its document and characters."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_lib.errors import ArtefactError, CorpusError
from sae_lib.progress import tqdm
from sae_lib.settings import CorpusSettings, TokenizerSettings
from sae_lib.text.corpus import Document, documents
from sae_lib.text.tokenizer import exact_encoder, load_tokenizer, separator_id, train_tokenizer

SPLITS = ("train", "heldout")
BATCH_CHARACTERS = 1_000_000  # encoded together, and a row group of documents.parquet
DOCUMENTS = pa.schema(
    [
        ("split", pa.string()),
        ("document", pa.int64()),
        ("kind", pa.string()),
        ("origin", pa.string()),
        ("first_token", pa.int64()),
    ]
    + [
        ("tokens", pa.int64()),
        ("characters", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("text", pa.large_string()),
    ]
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Location:
    """Where a token stands: characters `start` to `end` of a document. A separator stands behind its document's last one."""

    document: int
    origin: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """The opened artefact. `train` and `heldout` are memory maps; in them <|endoftext|> ends each document."""

    folder: Path
    tokenizer: Any
    train: np.ndarray
    heldout: np.ndarray
    table: dict[str, pa.Table]  # documents of a split, without their text

    def rows(self, split: str, context: int) -> np.ndarray:
        """View [n_rows, context] of a split's tokens in order, the last incomplete row dropped; `CorpusError` if there is none."""
        ids = self._ids(split)
        if len(ids) < context:
            raise CorpusError(
                f"the {split} text has {len(ids)} tokens, too few for one row of lm.context={context}; give more text"
            )
        return ids[: len(ids) // context * context].reshape(-1, context)

    def locate(self, split: str, index: int) -> Location:
        """Document and characters of the token at `index`; `IndexError` outside the split."""
        if not 0 <= index < len(self._ids(split)):
            raise IndexError(f"token {index} of {len(self._ids(split))} in {split}")
        table, first = self.table[split], _firsts(self, split)
        document = int(np.searchsorted(first, index, side="right")) - 1
        position = index - int(first[document])
        spans = _spans(self, split, document)
        start, end = (
            spans[position] if position < len(spans) else (len(self.document(split, document)),) * 2
        )
        return Location(
            document,
            table["origin"][document].as_py(),
            table["kind"][document].as_py(),
            int(start),
            int(end),
        )

    def document(self, split: str, document: int) -> str:
        """The text of a document."""
        group, row = _groups(self)[split, document]
        return _texts(self, group)[row].as_py()

    def _ids(self, split: str) -> np.ndarray:
        return {"train": self.train, "heldout": self.heldout}[split]

    def __hash__(self) -> int:  # the caches below hold one entry per opened artefact
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@lru_cache(maxsize=8)
def _firsts(tokens: Tokens, split: str) -> np.ndarray:
    return tokens.table[split]["first_token"].to_numpy()


@lru_cache(maxsize=4)
def _groups(tokens: Tokens) -> dict[tuple[str, int], tuple[int, int]]:
    """(split, document) -> (row group, row in it) of documents.parquet."""
    places, file = {}, pq.ParquetFile(tokens.folder / "documents.parquet")
    for group in range(file.num_row_groups):
        part = file.read_row_group(group, columns=["split", "document"])
        for row, key in enumerate(
            zip(part["split"].to_pylist(), part["document"].to_pylist(), strict=True)
        ):
            places[key] = (group, row)
    return places


@lru_cache(maxsize=64)
def _texts(tokens: Tokens, group: int) -> pa.ChunkedArray:
    return pq.ParquetFile(tokens.folder / "documents.parquet").read_row_group(
        group, columns=["text"]
    )["text"]


@lru_cache(maxsize=2048)
def _spans(tokens: Tokens, split: str, document: int) -> np.ndarray:
    """[n, 2] where each token's characters start and end, by encoding again: exact for every tokeniser, and nothing to store."""
    encoded = exact_encoder(tokens.tokenizer).encode(
        tokens.document(split, document), add_special_tokens=False
    )
    first, length = (
        int(_firsts(tokens, split)[document]),
        tokens.table[split]["tokens"][document].as_py(),
    )
    length = min(
        length, len(encoded.ids)
    )  # stored are one more, the separator, or fewer, where the cap cut the document
    if not np.array_equal(tokens._ids(split)[first : first + length], encoded.ids[:length]):
        raise ArtefactError(
            f"{tokens.folder}: the tokens of {split} document {document} do not match its text; delete the folder and run again"
        )
    return np.array(encoded.offsets[:length], dtype=np.int64).reshape(-1, 2)


# --- making and opening ---


def open_tokens(folder: Path) -> Tokens:
    """The tokens that `write_tokens` wrote to the folder."""
    table = pq.read_table(
        folder / "documents.parquet", columns=[name for name in DOCUMENTS.names if name != "text"]
    )
    tables = {split: table.filter(pa.compute.equal(table["split"], split)) for split in SPLITS}
    train, heldout = (np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS)
    return Tokens(folder, load_tokenizer(folder / "tokenizer"), train, heldout, tables)


def write_tokens(
    corpus: CorpusSettings, settings: TokenizerSettings, seed: int, folder: Path
) -> None:
    """Tokenise the corpus into `folder`; raises `CorpusError`, `ModelError`."""
    stream = documents(corpus, seed)
    if settings.source == "train":
        sample = _head(stream, settings.train_bytes)
        stream = chain(sample, stream)
        tokenizer = train_tokenizer(
            (d.text for d in sample if d.split == "train"), settings.vocab_size
        )
    else:
        tokenizer = load_tokenizer(settings.source)
    tokenizer.save_pretrained(folder / "tokenizer")
    limits = {"train": corpus.train_tokens, "heldout": corpus.heldout_tokens}
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    arrays = {split: GrowingArray(folder / f"{split}.npy", dtype) for split in SPLITS}
    encoder, end = exact_encoder(tokenizer), separator_id(tokenizer)
    count = dict.fromkeys(SPLITS, 0)
    with (
        pq.ParquetWriter(folder / "documents.parquet", DOCUMENTS, compression="zstd") as parquet,
        tqdm(total=sum(limits.values()), desc="tokens", unit="token", unit_scale=True) as bar,
    ):
        for batch in _batches(stream):
            wanted = [d for d in batch if arrays[d.split].length < limits[d.split]]
            rows = []
            for document, encoded in zip(
                wanted,
                encoder.encode_batch_fast([d.text for d in wanted], add_special_tokens=False),
                strict=True,
            ):
                array = arrays[document.split]
                ids = [*encoded.ids, end][: limits[document.split] - array.length]
                if ids:
                    rows.append(_row(document, count[document.split], array.length, len(ids)))
                    count[document.split] += 1
                    array.append(ids)
                    bar.update(len(ids))
            if rows:
                parquet.write_table(pa.Table.from_pylist(rows, DOCUMENTS))
            if all(arrays[split].length >= limits[split] for split in SPLITS):
                break
    for split, array in arrays.items():
        array.close()
        if array.length < 2:
            raise CorpusError(
                f"{corpus.source}: no {split} text in it ({count['train']} training documents); give more text, or more documents"
            )
        if array.length < limits[split]:
            log.warning(
                "%s: %d %s tokens, fewer than corpus.%s_tokens=%d",
                corpus.source,
                array.length,
                split,
                split,
                limits[split],
            )


def _row(document: Document, number: int, first: int, length: int) -> dict[str, Any]:
    data = document.text.encode()
    return {
        "split": document.split,
        "document": number,
        "kind": document.kind,
        "origin": document.origin,
        "first_token": first,
    } | {
        "tokens": length,
        "characters": len(document.text),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "text": document.text,
    }


def _head(stream: Iterator[Document], train_bytes: int) -> list[Document]:
    """The first documents, until those for training hold `train_bytes`: shuffled as they come, a fair sample."""
    head, size = [], 0
    for document in stream:
        head.append(document)
        size += len(document.text.encode()) if document.split == "train" else 0
        if size >= train_bytes:
            break
    return head


def _batches(stream: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in stream:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class GrowingArray:
    """A one-dimensional .npy file written piece by piece; its header leaves room for the final length."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.file, self.dtype, self.length = open(path, "wb"), np.dtype(dtype), 0
        self._header()

    def _header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self.file, description)

    def append(self, ids: list[int]) -> None:
        self.file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.length += len(ids)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.close()
