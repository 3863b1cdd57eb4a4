"""Feature absorption: a feature of a general label falls silent where a more special one fires, and
that one carries the general direction along (Chanin et al. 2024, A is for Absorption).

A parent is a label of tokens, as "capitalised letters"; a child is one token that has it, as `The`.
Labels are computed from the text, so they are exact. All is chosen on one half of the text and
measured on the other:

- The parent's **features** are added one by one while the F1 with which any of them tells the
  parent's other tokens from those without the label grows by `MIN_GAIN`: a parent that is split
  over several features is not absorbed.
- The parent's **direction** is the mean activation of its other tokens less that of all tokens
  without the label. The child has no part in either.
- A token of the child is **absorbed** where none of the parent's features fires and one other
  feature writes at least `CARRIED` of that difference along the direction.

Where the features miss most of the parent's tokens anyway, silence on the child says nothing: what
counts are the pairs whose `recall` is at least `MIN_RECALL`. The null keeps pairs, features and
silence, and asks the same of a direction of equal length that means nothing here: `shuffled_labels`
have it, sets of tokens drawn at random, as frequent.
"""

from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer
from scipy.sparse import csc_array

from sae_lib.progress import tqdm

Array = np.ndarray
MIN_GAIN = 0.03  # of F1, as in SAEBench
MOST = 10  # features of a parent
CARRIED = 0.5
MIN_RECALL = 0.5
MIN_TOKENS = 20  # of a child in each half
CHILDREN = 12  # of a parent, at most: the most frequent ones
MOST_SHARE = 0.5  # of a parent's tokens that may be one child's


class Fires:
    """A table [token, feature] of activations, to be read by feature and by token."""

    def __init__(self, table: csc_array):
        self.columns, self.rows = table, table.tocsr()

    def tokens(self, feature: int) -> Integer[Array, " n_active"]:
        """The tokens on which it fires."""
        return self.columns.indices[slice(*self.columns.indptr[feature : feature + 2])]

    def count(self, tokens: Integer[Array, " m"]) -> Int[Array, " d_sae"]:
        """On how many of these tokens each feature fires."""
        return np.bincount(self.rows[tokens].indices, minlength=self.rows.shape[1])


class Half(NamedTuple):
    """A half of the text: token ids, where each feature fires, and which token has which label."""

    ids: Integer[Array, " n"]
    fires: Fires
    labels: Bool[Array, "n parent"]


def find_pairs(
    ids: tuple[Integer[Array, " _"], ...], labels: tuple[Bool[Array, "_ parent"], ...]
) -> list[tuple[int, int]]:
    """(parent, child's token id) of all parents with at least two children, from both halves."""
    found = []
    for parent in range(labels[0].shape[1]):
        counts = [np.bincount(i[has[:, parent]]) for i, has in zip(ids, labels, strict=True)]
        n = min(map(len, counts))
        rarest = np.minimum(*(count[:n] for count in counts))
        few = np.maximum(*(count[:n] / count.sum() for count in counts)) <= MOST_SHARE
        children = np.flatnonzero((rarest >= MIN_TOKENS) & few)
        children = children[np.argsort(-rarest[children], kind="stable")][:CHILDREN]
        found += [(parent, int(child)) for child in children if len(children) > 1]
    return found


def shuffled_labels(
    ids: tuple[Integer[Array, " _"], ...], labels: tuple[Bool[Array, "_ parent"], ...], seed: int
) -> tuple[Bool[Array, "_ parent"], ...]:
    """In place of each parent a set of token types, drawn at random until it is as frequent, or as
    near as the last one allows.
    """
    rng, n_types = np.random.default_rng((seed, 14)), 1 + max(map(np.max, ids))
    counts, found = np.bincount(ids[0], minlength=n_types), []
    for wanted in labels[0].sum(0):
        order = rng.permutation(n_types)
        has, tokens = np.zeros(n_types, dtype=bool), counts[order].cumsum()
        has[order[: 1 + np.abs(tokens - wanted).argmin()]] = True
        found.append([has[half] for half in ids])
    return tuple(np.array(half).T for half in zip(*found, strict=True))  # a column lies together


def label_directions(
    x: Float[Array, "m d_in"],
    ids: Integer[Array, " m"],
    labels: Bool[Array, "m parent"],
    pairs: list[tuple[int, int]],
) -> Float[Array, "pair d_in"]:
    """Of each pair the mean activation of the parent's other tokens less that of all tokens without
    the label; not finite where there are none. `x` are the activations of these tokens.
    """
    found = []
    for parent, of_parent in groupby(pairs, itemgetter(0)):
        has = labels[:, parent]
        total, without = (x[of].sum(0, dtype=np.float64) for of in (has, ~has))
        for _, child in of_parent:
            own = has & (ids == child)
            left = total - x[own].sum(0, dtype=np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(left / (has.sum() - own.sum()) - without / (~has).sum())
    return np.reshape(found, (len(pairs), x.shape[1])).astype(np.float32)


def parent_features(
    fires: Fires, label: Bool[Array, " n"], hits: Int[Array, " d_sae"], child: Integer[Array, " m"]
) -> tuple[Int[Array, " k"], float]:
    """(the features that tell the label together, their F1) on all tokens but the child's, which
    have the label. `hits`: on how many tokens with the label each feature fires.
    """
    of_child, unknown, chosen, best = fires.count(child), np.ones_like(label), [], 0.0
    unknown[child] = False
    wanted = label.sum() - len(child)
    # where none of the chosen features fires; with the label, and all
    hits, fired = hits - of_child, np.diff(fires.columns.indptr) - of_child
    n_hits = n_fired = 0  # of the chosen ones together
    while len(chosen) < MOST:
        f1 = 2 * (n_hits + hits) / (n_fired + fired + wanted)
        feature = int(f1.argmax())
        if f1[feature] < best + MIN_GAIN:
            break
        best = float(f1[feature])
        chosen.append(feature)
        n_hits, n_fired = n_hits + hits[feature], n_fired + fired[feature]
        tokens = fires.tokens(feature)
        new = tokens[unknown[tokens]]
        hits, fired = hits - fires.count(new[label[new]]), fired - fires.count(new)
        unknown[new] = False
    return np.array(chosen, dtype=np.int64), best


def absorption(
    W_dec: Float[Array, "d_sae d_in"],
    directions: Float[Array, "pair d_in"],
    null: Float[Array, "pair d_in"],
    halves: tuple[Half, Half],
    pairs: list[tuple[int, int]],
) -> pd.DataFrame:
    """A row per pair: parent, child, the child's tokens `n` in the second half, the parent's `f1`
    in the first and the `recall` of its features on its other tokens in the second, and the share
    of the child's tokens that is absorbed, `rate`; and that along the direction in `null`, made as
    long. `directions` are `label_directions`.
    """
    (learn, score), records = halves, []
    parents = {parent for parent, _ in pairs}
    hits = {p: learn.fires.count(np.flatnonzero(learn.labels[:, p])) for p in parents}
    described = zip(pairs, directions, null, strict=True)
    for (parent, child), *along in tqdm(described, desc="absorption", total=len(pairs)):
        has, own = learn.labels[:, parent], learn.ids == child
        left_out = np.flatnonzero(has & own)
        features, f1 = parent_features(learn.fires, has, hits[parent], left_out)
        along = np.stack(along)
        along /= np.linalg.norm(along, axis=1, keepdims=True) * np.linalg.norm(along[0])
        writes = W_dec @ along.T  # per unit of activation, as a share of the direction
        writes[features] = 0
        has, own = score.labels[:, parent], score.ids == child
        silent = np.ones(len(has), dtype=bool)
        for feature in features.tolist():
            silent[score.fires.tokens(feature)] = False
        tokens = np.flatnonzero(has & own)
        active = score.fires.rows[tokens]
        carried = np.zeros((len(tokens), 2), dtype=bool)
        written = active.data[:, None] * writes[active.indices]
        np.logical_or.at(carried, active.tocoo().row, written >= CARRIED)
        found = {"parent": parent, "child": child, "n": len(tokens), "f1": f1}
        found["recall"] = 1 - silent[has & ~own].mean()
        found["rate"], found["null"] = (silent[tokens, None] & carried).mean(0)
        records.append(found)
    return pd.DataFrame(records)
