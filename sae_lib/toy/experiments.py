"""The experiments on toy models, which `experiments.yaml` lists: what a row means and trains.

A result is the trained weights and losses of every setting and seed; `metrics` measures them.
Learning rate 1e-2 with cosine decay reaches the losses of the paper's 1e-3 in a fifth of its steps
(`introduction` shows it).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import ImportString
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from sae_lib.toy import models as toy
from sae_lib.toy.models import Size
from sae_lib.user_input import parse_yaml

PRESETS = ("smoke", "laptop", "full")
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
# of every experiment: too short to show anything but that it runs
SMOKE = Size(20, 64, 2e-2, points=2, seeds=2)
Function = ImportString[Callable]  # in the table as module:name


@validated(frozen=True)
class Experiment:
    """One row of the table.

    `probability` is a list of densities, or a function that returns them as `[setting]`,
    `[setting, feature]` or `[setting, seed, feature]`. `importance` is the base of base^i, or a
    function. `slow` trains at a tenth of the learning rate for four times the steps, without decay.
    `measure` sees the trained model, its features and the target.
    """

    n_features: int
    d_hidden: int
    laptop: Size
    full: Size
    smoke: Size = SMOKE
    probability: tuple[float, ...] | Function = DENSITIES
    importance: float | Function = 1.0
    features: dict = field(default_factory=dict)  # other arguments of `toy.Features`
    model: dict = field(default_factory=dict)  # other arguments of `toy.ToyConfig`
    target: Function = toy.itself
    slow: bool = False
    snapshots: bool = False
    measure: Function | None = None
    variants: dict[str, dict] = field(default_factory=dict)

    def variant(self, name: str) -> "Experiment":
        """The row with a variant's changes; arguments of the model are added to the row's."""
        changes = self.variants[name]
        model = self.model | changes.get("model", {})
        return replace(self, **changes | {"model": model, "variants": {}})


@dataclass
class Result:
    """Weights and losses of all instances, as `[setting, seed, …]`, and what was measured
    on them.
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


def instances(e: Experiment, size: Size) -> tuple[Tensor, toy.Features, Tensor]:
    """The densities of the settings; features and importances of all instances, setting by
    setting.
    """
    if callable(e.probability):
        p = e.probability(size, e.n_features)
    else:  # evenly chosen ones, the first always among them
        last = len(e.probability) - 1
        chosen = (round(i * last / max(size.points - 1, 1)) for i in range(size.points))
        p = torch.tensor([e.probability[i] for i in chosen])
    rows = p if p.ndim == 3 else p.reshape(len(p), 1, -1)
    rows = rows.expand(-1, size.seeds, e.n_features).flatten(0, 1)
    features = toy.Features(e.n_features, rows, **e.features)
    if callable(e.importance):
        importance = e.importance(size, e.n_features).repeat_interleave(size.seeds, 0)
    else:
        importance = powers(e.importance, e.model.get("n_outputs") or e.n_features)
    return p, features, importance


def train(e: Experiment, size: Size) -> Result:
    """Train settings × seeds as one batched model; seed k of every setting sees the same
    numbers.
    """
    if e.slow:
        size = replace(size, steps=4 * size.steps, lr=size.lr / 10)
    p, features, importance = instances(e, size)
    n = len(features.rows)
    config = toy.ToyConfig(e.n_features, e.d_hidden, n, importance=importance, **e.model)
    model = toy.ToyModel(config)
    how = {"decay": not e.slow, "snapshots": e.snapshots}
    snapshots = toy.train(model, features, size, e.target, **how)

    def by_setting(of_instances: Tensor) -> Tensor:
        return of_instances.detach().unflatten(0, (len(p), -1))

    measured = e.measure(model, features, e.target) if e.measure else {}
    measured = {name: by_setting(values) for name, values in measured.items()}
    losses = by_setting(toy.test_loss(model, features, e.target))
    W_out = None if model.W_out is None else by_setting(model.W_out)
    return Result(p, losses, by_setting(model.W), W_out, measured | snapshots)


def run(name: str, preset: str) -> dict[str, Result]:
    """An experiment's results by variant; the one result of an experiment without variants is named
    "".
    """
    e = EXPERIMENTS[name]
    variants = {v: e.variant(v) for v in e.variants} or {"": e}
    return {v: train(row, getattr(row, preset)) for v, row in variants.items()}


# --- densities and importances of (size, n_features)


def powers(base: float, n: int) -> Float[Tensor, " n"]:
    """Importances base^i, i = 0 … n−1."""
    return torch.tensor([base**i for i in range(n)])


def phase_density(size: Size, n: int) -> Float[Tensor, " cell"]:
    """Every density from 0.01 to 1 with every importance."""
    return torch.logspace(-2, 0, size.points).repeat_interleave(size.points)


def phase_importance(size: Size, n: int) -> Float[Tensor, "cell feature"]:
    """Every importance of the last feature from 0.1 to 10, that of the others 1."""
    rows = torch.ones(size.points**2, n)
    rows[:, -1] = torch.logspace(-1, 1, size.points).repeat(size.points)
    return rows


def one_to_twentieth(size: Size, n: int) -> Float[Tensor, " setting"]:
    """Densities whose inverse, the paper's 1/(1−S), is 1 … 20."""
    return 1 / torch.logspace(0, math.log10(20), size.points)


def one_varied(size: Size, n: int) -> Float[Tensor, "setting feature"]:
    """Density 0.05, the first feature's times 0.001 … 10."""
    rows = torch.full((size.points, n), 0.05)
    rows[:, 0] *= torch.logspace(-3, 1, size.points)
    return rows


def two_decades(size: Size, n: int) -> Float[Tensor, " setting"]:
    return torch.logspace(0, -2, size.points)


# The talk's five cases of features with unequal densities, each with several lowest and highest
# densities.
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
    generator = torch.Generator().manual_seed(100 + number)
    u = torch.rand(1 if number < 4 else seeds, 5, generator=generator)
    return low * (high / low) ** u.expand(seeds, 5)


def case_cells(points: int) -> list[tuple[str, float, float]]:
    """Every case with each of the first `points` ranges."""
    return [(case, *span) for case in CASES for span in RANGES[:points]]


def cases_probability(size: Size, n: int) -> Float[Tensor, "cell seed feature"]:
    return torch.stack([case_probabilities(*c, size.seeds) for c in case_cells(size.points)])


def cases_importance(size: Size, n: int) -> Float[Tensor, "cell feature"]:
    """0.9^i, and 1 in the case of equal importance."""
    bases = [1.0 if case.startswith("5") else 0.9 for case, *_ in case_cells(size.points)]
    return torch.stack([powers(base, n) for base in bases])


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


# --- measurements of (model, features, target)


def draw(model: toy.ToyModel, features: toy.Features, n: int, seed: int) -> Tensor:
    """Fresh samples for every instance of the model."""
    return features.sample(model.config.n_instances, n, torch.Generator().manual_seed(seed))


@torch.no_grad()
def unexplained(model: toy.ToyModel, features: toy.Features, target: Callable) -> dict[str, Tensor]:
    """Σ(y − ŷ)² / Σ(y − mean y)² over fresh samples and all outputs."""
    y = target(x := draw(model, features, 8192, 11))
    total = (y - y.mean(2, keepdim=True)).square().sum((1, 2))
    return {"unexplained": (model(x) - y).square().sum((1, 2)) / total}


@torch.no_grad()
def class_recall(
    model: toy.ToyModel, features: toy.Features, target: Callable
) -> dict[str, Tensor]:
    """Share of each class's samples whose largest output is that class."""
    truth = target(x := draw(model, features, 8192, 5))
    right = model(x).argmax(1) == truth
    truth = F.one_hot(truth, features.n_features + 1)
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

    delta = torch.full_like(x, 1e-4)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(excess(delta).sum(), delta)
        delta = delta.detach() + epsilon * F.normalize(gradient, dim=1)
        delta = delta * (epsilon / delta.norm(dim=1, keepdim=True).clamp(min=epsilon))
    with torch.no_grad():
        return (excess(delta) - excess(torch.zeros_like(x))).mean(1)


def attacked(model: toy.ToyModel, features: toy.Features, target: Callable) -> dict[str, Tensor]:
    """Loss that an attack adds, on the same inputs for all models (p = 0.3) and at each model's own
    density.

    At a small density most inputs are empty, and the negative biases absorb the attack.
    """
    inputs = {"same_inputs": toy.Features(features.n_features, 0.3), "own_density": features}
    return {name: attack_loss(model, draw(model, of, 2048, 7)) for name, of in inputs.items()}


# --- the table

TABLE = parse_yaml(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
EXPERIMENTS = {name: Experiment(**row) for name, row in TABLE.items()}
