"""Blind ratings: how clearly does a page mean one thing, 1 to 5, features and neurons mixed.

The page (app/rate.js) draws and shows them; they are kept and summed up here.
"""

import csv
import io
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from sae_lib.errors import SettingsError
from sae_lib.figures import PALETTE
from suite.original import FACTS
from suite.runs import Run

COLUMNS = ["time", "rater", "seed", "kind", "unit", "rating"]
SCALE = {1: "no pattern", 2: "a hint", 3: "in part", 4: "exceptions", 5: "one meaning"}
ORIGINAL = {kind: FACTS[f"{kind}s_by_hand"] for kind in ("feature", "neuron")}  # its means
RESAMPLES = 10_000


def ratings_file(run: Run, name: str = "") -> Path:
    return run.folder / "ratings" / f"{name or run.settings.sae.recipe}.csv"


def save_rating(path: Path, rater: str, seed: int, kind: str, unit: int, rating: int) -> None:
    """Append one line and flush it to disk; what an interrupted write left behind stays a line of
    its own.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    if not before:
        writer.writerow(COLUMNS)
    elif not before.endswith(b"\n"):
        line.write("\n")
    writer.writerow([when, rater_name(rater), seed, kind, unit, rating])
    with open(path, "ab") as out:
        out.write(line.getvalue().encode())
        out.flush()
        os.fsync(out.fileno())


def load_ratings(path: Path) -> pd.DataFrame:
    """The last rating of each unit by each rater and seed; lines that are not whole are left
    out.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines()  # each is read on its own: a torn one must not swallow the next
    rows = [row for line in lines for row in csv.reader([line]) if _whole(row)]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"seed": int, "unit": int, "rating": int})
    return table.drop_duplicates(["rater", "seed", "kind", "unit"], keep="last", ignore_index=True)


def _whole(row: list[str]) -> bool:
    numbers = [row[2], *row[4:]] if len(row) == len(COLUMNS) else [""]
    return all(n.isdecimal() for n in numbers) and int(row[5]) in SCALE


def rater_name(text: str) -> str:
    """A name as it goes into the file; `SettingsError` for an empty or unprintable one."""
    name = text.strip()
    if not name or not name.isprintable() or len(name) > 60 or name[0] in "=+-@":
        raise SettingsError(
            f"rater {name!r}: expected a name of 1 to 60 printable characters "
            "that a spreadsheet does not take for a formula"
        )
    return name


def summary(ratings: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By kind: number, mean, and its 95 % bootstrap interval over the units rated (seeded,
    `RESAMPLES` times).
    """
    result = {}
    for kind, group in ratings.groupby("kind", sort=True):
        # Several raters' ratings of one unit are not independent, so units are resampled.
        scores = group.groupby("unit")["rating"].mean().to_numpy(dtype=float)
        means = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores))).mean(1)
        low, high = np.percentile(means, [2.5, 97.5]).tolist()
        mean = float(scores.mean())
        result[str(kind)] = {"n": len(scores), "mean": mean, "low": low, "high": high}
    return result


def figure(ratings: pd.DataFrame) -> go.Figure:
    """Ratings of features against neurons, one histogram over the other, with the means beside
    the original's.
    """
    named = "{kind}s: mean {mean:.2f} [{low:.2f}, {high:.2f}], n = {n} (the original's {original})"
    names = {
        kind: named.format(kind=kind, original=ORIGINAL[kind], **s)
        for kind, s in summary(ratings).items()
    }
    fig = px.histogram(
        ratings.assign(kind=ratings["kind"].map(names)),
        x="rating",
        color="kind",
        histnorm="percent",
        barmode="overlay",
        opacity=0.6,
        title="Blind ratings",
        category_orders={"kind": list(names.values())},
        color_discrete_sequence=PALETTE,
        labels={"kind": ""},
    )
    texts = [f"{rating}<br>{text}" for rating, text in SCALE.items()]
    fig.update_xaxes(range=[0.5, 5.5], tickvals=list(SCALE), ticktext=texts)
    fig.update_traces(xbins=dict(start=0.5, end=5.5, size=1))
    return fig.update_layout(legend=dict(orientation="h", y=1.02, yanchor="bottom"))


def rating_histogram(run: Run, name: str = "") -> go.Figure:
    """The figure of all ratings in the run's folder; `SettingsError` where nobody has rated yet."""
    path = ratings_file(run, name)
    ratings = load_ratings(path)
    if ratings.empty:
        raise SettingsError(f"{path} holds no ratings yet; rate some in the browser's panel first")
    return figure(ratings)
