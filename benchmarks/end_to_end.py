"""From tokens to a trained activation: harvesting included, against the original's scheme on the same language model."""

import numpy as np
import torch

from benchmarks.sae_step import BATCH, ORIGINAL_BATCH, autoencoder_with_l0, dense_step
from benchmarks.timing import rates, ratio
from sae_lib.model import language_model
from sae_lib.model.activations import ActivationBuffer, HookPoint, harvest
from sae_lib.sae import training
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.recipes import BRICKEN_2023, WARD_2024
from sae_lib.settings import load
from suite.runs import keep_freed_memory

BUFFER_ROWS = 256
RECORDED = 700  # activations/s of the original's recorded loop, 600 to 770, on two cores


def run() -> dict:
    keep_freed_memory()
    s = load("laptop")
    torch.manual_seed(0)
    model = language_model.build(s.lm, s.tokenizer.vocab_size, 0).eval().requires_grad_(False)
    hook = HookPoint(model, s.sae.hook_name)
    rows = np.random.default_rng(0).integers(0, s.tokenizer.vocab_size, (8192, s.lm.context))
    x = harvest(hook, rows[:64])[:4096]
    x *= (x.shape[1] / x.pow(2).sum(1).mean()) ** 0.5
    scale = (x.shape[1] / harvest(hook, rows[:64]).pow(2).sum(1).mean()).item() ** 0.5

    def ours(dtype: torch.dtype):
        sae = autoencoder_with_l0(20, x)
        optimiser, buffer = (
            torch.optim.Adam(sae.parameters(), lr=0.0, fused=True),
            iter(ActivationBuffer(hook, rows, BATCH, BUFFER_ROWS, 0)),
        )

        def whole_chunk() -> None:
            for _ in range(BUFFER_ROWS * s.lm.context // BATCH):
                gradients(sae, next(buffer) * scale, BRICKEN_2023.objective(sae.d_in), dtype)
                training.update(sae, optimiser, BRICKEN_2023)

        return whole_chunk

    original = autoencoder_with_l0(20, x)
    optimiser, drawn = torch.optim.Adam(original.parameters(), lr=0.0), np.random.default_rng(1)

    def one_position_per_row() -> None:
        chosen = rows[drawn.choice(len(rows), ORIGINAL_BATCH, replace=False)]
        acts = harvest(hook, chosen).view(ORIGINAL_BATCH, s.lm.context, -1)
        dense_step(
            original,
            optimiser,
            acts[
                torch.arange(ORIGINAL_BATCH),
                torch.from_numpy(drawn.integers(0, s.lm.context, ORIGINAL_BATCH)),
            ]
            * scale,
            WARD_2024,
        )

    measured = rates(
        {
            "ours, float32, exact": ours(torch.float32),
            "ours, bfloat16 activations": ours(torch.bfloat16),
        },
        BUFFER_ROWS * s.lm.context,
        repeats=1,
    )
    measured = (
        rates({"the original's scheme": one_position_per_row}, ORIGINAL_BATCH, repeats=1) | measured
    )
    tokens = torch.from_numpy(rows[:256])

    @torch.no_grad()
    def forward() -> None:
        for part in tokens.split(64):
            model.base_model(input_ids=part, use_cache=False)

    out = torch.empty(tokens.numel(), s.lm.d_mlp)
    trunk = rates(
        {"trunk's forward pass": forward, "harvest": lambda: harvest(hook, rows[:256], out=out)},
        tokens.numel(),
        repeats=1,
    )
    return {
        "what": "from tokens, harvest included",
        "unit": "activations/s",
        "cases": {
            "": {
                "rates": measured,
                "ratios": {
                    name: ratio(measured, name, "the original's scheme") for name in measured
                },
            },
            "harvest": {
                "rates": trunk,
                "ratios": {name: ratio(trunk, name, "trunk's forward pass") for name in trunk},
            },
        },
        "times the original's recorded loop": {
            name: rate["median"] / RECORDED for name, rate in measured.items()
        },
    }
