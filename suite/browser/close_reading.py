"""A few features read closely, for the report: rule, examples over the whole range, logit effects, score; and one that looks clean only at the top."""

from typing import Any

import numpy as np
import pandas as pd

from sae_lib.features.evaluation import ALIVE
from suite.browser.random_draw import entry, shortened
from suite.browser.table import FeatureTable, open_table
from suite.runs import Run

PER_TENTH = 1
LOWER = 3  # tenths at the bottom of the range that count as "lower down"


def read_closely(run: Run, n: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """`n` features drawn by `seed` among those with at least `ALIVE` activations (the gallery's own draw), each with all that is known of it."""
    table = open_table(run)
    drawn = np.random.default_rng(seed).permutation(table.alive(ALIVE))[:n]
    return [in_full(table, number) for number in drawn.tolist()]


def in_full(table: FeatureTable, number: int) -> dict[str, Any]:
    """A gallery entry with rule and scores (where there are any), and an example from every tenth of the range."""
    page = table.page(number, 0, PER_TENTH)
    tenths = [
        {
            "from": t["from"],
            "to": t["to"],
            "share": t["share"],
            "examples": [shortened(e) for e in t["examples"]],
        }
        for t in page["tenths"]
    ]
    return entry(table, number) | {
        "score": page["score"],
        "tenths": tenths,
        "marked_share": page["marked_share"],
    }


def clean_only_at_the_top(table: FeatureTable) -> dict[str, Any] | None:
    """The feature whose strongest examples agree most on one token while those from the lowest tenths of its range do not; None where there is none.

    Both are shares of examples on the token that is most frequent among the strongest; the gap between them decides.
    """
    samples = table.samples[table.samples["tenth"] < LOWER]
    token = table.examples.groupby("feature")["token_id"].agg(lambda ids: ids.mode().iloc[0])
    at_top = (
        (table.examples["token_id"] == table.examples["feature"].map(token))
        .groupby(table.examples["feature"])
        .agg(["mean", "size"])
    )
    lower = (
        (samples["token_id"] == samples["feature"].map(token))
        .groupby(samples["feature"])
        .agg(["mean", "size"])
    )
    both = at_top.join(lower, lsuffix="_top", rsuffix="_lower", how="inner")
    both = both[
        (both["size_top"] >= 10) & (both["size_lower"] >= 2 * LOWER) & (both["mean_top"] >= 0.9)
    ]
    both = both.loc[both.index.intersection(pd.Index(table.alive(ALIVE)))]
    if both.empty:
        return None
    worst = both.sort_values(
        ["mean_lower", "mean_top", "size_lower"], ascending=[True, False, False], kind="stable"
    ).iloc[0]
    chosen = in_full(table, int(worst.name)) | {
        "top_share": float(worst["mean_top"]),
        "lower_share": float(worst["mean_lower"]),
        "lower_examples": int(worst["size_lower"]),
    }
    return chosen | {
        "clean_top": int((both["mean_top"] >= 0.9).sum()),
        "unclean_lower": int(((both["mean_top"] >= 0.9) & (both["mean_lower"] < 0.5)).sum()),
    }
