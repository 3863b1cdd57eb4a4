"""How far two sets of directions are the same: what two seeds of an autoencoder agree on."""

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def mmcs(directions: Float[Tensor, "n d_in"], others: Float[Tensor, "m d_in"]) -> float:
    """Mean over `directions` of the largest cosine with one of `others` (Sharkey et al. 2022);
    give it living features only.
    """
    ours, theirs = (F.normalize(d, dim=1, eps=1e-8) for d in (directions, others))
    return torch.cat([(part @ theirs.T).amax(1) for part in ours.split(1024)]).mean().item()


def matched_correlation(
    directions: Float[Tensor, "n d_in"], others: Float[Tensor, "m d_in"]
) -> float:
    """PW-MCC (Song et al. 2025, arXiv 2505.20254): the mean cosine over the one-to-one matching
    with the largest sum; of two sets the smaller is matched in full. Signed, as features are; give
    it living ones only.
    """
    ours, theirs = (F.normalize(d, dim=1, eps=1e-8) for d in (directions, others))
    cosines = (ours @ theirs.T).cpu().numpy()
    return float(cosines[scipy.optimize.linear_sum_assignment(cosines, maximize=True)].mean())
