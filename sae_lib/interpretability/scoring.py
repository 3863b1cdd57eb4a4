"""How well short rules foretell when units fire: features, and beside them neurons, random and principal directions and other nulls.

Density alone moves such scores, so everything is compared at matched densities: a unit of another kind fires above the threshold at which it is as
dense as a feature drawn for it. A second comparison leaves out the weak half of every feature's activations (`_strong`): a matched neuron
fires at the top of its range only, a feature over the whole of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from sae_lib.features import evaluation
from sae_lib.interpretability.halves import Halves
from sae_lib.interpretability.rules import learn_and_score
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.progress import tqdm
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import (
    Dictionary,
    Directions,
    active,
    coordinate_directions,
    principal_directions,
    random_directions,
)
from sae_lib.settings import InterpretabilitySettings

Array = np.ndarray
SAMPLE = 65_536  # activations of the learning half that thresholds and directions are taken from
STRONG = 0.5  # share of a feature's activations, the largest, that count as strong
BATCH = 64  # units that a process scores at a time


@dataclass(frozen=True)
class Units:
    """Units of one kind and where they fire: per unit the tokens of the learning half and those of the scoring half."""

    kind: str
    numbers: Int[Array, " unit"]
    firing: tuple[list[Array], list[Array]]


def score_table(units: Iterator[Units], halves: Halves, s) -> tuple[pd.DataFrame, dict]:
    """(a row per unit with its rule and how well it does on the other half, counts of units by kind)."""
    parts, kinds = [], {}
    for of_kind in units:
        table = score_units(of_kind, halves, s)
        parts.append(table)
        kinds[of_kind.kind] = {
            "units": len(of_kind.numbers),
            "left_out": len(of_kind.numbers) - len(table),
        }
    counts = {"tokens": [t.n for t in halves.texts], "documents": halves.documents, "kinds": kinds}
    return pd.concat(parts, ignore_index=True), counts


def every_kind(
    hook: HookPoint,
    sae: Dictionary,
    halves: Halves,
    s: InterpretabilitySettings,
    seed: int,
    untrained: Callable[[], tuple[HookPoint, SparseAutoencoder]] | None,
) -> Iterator[Units]:
    """Features first, then what they are compared with; `untrained` opens hook and autoencoder of a model that never learned."""
    rng = np.random.default_rng((seed if s.seed is None else s.seed, 2))
    numbers = _draw(rng, sae.d_sae, s.features)
    features, values = firing(hook, {"feature": (sae, numbers)}, halves.rows, with_values=True)[
        "feature"
    ]
    yield Units("feature", numbers, features)
    enough = np.flatnonzero(
        [min(len(a), len(b)) >= s.min_active for a, b in zip(*features, strict=True)]
    )
    if len(enough) == 0:
        return
    chosen = enough[_draw(rng, len(enough), s.units)]
    strong = [np.quantile(values[0][i], 1 - STRONG) for i in chosen]
    yield Units(
        "feature_strong",
        numbers[chosen],
        tuple(
            [f[i][v[i] > t] for i, t in zip(chosen, strong, strict=True)]
            for f, v in zip(features, values, strict=True)
        ),
    )
    yield Units(
        "shuffled",
        numbers[chosen],
        tuple(
            [rng.choice(text.n, len(f[i]), replace=False) for i in chosen]
            for text, f in zip(halves.texts, features, strict=True)
        ),
    )
    densities = np.array([len(features[0][i]) for i in enough]) / halves.texts[0].n
    del features, values

    def at_densities(
        directions: Directions, numbers: Int[Array, " unit"], x: Float[torch.Tensor, "n d_in"]
    ) -> dict[str, tuple[Dictionary, Array]]:
        """The directions `numbers` at drawn features' densities, at the strong half of these, and without a threshold."""
        own = Directions(directions.W_dec[numbers], directions.centre)
        density = torch.from_numpy(
            rng.choice(densities, len(numbers), replace=len(numbers) > len(densities))
        ).float()
        some = _draw(
            rng, len(numbers), max(1, len(numbers) // 2)
        )  # unmatched ones fire on a third of the text: fewer do
        versions = {
            "matched": (own.at_density(x, density), numbers),
            "strong": (own.at_density(x, density * STRONG), numbers),
        }
        return versions | {"unmatched": (Directions(own.W_dec[some], own.centre), numbers[some])}

    x, of = sample(hook, halves.rows[0]), {}
    drawn = {
        "neuron": coordinate_directions(sae.d_in, x.device),
        "principal": principal_directions(x),
        "random": random_directions(x, s.units, int(rng.integers(2**31))),
    }
    for kind, directions in drawn.items():
        versions = at_densities(directions, _draw(rng, directions.d_sae, s.units), x)
        of |= (
            {"random": versions["matched"]}
            if kind == "random"
            else {f"{kind}_matched": versions["matched"], kind: versions["unmatched"]}
        )
        of[f"{kind}_strong"] = versions["strong"]
    yield from everything_of(hook, of, halves)
    if untrained:
        hook, sae = untrained()
        numbers = _draw(rng, sae.d_sae, s.units)
        matched = at_densities(
            Directions(sae.W_enc_T, sae.b_dec), numbers, sample(hook, halves.rows[0])
        )["matched"]
        yield from everything_of(
            hook, {"untrained": (sae, numbers), "untrained_matched": matched}, halves
        )


def everything_of(
    hook: HookPoint, dictionaries: dict[str, tuple[Dictionary, Array]], halves: Halves
) -> Iterator[Units]:
    """The kinds of one model, from one pass over both halves."""
    fired = firing(hook, dictionaries, halves.rows)
    for kind, (_, numbers) in dictionaries.items():
        yield Units(kind, numbers, fired.pop(kind)[0])


@torch.no_grad()
def firing(
    hook: HookPoint,
    dictionaries: dict[str, tuple[Dictionary, Array]],
    rows: tuple[Array, ...],
    with_values: bool = False,
) -> dict[str, tuple[tuple[list, ...], tuple[list, ...]]]:
    """By kind: (tokens, activations), each for both halves a list with, per unit, the tokens where it is active, and its activations there.

    `dictionaries`: (dictionary, numbers of the units) by kind. A dictionary of as many features as there are numbers holds just these.
    """
    found: dict[str, tuple[list, list]] = {kind: ([], []) for kind in dictionaries}
    columns = {
        kind: _columns(dictionary.d_sae, numbers)
        for kind, (dictionary, numbers) in dictionaries.items()
    }
    for part in rows:
        tokens, values = (
            {
                kind: [[np.empty(0, dtype=dtype)] for _ in numbers]
                for kind, (_, numbers) in dictionaries.items()
            }
            for dtype in (np.int32, np.float32)
        )
        for first, x in evaluation.chunks(hook, part, "firing"):
            for kind, (dictionary, numbers) in dictionaries.items():
                pairs = active(dictionary, x)
                unit = columns[kind][pairs.column.cpu().numpy()]
                order = np.flatnonzero(unit >= 0)
                order = order[unit[order].argsort(kind="stable")]
                ends = np.searchsorted(unit[order], np.arange(len(numbers) + 1))
                token, value = (
                    (pairs.row.cpu().numpy()[order] + first).astype(np.int32),
                    pairs.value.cpu().numpy()[order] if with_values else None,
                )
                for u in np.flatnonzero(np.diff(ends)):
                    tokens[kind][u].append(token[ends[u] : ends[u + 1]])
                    if with_values:
                        values[kind][u].append(value[ends[u] : ends[u + 1]])
        for kind in dictionaries:
            found[kind][0].append([np.concatenate(t) for t in tokens.pop(kind)])
            found[kind][1].append([np.concatenate(v) for v in values.pop(kind)])
    return {kind: (tuple(tokens), tuple(values)) for kind, (tokens, values) in found.items()}


def _columns(d_sae: int, numbers: Array) -> Array:
    """From a dictionary's column to the place of its unit among `numbers`, −1 where it is none of them."""
    columns = np.full(d_sae, -1, dtype=np.int16 if len(numbers) < 2**15 else np.int32)
    columns[np.arange(len(numbers)) if d_sae == len(numbers) else numbers] = np.arange(len(numbers))
    return columns


def sample(hook: HookPoint, rows: Array) -> Float[torch.Tensor, "n d_in"]:
    """Activations of at most `SAMPLE` tokens of `rows` [row, position], spread evenly over the learning half."""
    wanted = min(len(rows), -(-SAMPLE // rows.shape[1]))
    return harvest(hook, rows[np.linspace(0, len(rows) - 1, wanted).astype(int)]).float()


def score_units(units: Units, halves: Halves, s) -> pd.DataFrame:
    """A row per unit that is active often enough in both halves, on all processors."""
    enough = [
        i
        for i, pair in enumerate(zip(*units.firing, strict=True))
        if min(map(len, pair)) >= s.min_active
    ]
    batches = [enough[i : i + BATCH] for i in range(0, len(enough), BATCH)]
    work = [
        (halves.texts, [f[i] for i in batch], [g[i] for i in batch], s.conditions, s.values)
        for f, g in [units.firing]
        for batch in batches
    ]
    if len(work) > 1:
        parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
        done = parallel(joblib.delayed(learn_and_score)(*w) for w in work)
    else:
        done = (learn_and_score(*w) for w in work)
    done = list(tqdm(done, desc=f"rules for {units.kind}", total=len(work)))
    records = [
        {
            "kind": units.kind,
            "unit": int(units.numbers[i]),
            "rule": halves.writer.text(rule),
            "n_conditions": len(rule.conditions),
            **asdict(scored),
            "density": (len(units.firing[0][i]) + len(units.firing[1][i]))
            / sum(t.n for t in halves.texts),
            "context": halves.writer.asks_for_context(rule),
            "values": halves.writer.values(rule),
        }
        for i, (rule, scored) in zip(
            enough, (pair for batch in done for pair in batch), strict=True
        )
    ]
    columns = [
        "kind",
        "unit",
        "rule",
        "n_conditions",
        "auroc",
        "balanced_accuracy",
        "precision",
        "recall",
        "information",
        "density",
        "context",
        "values",
    ]
    return pd.DataFrame(records, columns=columns)


def _draw(rng: np.random.Generator, n: int, at_most: int | None) -> Int[Array, " unit"]:
    return (
        np.arange(n)
        if at_most is None or n <= at_most
        else np.sort(rng.choice(n, at_most, replace=False))
    )
