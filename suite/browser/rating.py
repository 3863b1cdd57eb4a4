"""Blind ratings: how clearly does a page stand for one thing, 1 to 5, features and neurons mixed. Drawn, kept and summed up here."""

import csv
import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sae_lib.errors import SettingsError
from sae_lib.features.evaluation import ALIVE
from sae_lib.figures import PALETTE
from suite.browser.table import FeatureTable
from suite.runs import Run

COLUMNS = ["time", "rater", "seed", "kind", "unit", "rating"]
SCALE = {1: "no pattern", 2: "a hint", 3: "in part", 4: "exceptions", 5: "one meaning"}
ORIGINAL = {
    "feature": 4.08,
    "neuron": 2.19,
}  # means of the original's blind ratings: 48 features, 52 neurons (jnward/monosemanticity-repro)
RESAMPLES = 10_000


def ratings_file(run: Run, name: str = "") -> Path:
    return run.folder / "ratings" / f"{name or run.settings.sae.recipe}.csv"


def draw_blind(tables: dict[str, FeatureTable], n: int, seed: int) -> list[tuple[str, int]]:
    """`n` of each kind among those with at least `evaluation.ALIVE` activations, shuffled together. More of them begin with the same ones."""
    rng, drawn = np.random.default_rng(seed), []
    for kind, table in tables.items():
        drawn += [(kind, int(number)) for number in rng.permutation(table.alive(ALIVE))[:n]]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def blinded(page: dict[str, Any], position: int) -> dict[str, Any]:
    """A page without what gives its kind away: its number, density, counts, neighbours and scores; activations as per cent of the maximum."""
    factor = 100 / (page["maximum"] or page["maximum_all"])

    def scaled(example: dict[str, Any]) -> dict[str, Any]:
        tokens = [t | {"value": max(0.0, t["value"] * factor)} for t in example["tokens"]]
        return example | {"activation": example["activation"] * factor, "tokens": tokens}

    return page | {
        "number": position,
        "blind": True,
        "maximum": 100.0,
        "maximum_all": 100.0,
        "before": [t | {"count": 0} for t in page["before"]],
        "raised": [t | {"value": 0.0} for t in page["raised"]],
        "lowered": [t | {"value": 0.0} for t in page["lowered"]],
        "examples": [scaled(e) for e in page["examples"]],
        "tenths": [
            t
            | {
                "from": t["from"] * factor,
                "to": t["to"] * factor,
                "share": 0.0,
                "examples": [scaled(e) for e in t["examples"]],
            }
            for t in page["tenths"]
        ],
        **{
            key: 0
            for key in ("density", "n_active", "n_tokens", "marked_share", "mean_active", "tallest")
        },
        **{key: [] for key in ("near", "aligned", "correlated", "histogram", "by_mean")},
        "score": {"rule": ""},
    }


def save_rating(path: Path, rater: str, seed: int, kind: str, unit: int, rating: int) -> None:
    """Append one line and flush it to disk; what an interrupted write left behind stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.exists() and path.stat().st_size > 0
    torn = begun and path.read_bytes()[-1:] != b"\n"
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    if not begun:
        writer.writerow(COLUMNS)
    writer.writerow(
        [datetime.now(UTC).isoformat(timespec="seconds"), rater, seed, kind, unit, rating]
    )
    out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(out, (("\n" if torn else "") + line.getvalue()).encode())
        os.fsync(out)
    finally:
        os.close(out)


def load_ratings(path: Path) -> pd.DataFrame:
    """The last rating of each unit by each rater and seed; lines that are not whole are left out."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [
        row for line in lines for row in csv.reader([line]) if _whole(row)
    ]  # each on its own: a torn one must not swallow the next
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"seed": int, "unit": int, "rating": int})
    return table.drop_duplicates(["rater", "seed", "kind", "unit"], keep="last", ignore_index=True)


def _whole(row: list[str]) -> bool:
    return (
        len(row) == len(COLUMNS)
        and all(n.isdecimal() for n in (row[2], *row[4:]))
        and int(row[5]) in SCALE
    )


def rater_name(text: str) -> str:
    """A name as it goes into the file; `SettingsError` for an empty or unprintable one."""
    name = text.strip()
    if not name or not name.isprintable() or len(name) > 60 or name[0] in "=+-@":
        raise SettingsError(
            f"rater {name!r}: expected a name of 1 to 60 printable characters that a spreadsheet does not take for a formula"
        )
    return name


def summary(ratings: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By kind: number, mean, and its 95 % bootstrap interval over the units rated (seeded, `RESAMPLES` times)."""
    result = {}
    for kind, group in ratings.groupby("kind", sort=True):
        scores = (
            group.groupby("unit")["rating"].mean().to_numpy(dtype=float)
        )  # several raters' ratings of a unit are not independent
        means = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores))).mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        result[str(kind)] = {
            "n": len(scores),
            "mean": float(scores.mean()),
            "low": float(low),
            "high": float(high),
        }
    return result


def figure(ratings: pd.DataFrame) -> go.Figure:
    """Ratings of features against neurons in the original's layout: one histogram over the other, with the means."""
    fig, found = go.Figure(), summary(ratings)
    for i, (kind, colour) in enumerate(zip(("feature", "neuron"), PALETTE, strict=False)):
        if kind not in found:
            continue
        scores, s = ratings.loc[ratings["kind"] == kind, "rating"], found[kind]
        share = [100 * float((scores == r).mean()) for r in SCALE]
        label = f"{kind}s: mean {s['mean']:.2f} [{s['low']:.2f}, {s['high']:.2f}], n = {s['n']}"
        fig.add_bar(
            x=list(SCALE),
            y=share,
            marker_color=colour,
            opacity=0.6,
            name=label,
            width=1,
            hovertemplate="%{x}: %{y:.0f} %",
        )
        fig.add_vline(s["mean"], line_color=colour, line_width=2)
        fig.add_vline(
            ORIGINAL[kind],
            line_color=colour,
            line_dash="dot",
            annotation_text=f"the original's {kind}s {ORIGINAL[kind]}",
            annotation_font_size=11,
            annotation_position=f"top {('right', 'left')[i]}",
        )
    fig.update_layout(
        barmode="overlay",
        bargap=0,
        title="Blind ratings",
        legend=dict(orientation="h", y=1.02, yanchor="bottom"),
        margin_t=100,
        width=760,
        height=440,
    )
    fig.update_xaxes(
        title="rating",
        tickangle=0,
        tickvals=list(SCALE),
        ticktext=[f"{r}<br>{text}" for r, text in SCALE.items()],
        range=[0.5, 5.5],
    )
    fig.update_yaxes(title="% of those rated")
    return fig


def rating_histogram(run: Run, name: str = "") -> go.Figure:
    """The figure of all ratings in the run's folder; `SettingsError` where nobody has rated yet."""
    ratings = load_ratings(ratings_file(run, name))
    if ratings.empty:
        raise SettingsError(
            f"{ratings_file(run, name)} holds no ratings yet; rate some in the browser's panel first"
        )
    return figure(ratings)
