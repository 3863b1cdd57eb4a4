"""A training step of the autoencoder: exact sparse products against dense ones, SAELens and the
original, beside the encoder's product alone.
"""

import torch

from benchmarks import saelens
from benchmarks.timing import case, rates
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
    """Random unit features, biased so that `target` of them are active on an activation of `x`
    on average.
    """
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


def contenders(target: int, x: torch.Tensor) -> dict:
    """One step each way at that L0, beside the bare encoder product."""
    sae = autoencoder_with_l0(target, x)
    dense = autoencoder_with_l0(target, x)
    optimiser = torch.optim.Adam(dense.parameters(), lr=0.0, fused=True)
    weight, bias = sae.W_enc.detach(), sae.b_enc.detach()
    transposed, x16 = sae.W_enc_T.detach().bfloat16(), x.bfloat16()
    exact, rounded = autoencoder_with_l0(target, x), autoencoder_with_l0(target, x)
    return {
        "plain dense step": lambda: dense_step(dense, optimiser, x, BRICKEN_2023),
        "ours, float32, exact": our_step(exact, x),
        "ours, bfloat16 activations": our_step(rounded, x, torch.bfloat16),
        "float32 encoder product alone": lambda: torch.addmm(bias, x, weight),
        "the same through oneDNN": lambda: product(x, weight.T, bias),
        "bfloat16 encoder product alone": lambda: x16 @ transposed.T,
    }


def original_step(x: torch.Tensor):
    """The original's dense step at its batch size."""
    sae, small = autoencoder_with_l0(20, x), x[:ORIGINAL_BATCH]
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.0)
    return lambda: dense_step(sae, optimiser, small, WARD_2024)


def run() -> dict:
    keep_freed_memory()
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)).relu()
    results = {}
    for target in (20, 80, 320):
        sae = autoencoder_with_l0(target, x)
        l0 = (sae.encode(x) > 0).sum(1).float().mean().item()
        steps, theirs = contenders(target, x), None
        if target == 20 and saelens.available():
            theirs = saelens.saelens_step(sae, x, BRICKEN_2023.l1)
            steps["SAELens 6.54 standard"] = theirs
        measured = rates(steps, BATCH)
        if theirs:
            theirs.close()
        if target == 20:
            measured |= rates({"the original's step": original_step(x)}, ORIGINAL_BATCH)
        results[f"L0 {l0:.0f}"] = case(measured, "plain dense step")
    return {
        "what": f"autoencoder step, {D_IN} -> {D_SAE}, batch {BATCH}",
        "unit": "activations/s",
        "cases": results,
    }
