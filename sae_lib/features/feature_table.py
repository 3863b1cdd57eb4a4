"""The feature table: two streaming passes over held-out text, then the text around each example."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lib.device import keep_freed_memory
from sae_lib.features.firing import Rows, batches, spread_rows
from sae_lib.features.statistics import (
    TENTHS,
    Chunk,
    FirstPass,
    Ints,
    SecondPass,
    TopExamples,
)
from sae_lib.features.weights import aligned, logit_effects, nearest
from sae_lib.model.activations import Source, harvest
from sae_lib.sae.dictionaries import Dictionary, activations_of
from sae_lib.settings import FeatureSettings
from sae_lib.text.tokenizer import separator_id

BASELINES = ("neurons", "random", "principal")
# times the median norm: activations this long, as on attention sinks, are marked
MAX_NORM_RATIO = 10.0
# that the median norm and the neurons' means are taken from, spread over the text
REFERENCE_TOKENS = 8192
FILES = ("features.parquet", "examples.parquet")
N_TOKENS, N_NEAREST, N_NEURONS = 10, 10, 5


def load_features(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(features, examples) as `build` made them."""
    return tuple(pd.read_parquet(folder / name) for name in FILES)


def write_features(folder: Path, features: pd.DataFrame, examples: pa.Table) -> None:
    features.to_parquet(folder / FILES[0], compression="zstd")
    pq.write_table(examples, folder / FILES[1], compression="zstd")


class MarkedText:
    """Rows of text with a dictionary's active pairs, and which positions are marked: the first of a
    row, padding, and those whose activations are longer than `MAX_NORM_RATIO` × the median.
    """

    def __init__(
        self,
        hook: Source,
        dictionary: Dictionary,
        rows: Rows,
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
            before = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
            token, feature, value = batch.arrays("")
            yield Chunk(
                first=batch.first,
                x=batch.x,
                token_ids=ids.ravel(),
                before_ids=before.ravel(),
                marked=marked.ravel(),
                for_top=self.keep_marked | ~marked.ravel(),
                token=token,
                feature=feature,
                value=value,
            )


@torch.no_grad()
def build(
    hook: Source,
    dictionary: Dictionary,
    rows: Rows,
    tokenizer,
    s: FeatureSettings,
    seed: int = 0,
) -> tuple[pd.DataFrame, pa.Table]:
    """(features, examples): a row per feature, row i is feature i; a row per example of one, see
    `examples_table`.

    Marked positions (see `MarkedText`) are left out of the top examples, of `maximum`, of the top
    tokens, of the tokens before and of the correlations, unless `keep_marked`; all else counts
    every token. Activations that are left out (with `sae.outlier_norm`) have no active features
    here, yet their tokens count in the divisor of `density`, which in `evaluation` they do not. A
    feature's range is (0, maximum_all]: `histogram` counts its activations in 40
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
    columns = _of_activations(one, two, rows.size) | _of_tokens(one, two, rows, tokenizer)
    columns |= _of_weights(hook, dictionary.W_dec, s.logits)
    correlated = (part.tolist() for part in one.correlated(N_NEURONS))
    columns["correlated_neurons"], columns["correlated_values"] = correlated
    places = example_places(one.top, two.samples)
    examples = examples_table(hook, dictionary, rows, places, np.concatenate(marked), s)
    return pd.DataFrame(columns), examples


def _of_activations(one: FirstPass, two: SecondPass, n_tokens: int) -> dict:
    n_active = np.maximum(one.counts, 1)
    tenths = two.histogram.reshape(one.d_sae, TENTHS, -1).sum(2)
    return {
        "feature": np.arange(one.d_sae),
        "density": one.counts / n_tokens,
        "n_active": one.counts,
        "maximum": one.top.best["value"][:, 0],
        "maximum_all": one.maximum,
        "mean_active": one.sums / n_active,
        "marked_share": one.marked_counts / n_active,
        "histogram": two.histogram.tolist(),
        "tenths": (tenths / n_active[:, None]).tolist(),
    }


def _of_tokens(one: FirstPass, two: SecondPass, rows: Rows, tokenizer) -> dict:
    strongest = one.top.best["token"][:, 0]
    names = tokenizer.batch_decode(rows.reshape(-1)[strongest.clip(0)][:, None].tolist())
    tokens, sums = two.token_sums.largest(N_TOKENS)
    counts = [one.occurrences[t] for t in tokens]
    before, before_counts = two.before_counts.largest(N_TOKENS)
    return {
        "top_token": [t if at >= 0 else None for t, at in zip(names, strongest, strict=True)],
        "top_tokens": tokens,
        "top_token_counts": counts,
        "top_token_means": [total / n for total, n in zip(sums, counts, strict=True)],
        "before_tokens": before,
        "before_counts": before_counts,
    }


def _of_weights(hook: Source, W_dec: Tensor, n_logits: int) -> dict:
    names = ["top_logits", "top_logit_values", "bottom_logits", "bottom_logit_values"]
    effects = chain(*logit_effects(hook, W_dec, n_logits))
    columns = {name: part.tolist() for name, part in zip(names, effects, strict=True)}
    columns["near_features"], columns["near_cosines"] = nearest(W_dec, N_NEAREST)
    columns["aligned_neurons"], columns["aligned_values"] = aligned(W_dec, N_NEURONS)
    return columns


def example_places(top: TopExamples, samples: TopExamples) -> pd.DataFrame:
    """Feature, tenth, rank, token and value of each example, ordered: the true top ones (tenth
    −1), then those of each tenth.
    """
    parts = []
    for best, n_cells in ((top.best, 1), (samples.best, TENTHS)):
        cell, rank = np.nonzero(best["token"] >= 0)
        feature, tenth = np.divmod(cell, n_cells)
        columns = {"feature": feature, "tenth": tenth if n_cells > 1 else -1, "rank": rank}
        columns |= {name: best[name][cell, rank] for name in ("token", "value")}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts).sort_values(["feature", "tenth", "rank"], ignore_index=True)


@torch.no_grad()
def examples_table(
    hook: Source,
    dictionary: Dictionary,
    rows: Rows,
    places: pd.DataFrame,
    marked: Bool[np.ndarray, " n"],
    s: FeatureSettings,
) -> pa.Table:
    """A row per example: where it lies, its activation, and the text around it with the
    feature's activation on every token.

    The text is read once more, and each row's activations are those of its own examples' features.
    """
    length, token = rows.shape[1], places["token"].to_numpy()
    feature = places["feature"].to_numpy()
    row, position = np.divmod(token, length)
    begin = np.maximum(position - s.context, 0)
    focus, size = position - begin, np.minimum(position + s.after + 1, length) - begin
    offsets = np.append(0, np.cumsum(size))
    activations, of_row = np.zeros(offsets[-1], np.float32), places.groupby(row).indices
    for batch in batches(hook, {}, rows, "examples"):
        for number, x in enumerate(batch.x.split(length), batch.first // length):
            if number in of_row:
                members = of_row[number]
                features = torch.tensor(feature[members], device=x.device)
                acts = activations_of(dictionary, x, features).T.cpu().numpy().reshape(-1)
                source = _ranges(np.arange(len(members)) * length + begin[members], size[members])
                activations[_ranges(offsets[members], size[members])] = acts[source]
    activations[offsets[:-1] + focus] = places["value"]
    ids = rows.reshape(-1).astype(np.int32)
    columns = {
        "feature": feature.astype(np.int32),
        "rank": places["rank"].astype(np.int16),
        "activation": places["value"],
        "row": row.astype(np.int32),
        "position": position.astype(np.int32),
        "focus": focus.astype(np.int32),
        "token_id": ids[token],
        "tenth": places["tenth"].astype(np.int8),
        "marked": marked[token],
        "token_ids": pa.ListArray.from_arrays(offsets, ids[_ranges(token - focus, size)]),
        "activations": pa.ListArray.from_arrays(offsets, activations),
    }
    return pa.table(columns)


def _ranges(start: Ints, length: Ints) -> np.ndarray:
    """start₀, start₀ + 1, …, for each of the ranges one after the other."""
    ends = np.cumsum(length)
    return np.arange(length.sum()) + np.repeat(start - ends + length, length)
