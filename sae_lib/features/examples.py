"""The text around examples of features, with each feature's activation on every token of it."""

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int, Integer

from sae_lib.features.statistics import TENTHS, TopExamples
from sae_lib.model.activations import Source, harvest
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, activations_of
from sae_lib.settings import FeatureSettings

ROWS_AT_ONCE = 64


@torch.no_grad()
def examples_table(
    hook: Source,
    dictionary: Dictionary,
    rows: Integer[np.ndarray, "row position"],
    top: TopExamples,
    samples: TopExamples,
    marked: Bool[np.ndarray, " n"],
    s: FeatureSettings,
) -> pa.Table:
    """A row per example, ordered by (feature, tenth, rank): the true top ones (tenth −1), then those drawn from each tenth."""
    places = np.concatenate([_places(top, 1), _places(samples, TENTHS)])
    places["tenth"][: (top.tokens >= 0).sum()] = -1
    places = places[np.lexsort((places["rank"], places["tenth"], places["feature"]))]
    row, position = np.divmod(places["token"], rows.shape[1])
    begin, end = (
        np.maximum(position - s.context, 0),
        np.minimum(position + s.after + 1, rows.shape[1]),
    )
    offsets = np.concatenate([[0], np.cumsum(end - begin)])
    source = _ranges(row * rows.shape[1] + begin, end - begin)
    activations = _activations(hook, dictionary, rows, places["feature"], row, begin, offsets)
    activations[offsets[:-1] + position - begin] = places["value"]
    ids, starts = rows.reshape(-1), pa.array(offsets, pa.int32())
    columns = {
        "feature": places["feature"].astype(np.int32),
        "rank": places["rank"].astype(np.int16),
        "activation": places["value"],
        "row": row.astype(np.int32),
        "position": position.astype(np.int32),
        "focus": (position - begin).astype(np.int32),
        "token_id": ids[places["token"]].astype(np.int32),
        "tenth": places["tenth"].astype(np.int8),
        "marked": marked[places["token"]],
        "token_ids": pa.ListArray.from_arrays(starts, pa.array(ids[source].astype(np.int32))),
        "activations": pa.ListArray.from_arrays(starts, pa.array(activations)),
    }
    return pa.table(columns)


def _places(best: TopExamples, cells_per_feature: int) -> np.ndarray:
    """What was found, as records."""
    cell, rank = np.nonzero(best.tokens >= 0)
    places = np.zeros(
        len(cell),
        [
            ("feature", np.int64),
            ("tenth", np.int64),
            ("rank", np.int64),
            ("token", np.int64),
            ("value", np.float32),
        ],
    )
    places["feature"], places["tenth"] = np.divmod(cell, cells_per_feature)
    places["rank"], places["token"], places["value"] = (
        rank,
        best.tokens[cell, rank],
        best.values[cell, rank],
    )
    return places


def _activations(
    hook: Source,
    dictionary: Dictionary,
    rows: np.ndarray,
    feature: np.ndarray,
    row: np.ndarray,
    begin: np.ndarray,
    offsets: np.ndarray,
) -> np.ndarray:
    """The features' activations in their windows, one after the other; the text is read once more, and each row asked for its own features."""
    result = np.zeros(offsets[-1], np.float32)
    by_row = np.argsort(row, kind="stable")
    bounds = np.searchsorted(row[by_row], np.arange(len(rows) + 1))
    for first in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc="examples"):
        chunk = np.arange(first, min(first + ROWS_AT_ONCE, len(rows)))
        members = by_row[bounds[chunk[0]] : bounds[chunk[-1] + 1]]
        if len(members) == 0:
            continue
        x = harvest(hook, rows[chunk]).float().view(len(chunk), rows.shape[1], -1)
        strength = [
            activations_of(
                dictionary,
                x[r - first],
                torch.from_numpy(feature[by_row[bounds[r] : bounds[r + 1]]]).to(x.device),
            ).T
            for r in chunk
            if bounds[r] < bounds[r + 1]
        ]
        strength = torch.cat(strength).cpu().numpy()  # [member, position]
        length = offsets[members + 1] - offsets[members]
        result[_ranges(offsets[members], length)] = strength.reshape(-1)[
            _ranges(np.arange(len(members)) * rows.shape[1] + begin[members], length)
        ]
    return result


def _ranges(
    start: Int[np.ndarray, " n"], length: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " total"]:
    """start₀, start₀ + 1, …, for each of the ranges one after the other."""
    ends = np.cumsum(length)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - ends + length, length)
