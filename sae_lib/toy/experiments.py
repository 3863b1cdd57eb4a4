"""The experiments of "Toy models of superposition" (Elhage et al. 2022): each a function of a preset that returns plain results.

Learning rate 1e-2 with cosine decay reaches the losses of the paper's 1e-3 in a fifth of its steps (`introduction` shows it).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.errors import SettingsError
from sae_lib.toy import models as toy

DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
PRESETS = ("smoke", "laptop", "full")


@dataclass(frozen=True)
class Size:
    """How much of an experiment to run: `points` settings × `seeds` instances, `steps` of `batch` samples."""

    points: int
    seeds: int
    steps: int
    batch: int = 1024
    lr: float = 1e-2


SIZES: dict[str, tuple[Size, Size, Size]] = {
    "introduction": (Size(3, 2, 60, 128, 3e-2), Size(8, 6, 600, 512, 2e-2), Size(13, 16, 2000)),
    "weights_and_norms": (Size(2, 1, 40, 128), Size(7, 2, 300, 512, 2e-2), Size(7, 8, 2000)),
    "weights_and_norms_large": (
        Size(2, 1, 30, 64),
        Size(7, 1, 200, 256, 2e-2),
        Size(7, 2, 2000, 512),
    ),
    "linear_control": (Size(2, 1, 40, 128), Size(7, 2, 300, 512, 2e-2), Size(7, 4, 2000)),
    "phase_diagram": (
        Size(3, 2, 40, 64, 3e-2),
        Size(9, 10, 250, 256, 3e-2),
        Size(13, 12, 1000, 512, 2e-2),
    ),
    "phase_diagram_three": (
        Size(3, 2, 40, 64, 3e-2),
        Size(7, 6, 200, 256, 3e-2),
        Size(9, 8, 800, 256, 2e-2),
    ),
    "uniform_superposition": (
        Size(3, 1, 30, 64),
        Size(10, 1, 250, 256, 2e-2),
        Size(16, 1, 1200, 512),
    ),
    "varied_density": (
        Size(3, 2, 40, 128, 3e-2),
        Size(9, 4, 400, 512, 2e-2),
        Size(17, 12, 800, 512),
    ),
    "correlated_pairs": (Size(2, 2, 60, 128, 3e-2), Size(5, 4, 400, 512, 2e-2), Size(5, 12, 2000)),
    "anticorrelated_pairs": (
        Size(2, 2, 60, 128, 3e-2),
        Size(5, 4, 400, 512, 2e-2),
        Size(5, 12, 2000),
    ),
    "correlated_sets": (Size(2, 1, 40, 128, 3e-2), Size(2, 4, 400, 512, 2e-2), Size(2, 8, 1500)),
}


def size_of(name: str, preset: str, sizes: dict[str, tuple[Size, Size, Size]] = SIZES) -> Size:
    """The size of an experiment under a preset; raises `SettingsError` for a preset that does not exist."""
    if preset not in PRESETS:
        raise SettingsError(f"toy.preset: {preset!r} is unknown; there are: {', '.join(PRESETS)}")
    return sizes[name][PRESETS.index(preset)]


def plain(value, digits: int = 4):
    """Tensors, tuples and nested dicts as JSON-ready lists and numbers with `digits` significant digits."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    if isinstance(value, dict):
        return {str(k): plain(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


@dataclass
class Trained:
    """Trained instances, unflattened to `[setting, seed, …]`."""

    model: toy.ToyModel
    features: toy.Features
    losses: Float[Tensor, "setting seed"]

    def by_setting(self, tensor: Tensor) -> Tensor:
        """`[instance, …]` as `[setting, seed, …]`."""
        return tensor.detach().unflatten(0, tuple(self.losses.shape))

    @property
    def W(self) -> Float[Tensor, "setting seed hidden feature"]:
        return self.by_setting(self.model.W)

    def best(self, tensor: Tensor) -> Tensor:
        """From `[setting, seed, …]` the seed with the lowest loss of each setting."""
        return tensor[torch.arange(len(tensor)), self.losses.argmin(1).cpu()]


def train_grid(
    size: Size,
    probability: Tensor,
    n_features: int,
    d_hidden: int,
    *,
    target=lambda x: x,
    values="uniform",
    sets="independent",
    set_size=1,
    importance=1.0,
    seed=0,
    on_step=None,
    decay=True,
    **config,
) -> Trained:
    """Train `settings × seeds` instances at once; rows of `probability [setting]` or `[setting, feature]` are the settings."""
    rows = probability if probability.ndim == 2 else probability[:, None]
    rows = rows.expand(-1, n_features).repeat_interleave(size.seeds, 0)
    if isinstance(importance, Tensor) and importance.ndim == 2:
        importance = importance.repeat_interleave(size.seeds, 0)
    features = toy.Features(n_features, rows, values, sets, set_size)
    model = toy.ToyModel(toy.ToyConfig(n_features, d_hidden, len(rows), importance, **config), seed)
    toy.train(
        model,
        features,
        target,
        steps=size.steps,
        batch=size.batch,
        lr=size.lr,
        seed=seed,
        streams=size.seeds,
        on_step=on_step,
        decay=decay,
    )
    losses = toy.test_loss(model, features, target).unflatten(0, (-1, size.seeds))
    return Trained(model, features, losses)


def powers(base: float, n: int) -> list[float]:
    """Importances base^i, i = 0 … n−1."""
    return [base**i for i in range(n)]


def spread(values: tuple[float, ...], points: int) -> Tensor:
    """`points` of the values, evenly chosen, the first always among them."""
    return torch.tensor(
        [values[round(i * (len(values) - 1) / max(points - 1, 1))] for i in range(points)]
    )


def angles(W: Float[Tensor, "2 feature"]) -> Float[Tensor, " gap"]:
    """Angular gaps in degrees between neighbouring represented features in the plane, summing to 360."""
    kept = W[:, toy.represented(W)]
    turn = torch.rad2deg(torch.atan2(kept[1], kept[0])).sort().values
    return torch.diff(turn, append=turn[:1] + 360)


def introduction(preset: str) -> dict:
    """5 features in 2 dimensions, importance 0.9^i: two directions at p = 1, a pentagon when features are rare."""
    size = size_of("introduction", preset)
    p = spread((*(20 ** -torch.linspace(0, 1, 10)).tolist(), 0.035, 0.02, 0.01), size.points)
    t = train_grid(size, p, 5, 2, importance=powers(0.9, 5))
    n_kept = toy.represented(t.W).sum(-1)
    kept = toy.represented(t.W)
    best = t.best(t.W)
    return plain(
        {
            "p": p,
            "importance": powers(0.9, 5),
            "losses": t.losses,
            "n_represented": n_kept,
            "dense_loss_closed_form": sum(powers(0.9, 5)[2:]) / 60,
            "W": best,
            "b": t.best(t.by_setting(t.model.b))[..., 0],
            "norms": best.norm(dim=-2),
            "dimensionality": toy.dimensionality(best),
            "gaps": [angles(w) for w in best],
            "kept_sets": kept.int(),
            "share_of_five": [
                (k := int((row == 5).sum()), len(row), *toy.wilson(k, len(row))) for row in n_kept
            ],
        },
        5,
    )


def _weights_and_norms(name: str, preset: str, n: int, m: int, base: float, **config) -> dict:
    size = size_of(name, preset)
    p = spread(DENSITIES, size.points)
    t = train_grid(size, p, n, m, importance=powers(base, n), **config)
    W, kept = t.best(t.W), toy.represented(t.W).sum(-1)
    return plain(
        {
            "p": p,
            "n": n,
            "m": m,
            "importance_base": base,
            "W": W,
            "norms": W.norm(dim=-2),
            "interference": toy.interference(W),
            "dimensionality": toy.dimensionality(W),
            "n_represented": toy.represented(W).sum(-1),
            "n_represented_all_seeds": kept,
            "loss": t.losses.amin(1),
            "sum_dimensionality": toy.dimensionality(t.W).sum(-1),
        },
        3 if n > 40 else 4,
    )


def weights_and_norms(preset: str) -> dict:
    """20 features in 5 dimensions, importance 0.7^i, seven densities."""
    return _weights_and_norms("weights_and_norms", preset, 20, 5, 0.7)


def weights_and_norms_large(preset: str) -> dict:
    """80 features in 20 dimensions, importance 0.9^i, seven densities."""
    return _weights_and_norms("weights_and_norms_large", preset, 80, 20, 0.9)


def linear_control(preset: str) -> dict:
    """The same 20 features in 5 dimensions without the ReLU: the most important five, orthogonal, at every density."""
    return _weights_and_norms("linear_control", preset, 20, 5, 0.7, output="identity")


def _phase_diagram(name: str, preset: str, n: int) -> dict:
    size = size_of(name, preset)
    importance, density = torch.logspace(-1, 1, size.points), torch.logspace(-2, 0, size.points)
    cells = torch.cartesian_prod(density, importance)
    rows = torch.cat([torch.ones(len(cells), n - 1), cells[:, 1:]], 1)
    t = train_grid(size, cells[:, 0], n, n - 1, importance=rows)
    W = t.best(t.W)
    kept = toy.represented(W)
    shared = toy.interference(W)[:, -1] > toy.ALONE_INTERFERENCE
    phase = torch.where(
        ~kept[:, -1], 0, torch.where(kept.all(1) & shared, 1, 2)
    )  # ignored, in superposition, dedicated
    cosine = torch.nn.functional.cosine_similarity(W[:, :, 0], W[:, :, -1], dim=1)
    grid = lambda x: x.unflatten(0, (size.points, size.points))  # noqa: E731
    return plain(
        {
            "density": density,
            "importance": importance,
            "phase": grid(phase),
            "norm": grid(W[:, :, -1].norm(dim=1)),
            "interference": grid(toy.interference(W)[:, -1]),
            "cosine": grid(cosine),
            "loss": grid(t.losses.amin(1)),
            "seeds": size.seeds,
        }
    )


def phase_diagram(preset: str) -> dict:
    """2 features in 1 dimension: is the extra feature (the last) ignored, stored in superposition, or given the dimension?"""
    return _phase_diagram("phase_diagram", preset, 2)


def phase_diagram_three(preset: str) -> dict:
    """3 features in 2 dimensions; harder to replicate, shown without a gate."""
    return _phase_diagram("phase_diagram_three", preset, 3)


def uniform_superposition(preset: str) -> dict:
    """200 equal features in 20 dimensions: dimensions per feature sticks at 1 and at 1/2."""
    size = size_of("uniform_superposition", preset)
    inverse = torch.logspace(0, math.log10(20), size.points)
    n, m = (200, 20) if preset == "full" else (100, 10)
    t = train_grid(size, 1 / inverse, n, m)
    W = t.W[:, 0]
    D = toy.dimensionality(W)
    return plain(
        {
            "n": n,
            "m": m,
            "inverse_density": inverse,
            "dimensions_per_feature": toy.dimensions_per_feature(W),
            "dimensionality": [d[k] for d, k in zip(D, toy.represented(W), strict=True)],
            "sum_dimensionality": D.sum(1),
            "loss": t.losses[:, 0],
        },
        3,
    )


def varied_density(preset: str) -> dict:
    """5 equal features in 2 dimensions at p = 0.05, one of them ×10^−3 … ×10: square, then pentagon."""
    size = size_of("varied_density", preset)
    factor = torch.logspace(-3, 1, size.points)
    rows = torch.full((size.points, 5), 0.05)
    rows[:, 0] *= factor
    t = train_grid(size, rows, 5, 2)
    best, kept = t.best(t.W), toy.represented(t.W)
    return plain(
        {
            "factor": factor,
            "W": best,
            "norm_varied": best[:, :, 0].norm(dim=1),
            "n_represented": kept.sum(-1),
            "varied_represented": kept[..., 0].float().mean(1),
            "losses": t.losses,
            "dimensionality": toy.dimensionality(best),
        }
    )


def cosines(
    W: Float[Tensor, "*instance hidden feature"],
) -> Float[Tensor, "*instance feature other"]:
    """Cosine between every two feature directions."""
    unit = W / W.norm(dim=-2, keepdim=True).clamp(min=1e-12)
    return unit.mT @ unit


def _pairs(name: str, preset: str, sets: str, p: Tensor, init_scale: float = 1.0) -> dict:
    t = train_grid(size_of(name, preset), p, 4, 2, sets=sets, set_size=2, init_scale=init_scale)
    C = cosines(t.W)
    return {
        "p": p,
        "within_cosine": torch.stack([C[..., 0, 1], C[..., 2, 3]], -1),
        "across_cosine": C[..., :2, 2:].flatten(-2),
        "kept": toy.represented(t.W).sum(-1),
        "losses": t.losses,
        "W": t.best(t.W),
    }


def correlated_pairs(preset: str) -> dict:
    """Two correlated pairs in 2 dimensions: the features of a pair become orthogonal."""
    return plain(
        _pairs(
            "correlated_pairs",
            preset,
            "correlated",
            400 ** -torch.linspace(0.5, 1, size_of("correlated_pairs", preset).points),
        )
    )


def anticorrelated_pairs(preset: str) -> dict:
    """Two anti-correlated pairs in 2 dimensions: antipodal within a pair; more runs find it from small weights."""
    p = 10 ** -torch.linspace(0.5, 1, size_of("anticorrelated_pairs", preset).points)
    return plain(
        {
            name: _pairs("anticorrelated_pairs", preset, "anticorrelated", p, scale)
            for name, scale in (("xavier", 1.0), ("small", 0.25))
        }
    )


def correlated_sets(preset: str) -> dict:
    """Correlated sets, 3 × 2 → 2 and 2 × 10 → 10: sets lie side by side; within a set nearly orthogonal."""
    size, out = size_of("correlated_sets", preset), {}
    for n_sets, of, m in ((3, 2, 2), (2, 10, 10)):
        n = n_sets * of
        t = train_grid(size, torch.tensor([0.05, 0.01]), n, m, sets="correlated", set_size=of)
        C, G = cosines(t.W), t.W.mT @ t.W
        group = torch.arange(n) // of
        same, other = (
            (group[:, None] == group) & ~torch.eye(n, dtype=torch.bool),
            group[:, None] != group,
        )
        both = toy.represented(t.W)[..., :, None] & toy.represented(t.W)[..., None, :]
        mean = lambda x, mask: (  # noqa: E731
            (x * (mask & both)).sum((-2, -1)) / (mask & both).sum((-2, -1)).clamp(min=1)  # noqa: B023
        )  # noqa: B023, E731
        out[f"{n_sets}x{of}"] = {
            "p": [0.05, 0.01],
            "W": t.best(t.W),
            "within_cosine": mean(C, same),
            "across_cosine": mean(C, other),
            "within_abs_cosine": mean(C.abs(), same),
            "across_abs_cosine": mean(C.abs(), other),
            "within_weight": (G.square() * same).sum((-2, -1)),
            "across_weight": (G.square() * other).sum((-2, -1)),
            "n_represented": toy.represented(t.W).sum(-1),
            "losses": t.losses,
        }
    return plain(out)
