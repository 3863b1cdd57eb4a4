"""The toy experiments by name, each made once: a result is kept with a hash of its code."""

import hashlib
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sae_lib.files import write_atomically
from sae_lib.toy import autoencoder as toy_autoencoder
from sae_lib.toy.experiments import EXPERIMENTS, PRESETS, Result, run
from sae_lib.toy.models import one_thread, require_one_of

FOLDER = Path(toy_autoencoder.__file__).parent
RUNS: dict[str, Callable[[str], dict]] = {
    "autoencoder": toy_autoencoder.autoencoder,
    "recipes": toy_autoencoder.recipes,
} | {name: partial(run, name) for name in EXPERIMENTS if name != "pentagons"}
MADE_BY = ("models.py", "experiments.py", "experiments.yaml", "autoencoder.py")  # decide a result
SOURCES = b"".join((FOLDER / name).read_bytes() for name in MADE_BY)


def result(name: str, preset: str, folder: Path | None = None) -> Result | dict:
    """One experiment's result, or its variants' results by name; from `folder` when the same source
    made it.
    """
    require_one_of("experiment", name, RUNS)
    require_one_of("preset", preset, PRESETS)
    key, path = hashlib.sha256(SOURCES).hexdigest(), folder and folder / f"{name}.{preset}.pt"
    made = _saved(path, key) if path else None
    if made is None:
        with one_thread():
            made = RUNS[name](preset)
        if path:
            saved = io.BytesIO()
            torch.save({"key": key, "result": made}, saved)
            write_atomically(path, saved.getvalue())
    return made.get("", made)


def _saved(path: Path, key: str) -> dict | None:
    """A cached result made by this source; None where there is none, or one cut short."""
    try:
        with torch.serialization.safe_globals([Result]):
            saved = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return saved["result"] if saved["key"] == key else None
