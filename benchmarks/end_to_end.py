"""From tokens to a trained activation: harvesting included, against the original's scheme on the
same language model.
"""

import numpy as np
import torch

from benchmarks.sae_step import BATCH, ORIGINAL_BATCH, autoencoder_with_l0, dense_step
from benchmarks.timing import case, rates
from sae_lib.model import language_model
from sae_lib.model.activations import ActivationBuffer, HookPoint, harvest
from sae_lib.sae import training
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.recipes import BRICKEN_2023, WARD_2024
from sae_lib.settings import load
from suite.runs import keep_freed_memory

BUFFER_ROWS = 256
RECORDED = 700  # activations/s of the original's recorded loop, 600 to 770, on two cores


def our_chunk(x: torch.Tensor, hook: HookPoint, rows: np.ndarray, scale: float, dtype: torch.dtype):
    """Ours: one buffer harvested, shuffled and trained on."""
    sae = autoencoder_with_l0(20, x)
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.0, fused=True)
    buffer = iter(ActivationBuffer(hook, rows, BATCH, BUFFER_ROWS, 0))

    def whole_chunk() -> None:
        for _ in range(BUFFER_ROWS * rows.shape[1] // BATCH):
            gradients(sae, next(buffer) * scale, BRICKEN_2023.objective(sae.d_in), dtype)
            training.update(sae, optimiser, BRICKEN_2023)

    return whole_chunk


def original_step(x: torch.Tensor, hook: HookPoint, rows: np.ndarray, scale: float):
    """The original's: it harvests whole rows and keeps one position of each."""
    sae, drawn = autoencoder_with_l0(20, x), np.random.default_rng(1)
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.0)
    context, each = rows.shape[1], torch.arange(ORIGINAL_BATCH)

    def one_position_per_row() -> None:
        chosen = rows[drawn.choice(len(rows), ORIGINAL_BATCH, replace=False)]
        acts = harvest(hook, chosen).view(ORIGINAL_BATCH, context, -1)
        position = torch.from_numpy(drawn.integers(0, context, ORIGINAL_BATCH))
        dense_step(sae, optimiser, acts[each, position] * scale, WARD_2024)

    return one_position_per_row


def trunk_rates(model: torch.nn.Module, hook: HookPoint, rows: np.ndarray) -> dict:
    """Harvesting beside the bare forward pass of the layers below the hook."""
    tokens = torch.from_numpy(rows)

    @torch.no_grad()
    def forward() -> None:
        for part in tokens.split(64):
            model.base_model(input_ids=part, use_cache=False)

    out = torch.empty(tokens.numel(), load("laptop").lm.d_mlp)
    contenders = {
        "trunk's forward pass": forward,
        "harvest": lambda: harvest(hook, rows, out=out),
    }
    return rates(contenders, tokens.numel(), repeats=1)


def run() -> dict:
    keep_freed_memory()
    s = load("laptop")
    torch.manual_seed(0)
    model = language_model.build(s.lm, s.tokenizer.vocab_size, 0).eval().requires_grad_(False)
    hook = HookPoint(model, s.sae.hook_name)
    rows = np.random.default_rng(0).integers(0, s.tokenizer.vocab_size, (8192, s.lm.context))
    some = harvest(hook, rows[:64])
    scale = (some.shape[1] / some.pow(2).sum(1).mean()).item() ** 0.5
    x = some[:4096] * (some.shape[1] / some[:4096].pow(2).sum(1).mean()) ** 0.5

    original = {"the original's scheme": original_step(x, hook, rows, scale)}
    ours = {
        "ours, float32, exact": our_chunk(x, hook, rows, scale, torch.float32),
        "ours, bfloat16 activations": our_chunk(x, hook, rows, scale, torch.bfloat16),
    }
    measured = rates(original, ORIGINAL_BATCH, repeats=1)
    measured |= rates(ours, BUFFER_ROWS * s.lm.context, repeats=1)
    trunk = trunk_rates(model, hook, rows[:256])
    return {
        "what": "from tokens, harvest included",
        "unit": "activations/s",
        "cases": {
            "": case(measured, "the original's scheme"),
            "harvest": case(trunk, "trunk's forward pass"),
        },
        "times the original's recorded loop": {
            name: rate["median"] / RECORDED for name, rate in measured.items()
        },
    }
