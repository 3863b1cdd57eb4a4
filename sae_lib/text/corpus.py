"""Documents from one of three sources: this Python installation, files, or a data set of the
Hugging Face hub.
"""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sae_lib.errors import CorpusError
from sae_lib.settings import CorpusSettings
from sae_lib.text import hub, installation, text_files
from sae_lib.text.tokens import Document

HELDOUT_SHARE = 0.1  # of the documents of files and hub
# More than any text has on average: what a cap in tokens means before there are tokens.
CHARACTERS_PER_TOKEN = 8
# Of files, read per wanted token; a longer corpus is sampled from its beginning.
CONSIDERED = 20


def documents(settings: CorpusSettings, seed: int) -> Iterator[Document]:
    """Documents of both splits in a shuffled order that the seed fixes, without copies; raises
    `CorpusError`.
    """
    scheme, _, rest = settings.source.partition(":")
    if settings.source == "installation":
        yield from _from_installation(settings, seed)
    elif scheme == "files" and rest:
        yield from _from_files(rest, settings, seed)
    elif scheme == "hub" and rest:
        if not hub.reached():
            raise CorpusError(f"{settings.source}: {hub.OUT_OF_REACH}")
        yield from _from_hub(rest, settings, seed, path=rest, revision=settings.revision)
    else:
        raise CorpusError(
            f"corpus.source {settings.source!r} is not known; expected installation, "
            "files:PATH_OR_GLOB or hub:DATASET"
        )


def _from_installation(settings: CorpusSettings, seed: int) -> Iterator[Document]:
    budget = settings.max_kind_bytes
    unknown = budget.keys() - installation.KINDS.keys()
    if unknown or not budget:
        raise CorpusError(
            f"corpus.max_kind_bytes names {', '.join(sorted(unknown)) or 'nothing'}; "
            f"expected bytes for some of: {', '.join(installation.KINDS)}"
        )
    share, limit = settings.heldout_tokens / settings.train_tokens, settings.max_file_bytes
    for file, text, split in installation.read_installation(budget, share, limit, seed):
        yield Document(text, file.kind, file.origin, split)


# --- files ---


def _from_files(where: str, settings: CorpusSettings, seed: int) -> Iterator[Document]:
    """All documents go to a temporary file first: a full shuffle and an exact held-out share, with
    little memory.
    """
    wanted = CHARACTERS_PER_TOKEN * settings.heldout_tokens
    enough = CONSIDERED * (settings.train_tokens + settings.heldout_tokens)
    # four numbers a document: order, order of the split, place in the temporary file, characters
    index, total = array("Q"), 0
    with tempfile.TemporaryFile() as spool:
        for *document, order, split_order in _without_copies(text_files.read_files(where), seed):
            length = len(document[0])
            index.extend((order, split_order, spool.tell(), length))
            spool.write(json.dumps(document).encode() + b"\n")
            total += length
            if total > enough:
                break
        table = np.frombuffer(index, dtype=np.uint64).reshape(-1, 4)
        if len(table) < 2:
            raise CorpusError(
                f"{where}: {len(table)} document(s) of text; expected at least 2, one to train on "
                "and one to hold out"
            )
        by_split = np.argsort(table[:, 1])
        before = np.cumsum(table[by_split, 3]) - table[by_split, 3]
        heldout = np.zeros(len(table), dtype=bool)
        heldout[by_split[before < min(HELDOUT_SHARE * total, wanted)]] = True
        for i in np.argsort(table[:, 0]):
            spool.seek(int(table[i, 2]))
            text, kind, origin = json.loads(spool.readline())
            yield Document(text, kind, origin, "heldout" if heldout[i] else "train")


def _without_copies(
    documents: Iterable[tuple[str, str, str]], seed: int
) -> Iterator[tuple[str, str, str, int, int]]:
    """(text, kind, origin) of every text that did not come before (white space aside) and two
    seeded 63-bit numbers, which order it and choose its split.
    """
    seen: set[int] = set()
    for text, kind, origin in documents:
        words = " ".join(text.split()).encode()
        digest = hashlib.blake2b(words, digest_size=16, key=str(seed).encode()).digest()
        order, split_order = (int.from_bytes(half) >> 1 for half in (digest[:8], digest[8:]))
        if words and order not in seen:
            seen.add(order)
            yield text, kind, origin, order, split_order


# --- the hub ---


def _from_hub(
    name: str, settings: CorpusSettings, seed: int, **arguments: Any
) -> Iterator[Document]:
    """Streamed, so that nothing is downloaded but what is used; `arguments` are those of
    `datasets.load_dataset`.
    """
    import datasets

    heldout_characters = 0
    wanted = CHARACTERS_PER_TOKEN * settings.heldout_tokens
    try:
        stream = datasets.load_dataset(**arguments, split="train", streaming=True)
        stream = stream.map(lambda item, n: item | {"_number": n}, with_indices=True)
        stream = stream.shuffle(seed=seed, buffer_size=settings.shuffle_buffer)
        parsed = (text_files.from_json(d, f"{name}: document {d['_number']}") for d in stream)
        for text, kind, origin, _, split_order in _without_copies(parsed, seed):
            held = split_order < HELDOUT_SHARE * 2**63 and heldout_characters < wanted
            heldout_characters += held * len(text)
            yield Document(text, kind, origin, "heldout" if held else "train")
    except CorpusError:
        raise
    except Exception as error:  # datasets, huggingface_hub and fsspec each raise their own
        raise CorpusError(f"hub:{name}: {hub.problem(error)}") from None
