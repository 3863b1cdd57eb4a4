"""Features for the report: drawn at random, read closely, and one that looks clean only at the
top.

Everything here is plain data for `results/*.json`: texts are made visible, and none is escaped.
"""

from typing import Any

import numpy as np

from sae_lib.features.evaluation import ALIVE
from sae_lib.text.display import plain
from suite.runs import Run
from suite.table import SCORES, FeatureTable, open_table

EXAMPLES, BEFORE, AFTER, LOGITS = 5, 12, 6, 6
LOWER = 3  # tenths at the bottom of the range that count as "lower down"
CLEAN = 0.9  # share of the strongest examples that agree on one token


def gallery(run: Run, n: int = 5, seed: int = 0, name: str = "") -> list[dict[str, Any]]:
    """`n` features drawn among those with at least `evaluation.ALIVE` activations, or all where
    there are fewer.
    """
    table = open_table(run, name)
    return [entry(table, number) for number in draw(table, n, seed)]


def draw(table: FeatureTable, n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(table.alive(ALIVE))[:n].tolist()


def entry(table: FeatureTable, number: int) -> dict[str, Any]:
    """One feature as plain data."""
    f, name = table.features.iloc[number], table.vocabulary.name
    strongest = table.strongest(number)
    on_token = strongest.groupby("token_id").size().sort_values(ascending=False, kind="stable")

    def moved(end: str) -> list[dict[str, Any]]:
        pairs = list(zip(f[f"{end}_logits"], f[f"{end}_logit_values"], strict=True))[:LOGITS]
        return [{"token": name(int(token)), "value": float(value)} for token, value in pairs]

    return {
        "feature": number,
        "density": float(f["density"]),
        "n_active": int(f["n_active"]),
        "maximum": float(f["maximum"]),
        "top_tokens": [
            {"token": name(token), "count": count} for token, count in on_token.head(LOGITS).items()
        ],
        "n_examples": len(strongest),
        "raised": moved("top"),
        "lowered": moved("bottom"),
        "examples": [shortened(table, e) for e in strongest[:EXAMPLES].itertuples()],
    }


def shortened(table: FeatureTable, e) -> dict[str, Any]:
    ids = [int(token) for token in e.token_ids]
    return {
        "before": table.spelled(ids[max(0, e.focus - BEFORE) : e.focus]),
        "token": table.vocabulary.name(ids[e.focus]),
        "after": table.spelled(ids[e.focus + 1 : e.focus + 1 + AFTER]),
        "activation": float(e.activation),
    }


def read_closely(run: Run, n: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """The gallery's own draw, each feature with all that is known of it."""
    table = open_table(run)
    return [in_full(table, number) for number in draw(table, n, seed)]


def in_full(table: FeatureTable, number: int) -> dict[str, Any]:
    """A gallery entry with rule and scores (where there are any), and an example from every tenth
    of the range.
    """
    f = table.features.iloc[number]
    maximum = float(f.get("maximum_all", f["maximum"]))
    score: dict[str, Any] = {"rule": ""}
    if isinstance(f.get("rule"), str):
        score = f[f.index.intersection(SCORES)].to_dict() | {"rule": plain(f["rule"])}
        score["n_conditions"] = int(score["n_conditions"])
    tenths = [
        {
            "from": maximum * e.tenth / 10,
            "to": maximum * (e.tenth + 1) / 10,
            "share": float(f["tenths"][e.tenth]),
            "examples": [shortened(table, e)],
        }
        for e in table.sampled(number).drop_duplicates("tenth")[::-1].itertuples()
    ]
    marked = float(f.get("marked_share", 0.0))
    return entry(table, number) | {"score": score, "tenths": tenths, "marked_share": marked}


def clean_only_at_the_top(table: FeatureTable) -> dict[str, Any] | None:
    """The feature whose strongest examples agree most on one token while those from its lowest
    tenths do not.

    Both are shares of examples on the token that is most frequent among the strongest; the gap
    between them decides. None where there is no such feature.
    """
    strongest, lower = (
        table.examples.query(which) for which in ("tenth < 0", "0 <= tenth < @LOWER")
    )
    token = strongest.groupby("feature")["token_id"].agg(lambda ids: ids.mode().iloc[0])
    top_share, lower_share = (
        (part["token_id"] == part["feature"].map(token))
        .groupby(part["feature"])
        .agg(["mean", "size"])
        for part in (strongest, lower)
    )
    both = top_share.join(lower_share, lsuffix="_top", rsuffix="_lower", how="inner")
    both = both.query("size_top >= 10 and size_lower >= 2 * @LOWER and mean_top >= @CLEAN")
    both = both[both.index.isin(table.alive(ALIVE))]
    if both.empty:
        return None
    keys = ["mean_lower", "mean_top", "size_lower"]
    worst = both.sort_values(keys, ascending=[True, False, False], kind="stable").iloc[0]
    return in_full(table, int(worst.name)) | {
        "top_share": float(worst["mean_top"]),
        "lower_share": float(worst["mean_lower"]),
        "lower_examples": int(worst["size_lower"]),
        "clean_top": len(both),
        "unclean_lower": int((both["mean_lower"] < 0.5).sum()),
    }
