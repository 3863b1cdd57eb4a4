"""Which features are dead, and how they are resampled (Bricken et al. 2023, Neuron Resampling)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import reconstruction
from sae_lib.sae.engine.active_pairs import active_pairs
from sae_lib.sae.recipes import Resampling


def silent_on(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"]) -> Bool[Tensor, " d_sae"]:
    """The dead test of recipes with `resampling.fresh_sample`: features that fire on none of the
    sample `x`. The others count silence in training, see `AutoencoderTraining.dead_mask`.
    """
    return torch.bincount(active_pairs(sae, x).column, minlength=sae.d_sae) == 0


def sampling_probabilities(loss: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """loss² / Σ loss², with which inputs are drawn: those that are explained worst most often."""
    squared = loss.double() ** 2
    total = squared.sum()
    return squared / total if total > 0 else torch.full_like(squared, 1 / len(squared))


@torch.no_grad()
def resample(
    sae: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: Bool[Tensor, " d_sae"],
    x: Float[Tensor, "n d_in"],
    how: Resampling,
    generator: torch.Generator,
) -> int:
    """Point each `dead` feature at an input that the autoencoder explains badly; returns how many
    features were changed.

    `x` holds the inputs to draw from, scaled as in training; their loss is ‖x − x̂‖², without the
    penalty. Each feature gets an input of its own, drawn without replacement, ∝ loss². Inputs with
    loss 0 are never drawn: where fewer others than dead features are there, the dead ones with the
    highest indices stay as they are.

    The feature's decoder row becomes the unit vector of x − b_dec (`how.centred`: what the encoder
    sees, so that the feature fires on its input) or of x. Its encoder column becomes the same
    direction, at `how.encoder_scale` times the mean encoder norm of the alive features (of 1 where
    none is alive): weak, so that it does not disturb the others at once. b_enc and a jumprelu's
    threshold become 0, so that no former bias keeps it silent. With `how.moments` "zero", Adam's
    moments of exactly these weights become 0, as they belong to the former feature. The caller then
    calls `training.constrain`, for unit columns and tied weights.
    """
    loss = torch.cat([((part - reconstruction(sae, part)) ** 2).sum(-1) for part in x.split(4096)])
    indices = dead.nonzero().squeeze(-1)[: int((loss > 0).sum())]
    if len(indices) == 0:
        return 0
    drawn = torch.multinomial(
        sampling_probabilities(loss).cpu(), len(indices), replacement=False, generator=generator
    ).to(x.device)
    direction = x[drawn] - sae.b_dec if how.centred else x[drawn]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    alive = ~dead
    norm = sae.W_enc_T[alive].norm(dim=1).mean() if alive.any() else torch.ones((), device=x.device)
    sae.W_dec[indices] = direction
    sae.W_enc_T[indices] = direction * norm * how.encoder_scale
    sae.b_enc[indices] = 0
    parameters = [sae.W_dec, sae.W_enc_T, sae.b_enc]
    if sae.architecture == "jumprelu":
        sae.threshold[indices] = 0
        parameters.append(sae.threshold)
    for parameter in parameters if how.moments == "zero" else []:
        state = optimiser.state.get(parameter, {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][indices] = 0
    return len(indices)
