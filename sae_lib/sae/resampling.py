"""Which features are dead, and how they are resampled (Bricken et al. 2023, Neuron Resampling)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import reconstruction
from sae_lib.sae.engine.active_pairs import active_pairs


def silent_too_long(silent: Int[Tensor, " d_sae"], dead_window: int) -> Bool[Tensor, " d_sae"]:
    """The dead test of a recipe that counts: features that have not fired on the last
    `dead_window` training activations.
    """
    return silent >= dead_window


def silent_on(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"]) -> Bool[Tensor, " d_sae"]:
    """The dead test of a recipe that draws a sample: features that fire on none of it."""
    return torch.bincount(active_pairs(sae, x).column, minlength=sae.d_sae) == 0


def sampling_probabilities(loss: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Inputs are drawn in proportion to the square of their reconstruction loss."""
    squared = loss.double() ** 2
    total = squared.sum()
    return squared / total if total > 0 else torch.full_like(squared, 1 / len(squared))


@torch.no_grad()
def resample(
    sae: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: Bool[Tensor, " d_sae"],
    x: Float[Tensor, "n d_in"],
    encoder_scale: float,
    centred: bool,
    generator: torch.Generator,
) -> int:
    """Point each dead feature at an input that the autoencoder explains badly; returns how many
    were touched.

    The input is drawn from `x` without replacement, ∝ loss². Its unit vector becomes the decoder
    row; the encoder column is the same direction at `encoder_scale` times the alive features' mean
    encoder norm; encoder bias and jumprelu threshold are zero. Adam's moments of exactly these
    slices are zeroed. With more dead features than inputs, the rest stay dead.
    """
    loss = torch.cat([((part - reconstruction(sae, part)) ** 2).sum(-1) for part in x.split(4096)])
    indices = dead.nonzero().squeeze(-1)[: int((loss > 0).sum())]
    if len(indices) == 0:
        return 0
    drawn = torch.multinomial(
        sampling_probabilities(loss).cpu(), len(indices), replacement=False, generator=generator
    ).to(x.device)
    direction = x[drawn] - sae.b_dec if centred else x[drawn]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    alive = ~dead
    norm = sae.W_enc_T[alive].norm(dim=1).mean() if alive.any() else torch.ones((), device=x.device)
    sae.W_dec[indices] = direction
    sae.W_enc_T[indices] = direction * norm * encoder_scale
    sae.b_enc[indices] = 0
    parameters = [sae.W_dec, sae.W_enc_T, sae.b_enc]
    if sae.architecture == "jumprelu":
        sae.threshold[indices] = 0
        parameters.append(sae.threshold)
    for parameter in parameters:
        state = optimiser.state.get(parameter, {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][indices] = 0
    return len(indices)
