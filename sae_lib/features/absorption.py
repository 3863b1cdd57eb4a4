"""Feature absorption: a feature of a general label falls silent where a more special one fires, and
that one carries the general direction along (Chanin et al. 2024, A is for Absorption).

A parent is a label of tokens, as "capitalised letters"; a child is one token that has it, as `The`.
Labels are computed from the text, so they are exact. All is chosen on one half of the text and
measured on the other:

- The parent's **features** are added one by one while the F1 with which any of them tells the
  label grows by `MIN_GAIN`: a parent that is split over several features is not absorbed.
- The parent's **direction** is the mean activation of the parent's other tokens less that of all
  tokens without the label: the child has no part in it.
- A token of the child is **absorbed** where none of the parent's features fires and one other
  feature writes at least `CARRIED` of that difference along the direction.

The null asks the same of as many of the parent's other tokens, drawn at random: what a shuffled
label of the child would have.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer
from scipy.sparse import csc_array

Array = np.ndarray
MIN_GAIN = 0.03  # of F1, as in SAEBench
MOST = 10  # features of a parent
CARRIED = 0.5
MIN_TOKENS = 20  # of a child in each half
CHILDREN = 12  # of a parent, at most: the most frequent ones
MOST_SHARE = 0.5  # of a parent's tokens that may be one child's


class Half(NamedTuple):
    """A half of the text: token ids, where each feature fires, and which token has which label."""

    ids: Integer[Array, " n"]
    table: csc_array  # [token, feature]
    labels: Bool[Array, "n parent"]


def find_pairs(
    ids: tuple[Integer[Array, " n"], ...], labels: tuple[Bool[Array, "n parent"], ...]
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


def parent_features(table: csc_array, label: Bool[Array, " n"]) -> tuple[Int[Array, " k"], float]:
    """(the features that tell the label together, their F1 on these tokens)."""
    fires, known = (table > 0).astype(np.float32), np.zeros(len(label), dtype=bool)
    chosen, best, n_active = [], 0.0, np.diff(table.indptr)
    while len(chosen) < MOST:
        new = ~known
        hits, more = fires.T @ (new & label).astype(np.float32), fires.T @ new.astype(np.float32)
        told = (known & label).sum() + hits
        f1 = 2 * told / (known.sum() + more + label.sum())
        feature = int(np.where(n_active > 0, f1, -1).argmax())
        if f1[feature] < best + MIN_GAIN:
            break
        best = float(f1[feature])
        chosen.append(feature)
        known[table.indices[slice(*table.indptr[feature : feature + 2])]] = True
    return np.array(chosen, dtype=np.int64), best


def absorption(
    W_dec: Float[Array, "d_sae d_in"],
    x: Float[Array, "m d_in"],
    halves: tuple[Half, Half],
    pairs: list[tuple[int, int]],
    seed: int,
) -> pd.DataFrame:
    """A row per pair: parent, child, the child's tokens `n` in the second half, the parent's `f1`
    and the `recall` of its features on its other tokens there, the share of the child's tokens that
    is absorbed, `rate`, and the `null`. `x` are activations of the first m tokens of the first
    half.
    """
    learn, score = halves
    rng, records, rows = np.random.default_rng((seed, 14)), [], score.table.tocsr()
    for parent in dict.fromkeys(parent for parent, _ in pairs):
        features, f1 = parent_features(learn.table, learn.labels[:, parent])
        silent = np.asarray(rows[:, features].sum(1)) <= 0
        without = x[~learn.labels[: len(x), parent]].mean(0)
        for child in (child for of, child in pairs if of == parent):
            others = learn.labels[: len(x), parent] & (learn.ids[: len(x)] != child)
            difference = x[others].mean(0) - without
            writes = W_dec @ difference / (difference @ difference)  # per unit of activation
            writes[features] = 0
            has = score.labels[:, parent]
            own, rest = (
                np.flatnonzero(has & of) for of in (score.ids == child, score.ids != child)
            )
            drawn = rng.choice(rest, len(own), replace=len(rest) < len(own))
            rates = []
            for tokens in (own, drawn):
                carried = (rows[tokens] * writes[None]).max(axis=1).toarray()
                rates.append((silent[tokens] & (carried >= CARRIED)).mean())
            found = {"parent": parent, "child": child, "n": len(own), "f1": f1}
            found |= {"recall": 1 - silent[rest].mean(), "rate": rates[0], "null": rates[1]}
            records.append(found)
    return pd.DataFrame(records)
