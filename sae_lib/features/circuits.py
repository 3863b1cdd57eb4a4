"""What the weights alone say of a feature, before any text is read: on which tokens it fires, and
which tokens follow. How far held-out text agrees, and what the feature does there.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # whose parts are imported when they are used
import torch
from jaxtyping import Float, Int, Integer, Shaped
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from sae_lib.device import upload
from sae_lib.errors import ModelError
from sae_lib.features.attribution import (
    Block,
    Places,
    draw_places,
    feature_kinds,
    path_table,
    place_numbers,
    replaced_sources,
)
from sae_lib.features.firing import ALIVE, Rows, firing_tables, spread_rows
from sae_lib.features.statistics import MIN_OCCURRENCES
from sae_lib.features.weights import direct_logits
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.progress import tqdm
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import activations_of
from sae_lib.sae.directions import coordinate_directions, random_directions, thresholded

RAISED, NAMED = 10, 3  # tokens of a card: those whose logits rise most, those it fires on most
TABLE = 1 << 26  # values of a table [vocab, unit]: with a large vocabulary fewer features are drawn
FIRINGS, PER_FEATURE, REPLACED = 10_000, 16, 320  # places of a study, of each kind
SCORED, ABLATED = 768, (48, 8)  # features; features and places of each
SAMPLE = 32_768  # activations that the nulls' thresholds are taken from
Array = np.ndarray
Table = Float[Array, "vocab unit"]


class Counts(NamedTuple):
    """By token id: its occurrences, on how many of them each unit fires, the activations' sums."""

    total: Integer[Array, " vocab"]
    fired: Table
    sums: Table


def count_by_token(table: csc_array, ids: Integer[Array, " n"], vocab: int) -> Counts:
    """`table` [token of the text, unit] holds activations; `ids` say which token id each token
    counts for, −1 for none.
    """
    n = np.flatnonzero(ids >= 0)
    of = csr_array((np.ones(len(n), np.float32), (ids[n], n)), (vocab, len(ids)))
    fired = (of @ (table > 0).astype(np.float32)).toarray()
    return Counts(np.bincount(ids[n], minlength=vocab), fired, (of @ table).toarray())


@torch.no_grad()
def predicted_firing(block: Block, units: Int[Tensor, " unit"]) -> Table:
    """Pre-activations of features on every token of the vocabulary, from W_E, W_in and W_enc with
    their norm and biases: the token's embedding and the mean position embedding go straight into
    the MLP, and of the attention there are only its biases.
    """
    hook, sae, captured = block.hook, block.sae, []
    embedding = hook.model.get_input_embeddings().weight
    r = embedding.float() + block.attention_bias
    if block.wpe is not None:
        r = r + block.wpe.float().mean(0)
    with hook.replaced(captured.append):
        block.module.mlp(block.norm2(r[None]).to(embedding.dtype))
    x = captured[0][0].float() - sae.b_dec
    return (x @ sae.W_enc_T[units].T + sae.b_enc[units]).cpu().numpy()


def predicted_next(hook: HookPoint, W_dec: Float[Tensor, "unit d_in"]) -> Table:
    """What features add to the logits of the vocabulary, from W_dec, W_out and W_U with the final
    norm's weight (`weights.direct_logits`).
    """
    return direct_logits(hook, W_dec).T.contiguous().cpu().numpy()


Compared = dict[str, tuple[Table, Counts]]  # of `fires` and `follows`: the prediction, the text


def against_text(
    block: Block, table: csc_array, rows: Rows, units: Int[Array, " unit"]
) -> Compared:
    """What is predicted of some units of the block's autoencoder, and counted in a text where
    they fire as `table` [token, unit] says: the tokens that they fire on, and the tokens after.
    """
    of, ids = torch.from_numpy(units), rows.astype(np.int64)
    after = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    fires, follows = predicted_firing(block, of), predicted_next(block.hook, block.sae.W_dec[of])
    parts = {"fires": (fires, ids), "follows": (follows, after)}
    fired = table[:, units]
    return {
        name: (predicted, count_by_token(fired, of_token.reshape(-1), len(predicted)))
        for name, (predicted, of_token) in parts.items()
    }


def agreement(predicted: Table, counts: Counts) -> pd.DataFrame:
    """A row per unit. `auroc`: of telling the tokens on which it fires from the others by the
    prediction for their ids. `spearman`: over the token ids that occur often enough, of the
    prediction with the unit's mean activation. NaN where a unit never or always fires.
    """
    order = np.argsort(predicted, axis=0)
    fired = np.take_along_axis(counts.fired, order, 0).astype(np.float64)
    silent = counts.total[order] - fired
    below = np.cumsum(silent, 0) - silent / 2
    pairs = fired.sum(0) * silent.sum(0)
    auroc = (fired * below).sum(0) / np.where(pairs > 0, pairs, np.nan)
    often = counts.total >= MIN_OCCURRENCES
    means = counts.sums[often] / counts.total[often, None]
    return pd.DataFrame({"auroc": auroc, "spearman": spearman(predicted[often], means)})


def spearman(a: Shaped[Array, "n unit"], b: Shaped[Array, "n unit"]) -> Float[Array, " unit"]:
    """Spearman's correlation of each column of `a` with that of `b`; NaN where one is constant."""
    a, b = (scipy.stats.rankdata(part, axis=0) - (len(part) + 1) / 2 for part in (a, b))
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return (a * b).sum(0) / np.where(size > 0, size, np.nan)


def others(n: int, seed: int) -> Int[Array, " n"]:
    """For each of n units another one, at random: the shuffled pairs of a null."""
    order = np.random.default_rng((seed, 10)).permutation(n)
    return np.roll(order, 1)[np.argsort(order)]


def weights_alone(compared: Compared, seed: int) -> pd.DataFrame:
    """By unit: `agreement` as the columns fires_auroc, follows_spearman and so on, and with the
    prediction of another unit as fires_auroc_shuffled and so on.
    """
    frames = []
    for name, (predicted, counts) in compared.items():
        shuffled = predicted[:, others(predicted.shape[1], seed)]
        for ending, columns in (("", predicted), ("_shuffled", shuffled)):
            frames.append(agreement(columns, counts).add_prefix(f"{name}_").add_suffix(ending))
    return pd.concat(frames, axis=1)


def cards(compared: Compared, raised: int = RAISED) -> pd.DataFrame:
    """What each unit does, in a row: it fires on `fires_on`, the ids of the `NAMED` tokens on which
    it fires most often, `fires_on_share` of its firings; it raises `raises`, the ids of the
    `raised` tokens whose logits it raises most by itself; one of these comes next after
    `followed` of its firings and after `base` of all tokens; `lift` is their ratio.
    """
    (_, own), (effects, after) = compared["fires"], compared["follows"]
    raises = np.argsort(-effects, axis=0)[:raised]
    hits = np.take_along_axis(after.fired, raises, 0).sum(0)
    followed = hits / np.maximum(after.fired.sum(0), 1)
    base = after.total[raises].sum(0) / after.total.sum()
    on = np.argsort(-own.fired, axis=0, kind="stable")[:NAMED]
    share = np.take_along_axis(own.fired, on, 0).sum(0) / np.maximum(own.fired.sum(0), 1)
    lift = np.divide(followed, base, out=np.zeros_like(base), where=base > 0)
    columns = {"followed": followed, "base": base, "lift": lift, "fires_on_share": share}
    return pd.DataFrame(columns | {"fires_on": on.T.tolist(), "raises": raises.T.tolist()})


@torch.no_grad()
def measured_agreement(
    hook: HookPoint, sae: SparseAutoencoder, rows: Rows, places: Places, seed: int
) -> pd.DataFrame:
    """A row per feature of `places`: Spearman's correlation, over the vocabulary, of what it adds
    to the logits by itself with what it is measured to do there, the mean over its places: by how
    much they fall without f · W_dec (`ablated`), and by how much they rise when f is held at its
    largest value there (`clamped`); and, `_shuffled`, the same for what another feature adds.
    """
    head = hook.model.get_output_embeddings()
    measured = {"ablated": [], "clamped": []}
    for feature, of in tqdm(places.groupby("feature"), desc="ablation and clamping"):
        _, position, _ = place_numbers(of)
        ids, n = upload(rows[of["row"]].astype(np.int64), hook.device), torch.arange(len(of))

        def logits(ids=ids, at=(n, position)) -> Tensor:
            return head(hook.hidden(ids)[at]).float()

        def held_at(value: float, x: Tensor, feature=feature) -> Tensor:
            f = activations_of(sae, x.float().flatten(0, 1), [feature])
            return x + ((value - f) @ sae.W_dec[[feature]]).to(x.dtype).view_as(x)

        there = activations_of(sae, hook.activations(ids)[n, position].float(), [feature])
        for how, value in (("ablated", 0.0), ("clamped", there.max().item())):
            with hook.replaced(partial(held_at, value)):
                changed = logits()
            sign = 1 if value else -1
            measured[how].append(sign * (changed - logits()).mean(0).cpu().numpy())
    features = np.unique(places["feature"])
    direct, found = predicted_next(hook, sae.W_dec[torch.from_numpy(features)]), {}
    for how, effects in measured.items():
        effects = np.stack(effects, axis=1)
        found[how] = spearman(direct, effects)
        found[f"{how}_shuffled"] = spearman(direct[:, others(len(features), seed)], effects)
    return pd.DataFrame({"feature": features} | found)


def study(
    hook: HookPoint, sae: SparseAutoencoder, rows: Rows, seed: int
) -> dict[str, pd.DataFrame]:
    """All that notebook 08 asks of an autoencoder, as tables: `paths` of random firings, `kinds` of
    features, `replaced` sources, `cards`, measured `effects`, and `weights`: of features, and of
    neurons and random directions as dense as these. `ModelError` where no feature fires.
    """
    block, rng, length = Block(hook, sae), np.random.default_rng((seed, 12)), rows.shape[1]
    table = firing_tables(hook, {"": sae}, rows)[""]
    n_active = np.diff(table.indptr)
    if not n_active.any():
        raise ModelError("no feature fires on the held-out text: train the autoencoder for longer")
    alive = rng.permutation(np.flatnonzero(n_active >= min(ALIVE, n_active.max())))
    x = harvest(hook, spread_rows(rows, SAMPLE)).float()
    density = torch.from_numpy(rng.choice(n_active[alive] / rows.size, sae.d_in)).float()
    nulls = {
        "neuron": coordinate_directions(sae.d_in, x.device),
        "random": random_directions(x, sae.d_in, seed),
    }
    nulls = {kind: thresholded(of.at_density(x, density)) for kind, of in nulls.items()}
    scored = {"feature": (block, table, alive[:SCORED])}
    for kind, fired in firing_tables(hook, nulls, rows).items():
        scored[kind] = (Block(hook, nulls[kind]), fired, np.arange(sae.d_in))
    weights = []
    for kind, (of, *where, units) in scored.items():
        alone = weights_alone(against_text(of, *where, rows, units), seed)
        weights.append(alone.assign(kind=kind, unit=units))
    units = alive[: max(2, TABLE // len(hook.model.get_output_embeddings().weight))]
    draw = partial(draw_places, table, length, seed)
    places = {True: draw(FIRINGS), False: draw(PER_FEATURE, alive[:SCORED])}
    places = pd.concat(drawn.assign(evenly=evenly) for evenly, drawn in places.items())
    paths = path_table(block, rows, places.sort_values("row", kind="stable"), seed)
    some = draw(ABLATED[1], alive[: ABLATED[0]])
    return {
        "paths": paths[paths["evenly"]],
        "kinds": feature_kinds(paths[~paths["evenly"]]).reset_index(),
        "replaced": replaced_sources(block, rows, draw(REPLACED), seed),
        "weights": pd.concat(weights, ignore_index=True),
        "cards": cards(against_text(block, table, rows, units)).assign(feature=units),
        "effects": measured_agreement(hook, sae, rows, some, seed),
    }
