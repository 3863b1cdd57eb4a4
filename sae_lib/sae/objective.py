"""What an autoencoder is trained for, as the papers write it. `sparse_step.py` computes the
gradient of the same, faster.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Objective:
    """loss = mean over activations of mse · Σ_d (x − x̂)² + sparsity · penalty, with the penalty

    "l1": Σ_f f (Bricken et al. 2023); "l1_norm": Σ_f f ‖W_dec_f‖ (Anthropic, April 2024); "l0": the
    number of active features, with a rectangle of width `bandwidth` for the derivative of the step
    (Rajamanoharan et al. 2024); "none". Where features are dead, mse · aux · `auxiliary_loss` is
    added. With `prefixes` the squared error is the mean over reconstructions by the first so many
    features alone (Bussmann et al. 2025, Matryoshka).
    """

    mse: float  # a weight: 1, or 1 / d_in for recipes with `mse: mean`; not an error
    sparsity: float = 0.0  # λ: the recipe's `l1`, whatever the penalty, at its share in warm-up
    penalty: str = "l1"
    bandwidth: float = 0.0
    aux: float = 0.0
    prefixes: tuple[int, ...] = ()  # rising; the last one is all features


class StepResult(NamedTuple):
    """What a step measured, as tensors on the device (reading them is what waits for it).

    None of it has the loss's weights. Whatever the penalty, `l1` is the sum of the features'
    activations; `squared_error` is the reconstruction's by all features, also with prefixes.
    """

    squared_error: Float[Tensor, ""]  # Σ_d (x − x̂)², mean over the batch
    l1: Float[Tensor, ""]  # Σ_f f, mean over the batch
    l0: Float[Tensor, ""]  # active features per activation
    fired: Bool[Tensor, " d_sae"]
    smallest: Float[Tensor, ""]  # activation above zero, for batchtopk alone


class Step(torch.autograd.Function):
    """z > threshold as 0 or 1; its derivative by the threshold is −rectangle((z −
    threshold)/ε)/ε, by z nothing.
    """

    @staticmethod
    def forward(ctx, z, threshold, bandwidth):
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return None, -(grad * near).sum(0) / ctx.bandwidth, None


def feature_activations(
    sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], objective: Objective
) -> tuple[Float[Tensor, "n d_sae"], Tensor]:
    """The features' activations and which are active, with the gradients that training uses."""
    if sae.architecture != "jumprelu":
        f = sae.encode(x)
        return f, f > 0
    z = sae.pre_activations(x)
    open_ = Step.apply(z, sae.threshold, objective.bandwidth)
    return z * open_, open_


def auxiliary_loss(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    residual: Float[Tensor, "n d_out"],
    dead: Int[Tensor, " n_dead"],
) -> Float[Tensor, ""]:
    """AuxK (Gao et al. 2024, appendix A.2): the squared error with which dead features alone, the
    d_in / 2 largest of each activation, reconstruct the `residual` that the others leave, which
    counts as given. Σ over dimensions, mean over the batch.
    """
    W_enc_T, b_enc, W_dec = (p.index_select(0, dead) for p in (sae.W_enc_T, sae.b_enc, sae.W_dec))
    z = torch.nn.functional.linear(sae.encoded_part(x), W_enc_T, b_enc)
    f = sae.keep_largest(z, max(1, sae.d_in // 2))
    return (residual - sae.total(f @ W_dec)).pow(2).sum(1).mean()


def errors(
    sae: SparseAutoencoder,
    f: Float[Tensor, "n d_sae"],
    target: Float[Tensor, "n d_out"],
    prefixes: tuple[int, ...],
) -> Float[Tensor, "*prefix n d_out"]:
    """What the reconstruction by the first so many features leaves; by all for no prefixes."""
    if not prefixes:
        return target - sae.decode(f)
    sizes = [b - a for a, b in pairwise((0, *prefixes))]
    parts = zip(f.split(sizes, 1), sae.W_dec.split(sizes), strict=True)
    return target - sae.b_dec - torch.stack([part @ W for part, W in parts]).cumsum(0)


def loss(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    objective: Objective,
    dead: Int[Tensor, " n_dead"] | None = None,
) -> tuple[Tensor, StepResult]:
    """The loss, and what it is made of; with the auxiliary loss of the features `dead`."""
    f, active = feature_activations(sae, x, objective)
    error = errors(sae, f, sae.target(x), objective.prefixes)
    squared_error = error.pow(2).sum(-1).mean()
    total = objective.mse * squared_error
    if objective.prefixes:
        error = error[-1]
        squared_error = error.pow(2).sum(1).mean()
    if dead is not None:
        auxiliary = auxiliary_loss(sae, x, error.detach(), dead)
        total = total + objective.mse * objective.aux * auxiliary
    if objective.penalty != "none":
        counted = active if objective.penalty == "l0" else f
        counted = counted * sae.W_dec.norm(dim=1) if objective.penalty == "l1_norm" else counted
        total = total + objective.sparsity * counted.sum(1).mean()
    f, active = f.detach(), active.detach() > 0
    smallest = f.new_zeros((), dtype=torch.float32)
    if sae.architecture == "batchtopk":
        least = torch.where(active, f, float("inf")).min().float()
        smallest = torch.where(least.isfinite(), least, smallest)
    l1, l0 = f.sum(1).mean(), active.sum() / len(x)
    return total, StepResult(squared_error.detach(), l1, l0, active.any(0), smallest)
