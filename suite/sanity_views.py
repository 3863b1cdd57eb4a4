"""What the study of sanity baselines found, as a sentence, rows and a figure."""

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sae_lib.figures import PALETTE
from sae_lib.formats import interval, number, percent, signed
from suite.charts import chart
from suite.study_figures import mean_and_half_width

# predeclared: an autoencoder is ahead only where its interval is above zero against every baseline
MEASURES = {
    "recovered": "loss recovered (mean ablation)",
    "information": "information (explained by rules)",
    "probing": "sparse probing (AUROC)",
    "clamping": "clamp rank",
}
CHANCE = {"probing": 0.5, "clamping": 0.5}


def measured(study: dict) -> pd.DataFrame:
    """The points; a contender has a measure only where it could be taken in every seed."""
    points = pd.DataFrame(study["points"])
    for measure in MEASURES:
        values = points[measure].astype(float)
        taken = values.notna().groupby(points["contender"]).transform("all")
        points[measure] = values.where(taken)
    return points


def comparisons(study: dict) -> pd.DataFrame:
    """A row per measure and contender: `mean` over seeds, and by how much the study's subject is
    above it, seed by seed: `difference`, with a 95 % interval over seeds (Student's t), `low` and
    `high`, NaN where there are fewer than two, or where neither side varies.
    """
    points, records = measured(study).set_index("seed"), []
    contenders = dict(list(points.groupby("contender", sort=False)))
    for measure, (name, theirs) in itertools.product(MEASURES, contenders.items()):
        values, ours = (of[measure] for of in (theirs, contenders[study["subject"]]))
        mean, half = mean_and_half_width((ours - values).dropna())
        if ours.nunique() == 1 and values.nunique() == 1:
            half = float("nan")  # one object on each side: nothing of it varies with the seed
        records.append((measure, name, values.mean(), mean, mean - half, mean + half))
    columns = ["measure", "contender", "mean", "difference", "low", "high"]
    return pd.DataFrame(records, columns=columns)


def strongest(study: dict) -> dict[str, dict]:
    """By measure: the baseline with the largest mean, whether the subject is `ahead` of every one,
    with the interval of each difference above zero, and those ahead of it: `above`.
    """
    rows, found = comparisons(study), {}
    others = rows[(rows["contender"] != study["subject"]) & rows["mean"].notna()]
    for measure, of in others.groupby("measure", sort=False):
        best = of.loc[of["mean"].idxmax()].to_dict()
        above = of[of["high"] < 0].sort_values("difference")["contender"].tolist()
        found[measure] = best | {"ahead": bool((of["low"] > 0).all()), "above": above}
    return found


def brief(study: dict, named: bool = True) -> str:
    """On how many of the measures the subject is ahead of every baseline that has it, and on how
    many behind at least one; `named`: which those are.
    """
    leads = [_short(m) for m, best in strongest(study).items() if best["ahead"]]
    behind = {m: best["above"] for m, best in strongest(study).items() if best["above"]}
    on = [_short(m) + (f" ({', '.join(of)})" if named else "") for m, of in behind.items()]
    what = "a TopK autoencoder" if study["subject"] == "trained" else "the autoencoder"
    said = f"{what} is ahead of all sanity baselines that have the measure on {len(leads)}"
    said += f" ({' and '.join(leads)})" if leads else ""
    return said + (f", and behind at least one on {len(on)}: {', '.join(on)}" if on else "")


def sentence(study: dict) -> str:
    """On how many of the measures the subject is ahead, and what is strongest on the others, with
    the difference and its interval.
    """
    found, n = strongest(study), study["about"]["seeds"]
    ahead = [MEASURES[m] for m, best in found.items() if best["ahead"]]
    named = f" ({', '.join(ahead)})" if ahead else ""
    rest = []
    for m, best in found.items():
        said = f"{MEASURES[m]}: {best['contender']} {written(m, best['mean'])}, a difference of"
        said += f" {best['difference']:+.3f} ({best['low']:+.3f} to {best['high']:+.3f})"
        if not best["ahead"]:
            rest.append(said.replace("-", "\N{MINUS SIGN}"))
    over = f"over {n} seed{'s' if n != 1 else ''} "
    return (
        f"The autoencoder ({study['subject']}) is ahead of every baseline that has it, with a 95 %"
        f" interval {over}above zero, on {len(ahead)} of {len(MEASURES)} measures{named}."
        + (f" The strongest baseline on the others: {'; '.join(rest)}." if rest else "")
    )


def against(study: dict, measure: str, contender: str) -> str:
    """How the subject compares with one contender by one measure, as a sentence."""
    table = comparisons(study).query("measure == @measure").set_index("contender")
    if contender not in table.index or np.isnan(table["low"][contender]):
        return ""
    ours, theirs = table.loc[study["subject"]], table.loc[contender]
    shown = "ahead" if theirs["low"] > 0 else "behind" if theirs["high"] < 0 else "neither ahead"
    ends = interval(theirs["low"], theirs["high"], signed)
    return (
        f"In the study of sanity baselines, with another recipe, the mean {_short(measure)} is"
        f" {number(ours['mean'])}, of {contender} {number(theirs['mean'])}: {shown}"
        f" ({signed(theirs['difference'])}, {ends})."
    )


def _short(measure: str) -> str:
    return MEASURES[measure].partition(" (")[0]


def written(measure: str, value: float) -> str:
    if np.isnan(value):
        return "–"
    return number(value) if measure in CHANCE else percent(value)


def rows(study: dict) -> list[dict[str, str]]:
    """The table: a row per contender, in words; in brackets by how much the subject is above it.
    L0 is a column where it is not the same for all.
    """
    compared, points = comparisons(study), pd.DataFrame(study["points"])
    l0 = points.groupby("contender", sort=False)["l0"].mean().map(number)
    table = []
    for name in l0.index:
        cells = {"Contender": name} | ({"L0": l0[name]} if l0.nunique() > 1 else {})
        for measure, title in MEASURES.items():
            (row,) = compared.query("measure == @measure and contender == @name").to_dict("records")
            cells[title] = written(measure, row["mean"])
            if name != study["subject"] and not np.isnan(row["low"]):
                by, places = (1, 3) if measure in CHANCE else (100, 1)  # shares: in points
                ends = (f"{by * row[end]:+.{places}f}" for end in ("low", "high"))
                cells[title] += f" ({' to '.join(ends)})".replace("-", "\N{MINUS SIGN}")
        table.append(cells)
    return table


def figure(study: dict) -> go.Figure:
    """Every contender and seed, a panel per measure; dotted, what chance gives."""
    points = measured(study)
    points["is"] = np.where(points["contender"] == study["subject"], "autoencoder", "baseline")
    titles = {measure: title.partition(" (")[0] for measure, title in MEASURES.items()}
    melted = points.melt(["contender", "seed", "is"], list(MEASURES), "measure").dropna()
    order = {"contender": points["contender"].unique(), "measure": list(titles.values())}
    colours = {"autoencoder": PALETTE[0], "baseline": PALETTE[5]}
    found = strongest(study)
    ahead = sum(best["ahead"] for best in found.values())
    title = f"The autoencoder leads all baselines that have it on {ahead} of {len(found)} measures"
    how = {"category_orders": order, "color_discrete_map": colours}
    how["title"] = f"{title} (a point per seed)"
    fig = chart("sanity", melted.replace({"measure": titles}), **how)
    for column, measure in enumerate(MEASURES, 1):
        if measure in CHANCE:
            fig.add_vline(CHANCE[measure], line_dash="dot", line_color=PALETTE[5], col=column)
    return fig
