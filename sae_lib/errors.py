"""The errors a user can cause. Each message says what, where, what was expected and what to do."""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can fix; the command line prints the message alone and exits with its
    status.
    """

    status = 2


class SettingsError(UserError):
    """A setting that is unknown, impossible, or contradicts another."""


class CorpusError(UserError):
    """Text that is missing, unreadable, malformed or too small."""


class ArtefactError(UserError):
    """A run folder's file that is truncated, changed, or made by other settings."""


class ModelError(UserError):
    """A model, tokeniser or hook that cannot be loaded or does not exist."""


class ChatError(UserError):
    """A chat model that cannot be used: an endpoint that refuses or does not answer, or a malformed
    address.
    """


class TrainingError(UserError):
    """Training that cannot go on: a loss that is not finite, or that explodes."""


class Interrupted(UserError):
    """Ctrl-C during training: what was done is saved."""

    status = 130


class BusyError(UserError):
    """A run folder that another process is writing to."""


class DiskError(UserError):
    """A file that the system would not write or read."""


class OutOfMemoryError(UserError):
    """More memory than there is; names the settings that decide how much is needed."""


GOES_ON = "run the same command to continue from what is finished and the last checkpoint"
DISK = {
    errno.ENOSPC: ("the disk is full", f"free some space, then {GOES_ON}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space, then {GOES_ON}"),
    errno.EFBIG: (
        "the file is larger than is allowed here (ulimit -f)",
        f"raise it, then {GOES_ON}",
    ),
    errno.EIO: ("the disk reports an error", f"check it, then {GOES_ON}"),
    errno.EROFS: ("it is read-only", "choose another folder with --run"),
    errno.EACCES: ("permission denied", "choose another folder with --run, or change who may"),
    errno.EMFILE: ("too many files are open (ulimit -n)", f"raise it, then {GOES_ON}"),
}
NO_MEMORY = re.compile(
    r"(?i)can't allocate memory|not enough memory|out of memory|bad_alloc|capacity overflow"
)
LARGE = {  # by module, the settings that decide how much memory it takes
    "tokenizer": "tokenizer.vocab_size or tokenizer.train_bytes",
    "tokens": "corpus.train_tokens",
    "language_model": "lm.batch, lm.context, lm.d_mlp or lm.d_model",
    "activations": "sae.buffer_rows, lm.context or lm.d_mlp",
    "initialise": "sae.d_sae",
    "autoencoder": "sae.d_sae",
    "sparse_step": "sae.d_sae or sae.batch",
    "training": "sae.d_sae or sae.batch",
    "evaluation": "sae.d_sae or evaluation.tokens",
    "statistics": "features.top_k, features.samples or sae.d_sae",
    "feature_table": "features.top_k, features.samples or sae.d_sae",
    "scoring": "interpretability.tokens, interpretability.features or interpretability.units",
    "clusters": "interpretability.features",
    "clamping": "clamping.rows or clamping.draws",
    "experiments": "toy.preset",
}


def shown(found: Any) -> str:
    """A value in at most 60 characters of one line, so that no message is long and no secret is
    shown whole.
    """
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable(text: str) -> str:
    """One line that any page, table or terminal can show: what has no shape becomes U+FFFD, so half
    of a surrogate pair too.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


@contextmanager
def in_plain_words(where: Path) -> Iterator[None]:
    """What the system refuses becomes a `UserError`; `where` is for errors that name no file."""
    try:
        yield
    except BaseException as error:
        if problem := plain(error, where):
            raise problem from error
        raise


def plain(error: BaseException, where: Path | None = None) -> UserError | None:
    """A full or unreadable disk or too little memory as a `UserError`; None for other errors."""
    text = str(error)
    by_rust = re.search(r"\(os error (\d+)\)", text)  # safetensors and tokenizers
    if isinstance(error, OSError) or by_rust or "PytorchStreamWriter" in text:
        number = int(by_rust[1]) if by_rust else getattr(error, "errno", None)
        reason = os.strerror(number) if number else text.partition("\n")[0] or "it failed"
        reason, action = DISK.get(number, (reason, "check the path and the disk"))
        name = getattr(error, "filename", None) or where or "a file"
        return DiskError(f"{name} cannot be read or written: {reason}; {action}")
    no_memory = NO_MEMORY.search(text) and not isinstance(error, UserError)
    if isinstance(error, MemoryError) or no_memory:
        modules = [Path(f.filename).stem for f in traceback.extract_tb(error.__traceback__)]
        known = [LARGE[m] for m in reversed(modules) if m in LARGE]
        return OutOfMemoryError(
            f"not enough memory ({text.partition(chr(10))[0][:150] or 'MemoryError'}); "
            f"lower {known[0] if known else 'the sizes in the settings'}"
        )
    if type(error).__name__ == "PanicException":
        return UserError(f"a library stopped ({text.partition(chr(10))[0][:200]}); lower the sizes")
    return None
