"""What the rule scores say: medians and differences between kinds with bootstrap intervals, and
their figures.
"""

from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from sae_lib import figures

MEASURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "information": "information explained",
}
KINDS = {  # in the order of the figure
    "feature": "features",
    "neuron_matched": "neurons, matched",
    "principal_matched": "principal directions, matched",
    "random": "random directions, matched",
    "untrained_matched": "untrained model's features, matched",
    "shuffled": "features, shuffled",
    "feature_strong": "features, strong half",
    "neuron_strong": "neurons, as dense as the strong half",
    "principal_strong": "principal directions, as dense as it",
    "random_strong": "random directions, as dense as it",
    "neuron": "neurons, unmatched",
    "principal": "principal directions, unmatched",
    "untrained": "untrained model's features, unmatched",
}
UNMATCHED = {"neuron", "principal", "untrained"}  # compared at whatever densities they have
# the most that quartiles of the densities of two kinds may differ by, as a factor, to count as
# equal
DENSITY_TOLERANCE = 1.25
AVERAGES = {"median": np.median, "mean": np.mean}
DRAWS = 2000  # of the bootstrap
EXAMPLES = 8  # rules per kind in the results


def summary(scores: pd.DataFrame, seed: int) -> dict:
    """By kind: n, median and mean of each measure with 95 % intervals over units (bootstrap),
    rules as examples; how far features are above each other kind; and whether densities match.
    """
    rng = np.random.default_rng((seed, 3))
    scored, draws, differences = {}, {}, {}
    for kind, table in scores.groupby("kind", sort=False):
        n = len(table)
        scored[kind] = {
            "n": n,
            "density_median": table["density"].median(),
            "conditions_mean": table["n_conditions"].mean(),
            "context_share": table["context"].mean(),
        }
        chosen = rng.integers(n, size=(DRAWS, n))
        for measure, (average, of) in product(MEASURES, AVERAGES.items()):
            values, name = table[measure].to_numpy(), f"{measure}_{average}"
            draws[kind, name] = of(values[chosen], axis=1)
            interval = _interval(draws[kind, name])
            scored[kind] |= {name: of(values), f"{name}_interval": interval}
        shown = table.sample(min(EXAMPLES, n), random_state=seed % 2**32)
        scored[kind]["examples"] = shown[["unit", "rule", *MEASURES, "density"]].to_dict("records")
    for kind, name in draws:
        ours = _compared_with(kind)
        if kind != ours and ours in scored:
            differences.setdefault(f"{ours} - {kind}", {})[name] = {
                "difference": scored[ours][name] - scored[kind][name],
                "interval": _interval(draws[ours, name] - draws[kind, name]),
            }
    return {"scores": scored, "differences": differences, "density_match": density_match(scores)}


def _compared_with(kind: str) -> str:
    return "feature_strong" if kind.endswith("_strong") else "feature"


def density_match(scores: pd.DataFrame) -> dict:
    """By kind that is meant to be as dense as features: quartiles of the densities of its scored
    units and of the features', the largest factor between two quartiles, and whether that is
    within `DENSITY_TOLERANCE`.
    """
    by_kind = scores.groupby("kind", sort=False)["density"]
    quartiles = {kind: d.quantile([0.25, 0.5, 0.75]).to_numpy() for kind, d in by_kind}
    found = {}
    for kind, own in quartiles.items():
        features = quartiles.get(_compared_with(kind), own)
        if kind not in UNMATCHED and features is not own:
            factor = float(np.exp(np.abs(np.log(own / features)).max()))
            sides = {"quartiles": own.tolist(), "features": features.tolist()}
            found[kind] = sides | {"factor": factor, "matched": factor <= DENSITY_TOLERANCE}
    return found


def _interval(draws: Float[np.ndarray, " draw"]) -> list[float]:
    return np.quantile(draws, [0.025, 0.975]).tolist()


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
    colours = {"neurons": figures.PALETTE[1], "features": figures.PALETTE[0]}
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
    title = "How well a short rule predicts when a unit fires (dashed: medians)"
    fig.update_layout(barmode="overlay", title=title, legend={"x": 0.01, "y": 0.98})
    fig.update_xaxes(title="AUROC on the other documents", range=[0.45, 1.0])
    fig.update_yaxes(title="share of units (%)", col=1)
    return fig


def by_kind(scores: pd.DataFrame) -> go.Figure:
    """AUROC and information explained of every kind: each unit's distribution, the middle half
    as a box, the median as its line.
    """
    measures = ("auroc", "information")
    titles, options = [MEASURES[m] for m in measures], {"shared_yaxes": True}
    fig = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.04, **options)
    shape = {"orientation": "h", "side": "positive", "width": 1.7, "points": False}
    shape |= {"box_visible": True, "showlegend": False, "spanmode": "hard"}
    for kind in reversed([kind for kind in KINDS if (scores["kind"] == kind).any()]):
        colour = {"feature": 0, "neuron": 1}.get(kind.partition("_")[0], 5)
        for column, measure in enumerate(measures, 1):
            at = {"line_color": figures.PALETTE[colour], "row": 1, "col": column}
            values = scores.loc[scores["kind"] == kind, measure]
            fig.add_violin(x=values, name=KINDS[kind], **shape, **at)
    fig.update_layout(title="Rules scored on the other half of the documents")
    fig.update_xaxes(range=[0.4, 1.0], col=1)
    fig.update_xaxes(range=[-0.15, 1.0], tickformat=".0%", col=2)
    return fig
