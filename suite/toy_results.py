"""The toy experiments by name, each made once: a result is kept with a hash of its code."""

import hashlib
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.files import write_atomically
from sae_lib.model.activations import ActivationTable
from sae_lib.sae import training
from sae_lib.sae.recipes import RECIPES
from sae_lib.settings import SAESettings
from sae_lib.toy import experiments
from sae_lib.toy.autoencoder import D_SAE, DENSITY, RECOVERED, autoencoder, pentagons, recovery
from sae_lib.toy.experiments import EXPERIMENTS, PRESETS, Result, run
from sae_lib.toy.models import Features, Size, one_thread, require_one_of

RECIPE_SIZES = {"smoke": Size(4), "laptop": Size(300, seeds=2), "full": Size(2000, seeds=8)}
TABLE_ROWS, POSITIONS = 1024, 64  # hidden activations drawn once: 65 536, read in shuffled order
# what decides a result
MADE_BY = [Path(__file__), *sorted(Path(experiments.__file__).parent.glob("*.*"))]
SOURCES = b"".join(path.read_bytes() for path in MADE_BY)


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


def recipes(preset: str) -> dict[str, dict]:
    """Five latents on the 5 → 2 pentagon by the training loop of notebook 03, each recipe with and
    without resampling.

    λ is the recipe's own; dead are latents silent on all of the hidden activations. Keys are the
    table's columns.
    """
    size, out = RECIPE_SIZES[preset], {}
    W = pentagons(preset, size.seeds)
    features, generator = Features(W.shape[-1], DENSITY), torch.Generator().manual_seed(7)
    hidden = (W @ features.sample(len(W), TABLE_ROWS * POSITIONS, generator)).mT.contiguous()
    norms = hidden.norm(dim=-1)
    for name in RECIPES if preset == "full" else ("bricken_2023", "ward_2024"):
        for resampling in (False, True) if RECIPES[name].resampling else (False,):
            trained = [_train(h, name, resampling, size, seed) for seed, h in enumerate(hidden)]
            acts = torch.stack([sae.encode(h) for sae, h in zip(trained, hidden, strict=True)])
            W_dec = torch.stack([sae.W_dec for sae in trained])
            recovered = recovery(W_dec.mT, W) > RECOVERED
            outputs, dead = (acts @ W_dec).norm(dim=-1)[norms > 0], (acts.amax(1) == 0).sum()
            out[f"{name}, {'with' if resampling else 'without'} resampling"] = {
                "all five found": f"{recovered.all(1).sum()} of {len(recovered)}",
                "directions found": f"{recovered.float().mean():.0%}",
                "dead latents": f"{dead} of {recovered.numel()}",
                "output / input norm": f"{outputs.sum() / norms.sum():.2f}",
            }
    return out


def _train(hidden: Float[Tensor, "n d_in"], name: str, resampling: bool, size: Size, seed: int):
    settings = SAESettings(
        recipe=name,
        d_sae=D_SAE,
        activations=size.steps * size.batch,
        resampling=resampling,
        dead_window=size.steps * size.batch // 10,
        resampling_inputs=8192,
        buffer_rows=TABLE_ROWS,
        log_every=10**9,
        checkpoint_every=10**9,
        k=1 if RECIPES[name].k else None,
    )
    table = ActivationTable(hidden)
    return training.fit(table, table.rows(POSITIONS), settings, seed)[0]


RUNS: dict[str, Callable[[str], dict]] = {
    "autoencoder": autoencoder,
    "recipes": recipes,
} | {name: partial(run, name) for name in EXPERIMENTS if name != "pentagons"}
