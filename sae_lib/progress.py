"""One progress bar for every loop: tqdm's own, or a small file where a headless run asks for it."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm as standard
from tqdm.auto import tqdm as displayed

# environment variable: the file that bars write instead of being displayed
FILE = "SAE_LIB_PROGRESS"


class _Written(standard):
    """A bar whose state is in a file, replaced whole at most twice a second, gone when it is
    closed.
    """

    def __init__(self, *args, **how):
        self.path = Path(os.environ[FILE])
        how |= {"file": io.StringIO(), "mininterval": 0.5, "disable": how.get("disable") or False}
        super().__init__(*args, **how)

    def display(self, *args, **how) -> None:
        known = self.format_dict
        kept = ("prefix", "n", "total", "initial", "elapsed", "rate", "postfix")
        scratch = self.path.with_suffix(".partial")
        with suppress(OSError):  # a full disk must not end a training
            scratch.write_text(json.dumps({name: known[name] for name in kept}, default=float))
            os.replace(scratch, self.path)

    def close(self) -> None:
        super().close()
        with suppress(OSError):
            self.path.unlink()


def tqdm(*args, **how) -> standard:
    """A bar for a terminal or notebook, or one that a headless run reads from its file."""
    return (_Written if os.environ.get(FILE) else displayed)(*args, **how)


@contextmanager
def to(path: Path) -> Iterator[None]:
    """Bars made in this block are written to that file."""
    os.environ[FILE] = str(path)
    try:
        yield
    finally:
        del os.environ[FILE]
