"""How far two sets of directions are the same: what two seeds of an autoencoder agree on. And how
far two dictionaries, of different language models too, fire together.
"""

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from scipy.sparse import csc_array, csr_array, diags_array
from torch import Tensor

AT_ONCE = 512  # features whose correlations with all others exist together
MIN_LEFT = 0.01  # of a feature's mean square, once a mean is taken away
Best = Float[np.ndarray, " feature"]


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
    ours, theirs = (F.normalize(d.detach(), dim=1, eps=1e-8) for d in (directions, others))
    cosines = (ours @ theirs.T).cpu().numpy()
    return float(cosines[scipy.optimize.linear_sum_assignment(cosines, maximize=True)].mean())


def best_correlations(
    ours: csc_array, theirs: csc_array, ids: Integer[np.ndarray, " token"]
) -> tuple[Best, Best]:
    """For each feature of `ours` [token, feature] the largest Pearson correlation of its
    activations with those of one of `theirs` on the same tokens; and the same after the current
    token, whose number is in `ids`, is regressed out of both. NaN where less than `MIN_LEFT` of a
    feature's mean square is left to correlate.

    Taking away a mean, over all tokens or over a token's occurrences, is a projection P: the
    covariance of what is left is FᵀG − (PF)ᵀ(PG).
    """
    n, counts = len(ids), np.bincount(ids)
    constant = csr_array(np.full((1, n), n**-0.5, np.float32))
    each_token = (counts[ids] ** -0.5).astype(np.float32), (ids, np.arange(n))
    spaces = constant, csr_array(each_token, (len(counts), n))
    pair = [_of_norm_one(table) for table in (ours, theirs)]
    projected = [[(space @ table).toarray() for table in pair] for space in spaces]
    scales = [[_norm_left(t, p) for t, p in zip(pair, both, strict=True)] for both in projected]
    best: tuple[list, list] = ([], [])
    for start in range(0, ours.shape[1], AT_ONCE):
        part = slice(start, start + AT_ONCE)
        together = (pair[0][:, part].T @ pair[1]).toarray()
        for found, (p, q), (r, s) in zip(best, projected, scales, strict=True):
            correlation = (together - p[:, part].T @ q) / np.outer(r[part], s)
            found.append(np.fmax.reduce(correlation, axis=1))  # which passes over NaN
    return np.concatenate(best[0]), np.concatenate(best[1])


def _of_norm_one(table: csc_array) -> csc_array:
    norm = np.sqrt(np.asarray(table.multiply(table).sum(0)))
    return (table @ diags_array(1 / np.maximum(norm, 1e-30))).astype(np.float32).tocsc()


def _norm_left(table: csc_array, projected: Float[np.ndarray, "_ feature"]) -> Best:
    left = np.asarray(table.multiply(table).sum(0)) - (projected**2).sum(0)
    return np.sqrt(np.where(left > MIN_LEFT, left, np.nan))


@torch.no_grad()
def carriers(W_dec: Float[Tensor, "d_sae d_in"], seed: int) -> dict[str, float]:
    """How features are spread over neurons: `neurons`, the median participation ratio (Σw²)² / Σw⁴
    of a feature's decoder weights, beside that of `random` directions; and the mean cosine of two
    features that share their strongest neuron, without it (`same`), and of any two (`others`).
    """
    random = torch.randn(W_dec.shape, generator=torch.Generator().manual_seed(seed))
    unit, null = (F.normalize(w.cpu(), dim=1) for w in (W_dec, random))
    ratio, ratio_null = ((1 / w.pow(4).sum(1)).median().item() for w in (unit, null))
    strongest = unit.abs().argmax(1)
    rest = F.normalize(unit.scatter(1, strongest[:, None], 0.0), dim=1)
    cosines, same = rest @ rest.T, strongest[:, None] == strongest
    found = {"neurons": ratio, "random": ratio_null}
    for name, pairs in (("same", same), ("others", torch.ones_like(same))):
        found[name] = cosines[pairs.fill_diagonal_(False)].mean().item()
    return found
