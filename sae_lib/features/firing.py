"""Where does what fire? One streaming pass over text answers it for everyone who asks. Active
means f > 0, everywhere.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from sae_lib.model.activations import Source, harvest, kept_of, spread
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, active
from sae_lib.sae.engine.active_pairs import ActivePairs

ROWS_AT_ONCE = 64
VALUES_AT_ONCE = 1 << 27  # activations of features, most of them zero, that may exist together
ALIVE = 100  # activations on the evaluation set, the original's own threshold
Rows = Integer[np.ndarray, "row position"]  # token ids
Dictionaries = dict[str, Dictionary]


class Batch(NamedTuple):
    """Some rows of a text: their token ids, activations, each dictionary's active pairs, and which
    tokens count (None: all); the others have no pairs.
    """

    first: int  # number of its first token in the whole text
    ids: Int[np.ndarray, "row position"]
    x: Float[Tensor, "n d_in"]
    pairs: dict[str, ActivePairs]
    kept: Bool[Tensor, " n"] | None

    def arrays(self, name: str) -> list[np.ndarray]:
        """[token within the batch, feature, activation] of a dictionary's active pairs, ordered
        by token.
        """
        return [part.cpu().numpy() for part in self.pairs[name]]


class Firing(NamedTuple):
    """Where a unit fires: numbers of tokens in the text, rising, and its activation on each."""

    token: Integer[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]


def rows_at_once(at_most: int, values_per_row: int) -> int:
    """So many rows that no more than `VALUES_AT_ONCE` numbers come of them."""
    return max(1, min(at_most, VALUES_AT_ONCE // values_per_row))


def spread_rows(rows: Rows, n_tokens: int) -> Rows:
    """At most `n_tokens` of the text as rows, spread evenly over it."""
    return spread(rows, max(1, n_tokens // rows.shape[1]))


@torch.no_grad()
def batches(hook: Source, dictionaries: Dictionaries, rows: Rows, desc: str) -> Iterator[Batch]:
    """One pass over `rows`, a few at a time: fewer where a dictionary has very many features."""
    widest = max([1, *(dictionary.d_sae for dictionary in dictionaries.values())])
    step = rows_at_once(ROWS_AT_ONCE, widest * rows.shape[1])
    for i in tqdm(range(0, len(rows), step), desc=desc):
        ids = rows[i : i + step].astype(np.int64)
        x = harvest(hook, ids).float()
        pairs = {name: active(dictionary, x) for name, dictionary in dictionaries.items()}
        kept = kept_of(hook, ids, x)
        if kept is not None:
            pairs = {name: found.take(kept[found.row]) for name, found in pairs.items()}
        yield Batch(i * rows.shape[1], ids, x, pairs, kept)


def firing_tables(hook: Source, dictionaries: Dictionaries, rows: Rows) -> dict[str, csc_array]:
    """By name a table [token, feature] of a dictionary's activations over all of `rows`: one pass
    for all of them.
    """
    parts: dict[str, list] = {name: [] for name in dictionaries}
    for batch in batches(hook, dictionaries, rows, "firing"):
        for name, dictionary in dictionaries.items():
            token, feature, value = batch.arrays(name)
            places = token.astype(np.int32), feature.astype(np.int32)
            table = csr_array((value, places), (batch.ids.size, dictionary.d_sae))
            parts[name].append(table)
    return {name: vstack(tables).tocsc() for name, tables in parts.items()}


def by_feature(table: csc_array) -> list[Firing]:
    """Where each feature fires: the columns of one of `firing_tables`."""
    return [Firing(table.indices[a:b], table.data[a:b]) for a, b in pairwise(table.indptr)]


def firing(hook: Source, dictionaries: Dictionaries, rows: Rows) -> dict[str, list[Firing]]:
    """By name, where each feature of a dictionary fires."""
    tables = firing_tables(hook, dictionaries, rows)
    return {name: by_feature(table) for name, table in tables.items()}
