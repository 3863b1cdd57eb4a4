"""What moves an autoencoder's weights, and how far."""

import torch
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import Recipe


def adam(sae: SparseAutoencoder, recipe: Recipe) -> torch.optim.Adam:
    """Adam on what the recipe trains, before its first step; on a GPU it can be captured."""
    kind = sae.W_dec.device.type
    return torch.optim.Adam(
        parameter_groups(sae, recipe),
        lr=recipe.lr,
        betas=recipe.betas,
        fused=kind != "mps",
        capturable=kind not in ("cpu", "mps"),
    )


def trained(sae: SparseAutoencoder, recipe: Recipe) -> list[Tensor]:
    """What the optimiser moves: with tied weights the encoder follows the decoder, batchtopk's
    threshold follows its batches, and what is frozen stays.
    """
    left_out = {{"decoder": "W_dec", "encoder": "W_enc_T"}.get(recipe.frozen)}
    left_out |= {"W_enc_T"} if recipe.tied else set()
    left_out |= {"threshold"} if sae.architecture == "batchtopk" else set()
    return [parameter for name, parameter in sae.named_parameters() if name not in left_out]


def parameter_groups(sae: SparseAutoencoder, recipe: Recipe) -> list[dict]:
    """Adam's groups: `rate` is what they take of the learning rate. A step of it moves each weight
    by as much: a unit feature turns by rate · √d_in. Encoder bias and threshold are as large as
    features' activations, √d_in.
    """
    if recipe.size == 1:
        return [{"params": trained(sae, recipe), "rate": 1.0}]
    powers = {parameter: -1 if parameter.dim() == 2 else 1 for parameter in trained(sae, recipe)}
    powers |= {sae.b_dec: 0}
    return [
        {"params": [p for p in powers if powers[p] == power], "rate": recipe.size**power}
        for power in (-1, 0, 1)
    ]


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Each of `parameter_groups` takes its share."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["rate"]
