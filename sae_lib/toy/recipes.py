"""The library's own recipes on the toy model: the training loop of notebook 03 where the truth is known."""

import pandas as pd
import torch

from sae_lib.model.activations import ActivationTable
from sae_lib.sae import training
from sae_lib.sae.recipes import RECIPES
from sae_lib.settings import SAESettings
from sae_lib.toy import models as toy
from sae_lib.toy.autoencoder import DENSITY, RECOVERED, base_model, recovery
from sae_lib.toy.experiments import Size, plain, size_of

SIZES: dict[str, tuple[Size, Size, Size]] = {
    "recipes": (Size(1, 1, 4, 1024), Size(1, 2, 300, 1024), Size(1, 8, 2000, 1024))
}
TABLE_ROWS, POSITIONS = 1024, 64  # hidden activations drawn once: 65 536, read in shuffled order


def recipes(preset: str) -> dict:
    """Five latents on the 5 → 2 pentagon, each recipe with and without resampling: shares with intervals.

    λ is the recipe's own; dead are latents silent on all of the hidden activations, recovered means cosine > 0.95.
    """
    size = size_of("recipes", preset, SIZES)
    W, _, _ = base_model(size, size.seeds)
    generator = torch.Generator(W.device).manual_seed(7)
    hidden = (
        W @ toy.Features(W.shape[-1], DENSITY).sample(len(W), TABLE_ROWS * POSITIONS, generator)
    ).mT
    rows = torch.arange(TABLE_ROWS * POSITIONS).reshape(TABLE_ROWS, POSITIONS).numpy()
    out = {}
    for name in RECIPES if preset == "full" else ("bricken_2023", "ward_2024"):
        for resampling in (False, True) if RECIPES[name].resampling else (False,):
            trained = [
                _train(h, rows, name, resampling, size, seed) for seed, h in enumerate(hidden)
            ]
            cosine = recovery(torch.stack([sae.W_dec.T for sae in trained]), W)
            acts = torch.stack([sae.encode(h) for sae, h in zip(trained, hidden, strict=True)])
            active = hidden.norm(dim=-1) > 0
            outputs = torch.stack(
                [(f @ sae.W_dec).norm(dim=-1) for f, sae in zip(acts, trained, strict=True)]
            )
            complete = int((cosine > RECOVERED).all(1).sum())
            out[f"{name}, {'with' if resampling else 'without'} resampling"] = {
                "all_five": [complete, len(trained), *toy.wilson(complete, len(trained))],
                "directions": (cosine > RECOVERED).float().mean(),
                "dead_latents": [int((acts.amax(1) == 0).sum()), acts.shape[0] * acts.shape[2]],
                "norm_ratio": (outputs * active).sum() / (hidden.norm(dim=-1) * active).sum(),
            }
    return plain(out)


def _train(hidden, rows, name: str, resampling: bool, size: Size, seed: int):
    activations = size.steps * size.batch
    settings = SAESettings(
        recipe=name,
        d_sae=hidden.shape[1] * 5 // 2,
        activations=activations,
        resampling=resampling,
        dead_window=max(1, activations // 10),
        resampling_inputs=8192,
        buffer_rows=TABLE_ROWS,
        log_every=10**9,
        checkpoint_every=10**9,
        k=1 if RECIPES[name].k else None,
    )
    return training.fit(ActivationTable(hidden.contiguous()), rows, settings, seed)[0]


def table(result: dict) -> pd.DataFrame:
    """A row per recipe: how many autoencoders found all five directions, directions found, dead latents, shrinkage."""
    rows = {
        name: {
            "all five found": f"{r['all_five'][0]} of {r['all_five'][1]}",
            "directions found": f"{r['directions']:.0%}",
            "dead latents": f"{r['dead_latents'][0]} of {r['dead_latents'][1]}",
            "output / input norm": f"{r['norm_ratio']:.2f}",
        }
        for name, r in result.items()
    }
    return pd.DataFrame(rows).T
