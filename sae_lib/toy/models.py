"""Toy models of superposition (Elhage et al. 2022): many instances (settings × seeds) trained as
one batched model.

Samples are columns, as in the paper's `x' = ReLU(WᵀWx + b)`: `x [instance, feature, sample]`. On a
CPU this is also the fast layout, because the long axis is the contiguous one.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.errors import SettingsError
from sae_lib.progress import tqdm

Samples = Float[Tensor, "instance feature sample"]


def itself(x: Tensor) -> Tensor:
    """The target of a toy model that reconstructs its features."""
    return x


ACTIVATIONS = {"identity": itself, "relu": torch.relu, "gelu": F.gelu}
SETS = ("independent", "correlated", "anticorrelated")
SNAPSHOTS, SNAPSHOT = 60, ("step", "W_by_step", "loss_by_step")
VALUES = {  # of an active feature, from numbers that are uniform on [0, 1]
    "uniform": itself,
    "signed": lambda u: 2 * u - 1,
    "binary": torch.ones_like,
    "discrete": lambda u: 1 + (3 * u).floor().clamp(max=2),
    "upper_half": lambda u: 0.5 + 0.5 * u,
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run small tensor products on one thread, where two would spend their time waiting for each
    other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _require(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise SettingsError(f"toy.{message}")


def require_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """`SettingsError` that lists the known ones where a value is not among them."""
    _require(value in known, f"{name}: {value!r} is unknown; there are: {', '.join(known)}")


def _rows(
    name: str, values: float | list | Tensor, n_features: int, most: float, expected: str
) -> Float[Tensor, "rows features"]:
    """A scalar, a list or a matrix as `[1 or instances, n_features]`; each in (0, most]."""
    rows = torch.atleast_2d(torch.as_tensor(values, dtype=torch.float32))
    _require(
        rows.ndim == 2 and rows.shape[1] in (1, n_features),
        f"{name}: shape {list(rows.shape)} does not match {n_features} features; "
        "give one number, one per feature, or [instances, features]",
    )
    for wrong in rows[~((rows > 0) & (rows <= most))]:
        raise SettingsError(f"toy.{name}: {wrong:g} is not {expected}")
    return rows.expand(-1, n_features)


def _check_rows(name: str, rows: Tensor, n_instances: int) -> None:
    _require(
        len(rows) in (1, n_instances),
        f"{name}: {len(rows)} rows for {n_instances} instances; give one row, or one per instance",
    )


@dataclass(frozen=True)
class Features:
    """A distribution of sparse features: how likely each is, what values it takes, and which ones
    come together.

    `probability` is one number, one per feature or `[instances, features]`. `sets` is
    "independent", "correlated" (the features of a set are active together) or "anticorrelated" (at
    most one of a set is); sets are consecutive features.
    """

    n_features: int
    probability: float | list | Tensor = 1.0
    values: str = "uniform"
    sets: str = "independent"
    set_size: int = 1

    def __post_init__(self):
        n, size = self.n_features, self.set_size
        _require(n >= 1, f"n_features: {n} features; at least one is needed")
        require_one_of("values", self.values, VALUES)
        require_one_of("sets", self.sets, SETS)
        rows, most = self.rows, self.rows.max() * size
        if self.sets == "independent":
            return
        _require(
            size >= 1 and n % size == 0,
            f"set_size: {n} features do not divide into sets of {size}; choose a divisor",
        )
        _require(
            (rows.unflatten(1, (-1, size)) == rows[:, ::size, None]).all(),
            "probability: features of one correlated or anticorrelated set need the same one",
        )
        _require(
            self.sets == "correlated" or most <= 1 + 1e-6,
            f"probability: {rows.max():g} for each of {size} exclusive features exceeds 1 in sum; "
            f"lower it to {1 / size:g}",
        )

    @cached_property
    def rows(self) -> Float[Tensor, "rows features"]:
        """Probabilities as a matrix: one row, or one per instance."""
        expected = "a probability in (0, 1]; a feature that never occurs cannot be learned"
        return _rows("probability", self.probability, self.n_features, 1, expected)

    def sample(
        self,
        n_instances: int,
        batch: int,
        generator: torch.Generator | None = None,
        streams: int | None = None,
    ) -> Samples:
        """Draw samples, inactive features 0.

        Instance i reads stream i % `streams` of the random numbers; without it, each reads its own.
        Instances that share a stream see common random numbers, so their differences are their
        settings'.
        """
        rows, streams = self.rows, streams or n_instances
        _check_rows("probability", rows, n_instances)
        p = rows.expand(n_instances, -1).unflatten(0, (-1, streams))[..., None]

        def uniform(n: int) -> Tensor:
            return torch.rand(streams, n, batch, generator=generator)

        if self.sets == "independent":
            # One uniform number gives both: active when u < p, and then 1 − u/p is uniform.
            value = (uniform(self.n_features) / -p).add_(1).clamp_(min=0)
            if self.values == "uniform":
                return value.flatten(0, 1)
            active = value > 0
        else:
            u = uniform(self.n_features // self.set_size).repeat_interleave(self.set_size, 1)
            place = torch.arange(self.n_features)[:, None] % self.set_size
            first = p * place if self.sets == "anticorrelated" else 0.0
            active = (u >= first) & (u < first + p)
            value = uniform(self.n_features)
        return (VALUES[self.values](value) * active).flatten(0, 1)


@dataclass(frozen=True)
class ToyConfig:
    """Shape of the toy model. Without `n_outputs` it is tied, `out(Wᵀ hidden(Wx) + b)`; with it,
    `out(W_out hidden(Wx + b_h) + b)`.
    """

    n_features: int
    d_hidden: int
    n_instances: int = 1
    importance: float | list | Tensor = 1.0
    n_outputs: int | None = None
    hidden: str = "identity"
    output: str = "relu"
    hidden_bias: bool = False
    dropout: float = 0.0
    init_scale: float = 1.0

    def __post_init__(self):
        for name in ("n_features", "d_hidden", "n_instances", "n_outputs"):
            n = getattr(self, name)
            whole = n is None or n >= 1 and n == int(n)
            _require(whole, f"{name}: {n} is not a positive whole number")
        for name in ("hidden", "output"):
            require_one_of(name, getattr(self, name), ACTIVATIONS)
        _require(0 <= self.dropout < 1, f"dropout: {self.dropout} is not in [0, 1)")
        _require(
            self.init_scale > 0,
            f"init_scale: {self.init_scale} is not positive; weights that start at 0 stay at 0",
        )
        _check_rows("importance", self.importance_rows, self.n_instances)

    @cached_property
    def importance_rows(self) -> Float[Tensor, "rows outputs"]:
        """Importances as a matrix over the outputs: one row, or one per instance."""
        expected = "a positive importance; drop the feature instead of weighing it 0"
        n, most = self.n_outputs or self.n_features, torch.finfo(torch.float32).max
        return _rows("importance", self.importance, n, most, expected)


class ToyModel(nn.Module):
    """`n_instances` independent toy models side by side: `W [instance, hidden, feature]`, column i
    is feature i's direction.
    """

    def __init__(self, config: ToyConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        n_outputs = config.n_outputs or config.n_features

        def xavier(rows: int, columns: int) -> nn.Parameter:
            scale, shape = math.sqrt(2 / (rows + columns)), (config.n_instances, rows, columns)
            normal = torch.randn(shape, generator=generator)
            return nn.Parameter(config.init_scale * scale * normal)

        self.W = xavier(config.d_hidden, config.n_features)
        self.W_out = xavier(n_outputs, config.d_hidden) if config.n_outputs else None
        self.b = nn.Parameter(torch.zeros(config.n_instances, n_outputs, 1))
        zeros = torch.zeros(config.n_instances, config.d_hidden, 1)
        self.b_hidden = nn.Parameter(zeros) if config.hidden_bias else None
        self.register_buffer("importance", config.importance_rows.clone())

    def encode(self, x: Samples) -> Float[Tensor, "instance hidden sample"]:
        """Hidden activations."""
        pre = self.W @ x if self.b_hidden is None else torch.baddbmm(self.b_hidden, self.W, x)
        return ACTIVATIONS[self.config.hidden](pre)

    def forward(self, x: Samples) -> Float[Tensor, "instance output sample"]:
        """Outputs; dropout acts on the hidden layer while `self.training`."""
        h, W_out = self.encode(x), self.W.mT if self.W_out is None else self.W_out
        if self.config.dropout:
            h = F.dropout(h, self.config.dropout, self.training)
        return ACTIVATIONS[self.config.output](torch.baddbmm(self.b, W_out, h))

    def loss(self, x: Samples, target: Tensor) -> Float[Tensor, " instance"]:
        """Mean over samples and outputs of importance × squared error; cross-entropy (nats) where
        `target` holds class numbers.
        """
        y = self(x)
        if not target.is_floating_point():
            return F.cross_entropy(y, target, reduction="none").mean(1)
        _require(
            y.shape == target.shape,
            f"target: shape {list(target.shape)} does not match the output {list(y.shape)}",
        )
        errors = F.mse_loss(y, target, reduction="none").sum(2)  # the fused error is the fast one
        return (errors * self.importance).sum(1) / y[0].numel()


@dataclass(frozen=True)
class Size:
    """How much to train: `steps` of `batch` fresh samples by Adam at the rate `lr`, of an
    experiment's `points` settings × `seeds` instances each; seed k of every setting sees the same
    samples.
    """

    steps: int
    batch: int = 1024
    lr: float = 1e-2
    points: int = 1
    seeds: int = 1

    def __post_init__(self):
        steps, batch, lr = self.steps, self.batch, self.lr
        _require(
            min(steps, batch, lr) > 0,
            f"train: steps {steps}, batch {batch} and lr {lr} must all be positive",
        )


@torch.random.fork_rng(devices=())
def train(
    model: ToyModel,
    features: Features,
    size: Size,
    target: Callable[[Tensor], Tensor] = itself,
    seed: int = 0,
    decay: bool = True,
    snapshots: bool = False,
) -> dict[str, Tensor]:
    """Train in place; with `decay` the rate falls to 0 along a cosine. Returns the steps, weights
    and losses of `SNAPSHOTS` snapshots, or nothing.

    Instances do not touch each other: Adam scales each weight by its own history, and the summed
    loss separates.
    """
    n, steps, every = model.config.n_instances, size.steps, max(size.steps // SNAPSHOTS, 1)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=size.lr, fused=True)
    kept: list[tuple[Tensor, ...]] = []  # the snapshots, each as named in `SNAPSHOT`
    model.train()
    torch.manual_seed(seed)  # which dropout draws from
    for step in tqdm(range(steps), desc="toy models", leave=False, mininterval=1.0, disable=None):
        if decay:
            rate = size.lr * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = rate
        x = features.sample(n, size.batch, generator, size.seeds)
        losses = model.loss(x, target(x))
        if snapshots and step % every == 0:
            kept.append((torch.tensor(step), model.W.detach().clone(), losses.detach()))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    model.eval()
    return dict(zip(SNAPSHOT, map(torch.stack, zip(*kept, strict=True)), strict=False))


@torch.no_grad()
def test_loss(
    model: ToyModel,
    features: Features,
    target: Callable[[Tensor], Tensor] = itself,
    repeats: int = 8,
) -> Float[Tensor, " instance"]:
    """Loss per instance of a model in evaluation mode, on `repeats` × 4096 fresh samples from
    random numbers common to all, so that seeds compare fairly.
    """
    generator, n = torch.Generator().manual_seed(12345), model.config.n_instances
    draws = (features.sample(n, 4096, generator, streams=1) for _ in range(repeats))
    return torch.stack([model.loss(x, target(x)) for x in draws]).mean(0)
