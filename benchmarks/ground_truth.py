"""Activations made of known sparse directions: which recipe finds how many of them."""

import statistics

import numpy as np
import torch
import torch.nn.functional as F

from sae_lib.model.activations import ActivationTable
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.settings import SAESettings

D_IN, DIRECTIONS, ACTIVE, SEEDS = (
    64,
    256,
    3,
    5,
)  # strengths U[0.5, 1]; as many features as directions
TABLE, ACTIVATIONS = 2**17, 1_000_000
SETTINGS = {
    "bricken_2023": {"lr": 3e-3, "l1": 1.0},
    "ward_2024": {},
    "april_2024": {"lr": 3e-3, "l1": 2.0},
    "topk": {"lr": 3e-3, "k": ACTIVE},
    "batchtopk": {"lr": 3e-3, "k": ACTIVE},
    "jumprelu": {"lr": 3e-3, "l1": 1.0},
    "tied": {"lr": 3e-2, "l1": 0.5},
}


def source(seed: int) -> tuple[ActivationTable, torch.Tensor]:
    """(a table of activations, the true directions [direction, d_in])."""
    g = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(DIRECTIONS, D_IN, generator=g), dim=1)
    active = torch.rand(TABLE, DIRECTIONS, generator=g) < ACTIVE / DIRECTIONS
    return ActivationTable(
        (active * (0.5 + 0.5 * torch.rand(TABLE, DIRECTIONS, generator=g))) @ directions
    ), directions


def recovered(sae: SparseAutoencoder, directions: torch.Tensor) -> float:
    """Share of the directions that some feature points along (cosine > 0.9)."""
    return (
        ((directions @ F.normalize(sae.W_dec, dim=1).T).max(1).values > 0.9).float().mean().item()
    )


def one(recipe: str, seed: int, changes: dict) -> dict:
    hook, directions = source(seed)
    rows = np.arange(TABLE).reshape(-1, 128)
    settings = SAESettings(
        **{
            "recipe": recipe,
            "d_sae": DIRECTIONS,
            "activations": ACTIVATIONS,
            "batch": 512,
            "dead_window": 100_000,
            "resampling_inputs": 16_384,
            "buffer_rows": 256,
            "log_every": 10**6,
            "checkpoint_every": 10**9,
        }
        | changes
    )
    sae, summary = training.fit(hook, rows, settings, seed)
    x = hook.table[:8192]
    f = sae.encode(x)
    fvu = ((x - sae.decode(f)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
    return {
        "recovered": recovered(sae, directions),
        "l0": (f > 0).sum(1).float().mean().item(),
        "fvu": fvu,
        "seconds": summary["seconds"],
    }


def run() -> dict:
    found = {}
    for recipe, changes in SETTINGS.items():
        runs = [one(recipe, seed, changes) for seed in range(SEEDS)]
        found[recipe] = {key: [r[key] for r in runs] for key in runs[0]} | {"settings": changes}
    return {
        "ground "
        "truth": f"{DIRECTIONS} directions in {D_IN} dimensions, {ACTIVE} active on average, "
        f"{ACTIVATIONS:,} activations, {SEEDS} seeds",
        "recipes": found,
        "recovered, median of the seeds": {
            recipe: statistics.median(r["recovered"]) for recipe, r in found.items()
        },
    }
