"""Metrics of toy models of superposition on weights `W [*instance, hidden, feature]`: column i is
feature i's direction.

Sources: Elhage et al. 2022, "Toy Models of Superposition"; the thresholds are this library's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Weights = Float[Tensor, "*instance hidden feature"]
OfFeatures = Float[Tensor, "*instance feature"]
OfPairs = Float[Tensor, "*instance feature other"]
WhichFeatures = Bool[Tensor, "*instance feature"]
REPRESENTED_NORM = 0.5  # a feature is represented when ‖W_i‖ exceeds this
ALONE_INTERFERENCE = 0.05  # a represented feature is alone when its interference is below this


def squared_overlaps(W: Weights) -> OfPairs:
    """`(Ŵ_i·W_j)²`: how much of W_j lies along feature i's unit direction; a zero W_i gives
    zeros.
    """
    return (F.normalize(W, dim=-2).mT @ W).square()


def dimensionality(W: Weights) -> OfFeatures:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)² (Elhage et al. 2022, "The geometry of superposition"); 0 for a
    feature that is not there.
    """
    return W.square().sum(-2) / squared_overlaps(W).sum(-1).clamp(min=1e-12)


def interference(W: Weights) -> OfFeatures:
    """Σ_{j≠i} (Ŵ_i·W_j)²: what the other features write along feature i's direction."""
    overlaps = squared_overlaps(W)
    return overlaps.sum(-1) - overlaps.diagonal(dim1=-2, dim2=-1)


def represented(W: Weights) -> WhichFeatures:
    """Whether ‖W_i‖ > 0.5."""
    return W.norm(dim=-2) > REPRESENTED_NORM


def alone(W: Weights) -> WhichFeatures:
    """Whether a represented feature has its direction for itself: interference < 0.05."""
    return represented(W) & (interference(W) < ALONE_INTERFERENCE)


def dimensions_per_feature(W: Weights) -> Float[Tensor, "*instance"]:
    """m / ‖W‖²_F: hidden dimensions for each represented feature (Elhage et al. 2022)."""
    return W.shape[-2] / W.square().sum((-2, -1)).clamp(min=1e-12)


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share k/n."""
    from scipy.stats import binomtest  # which takes a while to import

    return tuple(binomtest(k, n).proportion_ci(method="wilson")) if n else (0.0, 1.0)


def shares_apart(k: int, n: int, other_k: int, other_n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares, k/n − other_k/other_n (Newcombe 1998)."""
    (low, high), (other_low, other_high) = wilson(k, n), wilson(other_k, other_n)
    share, other = k / max(n, 1), other_k / max(other_n, 1)
    below = ((share - low) ** 2 + (other_high - other) ** 2) ** 0.5
    above = ((high - share) ** 2 + (other - other_low) ** 2) ** 0.5
    return share - other - below, share - other + above


def cosines(W: Weights) -> OfPairs:
    """Cosine between every two feature directions."""
    unit = F.normalize(W, dim=-2)
    return unit.mT @ unit


def set_cosines(
    W: Weights, set_size: int
) -> tuple[Float[Tensor, "*instance within"], Float[Tensor, "*instance across"]]:
    """Cosines of pairs of features from one set, and of pairs from different sets; sets are
    consecutive.
    """
    i, j = torch.triu_indices(W.shape[-1], W.shape[-1], 1)
    C, same = cosines(W)[..., i, j], i // set_size == j // set_size
    return C[..., same], C[..., ~same]


def angles(W: Float[Tensor, "2 feature"]) -> Float[Tensor, " gap"]:
    """Angular gaps in degrees between neighbouring represented features in the plane, summing to
    360.
    """
    kept = W[:, represented(W)]
    angle = torch.rad2deg(torch.atan2(kept[1], kept[0])).sort().values
    return torch.diff(angle, append=angle[:1] + 360)


def monosemantic(W: Weights, share: float = 0.9) -> Bool[Tensor, "*instance hidden"]:
    """Whether one feature holds more than `share` of a neuron's squared weight and the neuron's
    norm exceeds 0.1.
    """
    squares = W.square()
    total = squares.sum(-1)
    return (squares.amax(-1) > share * total) & (total > 0.01)


def participation(
    weight: Float[Tensor, "*instance neuron input"],
) -> Float[Tensor, "*instance neuron"]:
    """Effective number of inputs of each neuron, (Σw)² / Σw² of non-negative weights."""
    return weight.sum(-1).square() / weight.square().sum(-1).clamp(min=1e-12)


def solves_absolute_value(
    W: Weights, W_out: Float[Tensor, "*instance feature hidden"]
) -> Bool[Tensor, "*instance"]:
    """Whether each feature has one positive and one negative neuron of its own, with |w_in · w_out|
    = 1 ± 0.02.
    """
    top = W.abs().argmax(-1, keepdim=True)
    w_in, w_out = W.gather(-1, top)[..., 0], W_out.mT.gather(-1, top)[..., 0]
    roles = F.one_hot(2 * top[..., 0] + (w_in < 0), 2 * W.shape[-1])
    exact = ((w_in * w_out).abs() - 1).abs() < 0.02
    return (roles.sum(-2) == 1).all(-1) & (exact & monosemantic(W, 0.99)).all(-1)


def alignment(W: Weights) -> Float[Tensor, "*instance"]:
    """Mean over represented features of max_j W_ji² / ‖W_i‖²: 1 when every feature lies on one
    neuron.
    """
    kept = represented(W)
    share = W.square().amax(-2) / W.square().sum(-2).clamp(min=1e-12)
    return (share * kept).sum(-1) / kept.sum(-1).clamp(min=1)


def randomly_rotated(W: Weights) -> Weights:
    """Each instance's weights under its own uniformly drawn rotation of the hidden space (QR of a
    Gaussian, sign fixed).
    """
    generator, m = torch.Generator().manual_seed(0), W.shape[-2]
    shape = (*W.shape[:-2], m, m)
    Q, R = torch.linalg.qr(torch.randn(shape, generator=generator))
    return (Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]) @ W


def phase(W: Weights) -> Int[Tensor, "*instance"]:
    """What becomes of the last feature: 0 not represented, 1 in superposition with all others
    represented, 2 dedicated.
    """
    kept, shared = represented(W), interference(W)[..., -1] > ALONE_INTERFERENCE
    return torch.where(~kept[..., -1], 0, torch.where(kept.all(-1) & shared, 1, 2))
