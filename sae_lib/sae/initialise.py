"""Where training starts: the data's scale and mean, a fresh autoencoder, and what keeps features
near there.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.errors import TrainingError
from sae_lib.model.activations import Source, harvest, harvest_kept, spread
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import Recipe
from sae_lib.sae.transcoder import Transcoder

STATISTICS_ROWS = 256  # rows of text that the scale and the mean are taken from …
STATISTICS_VALUES = 1 << 28  # … or fewer, where their activations would be more numbers
SOFT_FROZEN = 0.8  # least cosine of a soft-frozen feature's direction with where it started


def statistics(
    hook: Source, rows: np.ndarray, recipe: Recipe
) -> tuple[Float[Tensor, " d_in"], float | Float[Tensor, " d_in"]]:
    """The activations' mean, and the factor that makes their mean squared norm d_in (1 for
    recipes that keep their units); of a transcoder, that of its input and that of its target.
    """
    per_row = harvest(hook, rows[:1]).numel()
    n_rows = max(1, min(STATISTICS_ROWS, STATISTICS_VALUES // per_row))
    acts, scale = harvest_kept(hook, spread(rows, n_rows)), 1.0
    if recipe.transcoder:
        scale = acts.unflatten(1, (2, -1)).pow(2).mean((0, 2), keepdim=True).rsqrt()
        scale = scale.expand(1, 2, acts.shape[1] // 2).flatten()
    elif recipe.scale_activations:
        squared = acts.pow(2).sum(1).mean().item()
        if not squared:
            raise TrainingError("all activations are zero; check the hook and the text")
        scale = math.sqrt(acts.shape[1] / squared)
    return acts.mean(0), scale


@torch.no_grad()
def initialise(
    recipe: Recipe, mean: Float[Tensor, " d_in"], d_sae: int, seed: int
) -> SparseAutoencoder:
    """A fresh autoencoder, by `recipe.init`.

    "small_tied": random features of norm `decoder_init`, the encoder their transpose at norm
    `encoder_init`; "independent": the same features, the encoder drawn independently as torch's
    `nn.Linear` does; "torch_linear": `nn.Linear`'s defaults, also where b_dec starts at random.
    """
    generator = torch.Generator().manual_seed(seed)
    if recipe.transcoder:
        (centre, mean), skip = mean.chunk(2), recipe.transcoder == "skip"
        sae = Transcoder(len(mean), d_sae, recipe.architecture, recipe.k, skip)
    else:
        sae = SparseAutoencoder(len(mean), d_sae, recipe.architecture, recipe.k)
    d_in = len(mean)
    fans = {sae.W_enc_T: d_in, sae.b_enc: d_in, sae.W_dec: d_sae}
    if recipe.init != "torch_linear":
        sae.W_dec.normal_(generator=generator)
        sae.W_dec *= recipe.decoder_init / sae.W_dec.norm(dim=1, keepdim=True)
        sae.W_enc_T.copy_(sae.W_dec * (recipe.encoder_init / recipe.decoder_init))
        fans = {sae.W_enc_T: d_in} if recipe.init == "independent" else {}
    if recipe.b_dec == "random":
        fans[sae.b_dec] = d_sae
    else:
        sae.b_dec.copy_(mean)
    for parameter, fan_in in fans.items():
        parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    if recipe.architecture == "jumprelu":
        sae.threshold.fill_(recipe.threshold_init)
    if recipe.tied:
        sae.W_enc_T.copy_(sae.W_dec)
    if recipe.transcoder:  # features start on what differs from the mean input
        sae.b_enc -= sae.W_enc_T @ centre
    return sae


def stay_near(W_dec: Tensor) -> Callable[..., None]:
    """What turns each feature (row of `W_dec`) back, after a step, to a cosine of `SOFT_FROZEN`
    with its present direction where the step has turned it further.
    """
    start = normalize(W_dec.detach().clone())

    @torch.no_grad()
    def turn_back(*_: Any) -> None:
        unit = normalize(W_dec)
        cosine = torch.linalg.vecdot(unit, start)[:, None]
        across = normalize(unit - cosine * start) * math.sqrt(1 - SOFT_FROZEN**2)
        nearest = (SOFT_FROZEN * start + across) * W_dec.norm(dim=1, keepdim=True)
        W_dec.copy_(torch.where(cosine < SOFT_FROZEN, nearest, W_dec))

    return turn_back
