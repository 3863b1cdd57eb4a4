"""The feature table: two streaming passes over held-out text, then the text around each example."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from sae_lib.device import keep_freed_memory
from sae_lib.features.clamping import Clamp, clamped, next_token_losses
from sae_lib.features.firing import batches, spread_rows
from sae_lib.features.statistics import BINS, TENTHS, Chunk, FirstPass, SecondPass, TopExamples
from sae_lib.features.weights import aligned, logit_effects, nearest
from sae_lib.model.activations import HookPoint, Source, harvest
from sae_lib.sae.dictionaries import (
    Dictionary,
    Directions,
    activations_of,
    principal_directions,
    random_directions,
)
from sae_lib.settings import FeatureSettings
from sae_lib.text.tokenizer import separator_id

BASELINES = ("neurons", "random", "principal")
MAX_NORM_RATIO = (
    10.0  # times the median norm: activations this long, as on attention sinks, are marked
)
# that the median norm and the neurons' means are taken from, spread over the text
REFERENCE_TOKENS = 8192
# that thresholds of directions are taken from, or fewer where they would not fit …
DIRECTION_TOKENS = 131_072
DIRECTION_VALUES = 1 << 26  # … into so many activations of neurons
N_TOKENS, N_NEAREST, N_NEURONS = 10, 10, 5


def load_features(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(features, examples) as `build` made them."""
    features, examples = folder / "features.parquet", folder / "examples.parquet"
    return pd.read_parquet(features), pd.read_parquet(examples)


def write_features(folder: Path, features: pd.DataFrame, examples: pa.Table) -> None:
    features.to_parquet(folder / "features.parquet", compression="zstd")
    pq.write_table(examples, folder / "examples.parquet", compression="zstd")


def directions_like(
    kind: str,
    density: Float[np.ndarray, " d_sae"],
    hook: HookPoint,
    rows: Integer[np.ndarray, "row position"],
    seed: int,
) -> Directions:
    """Directions to hold an autoencoder against, each as rarely active as one of its features, on a
    sample of `rows`.

    `kind` "random": as many as it has features; the i-th has the i-th feature's `density`.
    "principal": the principal components in both senses; the largest has the density of the densest
    feature and so on down, through evenly spaced quantiles of those alive. No direction is active
    below the mean, so that half of all tokens or so is the most that a density can be.
    """
    d_in = harvest(hook, rows[:1]).shape[1]
    n_tokens = min(DIRECTION_TOKENS, DIRECTION_VALUES // d_in)
    x = harvest(hook, spread_rows(rows, n_tokens)).float()
    if kind == "random":
        directions = random_directions(x, len(density), seed)
    else:
        directions = principal_directions(x)
        alive = density[density > 0]
        density = np.quantile(alive if len(alive) else density, np.linspace(1, 0, directions.d_sae))
    return directions.at_density(x, torch.tensor(density))


class MarkedText:
    """Rows of text with a dictionary's active pairs, and which positions are marked: the first of a
    row, padding, and those whose activations are longer than `MAX_NORM_RATIO` × the median.
    """

    def __init__(
        self,
        hook: Source,
        dictionary: Dictionary,
        rows: Integer[np.ndarray, "row position"],
        padding: int | None,
        keep_marked: bool,
    ):
        self.source = (hook, {"": dictionary}, rows)
        self.padding, self.keep_marked, length = padding, keep_marked, rows.shape[1]
        # a few rows spread over the text, so that it does not depend on how the text is cut
        x = harvest(hook, spread_rows(rows, max(2 * length, REFERENCE_TOKENS))).float()
        after_first = x.view(-1, length, x.shape[1])[:, min(1, length - 1) :]
        self.centre = x.mean(0)
        self.max_norm = MAX_NORM_RATIO * after_first.norm(dim=-1).median().item()

    def chunks(self, desc: str) -> Iterator[Chunk]:
        """One pass over the text, a few rows at a time."""
        for batch in batches(*self.source, desc):
            ids = batch.ids
            marked = (batch.x.norm(dim=1) > self.max_norm).cpu().numpy().reshape(ids.shape)
            marked[:, 0] = True
            if self.padding is not None:
                marked |= ids == self.padding
            before = np.concatenate([np.full((len(ids), 1), -1), ids[:, :-1]], 1)
            kept = np.ones_like(marked) if self.keep_marked else ~marked
            flat = (array.reshape(-1) for array in (ids, before, marked, kept))
            yield Chunk(batch.first, batch.x, *flat, *batch.arrays(""))


@torch.no_grad()
def build(
    hook: Source,
    dictionary: Dictionary,
    rows: Integer[np.ndarray, "row position"],
    tokenizer,
    s: FeatureSettings,
    seed: int = 0,
) -> tuple[pd.DataFrame, pa.Table]:
    """(features, examples): a row per feature, row i is feature i; a row per example of one, see
    `examples_table`.

    Marked positions (see `MarkedText`) are left out of the top examples, of `maximum`, of the top
    tokens, of the tokens before and of the correlations, unless `keep_marked`; all else counts
    every token. A feature's range is (0, maximum_all]: `histogram` counts its activations in 40
    equal parts of it, `tenths` are their shares in ten, and `samples` of each tenth are among the
    examples. `near_*` go by decoder cosine; `aligned_*` and `correlated_*` are neurons, by weight
    and by Pearson correlation of activations.
    """
    keep_freed_memory()
    pad = tokenizer.pad_token_id
    padding = pad if pad != separator_id(tokenizer) else None
    text = MarkedText(hook, dictionary, rows, padding, s.keep_marked)
    one = FirstPass(dictionary.d_sae, int(rows.max()) + 1, s.top_k, text.centre)
    marked = []
    for chunk in text.chunks("features: maxima"):
        one.update(chunk)
        marked.append(chunk.marked)
    two = SecondPass(one, s.samples, seed)
    for chunk in text.chunks("features: tenths"):
        two.update(chunk)
    columns = _of_activations(one, two) | _of_tokens(one, two, rows, tokenizer)
    columns |= _of_weights(hook, dictionary.W_dec, s.logits)
    neurons, correlations = one.correlated(N_NEURONS)
    columns["correlated_neurons"] = neurons.tolist()
    columns["correlated_values"] = correlations.tolist()
    places = example_places(one.top, two.samples)
    examples = examples_table(hook, dictionary, rows, places, np.concatenate(marked), s)
    return pd.DataFrame(columns), examples


def _of_activations(one: FirstPass, two: SecondPass) -> dict:
    n_active = np.maximum(one.counts, 1)
    tenths = two.histogram.reshape(one.d_sae, TENTHS, BINS // TENTHS).sum(2)
    return {
        "feature": np.arange(one.d_sae),
        "density": one.counts / one.n,
        "n_active": one.counts,
        "maximum": one.top.best["value"][:, 0],
        "maximum_all": one.maximum,
        "mean_active": one.sums / n_active,
        "marked_share": one.marked_counts / n_active,
        "histogram": two.histogram.tolist(),
        "tenths": (tenths / n_active[:, None]).tolist(),
    }


def _of_tokens(one: FirstPass, two: SecondPass, rows: np.ndarray, tokenizer) -> dict:
    strongest = one.top.best["token"][:, 0]
    shown = tokenizer.batch_decode(rows.reshape(-1)[strongest.clip(0)][:, None].tolist())
    tokens, sums = two.token_sums.largest(N_TOKENS)
    counts = [one.occurrences[t] for t in tokens]
    before, before_counts = two.before_counts.largest(N_TOKENS)
    return {
        "top_token": [t if at >= 0 else None for t, at in zip(shown, strongest, strict=True)],
        "top_tokens": tokens,
        "top_token_counts": counts,
        "top_token_means": [total / n for total, n in zip(sums, counts, strict=True)],
        "before_tokens": before,
        "before_counts": before_counts,
    }


def _of_weights(hook: Source, W_dec: Float[Tensor, "d_sae d_in"], n_logits: int) -> dict:
    (raised, up), (lowered, down) = logit_effects(hook, W_dec, n_logits)
    near, cosines = nearest(W_dec, N_NEAREST)
    neurons, components = aligned(W_dec, N_NEURONS)
    return {
        "top_logits": raised.tolist(),
        "top_logit_values": up.tolist(),
        "bottom_logits": lowered.tolist(),
        "bottom_logit_values": down.tolist(),
        "near_features": near,
        "near_cosines": cosines,
        "aligned_neurons": neurons,
        "aligned_values": components,
    }


def example_places(top: TopExamples, samples: TopExamples) -> pd.DataFrame:
    """Feature, tenth, rank, token and value of each example, ordered: the true top ones (tenth
    −1), then those of each tenth.
    """
    parts = []
    for entries, n_cells in ((top.best, 1), (samples.best, TENTHS)):
        cell, rank = np.nonzero(entries["token"] >= 0)
        feature, tenth = np.divmod(cell, n_cells)
        found = entries[cell, rank]
        columns = {"feature": feature, "tenth": tenth if n_cells > 1 else -1, "rank": rank}
        parts.append(pd.DataFrame(columns | {"token": found["token"], "value": found["value"]}))
    places = pd.concat(parts)
    return places.sort_values(["feature", "tenth", "rank"], ignore_index=True)


@torch.no_grad()
def examples_table(
    hook: Source,
    dictionary: Dictionary,
    rows: Integer[np.ndarray, "row position"],
    places: pd.DataFrame,
    marked: Bool[np.ndarray, " n"],
    s: FeatureSettings,
) -> pa.Table:
    """A row per example: where it lies, its activation, and the text around it with the
    feature's activation on every token.
    """
    length, token = rows.shape[1], places["token"].to_numpy()
    row, position = np.divmod(token, length)
    begin = np.maximum(position - s.context, 0)
    size = np.minimum(position + s.after + 1, length) - begin
    windows = pd.DataFrame({"feature": places["feature"], "row": row, "begin": begin, "size": size})
    activations, offsets = _activations(hook, dictionary, rows, windows)
    activations[offsets[:-1] + position - begin] = places["value"]
    ids, starts = rows.reshape(-1).astype(np.int32), pa.array(offsets, pa.int32())
    texts = ids[_ranges(row * length + begin, size)]
    columns = {
        "feature": places["feature"].astype(np.int32),
        "rank": places["rank"].astype(np.int16),
        "activation": places["value"],
        "row": row.astype(np.int32),
        "position": position.astype(np.int32),
        "focus": (position - begin).astype(np.int32),
        "token_id": ids[token],
        "tenth": places["tenth"].astype(np.int8),
        "marked": marked[token],
        "token_ids": pa.ListArray.from_arrays(starts, pa.array(texts)),
        "activations": pa.ListArray.from_arrays(starts, pa.array(activations)),
    }
    return pa.table(columns)


def _activations(
    hook: Source, dictionary: Dictionary, rows: np.ndarray, windows: pd.DataFrame
) -> tuple[Float[np.ndarray, " total"], Int[np.ndarray, " window_and_end"]]:
    """The features' activations in their windows, one after the other, and where each window
    begins.

    The text is read once more, and each row asked for its own features only.
    """
    offsets = np.concatenate([[0], np.cumsum(windows["size"])])
    result, of_row = np.zeros(offsets[-1], np.float32), windows.groupby("row").indices
    for batch in batches(hook, {}, rows, "examples"):
        first, x = batch.first // rows.shape[1], batch.x.view(*batch.ids.shape, -1)
        for i in range(len(x)):
            members = of_row.get(first + i, ())
            if len(members) == 0:
                continue
            window = windows.iloc[members]
            features = torch.tensor(window["feature"].to_numpy(), device=x.device)
            acts = activations_of(dictionary, x[i], features).T.cpu().numpy().reshape(-1)
            source = np.arange(len(members)) * rows.shape[1] + window["begin"].to_numpy()
            size = window["size"].to_numpy()
            result[_ranges(offsets[members], size)] = acts[_ranges(source, size)]
    return result, offsets


def _ranges(
    start: Int[np.ndarray, " n"], length: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " total"]:
    """start₀, start₀ + 1, …, for each of the ranges one after the other."""
    ends = np.cumsum(length)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - ends + length, length)


@torch.no_grad()
def row_activations(
    hook: Source, dictionary: Dictionary, token_ids: Int[Tensor, " n"], feature: int
) -> Float[Tensor, " n"]:
    """A feature's activation on every token of a text."""
    x = hook.activations(token_ids[None].to(hook.device))[0].float()
    return activations_of(dictionary, x, torch.tensor([feature], device=x.device))[:, 0]


@torch.no_grad()
def ablation_effect(
    hook: HookPoint, dictionary: Dictionary, token_ids: Int[Tensor, " n"], feature: int
) -> Float[Tensor, " n"]:
    """By how much the loss (nats) of predicting each token rises when the feature is taken out on
    all of them; 0 for the first.

    Only its own part is subtracted from the activations, x − f · W_dec: what the autoencoder does
    not reconstruct stays.
    """
    ids = token_ids[None].long().to(hook.device)
    everywhere = torch.ones(1, len(token_ids) - 1, dtype=torch.bool)
    before = next_token_losses(hook, ids, everywhere)
    with clamped(hook, dictionary, [Clamp(feature, "ablate")]):
        change = next_token_losses(hook, ids, everywhere) - before
    return torch.nn.functional.pad(change[0], (1, 0))
