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

The null asks the same of `shuffled_labels`: sets of tokens drawn at random, as frequent.
"""

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
MIN_TOKENS = 20  # of a child in each half
CHILDREN = 12  # of a parent, at most: the most frequent ones
MOST_SHARE = 0.5  # of a parent's tokens that may be one child's


class Half(NamedTuple):
    """A half of the text: token ids, where each feature fires, and which token has which label."""

    ids: Integer[Array, " n"]
    table: csc_array  # [token, feature]
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
    """In place of each parent a set of token types, drawn at random until it is as frequent."""
    rng, n_types = np.random.default_rng((seed, 14)), 1 + max(map(np.max, ids))
    counts, found = np.bincount(ids[0], minlength=n_types), []
    for wanted in labels[0].sum(0):
        order = rng.permutation(n_types)
        has = np.zeros(n_types, dtype=bool)
        has[order[: 1 + np.searchsorted(counts[order].cumsum(), wanted)]] = True
        found.append([has[half] for half in ids])
    return tuple(np.stack(half, axis=1) for half in zip(*found, strict=True))


def parent_features(
    table: csc_array, label: Bool[Array, " n"], judged: Bool[Array, " n"]
) -> tuple[Int[Array, " k"], float]:
    """(the features that tell the label together, their F1), on the tokens `judged`. `table` says
    with 0 and 1 where features fire.
    """
    known, chosen, best = np.zeros(len(label), dtype=bool), [], 0.0
    label = label & judged
    while len(chosen) < MOST:
        new = judged & ~known
        counted = np.stack([new & label, new], axis=1).astype(np.float32)
        hits, fired = (table.T @ counted).T
        f1 = 2 * ((known & label).sum() + hits) / ((known & judged).sum() + fired + label.sum())
        feature = int(f1.argmax())
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
) -> pd.DataFrame:
    """A row per pair: parent, child, the child's tokens `n` in the second half, the parent's `f1`
    in the first and the `recall` of its features on its other tokens in the second, and the share
    of the child's tokens that is absorbed, `rate`. `x` are activations of the first m tokens of the
    first half.
    """
    (learn, score), records = halves, []
    fires, rows, first = (learn.table > 0).astype(np.float32), score.table.tocsr(), len(x)
    for parent, child in tqdm(pairs, desc="absorption"):
        has, own = learn.labels[:, parent], learn.ids == child
        features, f1 = parent_features(fires, has, ~(has & own))
        difference = x[(has & ~own)[:first]].mean(0) - x[~has[:first]].mean(0)
        writes = W_dec @ difference / (difference @ difference)  # per unit of activation
        writes[features] = 0
        has, own = score.labels[:, parent], score.ids == child
        silent = np.asarray(rows[:, features].sum(1)) <= 0
        tokens = np.flatnonzero(has & own)
        carried = (rows[tokens] * writes[None]).max(axis=1).toarray().ravel()
        found = {"parent": parent, "child": child, "n": len(tokens), "f1": f1}
        found |= {"recall": 1 - silent[has & ~own].mean()}
        records.append(found | {"rate": (silent[tokens] & (carried >= CARRIED)).mean()})
    return pd.DataFrame(records)
