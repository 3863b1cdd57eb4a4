"""A training step of the autoencoder, exact sparse products against dense ones, beside the encoder's product alone."""

import torch

from benchmarks.timing import rates, ratio
from sae_lib import sparse_step, training
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.recipes import BRICKEN_2023

D_IN, D_SAE, BATCH = 512, 4096, 1024


def autoencoder_with_l0(target: float, x: torch.Tensor) -> SparseAutoencoder:
    """Random unit features, biased so that `target` of them are active on an activation of `x` on average."""
    sae = training.initialise(BRICKEN_2023, x.mean(0), D_SAE, 0)
    with torch.no_grad():
        pre = (x - sae.b_dec) @ sae.W_enc
        sae.b_enc -= pre.flatten()[:: max(1, pre.numel() // 1_000_000)].quantile(1 - target / D_SAE)
    return sae


def dense_step(sae, optimiser, x, l1):
    """The textbook step: autograd through dense products."""
    optimiser.zero_grad(set_to_none=True)
    f = sae.encode(x)
    ((x - sae.decode(f)).pow(2).sum(1).mean() + l1 * f.sum(1).mean()).backward()
    training.update(sae, optimiser, BRICKEN_2023)


def run() -> dict:
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)).relu()
    results = {}
    for target in (20, 80, 320):
        contenders, l0 = {}, None
        for name in ("dense", "ours float32", "ours bfloat16 encoder"):
            sae = autoencoder_with_l0(target, x)
            optimiser = torch.optim.Adam(sae.parameters(), lr=0.0, fused=True)  # a rate of zero keeps L0 where it is
            l0 = (sae.encode(x) > 0).sum(1).float().mean().item()

            def step(sae=sae, optimiser=optimiser, name=name):
                if name == "dense":
                    return dense_step(sae, optimiser, x, 1.0)
                sparse_step.gradients(sae, x, BRICKEN_2023.objective(D_IN), torch.bfloat16 if "bf" in name else torch.float32)
                training.update(sae, optimiser, BRICKEN_2023)

            contenders[name] = step
        weight, bias = sae.W_enc.detach(), sae.b_enc.detach()
        contenders["encoder product alone"] = lambda weight=weight, bias=bias: torch.addmm(bias, x, weight)
        measured = rates(contenders, BATCH)
        results[f"L0 {l0:.0f}"] = {"rates": measured, "ratios": {name: ratio(measured, name, "dense") for name in measured}}
    return {"what": f"autoencoder step, {D_IN} -> {D_SAE}, batch {BATCH}", "unit": "activations/s", "cases": results}
