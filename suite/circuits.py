"""What notebook 08 finds, as plain data for the report."""

from typing import Any

import numpy as np
import pandas as pd
import scipy

from sae_lib.features.attribution import KINDS, PARTS
from sae_lib.features.statistics import interval
from sae_lib.formats import percent
from sae_lib.text.display import Vocabulary

CARDS = 8  # that are listed
HEAVY = 0.1  # of a feature's direction, which has length 1, on one neuron
EXPLAINED = 0.8  # AUROC from which the weights alone explain a unit
WAYS = {"fires": "the token that it fires on", "follows": "the token that follows"}
UNITS = {"feature": "features", "neuron": "neurons", "random": "random directions"}
UNITS["shuffled"] = "features, each with the prediction of another"


def writers_by_chance(d_in: int, n: int) -> float:
    """How many of `n` random directions have at least `HEAVY` of their length on a given neuron: a
    coordinate's square has a beta distribution.
    """
    return n * scipy.stats.beta.sf(HEAVY**2, 0.5, (d_in - 1) / 2)


def ranked(cards: pd.DataFrame) -> pd.DataFrame:
    """Best first, with `score` and `rank`: the information that a short rule explains of when it
    fires, on other documents, times log₂ of the lift. Without a rule there is no score.
    """
    score = cards["information"] * np.log2(cards["lift"].clip(1))
    cards = cards.assign(score=score, rank=score.rank(ascending=False, method="first"))
    return cards.sort_values("rank", ignore_index=True)


def summary(tables: dict[str, pd.DataFrame], vocabulary: Vocabulary, seed: int) -> dict[str, Any]:
    """What the tables of `sae_lib.features.circuits.study` say, its cards `ranked`."""
    cards = tables["cards"].dropna(subset="rank")
    drawn = cards.sample(min(CARDS, len(cards)), random_state=seed % 2**32).sort_values("rank")
    return {
        "firings": _firings(tables["paths"]),
        "kinds": _kinds(tables["kinds"]),
        "replaced": _replaced(tables["replaced"]),
        "weights": _weights(tables["weights"], seed),
        "ablation": _measured(tables["effects"], "ablated", seed),
        "clamping": _measured(tables["effects"], "clamped", seed),
        "explained_at": EXPLAINED,
        "ranked": len(cards),
        "cards": {
            name: [_card(row, vocabulary) for row in chosen.to_dict("records")]
            for name, chosen in (("selected", cards[:CARDS]), ("drawn", drawn))
        },
    }


def _firings(paths: pd.DataFrame) -> dict[str, Any]:
    push = paths[PARTS].sum(axis=1)
    return {
        "n": len(paths),
        "error": paths["error"].max(),
        "without_push": (push <= 0).mean(),
        "together": (paths[PARTS].sum() / push.sum()).to_dict(),
        "median": paths[PARTS].div(push.where(push > 0), axis=0).median().to_dict(),
        "threshold": (-paths["biases"] / paths["activation"]).median(),
    }


def _kinds(kinds: pd.DataFrame) -> dict[str, Any]:
    repeats = {name: (kinds[name] >= 0.25).mean() for name in ("repeats", "repeats_null")}
    share = {kind: (kinds["kind"] == kind).mean() for kind in (*KINDS, "none")}
    return repeats | {"n": len(kinds), "share": share, "definitions": KINDS}


def _replaced(replaced: pd.DataFrame) -> dict[str, Any]:
    """Of the top source token and another at random the median change of the pre-activation, as a
    share of the activation, and the share of the firings that end.
    """
    ranks = replaced.rank()
    agreed = scipy.stats.pearsonr(ranks["predicted_top"], ranks["actual_top"])
    change = replaced[["actual_top", "actual_other"]].div(replaced["activation"], axis=0)
    return {
        "n": len(replaced),
        "spearman": agreed.statistic,
        "interval": list(agreed.confidence_interval()),  # Fisher's
        "shuffled": ranks["predicted_top"].corr(ranks["actual_other"]),
        "change": change.median().to_dict(),
        "ends": (change <= -1).mean().to_dict(),
    }


def _measured(effects: pd.DataFrame, how: str, seed: int) -> dict[str, Any]:
    """How direct effects agree with measured ones, and those of another feature."""
    agreed, shuffled = (_middle(effects[how + ending], seed) for ending in ("", "_shuffled"))
    return {"n": len(effects), "spearman": agreed, "shuffled": shuffled}


def _middle(values: pd.Series, seed: int) -> dict[str, Any]:
    values = values.dropna().to_numpy()
    return {"median": np.median(values), "interval": interval((values,), np.median, seed=seed)}


def _weights(table: pd.DataFrame, seed: int) -> dict[str, dict]:
    """By kind of unit and by what is predicted: median AUROC and Spearman, and the share explained
    (the primary measure) with its Wilson interval.
    """
    parts = dict(tuple(table.groupby("kind"))) | {"shuffled": table[table["kind"] == "feature"]}
    found = {kind: {"n": len(parts[kind])} for kind in UNITS}
    for kind in UNITS:
        ending = "_shuffled" if kind == "shuffled" else ""
        for way in WAYS:
            columns = [parts[kind][f"{way}_{m}{ending}"].dropna() for m in ("auroc", "spearman")]
            share = scipy.stats.binomtest(int((columns[0] >= EXPLAINED).sum()), len(columns[0]))
            auroc, spearman = (_middle(column, seed) for column in columns)
            found[kind][way] = {"auroc": auroc, "spearman": spearman, "explained": share.statistic}
            found[kind][way]["interval"] = list(share.proportion_ci(method="wilson"))
    return found


def compared(weights: dict[str, dict]) -> str:
    """Whether the weights explain more features than neurons and random directions, whichever way
    it came out.
    """
    sentences = []
    for way, what in WAYS.items():
        (low, high), others = weights["feature"][way]["interval"], []
        for kind in ("neuron", "random"):
            least, most = weights[kind][way]["interval"]
            said = "fewer" if most < low else "more" if least > high else "not clearly different"
            share = percent(weights[kind][way]["explained"])
            others.append(f"{share} of the {UNITS[kind]} ({said})")
        ours = percent(weights["feature"][way]["explained"])
        sentences.append(
            f"By {what}, the weights alone explain {ours} of the features, {' and '.join(others)}."
        )
    return " ".join(sentences)


def _card(row: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    return row | {n: [vocabulary.name(int(t)) for t in row[n]] for n in ("fires_on", "raises")}
