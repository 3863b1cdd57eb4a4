"""The experiments on toy models as one table: shape, features, importance, sizes and variants of
each, and what trains them.

They follow "Toy Models of Superposition" (Elhage et al. 2022), the talk "Experiments with
Mechanistic Interpretability" and
"200 concrete open problems in mechanistic interpretability" (Nanda 2022). A result is the trained
weights and losses of
every setting and seed; `metrics` measures them. Learning rate 1e-2 with cosine decay reaches the
losses of the paper's 1e-3
in a fifth of its steps (`introduction` shows it).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.errors import SettingsError
from sae_lib.toy import models as toy

PRESETS = ("smoke", "laptop", "full")
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
SNAPSHOTS = 60  # of the weights while they train, where an experiment keeps them


@dataclass(frozen=True)
class Size:
    """How much of an experiment to run: `points` settings × `seeds` instances, `steps` of
    `batch` samples.
    """

    points: int
    seeds: int
    steps: int
    batch: int = 1024
    lr: float = 1e-2


SMOKE = Size(2, 2, 20, 64, 2e-2)  # of every experiment: too short to show anything but that it runs


@dataclass(frozen=True)
class Experiment:
    """One row of the table; sizes are those of the presets laptop and full.

    `probability` is a tuple of densities, or a function of the size that returns them as
    `[setting]`,
    `[setting, feature]` or `[setting, seed, feature]`. `importance` is the base of base^i, or a
    function of the size.
    `variants` change fields of the row; `slow` trains at a tenth of the learning rate for four
    times
    the steps, without decay. `measure` sees the trained model and the row.
    """

    n_features: int
    d_hidden: int
    sizes: tuple[Size, Size]
    probability: tuple[float, ...] | Callable[[Size], Tensor] = DENSITIES
    importance: float | Callable[[Size], Tensor] = 1.0
    features: dict = field(default_factory=dict)  # other arguments of `toy.Features`
    model: dict = field(default_factory=dict)  # other arguments of `toy.ToyConfig`
    target: Callable[[Tensor], Tensor] = toy.itself
    slow: bool = False
    snapshots: bool = False
    measure: Callable[[toy.ToyModel, toy.Features, "Experiment"], dict[str, Tensor]] | None = None
    variants: dict[str, dict] = field(default_factory=dict)

    def variant(self, name: str) -> "Experiment":
        """The row with a variant's changes; arguments of the model are added to the row's."""
        changes = dict(self.variants[name])
        changes["model"] = self.model | changes.get("model", {})
        return replace(self, variants={}, **changes)


@dataclass
class Result:
    """Weights and losses of all instances, as `[setting, seed, …]`, and what was measured on
    them.
    """

    p: Float[Tensor, "setting ..."]
    losses: Float[Tensor, "setting seed"]
    W: Float[Tensor, "setting seed hidden feature"]
    W_out: Float[Tensor, "setting seed output hidden"] | None
    measured: dict[str, Tensor]

    def best(self, values: Tensor) -> Tensor:
        """From `[setting, seed, …]` the seed with the lowest loss of each setting."""
        return values[torch.arange(len(values)), self.losses.argmin(1)]

    @property
    def best_W(self) -> Float[Tensor, "setting hidden feature"]:
        return self.best(self.W)


def powers(base: float, n: int) -> list[float]:
    """Importances base^i, i = 0 … n−1."""
    return [base**i for i in range(n)]


def spread(values: tuple[float, ...], points: int) -> Tensor:
    """`points` of the values, evenly chosen, the first always among them."""
    return torch.tensor(
        [values[round(i * (len(values) - 1) / max(points - 1, 1))] for i in range(points)]
    )


def train(e: Experiment, size: Size, seed: int = 0) -> Result:
    """Train settings × seeds as one batched model; seed k of every setting sees the same
    numbers.
    """
    if e.slow:
        size = replace(size, steps=4 * size.steps, lr=size.lr / 10)
    p, features, importance = instances(e, size)
    n = len(features.rows)
    config = toy.ToyConfig(e.n_features, e.d_hidden, n, importance=importance, **e.model)
    model, history = toy.ToyModel(config, seed), []

    def keep(step: int, model: toy.ToyModel, losses: Tensor) -> None:
        if step % max(size.steps // SNAPSHOTS, 1) == 0:
            history.append((torch.tensor(step), model.W.detach().clone(), losses))

    toy.train(
        model,
        features,
        e.target,
        steps=size.steps,
        batch=size.batch,
        lr=size.lr,
        decay=not e.slow,
        seed=seed,
        streams=size.seeds,
        on_step=keep if e.snapshots else None,
    )
    measured = e.measure(model, features, e) if e.measure else {}
    values = {
        "losses": toy.test_loss(model, features, e.target),
        "W": model.W,
        "W_out": model.W_out,
    }
    shape = (len(p), size.seeds)
    for part in (measured, values):
        for name, value in part.items():
            part[name] = None if value is None else value.detach().unflatten(0, shape)
    for i, name in enumerate(("step", "W_by_step", "loss_by_step") if history else ()):
        measured[name] = torch.stack([snapshot[i] for snapshot in history])
    return Result(p, **values, measured=measured)


def instances(e: Experiment, size: Size) -> tuple[Tensor, toy.Features, Tensor | list[float]]:
    """The densities of the settings; features and importances of all instances, setting by
    setting.
    """
    p = (
        spread(e.probability, size.points)
        if isinstance(e.probability, tuple)
        else e.probability(size)
    )
    rows = p[:, None] if p.ndim == 1 else p
    rows = rows[:, None].expand(-1, size.seeds, -1) if rows.ndim == 2 else rows
    features = toy.Features(e.n_features, rows.flatten(0, 1).expand(-1, e.n_features), **e.features)
    if callable(e.importance):
        return p, features, e.importance(size).repeat_interleave(size.seeds, 0)
    return p, features, powers(e.importance, e.model.get("n_outputs") or e.n_features)


def run(name: str, preset: str) -> dict[str, Result]:
    """An experiment's results by variant; the one result of an experiment without variants is
    named "".
    """
    if preset not in PRESETS:
        raise SettingsError(f"toy.preset: {preset!r} is unknown; there are: {', '.join(PRESETS)}")
    e = EXPERIMENTS[name]
    variants = {v: e.variant(v) for v in e.variants} or {"": e}
    return {
        v: train(row, (SMOKE, *row.sizes)[PRESETS.index(preset)]) for v, row in variants.items()
    }


# --- densities and importances


def phase_cells(size: Size) -> Float[Tensor, "cell density_importance"]:
    """Every density from 0.01 to 1 with every importance of the extra feature from 0.1 to 10."""
    return torch.cartesian_prod(
        torch.logspace(-2, 0, size.points), torch.logspace(-1, 1, size.points)
    )


def phase_density(size: Size) -> Float[Tensor, " cell"]:
    return phase_cells(size)[:, 0]


def phase_importance(size: Size) -> Float[Tensor, "cell 2"]:
    cells = phase_cells(size)
    return torch.stack([torch.ones(len(cells)), cells[:, 1]], 1)


def phase_importance_three(size: Size) -> Float[Tensor, "cell 3"]:
    return phase_importance(size)[:, [0, 0, 1]]


def one_to_twentieth(size: Size) -> Float[Tensor, " setting"]:
    """Densities whose inverse, the paper's 1/(1−S), is 1 … 20."""
    return 1 / torch.logspace(0, math.log10(20), size.points)


def one_varied(size: Size) -> Float[Tensor, "setting 5"]:
    """Density 0.05, the first feature's times 0.001 … 10."""
    rows = torch.full((size.points, 5), 0.05)
    rows[:, 0] *= torch.logspace(-3, 1, size.points)
    return rows


def correlated_density(size: Size) -> Float[Tensor, " setting"]:
    return 400 ** -torch.linspace(0.5, 1, size.points)


def anticorrelated_density(size: Size) -> Float[Tensor, " setting"]:
    return 10 ** -torch.linspace(0.5, 1, size.points)


def two_decades(size: Size) -> Float[Tensor, " setting"]:
    return torch.logspace(0, -2, size.points)


# The talk's five cases of features with unequal densities, each with several lowest and highest densities.
RANGES = ((0.01, 0.1), (0.001, 0.1), (0.05, 0.5), (0.1, 1.0), (0.001, 1.0))
CASES = (
    "1 important = dense",
    "2 important = sparse",
    "3 random, one draw",
    "4 random, another draw",
    "5 equal importance",
    "3–4 with a draw per seed",
)


def case_probabilities(
    case: str, low: float, high: float, seeds: int
) -> Float[Tensor, "seed feature"]:
    """Densities of the five features: even steps in log space for the ordered cases, log-uniform
    draws for the others.

    Cases 3 and 4 are one draw each for all seeds; in the last two, every seed has a draw of its
    own.
    """
    ladder = torch.logspace(math.log10(high), math.log10(low), 5)
    number = CASES.index(case)
    if number < 2:
        return (ladder if number == 0 else ladder.flip(0)).expand(seeds, 5)
    u = torch.rand(
        1 if number < 4 else seeds, 5, generator=torch.Generator().manual_seed(100 + number)
    )
    return low * (high / low) ** u.expand(seeds, 5)


def case_cells(points: int) -> list[tuple[str, float, float]]:
    """Every case with each of the first `points` ranges."""
    return [(case, *span) for case in CASES for span in RANGES[:points]]


def cases_probability(size: Size) -> Float[Tensor, "cell seed 5"]:
    return torch.stack([case_probabilities(*c, size.seeds) for c in case_cells(size.points)])


def cases_importance(size: Size) -> Float[Tensor, "cell 5"]:
    """0.9^i, and 1 in the case of equal importance."""
    cells = case_cells(size.points)
    return torch.tensor([powers(1.0 if c[0].startswith("5") else 0.9, 5) for c in cells])


# --- targets


def pair_min(x: Tensor) -> Tensor:
    """The smaller of each two neighbours; AND of binary features."""
    return x.unflatten(1, (-1, 2)).amin(2)


def pair_max(x: Tensor) -> Tensor:
    """The larger of each two neighbours; OR of binary features."""
    return x.unflatten(1, (-1, 2)).amax(2)


def sums_of_ten(x: Tensor) -> Tensor:
    """Σ|x| over each ten neighbours."""
    return x.abs().unflatten(1, (-1, 10)).sum(2)


def largest(x: Float[Tensor, "instance feature sample"]) -> Int[Tensor, "instance sample"]:
    """The class of each sample: the largest feature, or one class more ("none") when none is
    active.
    """
    top, where = x.max(1)
    return torch.where(top > 0, where, x.shape[1])


# --- measurements on the trained model


@torch.no_grad()
def unexplained(model: toy.ToyModel, features: toy.Features, e: Experiment) -> dict[str, Tensor]:
    """Σ(y − ŷ)² / Σ(y − mean y)² over fresh samples and all outputs."""
    x = features.sample(model.config.n_instances, 8192, torch.Generator().manual_seed(11))
    y = e.target(x)
    total = (y - y.mean(2, keepdim=True)).square().sum((1, 2))
    return {"unexplained": (model(x) - y).square().sum((1, 2)) / total}


def class_recall(model: toy.ToyModel, features: toy.Features, e: Experiment) -> dict[str, Tensor]:
    """Share of each class's samples whose largest output is that class; classes are those of
    `largest`.
    """
    x = features.sample(model.config.n_instances, 8192, torch.Generator().manual_seed(5))
    with torch.no_grad():
        right = model(x).argmax(1) == largest(x)
    truth = F.one_hot(largest(x), features.n_features + 1)
    return {"recall": (truth * right[..., None]).sum(1) / truth.sum(1).clamp(min=1)}


def attack_loss(
    model: toy.ToyModel,
    x: Float[Tensor, "instance feature sample"],
    epsilon: float = 0.1,
    steps: int = 10,
) -> Float[Tensor, " instance"]:
    """Mean added loss under the worst L2 step of length `epsilon` on each input, by projected
    gradient ascent.
    """

    def excess(d: Tensor) -> Tensor:
        return ((model(x + d) - x).square() * model.importance[..., None]).sum(1)

    delta = torch.zeros_like(x) + 1e-4
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(excess(delta).sum(), delta)
        delta = delta.detach() + epsilon * F.normalize(gradient, dim=1)
        delta = delta * (epsilon / delta.norm(dim=1, keepdim=True).clamp(min=epsilon))
    with torch.no_grad():
        return (excess(delta) - excess(torch.zeros_like(x))).mean(1)


def attacked(model: toy.ToyModel, features: toy.Features, e: Experiment) -> dict[str, Tensor]:
    """Loss that an attack adds, on the same inputs for all models (p = 0.3) and at each model's
    own density.

    At a small density most inputs are empty, and the negative biases absorb the attack.
    """
    inputs = {"same_inputs": toy.Features(e.n_features, 0.3), "own_density": features}
    n = model.config.n_instances
    return {
        name: attack_loss(model, of.sample(n, 2048, torch.Generator().manual_seed(7)))
        for name, of in inputs.items()
    }


# --- the table

COMPUTES = {"hidden": "relu"}  # neurons with untied weights, y = out(W_out ReLU(Wx) + b)
SIGNED = {"values": "signed"}
BIG = (Size(7, 2, 300, 512, 2e-2), Size(7, 8, 2000))
PAIRS = (Size(5, 4, 400, 512, 2e-2), Size(5, 12, 2000))
THREE = (Size(7, 6, 200, 256, 3e-2), Size(9, 8, 800, 256, 2e-2))


def _pair_functions() -> dict[str, dict]:
    tasks = {"AND": ("binary", pair_min), "OR": ("binary", pair_max), "max": ("uniform", pair_max)}
    return {
        f"{task} {m}": {"features": {"values": values}, "target": target, "d_hidden": m}
        for task, (values, target) in tasks.items()
        for m in (20, 10, 5)
    }


EXPERIMENTS: dict[str, Experiment] = {
    "introduction": Experiment(
        5,
        2,
        (Size(8, 6, 600, 512, 2e-2), Size(13, 16, 2000)),
        (*(20 ** -torch.linspace(0, 1, 10)).tolist(), 0.035, 0.02, 0.01),
        importance=0.9,
    ),
    # Which choices decide how many seeds find the pentagon.
    "starting_points": Experiment(
        5,
        2,
        (Size(2, 8, 125, 256, 2e-2), Size(2, 24, 1000, 512)),
        (0.05, 0.035),
        importance=0.9,
        variants={
            "fast": {},
            "fast, small start": {"model": {"init_scale": 0.2}},
            "slow": {"slow": True},
            "slow, small start": {"slow": True, "model": {"init_scale": 0.2}},
        },
    ),
    "weights_and_norms": Experiment(20, 5, BIG, importance=0.7),
    "weights_and_norms_large": Experiment(
        80,
        20,
        (Size(7, 1, 200, 256, 2e-2), Size(7, 2, 2000, 512)),
        importance=0.9,
    ),
    "linear_control": Experiment(20, 5, BIG, importance=0.7, model={"output": "identity"}),
    "phase_diagram": Experiment(
        2,
        1,
        (Size(9, 10, 250, 256, 3e-2), Size(13, 12, 1000, 512, 2e-2)),
        phase_density,
        phase_importance,
    ),
    "phase_diagram_three": Experiment(3, 2, THREE, phase_density, phase_importance_three),
    "uniform_superposition": Experiment(
        100,
        10,
        (Size(10, 1, 250, 256, 2e-2), Size(16, 1, 1200, 512)),
        one_to_twentieth,
    ),
    "varied_density": Experiment(
        5,
        2,
        (Size(9, 4, 400, 512, 2e-2), Size(17, 12, 800, 512)),
        one_varied,
    ),
    "correlated_pairs": Experiment(
        4, 2, PAIRS, correlated_density, features={"sets": "correlated", "set_size": 2}
    ),
    "anticorrelated_pairs": Experiment(
        4,
        2,
        PAIRS,
        anticorrelated_density,
        features={"sets": "anticorrelated", "set_size": 2},
        variants={"xavier": {}, "small": {"model": {"init_scale": 0.25}}},
    ),
    "correlated_sets": Experiment(
        6,
        2,
        (Size(2, 4, 400, 512, 2e-2), Size(2, 8, 1500)),
        (0.05, 0.01),
        features={"sets": "correlated", "set_size": 2},
        variants={
            "3x2": {},
            "2x10": {
                "n_features": 20,
                "d_hidden": 10,
                "features": {"sets": "correlated", "set_size": 10},
            },
        },
    ),
    "learning_dynamics": Experiment(
        100,
        10,
        (Size(1, 1, 300, 512, 3e-2), Size(1, 1, 1000)),
        (0.45,),
        model={"init_scale": 0.1},
        slow=True,
        snapshots=True,
    ),
    "adversarial": Experiment(
        20,
        5,
        (Size(7, 2, 300, 512, 2e-2), Size(10, 3, 1000, 512)),
        two_decades,
        importance=0.9,
        measure=attacked,
    ),
    "privileged_basis": Experiment(
        10,
        5,
        (Size(7, 4, 400, 512, 2e-2), Size(7, 8, 2000, 512)),
        (0.75, 0.35, 0.15, 0.1, 0.06, 0.02, 0.01),
        importance=0.75,
        model=COMPUTES,
    ),
    "absolute_value": Experiment(
        3,
        6,
        (Size(1, 8, 1500, 256, 2e-2), Size(1, 16, 4000, 256)),
        importance=0.7,
        features=SIGNED,
        model=COMPUTES | {"n_outputs": 3},
        target=torch.abs,
    ),
    "absolute_value_large": Experiment(
        100,
        40,
        (Size(5, 1, 200, 256, 2e-2), Size(5, 1, 2000, 512, 5e-3)),
        DENSITIES[:5],
        importance=0.8,
        features=SIGNED,
        model=COMPUTES | {"n_outputs": 100},
        target=torch.abs,
    ),
    "asymmetric_motif": Experiment(
        6,
        10,
        (Size(1, 6, 800, 256, 2e-2), Size(1, 16, 3000, 256)),
        (0.2,),
        importance=0.7,
        features=SIGNED,
        model=COMPUTES | {"n_outputs": 6},
        target=torch.abs,
    ),
    "five_cases": Experiment(
        5,
        2,
        (Size(3, 24, 300, 256, 2e-2), Size(5, 100, 800, 256, 2e-2)),
        cases_probability,
        cases_importance,
    ),
    # Open problems 4.1, 4.3, 4.5 and 4.6, 4.7 to 4.9, 4.10, 4.12 and 4.13, in this order.
    "dropout": Experiment(
        10,
        5,
        (Size(3, 6, 250, 256, 2e-2), Size(4, 16, 1500, 256)),
        (1.0, 0.1, 0.03, 0.01),
        importance=0.75,
        variants={str(rate): {"model": {"dropout": rate}} for rate in (0.0, 0.1, 0.3, 0.5)},
    ),
    "square": Experiment(
        10,
        20,
        (Size(4, 2, 250, 256, 2e-2), Size(5, 4, 1500, 512)),
        DENSITIES[:5],
        importance=0.8,
        features=SIGNED,
        model=COMPUTES | {"n_outputs": 10, "hidden_bias": True},
        measure=unexplained,
        variants={"|x|": {"target": torch.abs}, "x²": {"target": torch.square}},
    ),
    # The output is linear, so that the neurons must compute.
    "pair_functions": Experiment(
        20,
        10,
        (Size(3, 2, 200, 256, 2e-2), Size(5, 3, 1500, 512)),
        (0.5, 0.3, 0.1, 0.03, 0.01),
        model=COMPUTES | {"n_outputs": 10, "output": "identity", "hidden_bias": True},
        measure=unexplained,
        variants=_pair_functions(),
    ),
    "value_types": Experiment(
        5,
        2,
        (Size(5, 8, 300, 256, 2e-2), Size(7, 24, 1000, 512)),
        (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02),
        importance=0.9,
        variants={
            values: {"features": {"values": values}}
            for values in ("uniform", "upper_half", "discrete", "binary")
        },
    ),
    "gelu": Experiment(
        20,
        5,
        (Size(5, 3, 300, 256, 2e-2), Size(7, 4, 1500, 512)),
        importance=0.7,
        variants={name: {"model": {"output": name.lower()}} for name in ("ReLU", "GELU")},
    ),
    "classification": Experiment(
        10,
        2,
        (Size(4, 3, 300, 256, 2e-2), Size(7, 6, 1500, 512)),
        (1.0, 0.5, 0.3, 0.1, 0.05, 0.03, 0.01),
        variants={
            "cross-entropy": {
                "target": largest,
                "model": {"n_outputs": 11, "output": "identity"},
                "measure": class_recall,
            },
            "squared error": {},
        },
    ),
    "many_hidden": Experiment(
        60,
        24,
        (Size(3, 1, 200, 256, 2e-2), Size(5, 3, 1200, 512)),
        (0.3, 0.1, 0.03, 0.01, 0.003),
        features=SIGNED,
        model=COMPUTES,
        measure=unexplained,
        variants={
            "sums": {"target": sums_of_ten, "model": {"n_outputs": 6}},
            "separate": {"target": torch.abs, "model": {"n_outputs": 60}},
        },
    ),
    # Toy models for `autoencoder` and `recipes`.
    "pentagons": Experiment(5, 2, (Size(1, 32, 500, 256, 2e-2), Size(1, 32, 2000)), (0.025,)),
}
