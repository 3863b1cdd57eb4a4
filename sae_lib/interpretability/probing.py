"""k-sparse probing (Gurnee et al. 2023): how well a few features predict exact labels of tokens.

The labels are attributes that are computed from the text, so that nobody has to judge them: what a
token looks like, what surrounds it, which kind of document it is from. Features are chosen and a
probe is fitted on the learning half; it is scored on the other.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MaxAbsScaler

from sae_lib.interpretability.token_attributes import NAMES, NONE, Attribute

Array = np.ndarray
K = 5  # features of a probe
FITTED = 40_000  # tokens that a probe is fitted on
PREVIOUS = 10  # so many of the commonest tokens are tasks: "after it"
ALWAYS = ("`self`", "`·self`")  # tasks too, where the vocabulary has them
MIN_SHARE = 0.005  # of the tokens of a half that have a label, and that have it not
Tasks = dict[str, tuple[Array, Array]]  # label → whether each token of a half has it


def tasks(
    raw: tuple[Int[Array, "n attribute"], ...],
    kinds: tuple[Array, ...],
    attributes: list[Attribute],
) -> Tasks:
    """A task per value of the attributes whose values are few, per common token before, and per
    kind of document, where both halves have enough tokens with and without it.

    `raw` are the attributes' values and `kinds` the documents' kinds, of the tokens of two halves.
    """
    found: Tasks = {}
    for column, attribute in enumerate(attributes):
        halves = [half[:, column] for half in raw]
        values = list(range(len(NAMES.get(attribute.name, ()))))
        if attribute.name == "previous":
            known, counts = np.unique(halves[0][halves[0] != NONE], return_counts=True)
            values = known[np.argsort(-counts, kind="stable")]
            values = [
                v for i, v in enumerate(values) if i < PREVIOUS or attribute.value(v) in ALWAYS
            ]
        for value in values:
            label = f"{attribute.name}: {attribute.value(value)}"
            found[label] = tuple(half == value for half in halves)
    for kind in np.unique(kinds[0]):
        found[f"document: {kind}"] = tuple(half == kind for half in kinds)
    shares = {label: [half.mean() for half in halves] for label, halves in found.items()}
    return {
        label: found[label]
        for label, share in shares.items()
        if min(share) >= MIN_SHARE and max(share) <= 1 - MIN_SHARE
    }


def probe(f: Sequence[scipy.sparse.csc_array], tasks: Tasks, seed: int) -> dict[str, float]:
    """By task the AUROC on the scoring half of a logistic regression on the `K` features whose mean
    differs most (in standard deviations) between tokens with the label and those without.

    `f` are the features' activations [token, feature] in the learning half and in the scoring half.
    """
    rng, scores = np.random.default_rng(seed), {}
    fitted = np.sort(rng.permutation(f[0].shape[0])[:FITTED])
    labels = np.stack([halves[0] for halves in tasks.values()], axis=1).astype(np.float32)
    differences = mean_differences(f[0], labels)
    for (task, halves), difference in zip(tasks.items(), differences.T, strict=True):
        chosen = np.sort(np.argsort(-difference, kind="stable")[:K])
        learned, scored = (half[:, chosen].toarray() for half in f)
        scale = MaxAbsScaler().fit(learned)
        regression = LogisticRegression(max_iter=200)
        regression.fit(scale.transform(learned[fitted]), halves[0][fitted])
        decided = regression.decision_function(scale.transform(scored))
        scores[task] = float(roc_auc_score(halves[1], decided))
    return scores


def mean_differences(
    f: scipy.sparse.csc_array, labels: Float[Array, "n task"]
) -> Float[Array, "d_sae task"]:
    """|mean with the label − mean without|, in the feature's standard deviations; 0 for a feature
    that is silent.
    """
    n, n_with = f.shape[0], labels.sum(0)
    with_label, total = f.T @ labels, np.asarray(f.sum(0))[:, None]
    variance = np.asarray(f.power(2).sum(0))[:, None] / n - (total / n) ** 2
    difference = with_label / n_with - (total - with_label) / (n - n_with)
    return np.abs(difference) / np.sqrt(np.maximum(variance, 1e-12))
