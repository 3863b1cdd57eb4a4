"""What passes several hooks of a model: how much of the loss it carries, and how sparse it is."""

import pandas as pd
import scipy
import torch

from sae_lib.features.evaluation import loss_recovered
from sae_lib.features.firing import Rows
from sae_lib.model.activations import HookPoint, harvest_kept
from sae_lib.sae.dictionaries import Directions
from sae_lib.sae.directions import keep_largest

KEPT = 16  # coordinates of a token
SCALED_ON = 8192  # tokens that the factor of `keep_largest` is taken from


@torch.no_grad()
def compare_hooks(hooks: list[HookPoint], rows: Rows) -> pd.DataFrame:
    """By hook name, on held-out `rows`: numbers per token (`width`), the share of them above zero,
    their excess kurtosis (median over coordinates; 0 for a normal distribution, more for what is
    rarely large), nats per token lost with the hook set to zero or to its mean, and the share of
    the latter that the `KEPT` coordinates farthest from their means recover.
    """
    table = {}
    for hook in hooks:
        x = harvest_kept(hook, rows)
        mean, width = x.mean(0), x.shape[1]
        senses = torch.eye(width, device=x.device)
        strongest = keep_largest(
            Directions(torch.cat([senses, -senses]), mean), KEPT, x[:SCALED_ON]
        )
        losses = loss_recovered(hook, {"strongest": strongest}, rows, mean)["strongest"]
        table[hook.name] = {
            "width": width,
            "positive": (x > 0).float().mean().item(),
            "kurtosis": float(pd.Series(scipy.stats.kurtosis(x.cpu().numpy())).median()),
            "zero": losses["ce_zero"] - losses["ce_clean"],
            "mean": losses["ce_mean"] - losses["ce_clean"],
            "strongest": losses["recovered_mean"],
        }
    return pd.DataFrame(table).T
