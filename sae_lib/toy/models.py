"""Toy models of superposition (Elhage et al. 2022): many instances (settings × seeds) trained as
one batched model.

Samples are columns, as in the paper's `x' = ReLU(WᵀWx + b)`: `x [instance, feature, sample]`. On a
CPU this is also the
fast layout, because the long axis is the contiguous one.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.errors import SettingsError
from sae_lib.progress import tqdm

ACTIVATIONS = {"identity": lambda x: x, "relu": torch.relu, "gelu": F.gelu}
VALUES = ("uniform", "signed", "binary", "discrete", "upper_half")


def itself(x: Tensor) -> Tensor:
    """The target of a toy model that reconstructs its features."""
    return x


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


def _rows(
    name: str, values, n_features: int, valid: Callable[[Tensor], Tensor], expected: str
) -> Float[Tensor, "rows features"]:
    """A scalar, a list or a matrix as `[1 or instances, n_features]`, checked."""
    rows = torch.atleast_2d(torch.as_tensor(values, dtype=torch.float32))
    if rows.ndim != 2 or rows.shape[1] not in (1, n_features):
        raise SettingsError(
            f"toy.{name}: shape {list(rows.shape)} does not match {n_features} features; give one number, one per feature, or [instances, features]"
        )
    if not bool(valid(rows).all()):
        raise SettingsError(f"toy.{name}: {rows[~valid(rows)][0].item():g} is not {expected}")
    return rows.expand(-1, n_features)


@dataclass(frozen=True)
class Features:
    """A distribution of sparse features: how likely each is, what values it takes, and which ones
    come together.

    `probability` is one number, one per feature or `[instances, features]`. `sets` is
    "independent", "correlated" (the
    features of a set are active together) or "anticorrelated" (at most one of a set is); sets are
    consecutive features.
    """

    n_features: int
    probability: float | list | Tensor = 1.0
    values: str = "uniform"
    sets: str = "independent"
    set_size: int = 1

    def __post_init__(self):
        if self.n_features < 1:
            raise SettingsError(
                f"toy.n_features: {self.n_features} features; at least one is needed"
            )
        rows = _rows(
            "probability",
            self.probability,
            self.n_features,
            lambda p: (p > 0) & (p <= 1),
            "a probability in (0, 1]; a feature that never occurs teaches nothing",
        )
        if self.values not in VALUES:
            raise SettingsError(
                f"toy.values: {self.values!r} is unknown; there are: {', '.join(VALUES)}"
            )
        if self.sets not in ("independent", "correlated", "anticorrelated"):
            raise SettingsError(
                f"toy.sets: {self.sets!r} is unknown; there are: independent, correlated, anticorrelated"
            )
        if self.sets != "independent":
            if self.set_size < 1 or self.n_features % self.set_size:
                raise SettingsError(
                    f"toy.set_size: {self.n_features} features do not divide into sets of {self.set_size}; choose a divisor"
                )
            if bool(
                (rows.unflatten(1, (-1, self.set_size)) != rows[:, :: self.set_size, None]).any()
            ):
                raise SettingsError(
                    "toy.probability: features of one correlated or anticorrelated set need the same probability"
                )
            if self.sets == "anticorrelated" and rows.max() * self.set_size > 1 + 1e-6:
                raise SettingsError(
                    f"toy.probability: {rows.max():g} for each of {self.set_size} exclusive features exceeds 1 in sum; lower it to {1 / self.set_size:g}"
                )

    @cached_property
    def rows(self) -> Float[Tensor, "rows features"]:
        """Probabilities as a matrix: one row, or one per instance."""
        return _rows("probability", self.probability, self.n_features, lambda p: p > 0, "positive")

    def sample(
        self,
        n_instances: int,
        batch: int,
        generator: torch.Generator | None = None,
        streams: int | None = None,
    ) -> Float[Tensor, "instance feature sample"]:
        """Draw samples, inactive features 0.

        Instance i reads stream i % `streams` of the random numbers; without it, each reads its own.
        Instances that share a stream see common random numbers, so their differences are their
        settings'.
        """
        rows, streams = self.rows, streams or n_instances
        if len(rows) not in (1, n_instances):
            raise SettingsError(
                f"toy.probability: {len(rows)} rows for {n_instances} instances; "
                "give one row, or one per instance"
            )
        device = generator.device if generator else torch.get_default_device()
        p = rows.to(device).expand(n_instances, -1).unflatten(0, (-1, streams))[..., None]

        def uniform(n: int) -> Tensor:
            return torch.rand(streams, n, batch, generator=generator, device=device)

        if self.sets == "independent":
            # One uniform number gives both: active when u < p, and then 1 − u/p is uniform on [0, 1].
            value = (uniform(self.n_features) / -p).add_(1).clamp_(min=0)
            active = None if self.values == "uniform" else value > 0
        else:
            u = uniform(self.n_features // self.set_size).repeat_interleave(self.set_size, 1)
            first = torch.zeros(()) if self.sets == "correlated" else self._place_in_set(p)
            active = (u >= first) & (u < first + p)
            value = uniform(self.n_features)
        return self._values(value, active).flatten(0, 1)

    def _place_in_set(self, p: Tensor) -> Tensor:
        """Where each exclusive feature's interval of length p starts."""
        return p * (torch.arange(self.n_features, device=p.device)[:, None] % self.set_size)

    def _values(self, u: Tensor, active: Tensor | None) -> Tensor:
        """Values of the wanted kind from uniform numbers; without `active`, u is 0 where
        inactive.
        """
        if self.values == "uniform":
            return u if active is None else u * active
        if self.values == "binary":
            return active.float()
        if self.values == "discrete":
            return (1 + (3 * u).floor().clamp(max=2)) * active
        return (2 * u - 1 if self.values == "signed" else 0.5 + 0.5 * u) * active


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
            if (value := getattr(self, name)) is not None and (value < 1 or value != int(value)):
                raise SettingsError(f"toy.{name}: {value} is not a positive whole number")
        for name in ("hidden", "output"):
            if getattr(self, name) not in ACTIVATIONS:
                raise SettingsError(
                    f"toy.{name}: {getattr(self, name)!r} is unknown; there are: {', '.join(ACTIVATIONS)}"
                )
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"toy.dropout: {self.dropout} is not in [0, 1)")
        if self.init_scale <= 0:
            raise SettingsError(
                f"toy.init_scale: {self.init_scale} is not positive; weights that start at 0 stay at 0"
            )
        rows = self.importance_rows()
        if len(rows) not in (1, self.n_instances):
            raise SettingsError(
                f"toy.importance: {len(rows)} rows for {self.n_instances} instances; give one row, or one per instance"
            )

    def importance_rows(self) -> Float[Tensor, "rows outputs"]:
        """Importances as a matrix over the outputs: one row, or one per instance."""
        return _rows(
            "importance",
            self.importance,
            self.n_outputs or self.n_features,
            lambda i: (i > 0) & i.isfinite(),
            "a positive importance; drop the feature instead of weighing it 0",
        )


class ToyModel(nn.Module):
    """`n_instances` independent toy models side by side: `W [instance, hidden, feature]`, column
    i is feature i's direction.
    """

    def __init__(self, config: ToyConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        n_outputs = config.n_outputs or config.n_features

        def xavier(rows: int, columns: int) -> nn.Parameter:
            scale = config.init_scale * math.sqrt(2 / (rows + columns))
            return nn.Parameter(
                scale
                * torch.randn(
                    config.n_instances, rows, columns, generator=generator, device=generator.device
                )
            )

        self.W = xavier(config.d_hidden, config.n_features)
        self.W_out = xavier(n_outputs, config.d_hidden) if config.n_outputs else None
        self.b = nn.Parameter(torch.zeros(config.n_instances, n_outputs, 1))
        self.b_hidden = (
            nn.Parameter(torch.zeros(config.n_instances, config.d_hidden, 1))
            if config.hidden_bias
            else None
        )
        self.register_buffer("importance", config.importance_rows().clone().to(generator.device))

    def encode(
        self, x: Float[Tensor, "instance feature sample"]
    ) -> Float[Tensor, "instance hidden sample"]:
        """Hidden activations."""
        pre = self.W @ x if self.b_hidden is None else torch.baddbmm(self.b_hidden, self.W, x)
        return ACTIVATIONS[self.config.hidden](pre)

    def forward(
        self, x: Float[Tensor, "instance feature sample"]
    ) -> Float[Tensor, "instance output sample"]:
        """Outputs; dropout acts on the hidden layer while `self.training`."""
        h = (
            F.dropout(self.encode(x), self.config.dropout, self.training)
            if self.config.dropout
            else self.encode(x)
        )
        return ACTIVATIONS[self.config.output](
            torch.baddbmm(self.b, self.W.mT if self.W_out is None else self.W_out, h)
        )

    def loss(
        self, x: Float[Tensor, "instance feature sample"], target: Tensor
    ) -> Float[Tensor, " instance"]:
        """Mean over samples and outputs of importance × squared error; cross-entropy (nats)
        where `target` holds class numbers.
        """
        y = self(x)
        if not target.is_floating_point():
            return F.cross_entropy(y, target, reduction="none").mean(1)
        if y.shape != target.shape:
            raise SettingsError(
                f"toy.target: shape {list(target.shape)} does not match the model's output {list(y.shape)}"
            )
        errors = F.mse_loss(y, target, reduction="none").sum(2)  # the fused error is the fast one
        return (errors * self.importance).sum(1) / y[0].numel()


def train(
    model: ToyModel,
    features: Features,
    target: Callable[[Tensor], Tensor] = itself,
    *,
    steps: int,
    batch: int = 1024,
    lr: float = 1e-3,
    decay: bool = True,
    seed: int = 0,
    streams: int | None = None,
    on_step: Callable[[int, ToyModel, Tensor], None] | None = None,
) -> ToyModel:
    """Adam on fresh samples at every step; with `decay` the learning rate falls to 0 along a
    cosine. `on_step` sees (step, model, losses).

    Instances do not touch each other: Adam scales each weight by its own history, and the summed
    loss separates.
    """
    if steps < 1 or batch < 1 or lr <= 0:
        raise SettingsError(
            f"toy.train: steps {steps}, batch {batch} and lr {lr} must all be positive"
        )
    generator = torch.Generator(model.W.device).manual_seed(seed + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    model.train()
    for step in tqdm(range(steps), desc="toy models", leave=False, mininterval=1.0, disable=None):
        optimizer.param_groups[0]["lr"] = lr * (
            0.5 + 0.5 * math.cos(math.pi * step / steps) if decay else 1.0
        )
        x = features.sample(model.config.n_instances, batch, generator, streams)
        losses = model.loss(x, target(x))
        if on_step:
            on_step(step, model, losses.detach())
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def test_loss(
    model: ToyModel,
    features: Features,
    target: Callable[[Tensor], Tensor] = itself,
    *,
    batch: int = 4096,
    repeats: int = 8,
    seed: int = 12345,
) -> Float[Tensor, " instance"]:
    """Loss per instance without dropout, on fresh samples from random numbers common to all, so
    that seeds compare fairly.
    """
    generator = torch.Generator(model.W.device).manual_seed(seed)
    was_training, _ = model.training, model.eval()
    draws = (
        features.sample(model.config.n_instances, batch, generator, streams=1)
        for _ in range(repeats)
    )
    losses = torch.stack([model.loss(x, target(x)) for x in draws]).mean(0)
    model.train(was_training)
    return losses
