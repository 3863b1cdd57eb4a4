"""Text to token ids in memory-mapped arrays, and from every token back to its document and
characters.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sae_lib.errors import ArtefactError, CorpusError
from sae_lib.progress import tqdm
from sae_lib.settings import CorpusSettings, TokenizerSettings
from sae_lib.text.tokenizer import (
    CHAT,
    exact_encoder,
    load_tokenizer,
    separators,
    train_tokenizer,
)

SPLITS = ("train", "heldout")
BATCH_CHARACTERS = 1_000_000  # encoded together, and a row group of documents.parquet
DOCUMENTS = pa.schema(
    {
        "split": "string",
        "document": "int64",
        "kind": "string",
        "origin": "string",
        "first_token": "int64",
        "tokens": "int64",
        "characters": "int64",
        "bytes": "int64",
        "sha256": "string",
        "text": "large_string",
    }
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    text: str
    kind: str
    origin: str  # such as "numpy 2.4.6: numpy/_core/x.py" or "a.jsonl: line 12"; never absolute
    split: str  # train or heldout


@dataclass(frozen=True)
class Location:
    """Where a token is: characters `start` to `end` of a document. A separator comes after its
    document's last character.
    """

    document: int
    origin: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Tokens:
    """The opened artefact. `train` and `heldout` are memory maps; in them `separators` end each
    document.
    """

    folder: Path
    tokenizer: Any
    train: np.ndarray
    heldout: np.ndarray
    table: dict[str, pd.DataFrame]  # documents of a split, without their text

    def rows(self, split: str, context: int) -> np.ndarray:
        """View [n_rows, context] of a split's tokens in order, the last incomplete row dropped;
        `CorpusError` if there is none.
        """
        ids = getattr(self, split)
        if len(ids) < context:
            raise CorpusError(
                f"the {split} text has {len(ids)} tokens, too few for one row of "
                f"lm.context={context}; give more text"
            )
        return ids[: len(ids) // context * context].reshape(-1, context)

    def locate(self, split: str, index: int) -> Location:
        """Document and characters of the token at `index`; `IndexError` outside the split."""
        if not 0 <= index < len(getattr(self, split)):
            raise IndexError(f"token {index} of {len(getattr(self, split))} in {split}")
        document = int(self.table[split]["first_token"].searchsorted(index, side="right")) - 1
        row, spans = self.table[split].iloc[document], self._spans(split, document)
        position = index - row["first_token"]
        start = end = row["characters"]  # of separators, which come after the text
        if position < len(spans):
            start, end = spans[position]
        return Location(document, row["origin"], row["kind"], int(start), int(end))

    def document(self, split: str, document: int) -> str:
        """The text of a document."""
        place = [("split", "=", split), ("document", "=", document)]
        found = pq.read_table(self.folder / "documents.parquet", columns=["text"], filters=place)
        return found["text"][0].as_py()

    @lru_cache(maxsize=2048)  # noqa: B019 (an opened artefact lives as long as its process)
    def _spans(self, split: str, document: int) -> list[tuple[int, int]]:
        """Where each token's characters start and end, by encoding again: exact for every
        tokeniser, and nothing to store.
        """
        text, row = self.document(split, document), self.table[split].iloc[document]
        encoder = exact_encoder(self.tokenizer, row["kind"] == CHAT)
        encoded = encoder.encode(text, add_special_tokens=False)
        # stored are one more, the separator, or fewer, where the cap cut the document
        first, length = row["first_token"], min(row["tokens"], len(encoded.ids))
        if not np.array_equal(getattr(self, split)[first : first + length], encoded.ids[:length]):
            raise ArtefactError(
                f"{self.folder}: the tokens of {split} document {document} do not match its text; "
                "delete the folder and run again"
            )
        return encoded.offsets[:length]


# --- making and opening ---


def open_tokens(folder: Path) -> Tokens:
    """The tokens that `write_tokens` wrote to the folder."""
    columns = [name for name in DOCUMENTS.names if name != "text"]
    table = pd.read_parquet(folder / "documents.parquet", columns=columns)
    tables = {split: table[table["split"] == split].reset_index(drop=True) for split in SPLITS}
    train, heldout = (np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS)
    return Tokens(folder, load_tokenizer(folder / "tokenizer"), train, heldout, tables)


def write_tokens(
    stream: Iterator[Document], corpus: CorpusSettings, settings: TokenizerSettings, folder: Path
) -> None:
    """Tokenise the documents of a corpus into `folder`; raises `CorpusError`, `ModelError`."""
    if settings.source == "train":
        sample = _head(stream, settings.train_bytes)
        stream = chain(sample, stream)
        texts = (d.text for d in sample if d.split == "train")
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    else:
        tokenizer = load_tokenizer(settings.source)
    tokenizer.save_pretrained(folder / "tokenizer")
    limits = {"train": corpus.train_tokens, "heldout": corpus.heldout_tokens}
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    between = separators(tokenizer)
    count, length = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)  # documents, tokens
    with (
        pq.ParquetWriter(folder / "documents.parquet", DOCUMENTS, compression="zstd") as parquet,
        tqdm(total=sum(limits.values()), desc="tokens", unit="token", unit_scale=True) as bar,
        tempfile.TemporaryFile(dir=folder) as train,
        tempfile.TemporaryFile(dir=folder) as heldout,
    ):
        raw = {"train": train, "heldout": heldout}
        for batch in _batches(stream):
            rows, wanted = [], [d for d in batch if length[d.split] < limits[d.split]]
            encoded = _encoded(tokenizer, wanted)
            for document, found in zip(wanted, encoded, strict=True):
                split, first = document.split, length[document.split]
                ids = np.array([*found.ids, *between], dtype)[: limits[split] - first]
                if n := raw[split].write(ids.tobytes()) // ids.itemsize:
                    rows.append(_row(document, document=count[split], first_token=first, tokens=n))
                    count[split], length[split] = count[split] + 1, first + n
                    bar.update(n)
            if rows:
                parquet.write_table(pa.Table.from_pylist(rows, DOCUMENTS))
            if length == limits:
                break
        for split, n in length.items():
            if n < 2:
                raise CorpusError(
                    f"{corpus.source}: no {split} text in it ({count['train']} training documents);"
                    " give more text, or more documents"
                )
            raw[split].flush()
            np.save(folder / f"{split}.npy", np.memmap(raw[split], dtype, "r"))
            if n < limits[split]:
                few = f"{n} {split} tokens, fewer than corpus.{split}_tokens={limits[split]}"
                log.warning("%s: %s", corpus.source, few)


def _encoded(tokenizer: Any, documents: list[Document]) -> list[Any]:
    """The documents' encodings. In dialogues special tokens are special; in all other text what
    looks like one is ordinary text, which takes another encoder.
    """
    encoder = exact_encoder(tokenizer)
    found = encoder.encode_batch_fast([d.text for d in documents], add_special_tokens=False)
    chat = exact_encoder(tokenizer, True)
    for i, document in enumerate(documents):
        if document.kind == CHAT:
            found[i] = chat.encode(document.text, add_special_tokens=False)
    return found


def _row(text: Document, **found: int) -> dict[str, Any]:
    """A row of documents.parquet."""
    data = text.text.encode()
    sizes = {"characters": len(text.text), "bytes": len(data)}
    return vars(text) | found | sizes | {"sha256": hashlib.sha256(data).hexdigest()}


def _head(stream: Iterator[Document], train_bytes: int) -> list[Document]:
    """The first documents, until those for training hold `train_bytes`: shuffled as they come, a
    fair sample.
    """
    head, left = [], train_bytes
    while left > 0 and (document := next(stream, None)):
        head.append(document)
        left -= len(document.text.encode()) if document.split == "train" else 0
    return head


def _batches(stream: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in stream:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
