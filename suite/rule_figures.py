"""What the rules found, as sentences and figures: how well they do by kind of unit, and the map of
the clusters that they name.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from sae_lib.figures import PALETTE
from sae_lib.formats import interval, number, percent, signed
from sae_lib.interpretability.scores import MEASURES
from suite.charts import chart
from suite.markup import label

KINDS = {  # in the order of the figure
    "feature": "features",
    "neuron_matched": "neurons, matched",
    "principal_matched": "principal directions, matched",
    "random": "random directions, matched",
    "untrained_matched": "untrained model's features, matched",
    "shuffled": "features, shuffled",
    "feature_strong": "features, strong half",
    "neuron_strong": "neurons, as dense as the strong half",
    "principal_strong": "principal directions, as dense as the strong half",
    "random_strong": "random directions, as dense as the strong half",
    "neuron": "neurons, unmatched",
    "principal": "principal directions, unmatched",
    "untrained": "untrained model's features, unmatched",
}
PAIRS = {  # features of which kind against what
    "feature - neuron_matched": "neurons of the same density",
    "feature_strong - neuron_strong": "such neurons over the strong half",
    "feature - random": "random directions",
    "feature - untrained_matched": "an untrained model's features",
}
LABELS = 14  # clusters whose names are written on the map, and which have colours
CLUSTERS = qualitative.Prism[:10]  # no recipe's
UNNAMED = "#d5dae0"


def compared(interpretability: dict) -> str:
    """Features against the other kinds by the primary measure, the median information, whichever
    way it came out, and without a verdict where densities do not match; AUROC stands beside it.
    """
    said, beside = [], []
    for pair, other in PAIRS.items():
        if found := interpretability["differences"].get(pair):
            d, ends = (found["information_median"][key] for key in ("difference", "interval"))
            match = interpretability["density_match"][pair.split(" - ")[1]]
            verdict = f"their densities differ by a factor of {number(match['factor'])}: no verdict"
            if match["matched"]:
                verdict = _ahead(ends, "features are ahead", "features are behind", "level")
            within = interval(*(100 * end for end in ends), signed)
            said.append(f"{other} {signed(100 * d)} ({within}; {verdict})")
            d, ends = (found["auroc_median"][key] for key in ("difference", "interval"))
            how = _ahead(ends, "ahead of", "behind", "level with")
            beside.append(f"{how} {other} ({signed(d)}, {interval(*ends, signed)})")
    return (
        "By information, features minus others, in percentage points with 95 % intervals:"
        f" {'; '.join(said)}. By AUROC, features are {', '.join(beside)}."
    )


def brief(interpretability: dict) -> str:
    """The same in a clause each, without the strong half."""
    said, beside = [], []
    for pair, other in PAIRS.items():
        found = interpretability["differences"].get(pair)
        if found and not pair.startswith("feature_strong"):
            d, ends = (found["information_median"][key] for key in ("difference", "interval"))
            how = _ahead(ends, "ahead of", "behind", "level with")
            if not interpretability["density_match"][pair.split(" - ")[1]]["matched"]:
                how = "not to be compared with"
            within = interval(*(100 * end for end in ends), signed)
            said.append(f"{how} {other} ({signed(100 * d)} points, {within})")
            beside.append(_ahead(found["auroc_median"]["interval"], "ahead", "behind", "level"))
    return f"features are {', '.join(said)}; by AUROC {', '.join(beside)}."


def _ahead(ends: list[float], ahead: str, behind: str, level: str) -> str:
    return ahead if ends[0] > 0 else behind if ends[1] < 0 else level


def against_neurons(scores: pd.DataFrame) -> go.Figure:
    """The original's figure, with rules in the place of people: how many per cent of the neurons
    and of the features score how well, overlaid.

    As they are; with the neurons thresholded to features' densities; and so again for the strong
    half of features' activations.
    """
    panels = {
        "as they are": ("neuron", "feature"),
        "at equal densities": ("neuron_matched", "feature"),
        "the strong half, at equal densities": ("neuron_strong", "feature_strong"),
    }
    colours = {"neurons": PALETTE[1], "features": PALETTE[0]}
    options = {"shared_yaxes": True, "horizontal_spacing": 0.04}
    fig = make_subplots(1, len(panels), subplot_titles=list(panels), **options)
    for column, kinds in enumerate(panels.values(), 1):
        for kind, (name, colour) in zip(kinds, colours.items(), strict=True):
            values, at = scores.loc[scores["kind"] == kind, "auroc"], {"row": 1, "col": column}
            legend = {"name": name, "legendgroup": name, "showlegend": column == 1}
            bins = {"start": 0.4, "end": 1.0001, "size": 0.025}
            shown = {"histnorm": "percent", "opacity": 0.6, "marker_color": colour}
            fig.add_histogram(x=values, xbins=bins, **shown, **legend, **at)
            fig.add_vline(x=values.median(), line={"color": colour, "dash": "dash"}, **at)
    neurons, features = (median_of(scores, kind, "auroc") for kind in panels["at equal densities"])
    lead = "neurons" if neurons > features else "features"
    title = f"By AUROC, rules predict {lead} better at equal densities"
    if number(neurons) == number(features):
        title = "By AUROC, rules predict neurons and features alike at equal densities"
    title += f" (dashed: medians, {number(features)} and {number(neurons)})"
    fig.update_layout(barmode="overlay", title=title, legend={"x": 0.01, "y": 0.98})
    fig.update_xaxes(title="AUROC on the other documents", range=[0.45, 1.0])
    fig.update_yaxes(title="share of units (%)", col=1)
    return fig


def median_of(scores: pd.DataFrame, kind: str, measure: str) -> float:
    return scores.loc[scores["kind"] == kind, measure].median()


def by_kind(scores: pd.DataFrame) -> go.Figure:
    """AUROC and information explained of every kind: each unit's distribution, the middle half
    as a box, the median as its line.
    """
    measures = {measure: MEASURES[measure] for measure in ("auroc", "information")}
    table = scores.rename(columns=measures).melt("kind", [*measures.values()], "measure")
    shades = {"feature": PALETTE[0], "neuron": PALETTE[1]}
    colours = {name: shades.get(kind.partition("_")[0], PALETTE[5]) for kind, name in KINDS.items()}
    known = set(scores["kind"])
    order = {"kind": [name for kind, name in KINDS.items() if kind in known]}
    beside = {"feature": "features", "neuron_matched": "neurons", "random": "random"}
    said = [
        f"{name} {percent(median_of(scores, kind, 'information'))}"
        for kind, name in beside.items()
        if kind in known
    ]
    title = f"Information explained at equal densities (medians): {', '.join(said)}"
    how = {"color_discrete_map": colours, "category_orders": order, "title": title}
    fig = chart("rules_by_kind", table.replace({"kind": KINDS}), **how)
    fig.update_xaxes(range=[0.4, 1.0], col=1)
    return fig.update_xaxes(range=[-0.15, 1.0], tickformat=".0%", col=2)


def cluster_map(table: pd.DataFrame, unnamed: str) -> go.Figure:
    """Every feature as a point with its rule on hover; the largest clusters but those called
    `unnamed` have colours, which repeat, and are written on the map.
    """
    named = table[table["name"] != unnamed]
    largest = named["cluster"].value_counts().index[:LABELS].tolist()
    shades = {c: CLUSTERS[i % len(CLUSTERS)] for i, c in enumerate(largest)}
    text = [
        f"feature {r.feature}<br>cluster {r.cluster}: {label(r.name, 80)}<br>{label(r.rule, 160)}"
        for r in table.itertuples(index=False)
    ]
    colours = [shades.get(c, UNNAMED) for c in table["cluster"]]
    marker = {"size": 5, "color": colours, "opacity": 0.75}
    hover = {"text": text, "hovertemplate": "%{text}<extra></extra>"}
    fig = go.Figure(go.Scatter(x=table["x"], y=table["y"], mode="markers", marker=marker, **hover))
    box = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.75)", "font": {"size": 11}}
    for cluster in largest:
        members = named[named["cluster"] == cluster]
        x, y = members[["x", "y"]].median()
        fig.add_annotation(x=x, y=y, text=label(members["name"].iloc[0], 40), **box)
    title = "Which features belong together? Groups by direction and firing, named by their rules"
    fig.update_layout(title=title, hoverlabel={"align": "left"}, height=700)
    return fig.update_xaxes(visible=False).update_yaxes(visible=False)
