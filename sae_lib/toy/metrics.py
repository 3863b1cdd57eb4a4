"""Metrics of toy models of superposition on weights `W [*instance, hidden, feature]`: column i is
feature i's direction.

Sources: Elhage et al. 2022, "Toy Models of Superposition"; the thresholds are this library's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

REPRESENTED_NORM = 0.5  # a feature is represented when ‖W_i‖ exceeds this
ALONE_INTERFERENCE = 0.05  # a represented feature is alone when its interference is below this


def squared_overlaps(
    W: Float[Tensor, "*instance hidden feature"],
) -> Float[Tensor, "*instance feature other"]:
    """`(Ŵ_i·W_j)²`: how much of W_j lies along feature i's unit direction; a zero W_i gives
    zeros.
    """
    return (F.normalize(W, dim=-2).mT @ W).square()


def dimensionality(
    W: Float[Tensor, "*instance hidden feature"],
) -> Float[Tensor, "*instance feature"]:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)² (Elhage et al. 2022, "The geometry of superposition"); 0 for a
    feature that is not there.
    """
    return W.square().sum(-2) / squared_overlaps(W).sum(-1).clamp(min=1e-12)


def interference(
    W: Float[Tensor, "*instance hidden feature"],
) -> Float[Tensor, "*instance feature"]:
    """Σ_{j≠i} (Ŵ_i·W_j)²: what the other features write along feature i's direction."""
    overlaps = squared_overlaps(W)
    return overlaps.sum(-1) - overlaps.diagonal(dim1=-2, dim2=-1)


def represented(W: Float[Tensor, "*instance hidden feature"]) -> Bool[Tensor, "*instance feature"]:
    """Whether ‖W_i‖ > 0.5."""
    return W.norm(dim=-2) > REPRESENTED_NORM


def alone(W: Float[Tensor, "*instance hidden feature"]) -> Bool[Tensor, "*instance feature"]:
    """Whether a represented feature has its direction for itself: interference < 0.05."""
    return represented(W) & (interference(W) < ALONE_INTERFERENCE)


def dimensions_per_feature(
    W: Float[Tensor, "*instance hidden feature"],
) -> Float[Tensor, "*instance"]:
    """m / ‖W‖²_F: hidden dimensions for each represented feature (Elhage et al. 2022)."""
    return W.shape[-2] / W.square().sum((-2, -1)).clamp(min=1e-12)


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share k/n."""
    from scipy.stats import binomtest  # which takes a while to import

    return tuple(binomtest(k, n).proportion_ci(method="wilson")) if n else (0.0, 1.0)


def cosines(
    W: Float[Tensor, "*instance hidden feature"],
) -> Float[Tensor, "*instance feature other"]:
    """Cosine between every two feature directions."""
    unit = F.normalize(W, dim=-2)
    return unit.mT @ unit


def set_cosines(
    W: Float[Tensor, "*instance hidden feature"], set_size: int
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


def monosemantic(
    W: Float[Tensor, "*instance neuron feature"], share: float = 0.9
) -> Bool[Tensor, "*instance neuron"]:
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
    W: Float[Tensor, "*instance neuron feature"], W_out: Float[Tensor, "*instance feature neuron"]
) -> Bool[Tensor, "*instance"]:
    """Whether each feature has one positive and one negative neuron of its own, with |w_in · w_out|
    = 1 ± 0.02.
    """
    top = W.abs().argmax(-1, keepdim=True)
    w_in, w_out = W.gather(-1, top)[..., 0], W_out.mT.gather(-1, top)[..., 0]
    role = (2 * top[..., 0] + (w_in < 0)).sort(-1).values
    exact = ((w_in * w_out).abs() - 1).abs() < 0.02
    expected = torch.arange(2 * W.shape[-1])
    if role.shape[-1] != len(expected):
        return torch.zeros(W.shape[:-2], dtype=torch.bool)
    return (exact & (role == expected) & monosemantic(W, 0.99)).all(-1)


def alignment(W: Float[Tensor, "*n hidden feature"]) -> Float[Tensor, "*n"]:
    """Mean over represented features of max_j W_ji² / ‖W_i‖²: 1 when every feature lies on one
    neuron.
    """
    kept = represented(W)
    share = W.square().amax(-2) / W.square().sum(-2).clamp(min=1e-12)
    return (share * kept).sum(-1) / kept.sum(-1).clamp(min=1)


def randomly_rotated(
    W: Float[Tensor, "*n hidden feature"], seed: int = 0
) -> Float[Tensor, "*n hidden feature"]:
    """Each instance's weights under its own uniformly drawn rotation of the hidden space (QR of a
    Gaussian, sign fixed).
    """
    generator, m = torch.Generator().manual_seed(seed), W.shape[-2]
    shape = (*W.shape[:-2], m, m)
    Q, R = torch.linalg.qr(torch.randn(shape, generator=generator))
    return (Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]) @ W


def phase(W: Float[Tensor, "*n hidden feature"]) -> Int[Tensor, "*n"]:
    """What becomes of the last feature: 0 not represented, 1 in superposition with all others
    represented, 2 dedicated.
    """
    kept, shared = represented(W), interference(W)[..., -1] > ALONE_INTERFERENCE
    return torch.where(~kept[..., -1], 0, torch.where(kept.all(-1) & shared, 1, 2))


def talk_claims(
    W: Float[Tensor, "cell seed 2 5"], cells: list[tuple[str, float, float]]
) -> list[dict[str, str]]:
    """The statements of the talk's five cases, each with the density ranges where it holds and
    where not.

    "Every" means at least 95 % of the represented features, "almost every" at least 80 %; intervals
    are Wilson's.
    """
    kept = represented(W)
    shared, five = kept & ~alone(W), kept.all(-1)
    features = "share of represented features in superposition"
    # the statement, what is measured, cases, hits among which, and the least and most of them
    claims = [
        ("no case represents all five", "share of seeds with five", "", five, five | True, 0, 0),
        (
            "most important = least dense: every feature in superposition",
            *(features, "2", shared, kept, 0.95, 1),
        ),
        (
            "equal importance: almost every feature in superposition",
            *(features, "5", shared, kept, 0.8, 1),
        ),
    ]
    table = []
    for claim, measured, case, hits, among, least, most in claims:
        row = {"the talk says": claim, "measured": measured, "holds": [], "does not hold": []}
        for span in dict.fromkeys(cell[1:] for cell in cells):
            here = [c[1:] == span and c[0].startswith(case) for c in cells]
            k, n = int(hits[here].sum()), int(among[here].sum())
            (low, high), part = wilson(k, n), k / max(n, 1)
            text = f"p {span[0]:g}–{span[1]:g}: {part:.0%} ({low:.0%} to {high:.0%})"
            row["holds" if n and least <= part <= most else "does not hold"].append(text)
        for name in ("holds", "does not hold"):
            row[name] = "; ".join(row[name]) or "nowhere"
        table.append(row)
    return table
