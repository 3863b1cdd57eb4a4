"""What the study of sanity baselines found, as a sentence, rows and a figure."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import scipy

from sae_lib.figures import PALETTE
from sae_lib.formats import number, percent
from suite.study_figures import name_panels

# predeclared: an autoencoder is ahead only where its interval is above zero against every baseline
MEASURES = {
    "recovered": "loss recovered (mean ablation)",
    "information": "information (explained by rules)",
    "probing": "sparse probing (AUROC)",
    "clamping": "clamp rank",
}
CHANCE = {"probing": 0.5, "clamping": 0.5}


def comparisons(study: dict) -> pd.DataFrame:
    """A row per measure and contender: `mean` over seeds, and by how much the study's subject is
    above it, seed by seed: `difference`, with a 95 % interval over seeds (Student's t), `low` and
    `high`, NaN where there are fewer than two.
    """
    points, records = pd.DataFrame(study["points"]).set_index("seed"), []
    for measure in MEASURES:
        values = {
            name: of[measure].astype(float) for name, of in points.groupby("contender", sort=False)
        }
        for name, theirs in values.items():
            apart = (values[study["subject"]] - theirs).dropna()
            low = high = np.nan
            if len(apart) > 1:
                sizes = {"loc": apart.mean(), "scale": max(apart.sem(), 1e-12)}
                low, high = scipy.stats.t.interval(0.95, len(apart) - 1, **sizes)
            records.append((measure, name, theirs.mean(), apart.mean(), low, high))
    columns = ["measure", "contender", "mean", "difference", "low", "high"]
    return pd.DataFrame(records, columns=columns)


def strongest(study: dict) -> dict[str, dict]:
    """By measure: the baseline with the largest mean, and whether the subject is `ahead` of every
    one, with the interval of each difference above zero.
    """
    rows, found = comparisons(study), {}
    others = rows[(rows["contender"] != study["subject"]) & rows["mean"].notna()]
    for measure, of in others.groupby("measure", sort=False):
        best = of.loc[of["mean"].idxmax()].to_dict()
        found[measure] = best | {"ahead": bool((of["low"] > 0).all())}
    return found


def sentence(study: dict) -> str:
    """On how many of the measures the subject is ahead, and what is strongest on the others."""
    found, n = strongest(study), study["about"]["seeds"]
    ahead = [MEASURES[m] for m, best in found.items() if best["ahead"]]
    named = f" ({', '.join(ahead)})" if ahead else ""
    rest = [
        f"{MEASURES[m]}: {best['contender']} {written(m, best['mean'])}, a difference of "
        f"{best['difference']:+.3f} ({best['low']:+.3f} to {best['high']:+.3f})"
        for m, best in found.items()
        if not best["ahead"]
    ]
    return (
        f"The autoencoder ({study['subject']}) is ahead of every baseline, with a 95 % interval"
        f" over {n} seed{'s' if n != 1 else ''} above zero, on {len(ahead)} of"
        f" {len(MEASURES)} measures{named}."
        + (f" The strongest baseline on the others: {'; '.join(rest)}." if rest else "")
    )


def written(measure: str, value: float) -> str:
    if np.isnan(value):
        return "–"
    return number(value) if measure in CHANCE else percent(value)


def rows(study: dict) -> list[dict[str, str]]:
    """The table: a row per contender, in words; in brackets by how much the subject is above it."""
    compared, points = comparisons(study), pd.DataFrame(study["points"])
    l0 = points.groupby("contender", sort=False)["l0"].mean()
    table = []
    for name in l0.index:
        cells = {"Contender": name, "L0": number(l0[name])}
        for measure, title in MEASURES.items():
            (row,) = compared.query("measure == @measure and contender == @name").to_dict("records")
            cells[title] = written(measure, row["mean"])
            if name != study["subject"] and not np.isnan(row["low"]):
                cells[title] += f" ({row['low']:+.3f} to {row['high']:+.3f})"
        table.append(cells)
    return table


def figure(study: dict) -> go.Figure:
    """Every contender and seed, a panel per measure; dotted, what chance gives."""
    points = pd.DataFrame(study["points"])
    points["is"] = np.where(points["contender"] == study["subject"], "autoencoder", "baseline")
    names = points["contender"].unique().tolist()
    titles = {measure: title.partition(" (")[0] for measure, title in MEASURES.items()}
    melted = points.melt(["contender", "seed", "is"], list(MEASURES), "measure")
    fig = px.scatter(
        melted.dropna().replace({"measure": titles}),
        x="value",
        y="contender",
        color="is",
        facet_col="measure",
        facet_col_spacing=0.03,
        category_orders={"contender": names, "measure": list(titles.values())},
        color_discrete_map={"autoencoder": PALETTE[0], "baseline": PALETTE[5]},
        labels={"value": "", "contender": "", "is": ""},
        title="The autoencoder and its sanity baselines, a point per seed",
    )
    for column, measure in enumerate(MEASURES, 1):
        if measure in CHANCE:
            fig.add_vline(CHANCE[measure], line_dash="dot", line_color=PALETTE[5], col=column)
    fig.update_xaxes(matches=None)
    fig.update_traces(marker_size=9)
    return name_panels(fig).update_layout(legend=dict(orientation="h", y=-0.1))
