"""Variants of the ReLU-output toy model: the talk's five non-uniform sparsity cases, and open problems 4.1, 4.7–4.10 and 4.12."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.toy import models as toy
from sae_lib.toy.experiments import (
    DENSITIES,
    Size,
    angles,
    plain,
    powers,
    size_of,
    spread,
    train_grid,
)

SIZES: dict[str, tuple[Size, Size, Size]] = {
    "five_cases": (
        Size(1, 3, 40, 64, 3e-2),
        Size(3, 24, 300, 256, 2e-2),
        Size(5, 100, 800, 256, 2e-2),
    ),
    "starting_points": (Size(2, 2, 30, 64), Size(2, 8, 500, 256, 2e-2), Size(2, 24, 4000, 512)),
    "dropout": (Size(2, 1, 30, 64), Size(3, 6, 250, 256, 2e-2), Size(4, 16, 1500, 256)),
    "value_types": (Size(2, 2, 30, 64), Size(5, 8, 300, 256, 2e-2), Size(7, 24, 1000, 512)),
    "gelu": (Size(2, 1, 30, 64), Size(5, 3, 300, 256, 2e-2), Size(7, 4, 1500, 512)),
    "classification": (Size(2, 1, 30, 64), Size(4, 3, 300, 256, 2e-2), Size(7, 6, 1500, 512)),
}
RANGES = (
    (0.01, 0.1),
    (0.001, 0.1),
    (0.05, 0.5),
    (0.1, 1.0),
    (0.001, 1.0),
)  # lowest and highest density within one instance
CASES = {
    "1 important = dense": "importance 0.9^i, densest feature first",
    "2 important = sparse": "importance 0.9^i, sparsest feature first",
    "3 random, one draw": "importance 0.9^i, one random draw of densities for all seeds",
    "4 random, another draw": "importance 0.9^i, another draw",
    "5 equal importance": "importance 1, every seed draws its own densities",
    "3–4 with a draw per seed": "importance 0.9^i, every seed draws its own densities",
}


def case_probabilities(
    case: str, low: float, high: float, seeds: int
) -> Float[Tensor, "seed feature"]:
    """Densities of the five features: even steps in log space for the ordered cases, log-uniform draws for the random ones."""
    ladder = torch.logspace(math.log10(high), math.log10(low), 5)
    number = list(CASES).index(case)
    if number < 2:
        return (ladder if number == 0 else ladder.flip(0)).expand(seeds, 5)
    generator = torch.Generator(torch.get_default_device()).manual_seed(100 + number)
    u = torch.rand(
        1 if number < 4 else seeds, 5, generator=generator, device=generator.device
    ).expand(seeds, 5)
    return low * (high / low) ** u


def five_cases(preset: str) -> dict:
    """The talk's five cases of non-uniform sparsity, 5 → 2: how many features are represented, alone, in superposition."""
    size = size_of("five_cases", preset, SIZES)
    ranges = RANGES[: size.points]
    cells = [(case, low, high) for case in CASES for low, high in ranges]
    p = torch.cat([case_probabilities(*cell, size.seeds) for cell in cells])
    equal = torch.tensor(
        [[1.0] * 5 if cell[0].startswith("5") else powers(0.9, 5) for cell in cells]
    )
    one = Size(size.points, 1, size.steps, size.batch, size.lr)
    t = train_grid(one, p, 5, 2, importance=equal.repeat_interleave(size.seeds, 0))
    W = t.W.reshape(len(cells), size.seeds, 2, 5)
    losses, p = t.losses.reshape(len(cells), size.seeds), p.reshape(len(cells), size.seeds, 5)
    kept, lone = toy.represented(W), toy.alone(W)
    rows = []
    for i, (case, low, high) in enumerate(cells):
        counts = torch.bincount(kept[i].sum(-1), minlength=6).tolist()
        n_kept, n_alone = int(kept[i].sum()), int(lone[i].sum())
        none_alone = int((~lone[i].any(-1)).sum())
        best = int(losses[i].argmin())
        rows.append(
            {
                "case": case,
                "low": low,
                "high": high,
                "seeds": size.seeds,
                "represented_counts": counts,
                "best_represented": int(kept[i, best].sum()),
                "represented_features": n_kept,
                "alone_features": n_alone,
                "alone_share": [n_alone / max(n_kept, 1), *toy.wilson(n_alone, n_kept)],
                "five_share": [counts[5] / size.seeds, *toy.wilson(counts[5], size.seeds)],
                "none_alone_share": [none_alone / size.seeds, *toy.wilson(none_alone, size.seeds)],
                "kept_by_feature": kept[i].float().mean(0),
                "alone_by_feature": lone[i].float().mean(0),
                "W": W[i, best],
                "p": p[i, best],
            }
        )
    return plain({"rows": rows, "observations": observations(rows)})


def observations(rows: list[dict]) -> list[dict]:
    """The talk's three statements against the counts, for each density range: holds, holds mostly, or does not hold.

    "Never five": no seed of any case keeps five features (the interval is of the pooled share). The two others: at least
    95 % of the represented features are in superposition ("every"), at least 80 % ("almost every").
    """
    found = []
    for low, high in dict.fromkeys((r["low"], r["high"]) for r in rows):
        here = [r for r in rows if (r["low"], r["high"]) == (low, high)]
        fives, n = sum(r["represented_counts"][5] for r in here), sum(r["seeds"] for r in here)
        threes = sum(r["represented_counts"][3] for r in here)
        found.append(
            {
                "claim": "no case represents all five",
                "low": low,
                "high": high,
                "share": [fives / n, *toy.wilson(fives, n)],
                "threes_share": [threes / n, *toy.wilson(threes, n)],
                "holds": fives == 0,
            }
        )
        for claim, number, threshold in (
            ("most important = least dense: every feature in superposition", "2", 0.95),
            ("equal importance: almost every feature in superposition", "5", 0.8),
        ):
            row = next(r for r in here if r["case"].startswith(number))
            k, total = (
                row["represented_features"] - row["alone_features"],
                row["represented_features"],
            )
            found.append(
                {
                    "claim": claim,
                    "low": low,
                    "high": high,
                    "share": [k / max(total, 1), *toy.wilson(k, total)],
                    "holds": total > 0 and k / total >= threshold,
                }
            )
    return found


def starting_points(preset: str) -> dict:
    """Which choices decide how many seeds find the pentagon: learning rate 1e-2 or 1e-3, weights from Xavier or a fifth of it."""
    size = size_of("starting_points", preset, SIZES)
    p, rows = torch.tensor([0.05, 0.035]), []
    for lr, steps in ((size.lr, max(size.steps // 4, 1)), (size.lr / 10, size.steps)):
        for scale in (1.0, 0.2):
            t = train_grid(
                Size(2, size.seeds, steps, size.batch, lr),
                p,
                5,
                2,
                importance=powers(0.9, 5),
                init_scale=scale,
                decay=lr == size.lr,
            )
            fives = (toy.represented(t.W).sum(-1) == 5).sum(1).tolist()
            rows += [
                {
                    "lr": lr,
                    "steps": steps,
                    "init_scale": scale,
                    "p": q,
                    "fives": k,
                    "seeds": size.seeds,
                    "share": [k / size.seeds, *toy.wilson(k, size.seeds)],
                }
                for q, k in zip(p.tolist(), fives, strict=True)
            ]
    return plain({"rows": rows})


def alignment(W: Float[Tensor, "*n hidden feature"]) -> Float[Tensor, "*n"]:
    """Mean over represented features of max_j W_ji² / ‖W_i‖²: 1 when every feature lies on one neuron."""
    kept = toy.represented(W)
    share = W.square().amax(-2) / W.square().sum(-2).clamp(min=1e-12)
    return (share * kept).sum(-1) / kept.sum(-1).clamp(min=1)


def random_rotations(n: int, m: int, seed: int = 0) -> Float[Tensor, "n m m"]:
    """Orthogonal matrices, uniformly drawn (QR of a Gaussian with the sign fixed)."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    Q, R = torch.linalg.qr(torch.randn(n, m, m, generator=generator, device=generator.device))
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def dropout(preset: str) -> dict:
    """4.1: dropout on the hidden layer, 10 → 5; alignment of features with neurons against the same weights randomly rotated."""
    size = size_of("dropout", preset, SIZES)
    p, rates, out = torch.tensor([1.0, 0.1, 0.03, 0.01])[: size.points], [0.0, 0.1, 0.3, 0.5], []
    for rate in rates:
        t = train_grid(size, p, 10, 5, importance=powers(0.75, 10), dropout=rate)
        null = alignment(
            random_rotations(t.losses.numel(), 5).unflatten(0, tuple(t.losses.shape)) @ t.W
        )
        out.append(
            {
                "rate": rate,
                "alignment": alignment(t.W),
                "rotated": null,
                "n_represented": toy.represented(t.W).sum(-1),
                "loss": t.losses,
                "W": t.best(t.W),
            }
        )
    return plain({"p": p, "rates": out})


def value_types(preset: str) -> dict:
    """4.7–4.9: feature values uniform on [0, 1], always 1, one of 1, 2, 3, or uniform on [0.5, 1]; 5 → 2, importance 0.9^i."""
    size = size_of("value_types", preset, SIZES)
    p, out = (
        spread((1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02), size.points),
        {"p": spread((1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02), size.points)},
    )
    for values in ("uniform", "upper_half", "discrete", "binary"):
        t = train_grid(size, p, 5, 2, values=values, importance=powers(0.9, 5))
        kept, best = toy.represented(t.W).sum(-1), t.best(t.W)
        out[values] = {
            "n_represented": kept,
            "best_represented": toy.represented(best).sum(-1),
            "W": best,
            "losses": t.losses,
            "gaps": [angles(w) for w in best],
        }
    return plain(out)


def gelu(preset: str) -> dict:
    """4.10: GELU for the output's ReLU, 20 → 5, importance 0.7^i: features represented, loss and interference by density."""
    size = size_of("gelu", preset, SIZES)
    p = spread(DENSITIES, size.points)
    out = {"p": p}
    for output in ("relu", "gelu"):
        t = train_grid(size, p, 20, 5, importance=powers(0.7, 20), output=output)
        kept = toy.represented(t.W)
        mean = (toy.interference(t.W) * kept).sum(-1) / kept.sum(-1).clamp(min=1)
        out[output] = {
            "n_represented": kept.sum(-1),
            "loss": t.losses,
            "interference": mean,
            "W": t.best(t.W),
        }
    return plain(out)


def largest(x: Float[Tensor, "instance feature sample"]) -> Int[Tensor, "instance sample"]:
    """The class of each sample: the largest feature, or one class more ("none") when none is active."""
    top, where = x.max(1)
    return torch.where(top > 0, where, x.shape[1])


@torch.no_grad()
def class_recall(
    model: toy.ToyModel, features: toy.Features, batch: int = 8192
) -> Float[Tensor, "instance klass"]:
    """Share of each class's samples whose largest output is that class; classes are those of `largest`."""
    x = features.sample(
        model.config.n_instances, batch, torch.Generator(model.W.device).manual_seed(5)
    )
    truth = F.one_hot(largest(x), features.n_features + 1)
    right = model(x).argmax(1) == largest(x)
    return (truth * right[..., None]).sum(1) / truth.sum(1).clamp(min=1)


def classification(preset: str) -> dict:
    """4.12: which of 10 features is the largest ("none" is the eleventh class), cross-entropy, 10 → 2 → 11 logits."""
    size = size_of("classification", preset, SIZES)
    p = spread((1.0, 0.5, 0.3, 0.1, 0.05, 0.03, 0.01), size.points)
    t = train_grid(size, p, 10, 2, target=largest, n_outputs=11, output="identity")
    squared = train_grid(size, p, 10, 2)
    recall = t.by_setting(class_recall(t.model, t.features))[..., :10]
    W = t.best(t.W)
    return plain(
        {
            "p": p,
            "recall": t.best(recall),
            "classes_told_apart": (recall > 0.5).sum(-1),
            "W": W,
            "cross_entropy": t.losses,
            "squared_represented": toy.represented(squared.W).sum(-1),
            "squared_W": squared.best(squared.W),
        }
    )
