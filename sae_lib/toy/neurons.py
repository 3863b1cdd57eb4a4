"""Toy models with neurons: learning dynamics, adversarial examples, privileged bases, and computation in superposition.

The models of the second half follow the paper's absolute-value model, `y = out(W_out ReLU(Wx) + b)` with untied weights;
problems 4.3, 4.5, 4.6 and 4.13 are from "200 concrete open problems in mechanistic interpretability" (Nanda 2022).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.toy import models as toy
from sae_lib.toy.experiments import (
    DENSITIES,
    Size,
    Trained,
    plain,
    powers,
    size_of,
    spread,
    train_grid,
)

SIZES: dict[str, tuple[Size, Size, Size]] = {
    "learning_dynamics": (
        Size(6, 1, 60, 128, 1e-2),
        Size(60, 1, 1200, 512, 3e-3),
        Size(120, 1, 4000, 1024, 1e-3),
    ),
    "adversarial": (Size(3, 1, 40, 128), Size(7, 2, 300, 512, 2e-2), Size(10, 3, 1000, 512)),
    "privileged_basis": (Size(2, 2, 40, 128), Size(7, 4, 400, 512, 2e-2), Size(7, 8, 2000, 512)),
    "absolute_value": (
        Size(1, 2, 100, 128, 3e-2),
        Size(1, 8, 1500, 256, 2e-2),
        Size(1, 16, 4000, 256, 1e-2),
    ),
    "absolute_value_large": (
        Size(2, 1, 15, 64),
        Size(5, 1, 200, 256, 2e-2),
        Size(7, 1, 2000, 512, 5e-3),
    ),
    "asymmetric_motif": (
        Size(1, 2, 60, 128, 3e-2),
        Size(1, 6, 800, 256, 2e-2),
        Size(1, 16, 3000, 256),
    ),
    "square": (Size(2, 1, 15, 64), Size(4, 2, 250, 256, 2e-2), Size(5, 4, 1500, 512)),
    "pair_functions": (Size(2, 1, 15, 64), Size(3, 2, 200, 256, 2e-2), Size(5, 3, 1500, 512)),
    "many_hidden": (Size(2, 1, 15, 64), Size(3, 1, 200, 256, 2e-2), Size(5, 3, 1200, 512)),
}


def monosemantic(
    W: Float[Tensor, "*instance neuron feature"], share: float = 0.9
) -> Bool[Tensor, "*instance neuron"]:
    """Whether one feature holds more than `share` of a neuron's squared weight and the neuron is in use at all (norm > 0.1)."""
    squares = W.square()
    total = squares.sum(-1)
    return (squares.amax(-1) > share * total) & (total > 0.01)


def learning_dynamics(preset: str) -> dict:
    """100 equal features in 10 dimensions from small weights, S = 0.55: dimensionalities jump while the loss falls."""
    size, steps, losses, D = size_of("learning_dynamics", preset, SIZES), [], [], []
    every = max(size.steps // size.points, 1)

    def record(step: int, model: toy.ToyModel, loss: Tensor) -> None:
        if step % every == 0:
            steps.append(step)
            losses.append(loss[0].item())
            D.append(toy.dimensionality(model.W.detach()[0]) * toy.represented(model.W.detach()[0]))

    train_grid(size, torch.tensor([0.45]), 100, 10, init_scale=0.1, on_step=record, decay=False)
    return plain({"step": steps, "loss": losses, "dimensionality": D}, 3)


def attack_loss(
    t: Trained, x: Float[Tensor, "instance feature sample"], epsilon: float = 0.1, steps: int = 10
) -> Float[Tensor, "setting seed"]:
    """Mean added loss under the worst L2 step of length `epsilon` on each input, by projected gradient ascent."""
    delta = torch.zeros_like(x) + 1e-4

    def excess(d: Tensor) -> Tensor:
        return ((t.model(x + d) - x).square() * t.model.importance[..., None]).sum(1)

    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(excess(delta).sum(), delta)
        delta = delta.detach() + epsilon * gradient / gradient.norm(dim=1, keepdim=True).clamp(
            min=1e-12
        )
        delta = delta * (epsilon / delta.norm(dim=1, keepdim=True).clamp(min=epsilon))
    with torch.no_grad():
        return (
            (excess(delta) - excess(torch.zeros_like(x)))
            .mean(1)
            .unflatten(0, tuple(t.losses.shape))
        )


def adversarial(preset: str) -> dict:
    """20 features in 5 dimensions, importance 0.9^i: vulnerability, relative to the dense model, rises with features per dimension.

    Measured on the same inputs for all (p = 0.3), and at each model's own density: there most inputs are empty when p is
    small, and the negative biases catch the attack.
    """
    size = size_of("adversarial", preset, SIZES)
    p = torch.logspace(0, -2, size.points)
    t = train_grid(size, p, 20, 5, importance=powers(0.9, 20))
    per_dimension, out = 1 / toy.dimensions_per_feature(t.W), {}
    for name, features in (("same_inputs", toy.Features(20, 0.3)), ("own_density", t.features)):
        x = features.sample(
            t.model.config.n_instances, 2048, torch.Generator(t.model.W.device).manual_seed(7)
        )
        added = attack_loss(t, x)
        out[name] = {
            "vulnerability": added / added[0].mean(),
            "correlation": torch.corrcoef(torch.stack([added.flatten(), per_dimension.flatten()]))[
                0, 1
            ].item(),
        }
    return plain({"p": p, "features_per_dimension": per_dimension, **out})


def privileged_basis(preset: str) -> dict:
    """10 features, 5 hidden ReLU neurons, importance 0.75^i: neurons align with features when features are dense."""
    size = size_of("privileged_basis", preset, SIZES)
    p = spread((0.75, 0.35, 0.15, 0.1, 0.06, 0.02, 0.01), size.points)
    t = train_grid(size, p, 10, 5, importance=powers(0.75, 10), hidden="relu")
    counts = monosemantic(t.W).sum(-1)
    return plain(
        {
            "p": p,
            "W": t.best(t.W),
            "monosemantic": counts,
            "monosemantic_best_loss": t.best(counts),
            "losses": t.losses,
        }
    )


def signed_pairs(
    W: Float[Tensor, "*n neuron feature"], W_out: Float[Tensor, "*n output neuron"]
) -> Float[Tensor, "*n neuron"]:
    """For each neuron the product of its input and output weight at the feature it serves most."""
    top = W.abs().argmax(-1, keepdim=True)
    return (W.gather(-1, top) * W_out.mT.gather(-1, top)).squeeze(-1)


def absolute_value(preset: str) -> dict:
    """y = |x| for 3 features through 6 neurons: one positive and one negative neuron for each feature."""
    size = size_of("absolute_value", preset, SIZES)
    t = train_grid(
        size,
        torch.tensor([1.0]),
        3,
        6,
        target=torch.abs,
        values="signed",
        n_outputs=3,
        importance=powers(0.7, 3),
        hidden="relu",
    )
    W, W_out = t.W[0], t.by_setting(t.model.W_out)[0]
    serves = W.abs().argmax(-1)
    signs = torch.stack(
        [
            ((serves == i) & (W.gather(-1, serves[..., None])[..., 0].sign() == s)).sum(-1)
            for i in range(3)
            for s in (1, -1)
        ],
        -1,
    )
    solved = (
        (signs == 1).all(-1)
        & ((signed_pairs(W, W_out).abs() - 1).abs() < 0.02).all(-1)
        & monosemantic(W, 0.99).all(-1)
        & (t.losses[0] < 1e-6)
    )
    best = t.losses[0].argmin()
    return plain(
        {
            "losses": t.losses[0],
            "W": W[best],
            "W_out": W_out[best],
            "products": signed_pairs(W, W_out)[best],
            "solved": (k := int(solved.sum()), size.seeds, *toy.wilson(k, size.seeds)),
        }
    )


def absolute_value_large(preset: str) -> dict:
    """y = |x| for 100 features through 40 neurons, importance 0.8^i: the share of monosemantic neurons falls with sparsity."""
    size = size_of("absolute_value_large", preset, SIZES)
    p = spread(DENSITIES if preset == "full" else DENSITIES[:5], size.points)
    t = train_grid(
        size,
        p,
        100,
        40,
        target=torch.abs,
        values="signed",
        n_outputs=100,
        importance=powers(0.8, 100),
        hidden="relu",
    )
    W = t.best(t.W)
    top_share = W.square().amax(-1) / W.square().sum(-1)
    return plain(
        {
            "p": p,
            "monosemantic_share": monosemantic(t.W).float().mean((1, 2)),
            "top_weight_share": top_share,
            "strongest": W.abs().sort(-1, descending=True).values[..., :6],
            "loss": t.losses.amin(1),
        },
        3,
    )


def asymmetric_motif(preset: str) -> dict:
    """y = |x| for 6 features through 10 neurons, S = 0.8: features that share a neuron pair a large with a small weight."""
    size = size_of("asymmetric_motif", preset, SIZES)
    t = train_grid(
        size,
        torch.tensor([0.2]),
        6,
        10,
        target=torch.abs,
        values="signed",
        n_outputs=6,
        importance=powers(0.7, 6),
        hidden="relu",
    )
    W, W_out = t.W[0], t.by_setting(t.model.W_out)[0]
    best, polysemantic = t.losses[0].argmin(), ~monosemantic(W)
    return plain(
        {
            "W": W[best],
            "W_out": W_out[best],
            "losses": t.losses[0],
            "polysemantic_neurons": polysemantic.sum(-1),
        }
    )


def square(preset: str) -> dict:
    """4.3: x² instead of |x|, 10 features through 20 neurons; unexplained share of the target's variance, monosemantic share."""
    size, out = size_of("square", preset, SIZES), {}
    p = spread(DENSITIES[:5], size.points)
    for name, target in (("abs", torch.abs), ("square", torch.square)):
        t = train_grid(
            size,
            p,
            10,
            20,
            target=target,
            values="signed",
            n_outputs=10,
            importance=powers(0.8, 10),
            hidden="relu",
            hidden_bias=True,
        )
        neurons = toy.represented(t.W.mT)
        mono = monosemantic(t.W) & neurons
        out[name] = {
            "unexplained": unexplained(t, target),
            "monosemantic_share": mono.sum(-1) / neurons.sum(-1).clamp(min=1),
            "neurons_in_use": neurons.sum(-1),
        }
    return plain({"p": p, **out})


@torch.no_grad()
def unexplained(t: Trained, target) -> Float[Tensor, "setting seed"]:
    """Σ(y − ŷ)² / Σ(y − mean y)² over fresh samples and all outputs."""
    x = t.features.sample(
        t.model.config.n_instances, 8192, torch.Generator(t.model.W.device).manual_seed(11)
    )
    y = target(x)
    total = (y - y.mean(2, keepdim=True)).square().sum((1, 2))
    return ((t.model(x) - y).square().sum((1, 2)) / total).unflatten(0, tuple(t.losses.shape))


def pair_functions(preset: str) -> dict:
    """4.5 and 4.6: AND, OR of binary pairs and max(x, y), 10 pairs through 20, 10 and 5 ReLU neurons.

    The output is linear, so that the neurons must compute. A neuron is pure when one pair holds 90 % of its squared weight.
    """
    size = size_of("pair_functions", preset, SIZES)
    p, n = spread((0.5, 0.3, 0.1, 0.03, 0.01), size.points), 10
    halves = lambda x: (x.unflatten(1, (n, 2))[:, :, 0], x.unflatten(1, (n, 2))[:, :, 1])  # noqa: E731
    tasks = {
        "AND": ("binary", lambda x: torch.minimum(*halves(x))),
        "OR": ("binary", lambda x: torch.maximum(*halves(x))),
        "max": ("uniform", lambda x: torch.maximum(*halves(x))),
    }
    out = {"p": p, "pairs": n, "neurons": [20, 10, 5]}
    for name, (values, target) in tasks.items():
        out[name] = {"unexplained": [], "pure_share": [], "pairs_per_neuron": []}
        for m in out["neurons"]:
            t = train_grid(
                size,
                p,
                2 * n,
                m,
                target=target,
                values=values,
                n_outputs=n,
                hidden="relu",
                output="identity",
                hidden_bias=True,
            )
            by_pair = t.W.square().unflatten(-1, (n, 2)).sum(-1)
            pure, used = by_pair.amax(-1) > 0.9 * by_pair.sum(-1), by_pair.sum(-1) > 0.01
            out[name]["unexplained"].append(unexplained(t, target))
            out[name]["pure_share"].append((pure & used).sum(-1) / used.sum(-1).clamp(min=1))
            out[name]["pairs_per_neuron"].append(
                (by_pair.sum(-1).square() / by_pair.square().sum(-1).clamp(min=1e-12)).mean(-1)
            )
    return plain(out)


def many_hidden(preset: str) -> dict:
    """4.13: six outputs, each the sum of ten absolute values, through 24 neurons, against one output for each of the 60 inputs.

    For each neuron that serves several inputs: do the inputs belong to the same output? Compared with chance.
    """
    size = size_of("many_hidden", preset, SIZES)
    p, groups, each, m = spread((0.3, 0.1, 0.03, 0.01, 0.003), size.points), 6, 10, 24
    n, out = (
        groups * each,
        {
            "p": p,
            "inputs": groups * each,
            "outputs": groups,
            "neurons": m,
            "chance": (each - 1) / (groups * each - 1),
        },
    )
    tasks = {
        "sums": (groups, lambda x: x.abs().unflatten(1, (groups, each)).sum(2)),
        "separate": (n, torch.abs),
    }
    group = torch.arange(n) // each
    same = ((group[:, None] == group) & ~torch.eye(n, dtype=torch.bool)).float()
    for name, (outputs, target) in tasks.items():
        t = train_grid(
            size, p, n, m, target=target, values="signed", n_outputs=outputs, hidden="relu"
        )
        weight = t.W.square() / t.W.square().sum(-1, keepdim=True).clamp(min=1e-12)
        shared = 1 - weight.square().sum(-1)
        together = torch.einsum(
            "...i,ij,...j->...", weight, same.to(weight.device), weight
        ) / shared.clamp(min=1e-12)
        out[name] = {
            "unexplained": unexplained(t, target),
            "inputs_per_neuron": (1 / weight.square().sum(-1).clamp(min=1e-12)).mean(-1),
            "same_output_share": together.mean(-1),
        }
    return plain(out)
