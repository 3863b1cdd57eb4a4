"""One progress bar for every loop: tqdm's own, or a small file where a headless run asks for it."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm as standard
from tqdm.auto import tqdm as displayed

from sae_lib.formats import about

FILE = (
    "SAE_LIB_PROGRESS"  # environment variable: the file that bars write instead of being displayed
)


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


def read_state(path: Path) -> dict[str, Any] | None:
    """What the innermost running bar last wrote; None where no bar runs."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def describe(state: dict[str, Any]) -> str:
    """A bar's state in words: description, step of steps, time left, postfix (loss)."""
    n, total, done = state["n"], state["total"], state["n"] - state["initial"]
    rate = state["rate"] or (done / state["elapsed"] if done and state["elapsed"] else None)
    parts = [f"{n:,.0f} of {total:,.0f}" if total else f"{n:,.0f}"]
    if rate and total and total > n:
        parts.append(f"{about((total - n) / rate)} left")
    parts += filter(None, [state["postfix"]])
    return f"{state['prefix'].removesuffix(': ')} {', '.join(parts)}".strip()
