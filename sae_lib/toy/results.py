"""The toy experiments by name, each made once: a result is kept with a hash of the code that made it."""

import hashlib
import os
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sae_lib.errors import SettingsError
from sae_lib.toy import autoencoder as toy_autoencoder
from sae_lib.toy.experiments import EXPERIMENTS, PRESETS, Result, run
from sae_lib.toy.models import one_thread

RUNS: dict[str, Callable[[str], dict]] = {
    "autoencoder": toy_autoencoder.autoencoder,
    "recipes": toy_autoencoder.recipes,
} | {name: partial(run, name) for name in EXPERIMENTS if name != "pentagons"}
MADE_BY = ("models", "experiments", "autoencoder")  # the modules that decide what a result is
SOURCES = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in MADE_BY)


def result(name: str, preset: str, folder: Path | None = None) -> Result | dict:
    """One experiment's result, or its variants' results by name; from `folder` when the same
    source made it.
    """
    if name not in RUNS:
        raise SettingsError(f"toy experiment {name!r} does not exist; there are: {', '.join(RUNS)}")
    if preset not in PRESETS:
        raise SettingsError(f"toy.preset: {preset!r} is unknown; there are: {', '.join(PRESETS)}")
    key = hashlib.sha256(SOURCES).hexdigest()
    path = folder / f"{name}.{preset}.pt" if folder else None
    made = _saved(path, key) if path else None
    if made is None:
        start = time.perf_counter()
        with one_thread():
            made = RUNS[name](preset)
        if name in EXPERIMENTS:
            made = {variant: vars(result) for variant, result in made.items()}
        if path:
            _save(path, {"key": key, "seconds": time.perf_counter() - start, "result": made})
    if name not in EXPERIMENTS:
        return made
    results = {variant: Result(**values) for variant, values in made.items()}
    return results.get("", results)


def _saved(path: Path, key: str) -> dict | None:
    """A cached result made by this source; None where there is none, or one cut short."""
    try:
        saved = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return saved["result"] if saved["key"] == key else None


def _save(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
