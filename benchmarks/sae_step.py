"""A training step of the autoencoder: exact sparse products against dense ones, SAELens and the original, beside the encoder's product alone."""

import torch

from benchmarks import saelens
from benchmarks.timing import rates, ratio
from sae_lib.device import product
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.objective import loss
from sae_lib.sae.recipes import BRICKEN_2023, WARD_2024, Recipe
from suite.runs import keep_freed_memory

D_IN, D_SAE, BATCH = 512, 4096, 1024
ORIGINAL_BATCH = 896


def autoencoder_with_l0(target: float, x: torch.Tensor, d_sae: int = D_SAE) -> SparseAutoencoder:
    """Random unit features, biased so that `target` of them are active on an activation of `x` on average."""
    sae = training.initialise(BRICKEN_2023, x.mean(0), d_sae, 0)
    with torch.no_grad():
        z = sae.pre_activations(x)
        sae.b_enc -= z.flatten()[:: max(1, z.numel() // 1_000_000)].quantile(1 - target / d_sae)
    return sae


def dense_step(
    sae: SparseAutoencoder, optimiser: torch.optim.Optimizer, x: torch.Tensor, recipe: Recipe
) -> None:
    """The textbook step: autograd through dense products."""
    optimiser.zero_grad(set_to_none=True)
    loss(sae, x, recipe.objective(D_IN))[0].backward()
    training.update(sae, optimiser, recipe)


def our_step(sae: SparseAutoencoder, x: torch.Tensor, dtype: torch.dtype = torch.float32):
    optimiser = torch.optim.Adam(
        sae.parameters(), lr=0.0, fused=True
    )  # a rate of zero keeps L0 where it is

    def step() -> None:
        gradients(sae, x, BRICKEN_2023.objective(sae.d_in), dtype)
        training.update(sae, optimiser, BRICKEN_2023)

    return step


def run() -> dict:
    keep_freed_memory()
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)).relu()
    results = {}
    for target in (20, 80, 320):
        sae = autoencoder_with_l0(target, x)
        l0 = (sae.encode(x) > 0).sum(1).float().mean().item()
        dense, original = autoencoder_with_l0(target, x), autoencoder_with_l0(target, x)
        optimisers = [
            torch.optim.Adam(s.parameters(), lr=0.0, fused=fused)
            for s, fused in ((dense, True), (original, False))
        ]
        with torch.no_grad():
            weight, bias, transposed, x16 = (
                sae.W_enc.clone(),
                sae.b_enc.clone(),
                sae.W_enc_T.bfloat16(),
                x.bfloat16(),
            )
        contenders = {
            "plain dense step": lambda s=dense, o=optimisers[0]: dense_step(s, o, x, BRICKEN_2023),
            "ours, float32, exact": our_step(autoencoder_with_l0(target, x), x),
            "ours, bfloat16 activations": our_step(
                autoencoder_with_l0(target, x), x, torch.bfloat16
            ),
            "float32 encoder product alone": lambda w=weight, b=bias: torch.addmm(b, x, w),
            "the same through oneDNN": lambda w=weight, b=bias: product(x, w.T, b),
            "bfloat16 encoder product alone": lambda w=transposed, y=x16: y @ w.T,
        }
        worker = (
            saelens.SAELensStep(sae, x, BRICKEN_2023.l1)
            if target == 20 and saelens.available()
            else None
        )
        if worker:
            contenders["SAELens 6.54 standard"] = worker
        measured = rates(contenders, BATCH)
        if target == 20:
            small = x[:ORIGINAL_BATCH]
            measured |= rates(
                {
                    "the original's step": lambda s=original, o=optimisers[1], y=small: dense_step(
                        s, o, y, WARD_2024
                    )
                },
                ORIGINAL_BATCH,
            )
        if worker:
            worker.close()
        results[f"L0 {l0:.0f}"] = {
            "rates": measured,
            "ratios": {name: ratio(measured, name, "plain dense step") for name in measured},
        }
    return {
        "what": f"autoencoder step, {D_IN} -> {D_SAE}, batch {BATCH}",
        "unit": "activations/s",
        "cases": results,
    }
