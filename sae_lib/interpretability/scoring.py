"""How well short rules predict when units fire: features, and beside them neurons, random and
principal directions and other nulls.

Rules are learned from one half of the held-out text and scored on the other, which comes from other
sources (`document_groups`), not from other files of the same ones. Density alone moves such scores,
so everything is compared at matched densities: a unit of another kind fires above the threshold at
which it is as dense as a feature drawn for it; `scores.summary` checks the match. A second
comparison leaves out the weak half of every feature's activations (`_strong`): a matched neuron
fires at the top of its range only, a feature over the whole of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
import scipy
import torch
from jaxtyping import Bool, Float, Int
from numpy.random import Generator

from sae_lib.errors import CorpusError
from sae_lib.features.firing import Firing, firing, spread_rows
from sae_lib.interpretability.rules import Encoding, RuleWriter, Text, learn_and_score
from sae_lib.interpretability.token_attributes import raw_values
from sae_lib.model.activations import HookPoint, harvest_kept
from sae_lib.progress import tqdm
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Dictionary, Directions, Selected
from sae_lib.sae.directions import (
    coordinate_directions,
    principal_directions,
    random_directions,
)
from sae_lib.settings import InterpretabilitySettings
from sae_lib.text.display import Vocabulary
from sae_lib.text.tokens import Tokens

Array = np.ndarray
Numbers = Int[Array, " unit"]
Numbered = tuple[Dictionary, Array]  # a dictionary of some units, and their numbers
Acts = Float[torch.Tensor, "n d_in"]
SAMPLE = 65_536  # activations of the learning half that thresholds and directions are taken from
STRONG = 0.5  # share of a feature's activations, the largest, that count as strong
BATCH = 64  # units that a process scores at a time
LARGEST_GROUP = 1 / 3  # of the held-out tokens: with a larger group two halves are too unequal
COLUMNS = (
    "kind unit rule n_conditions auroc balanced_accuracy precision recall information"
    " density values"
)


@dataclass(frozen=True)
class Halves:
    """The learning half and the scoring half, in this order: rows of token ids [row, position],
    and their tokens for rules.
    """

    rows: tuple[Array, Array]
    texts: tuple[Text, Text]
    documents: tuple[int, int]
    writer: RuleWriter
    kinds: tuple[Array, Array]  # of the document that each token is from
    split_by: str  # what lies in one half as a whole: "source", "kind" or "document"


def document_groups(table: pd.DataFrame) -> tuple[str, Int[Array, " document"]]:
    """(what a group is, the group of each document): its source, which is an installed
    distribution or a file; where a source holds more than `LARGEST_GROUP` of the tokens, its kind
    (as in The Pile); where a kind does so too, the document itself.
    """
    names = {"source": table["origin"].str.partition(": ")[0], "kind": table["kind"]}
    for name, of_document in names.items():
        if (
            table.groupby(of_document)["tokens"].sum().max()
            <= LARGEST_GROUP * table["tokens"].sum()
        ):
            return name, pd.factorize(of_document)[0]
    return "document", np.arange(len(table))


def half_of_groups(
    group: Int[Array, " document"], lengths: Int[Array, " document"], rng: Generator
) -> Int[Array, " document"]:
    """0 or 1 for each document: in random order, each group goes to the half that has fewer
    tokens.
    """
    sizes = np.bincount(group, lengths)
    half, tokens = np.zeros(len(sizes), dtype=np.int64), [0, 0]
    for number in rng.permutation(len(sizes)):
        half[number] = int(tokens[1] < tokens[0])
        tokens[half[number]] += sizes[number]
    return half[group]


def rows_of_half(half: Int[Array, " n"], context: int, which: int) -> Bool[Array, " row"]:
    """Which rows of `context` tokens lie in one half with every token: the model reads across
    documents, so a mixed row belongs to neither.
    """
    return (half[: len(half) // context * context].reshape(-1, context) == which).all(1)


def split(tokens: Tokens, context: int, s: InterpretabilitySettings, seed: int) -> Halves:
    """The held-out text in two halves, of each at most `interpretability.tokens` in rows drawn
    at random; `CorpusError` where a half has none.
    """
    rng = np.random.default_rng((seed if s.seed is None else s.seed, 1))
    table, vocabulary = tokens.table["heldout"], Vocabulary(tokens.tokenizer)
    lengths, firsts = (table[name].to_numpy() for name in ("tokens", "first_token"))
    split_by, group = document_groups(table)
    document_half = half_of_groups(group, lengths, rng)
    half, rows = np.repeat(document_half, lengths), tokens.rows("heldout", context)
    ids, special = np.asarray(tokens.heldout, dtype=np.int64), set(tokens.tokenizer.all_special_ids)
    attributes = raw_values(ids, firsts, context, vocabulary, special)
    kind_of_token = np.repeat(table["kind"].to_numpy(str), lengths)
    chosen, raw, kinds = [], [], []
    for which in (0, 1):
        of_half = np.flatnonzero(rows_of_half(half, context, which))
        if len(of_half) == 0:
            raise CorpusError(
                f"interpretability: the held-out text has {len(lengths)} document(s), too few for"
                f" two halves with at least a row of lm.context={context} each; give more text"
                " (corpus.heldout_tokens)"
            )
        at_most = min(len(of_half), max(1, s.tokens // context))
        number = np.sort(rng.choice(of_half, at_most, replace=False))
        chosen.append(rows[number])
        of_tokens = (number[:, None] * context + np.arange(context)).ravel()
        raw.append(attributes[of_tokens])
        kinds.append(kind_of_token[of_tokens])
    encoding = Encoding(raw[0])
    texts = tuple(Text(encoding.encode(part), encoding) for part in raw)
    documents = tuple(np.bincount(document_half, minlength=2).tolist())
    writer = RuleWriter(encoding, vocabulary)
    return Halves(tuple(chosen), texts, documents, writer, tuple(kinds), split_by)


@dataclass(frozen=True)
class Units:
    """Units of one kind and where they fire: per unit the tokens of the learning half and those
    of the scoring half.
    """

    kind: str
    numbers: Numbers
    firing: list[tuple[Array, ...]]

    def some(self, kind: str, which: Int[Array, " chosen"]) -> "Units":
        """These of them, as a kind of its own."""
        return Units(kind, self.numbers[which], [self.firing[i] for i in which])

    def often_active(self, at_least: int) -> Int[Array, " chosen"]:
        """Which of them are active so often in both halves."""
        return np.flatnonzero([min(map(len, tokens)) >= at_least for tokens in self.firing])


def score_table(
    units: Iterator[Units], halves: Halves, s: InterpretabilitySettings
) -> tuple[pd.DataFrame, dict]:
    """(a row per unit with its rule and how well it does on the other half, counts of units by
    kind).
    """
    tables, kinds = [], {}
    for of_kind in units:
        tables.append(score_units(of_kind, halves, s))
        n = len(of_kind.numbers)
        kinds[of_kind.kind] = {"units": n, "left_out": n - len(tables[-1])}
    counts = {"documents": halves.documents, "split_by": halves.split_by, "kinds": kinds}
    counts["tokens"] = [text.n for text in halves.texts]
    return pd.concat(tables, ignore_index=True), counts


def every_kind(
    hook: HookPoint,
    sae: Dictionary,
    halves: Halves,
    s: InterpretabilitySettings,
    seed: int,
    untrained: Callable[[], tuple[HookPoint, SparseAutoencoder]] | None,
) -> Iterator[Units]:
    """Features first, then what they are compared with; `untrained` opens hook and autoencoder
    of a model that never learned. Features keep the thresholds that they learned, those of the
    untrained model too: of them, each at most once, those are `untrained_matched` whose densities
    are nearest to features'.
    """
    rng = np.random.default_rng((seed if s.seed is None else s.seed, 2))
    numbers = _draw(rng, sae.d_sae, s.features)
    fired = list(zip(*(firing(hook, {"": sae}, rows)[""] for rows in halves.rows), strict=True))
    fired = [fired[i] for i in numbers]
    features = Units("feature", numbers, tokens_of(fired))
    yield features
    often = features.often_active(s.min_active)
    if len(often) == 0:
        return
    chosen = often[_draw(rng, len(often), s.units)]
    yield from _from_features(rng, numbers[chosen], [fired[i] for i in chosen], halves)
    density = np.array([len(features.firing[i][0]) for i in often]) / halves.texts[0].n
    del fired
    yield from _everything_of(hook, _directions(rng, hook, sae.d_in, halves, density, s), halves)
    if untrained:
        hook, sae = untrained()
        numbers = _draw(rng, sae.d_sae, s.features)
        of = {"untrained": (Selected(sae, torch.from_numpy(numbers)), numbers)}
        (own,) = _everything_of(hook, of, halves)
        yield own.some("untrained", _draw(rng, len(numbers), s.units))
        often = own.often_active(s.min_active)
        there = np.array([len(own.firing[i][0]) for i in often]) / halves.texts[0].n
        n = min(s.units, len(often), len(density))
        yield own.some("untrained_matched", often[paired(rng.choice(density, n, False), there)])


def paired(wanted: Float[Array, " n"], there: Float[Array, " m"]) -> Int[Array, " n"]:
    """Which of the densities `there`, each at most once, come nearest to `wanted`: the least sum of
    differences in log density.
    """
    apart = np.abs(np.log(wanted)[:, None] - np.log(there))
    return scipy.optimize.linear_sum_assignment(apart)[1]


def tokens_of(fired: Iterable[tuple[Firing, ...]]) -> list[tuple[Array, ...]]:
    """Of units the tokens of either half that they fire on."""
    return [tuple(half.token for half in of_unit) for of_unit in fired]


def _from_features(
    rng: Generator,
    numbers: Numbers,
    fired: list[tuple[Firing, ...]],
    halves: Halves,
) -> Iterator[Units]:
    """The strong half of features' activations, and as many tokens at random as they have
    activations.
    """
    strong, shuffled = [], []
    for of_unit in fired:
        least = np.quantile(of_unit[0].value, 1 - STRONG)
        strong.append(tuple(half.token[half.value > least] for half in of_unit))
    yield Units("feature_strong", numbers, strong)
    for text, of_half in zip(halves.texts, zip(*fired, strict=True), strict=True):
        shuffled.append([rng.choice(text.n, len(f.token), replace=False) for f in of_half])
    yield Units("shuffled", numbers, list(zip(*shuffled, strict=True)))


def _directions(
    rng: Generator,
    hook: HookPoint,
    d_in: int,
    halves: Halves,
    density: Float[Array, " feature"],
    s: InterpretabilitySettings,
) -> dict[str, Numbered]:
    """Neurons, principal and random directions at the features' densities, at those of their
    strong halves, and (random ones apart) as they are.
    """
    x, units = sample(hook, halves.rows[0]), {}
    kinds = {
        "neuron": coordinate_directions(d_in, x.device),
        "principal": principal_directions(x),
        "random": random_directions(x, s.units, int(rng.integers(2**31))),
    }
    for kind, directions in kinds.items():
        numbers = _draw(rng, directions.d_sae, s.units)
        own = Directions(directions.W_dec[numbers], directions.centre)
        variants = _at_densities(rng, own, numbers, x, density)
        units |= {kind + variant: unit for variant, unit in variants.items()}
    units["random"] = units.pop("random_matched")
    return units


def _at_densities(
    rng: Generator,
    directions: Directions,
    numbers: Numbers,
    x: Acts,
    density: Float[Array, " feature"],
) -> dict[str, Numbered]:
    """The directions at densities drawn from those of features, half of them without a threshold,
    and all at the strong half of the densities: by the ending of their kind's name.
    """
    n = len(numbers)
    drawn = torch.from_numpy(rng.choice(density, n, replace=n > len(density))).float()
    half = _draw(rng, n, max(1, n // 2))  # unmatched ones fire on a third of the text: fewer do
    return {
        "_matched": (directions.at_density(x, drawn), numbers),
        "": (Directions(directions.W_dec[half], directions.centre), numbers[half]),
        "_strong": (directions.at_density(x, drawn * STRONG), numbers),
    }


def _everything_of(hook: HookPoint, units: dict[str, Numbered], halves: Halves) -> Iterator[Units]:
    """The kinds of one model, from one pass over each half."""
    dictionaries = {kind: dictionary for kind, (dictionary, _) in units.items()}
    fired = [firing(hook, dictionaries, rows) for rows in halves.rows]
    for kind, (_, numbers) in units.items():
        of_kind = zip(*(half.pop(kind) for half in fired), strict=True)
        yield Units(kind, numbers, tokens_of(of_kind))


def sample(hook: HookPoint, rows: Array) -> Acts:
    """Activations of at most `SAMPLE` tokens of `rows` [row, position], spread evenly over the
    learning half.
    """
    return harvest_kept(hook, spread_rows(rows, SAMPLE))


def score_units(units: Units, halves: Halves, s: InterpretabilitySettings) -> pd.DataFrame:
    """A row per unit that is active often enough in both halves, on all processors."""
    often, score_one = units.often_active(s.min_active), joblib.delayed(learn_and_score)
    firing = [units.firing[i] for i in often]
    work = (score_one(halves.texts, tokens, s.conditions, s.values) for tokens in firing)
    n_jobs = -1 if len(often) > BATCH else 1
    done = joblib.Parallel(n_jobs, batch_size=BATCH, return_as="generator")(work)
    done = tqdm(done, desc=f"rules for {units.kind}", total=len(often))
    records, n_tokens = [], sum(text.n for text in halves.texts)
    for unit, tokens, (rule, score) in zip(often, firing, done, strict=True):
        record = {
            "kind": units.kind,
            "unit": int(units.numbers[unit]),
            "rule": halves.writer.text(rule),
            "n_conditions": len(rule.conditions),
            "density": sum(map(len, tokens)) / n_tokens,
            "values": halves.writer.values(rule),
        }
        records.append(record | vars(score))
    return pd.DataFrame(records, columns=COLUMNS.split())


def _draw(rng: Generator, n: int, at_most: int | None) -> Numbers:
    if at_most is None or n <= at_most:
        return np.arange(n)
    return np.sort(rng.choice(n, at_most, replace=False))
