"""What the rule scores say: medians and differences between kinds with bootstrap intervals, and their figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from sae_lib import figures
from sae_lib.runs import Run

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
DRAWS = 2000  # of the bootstrap
EXAMPLES = 8  # rules per kind in the results


def load_scores(run: Run, name: str = "") -> pd.DataFrame:
    """The scores of one autoencoder's features and of what they are compared with, made first where they are not there."""
    from sae_lib.interpretability.scoring import score_run

    return pd.read_parquet(score_run(run, name) / "scores.parquet")


def save_summary(run: Run, name: str, folder: Path, made_from: dict) -> None:
    """`results/interpretability*.json` and the figures, from the table alone."""
    where = (
        "interpretability"
        + ("" if run.parent is None else f"_{run.folder.name}")
        + ("" if name == run.settings.sae.recipe else f"_{name}")
    )
    with run.making(where, made_from) as missing:
        if missing:
            scores = pd.read_parquet(folder / "scores.parquet")
            counts = json.loads((folder / "counts.json").read_text())
            run.figure(against_neurons(scores), where, 1000, 450)
            run.figure(by_kind(scores), f"{where}_kinds", 1000, 620)
            run.save_results(where, counts | summary(scores, run.settings.seed), made_from)


def summary(scores: pd.DataFrame, seed: int) -> dict:
    """By kind: n, median and mean of each measure with 95 % intervals over units (bootstrap), rules as examples; and how far features are above each other kind."""
    rng = np.random.default_rng((seed, 3))
    scored, drawn = {}, {}
    for kind, table in scores.groupby("kind", sort=False):
        scored[kind] = {
            "n": len(table),
            "density_median": table["density"].median(),
            "conditions_mean": table["n_conditions"].mean(),
            "context_share": table["context"].mean(),
        }
        drawn[kind] = {}
        chosen = rng.integers(len(table), size=(DRAWS, len(table)))
        for measure in MEASURES:
            values = table[measure].to_numpy()
            drawn[kind][measure] = {
                "median": np.median(values[chosen], axis=1),
                "mean": values[chosen].mean(axis=1),
            }
            for average, draws in drawn[kind][measure].items():
                scored[kind][f"{measure}_{average}"] = getattr(np, average)(values)
                scored[kind][f"{measure}_{average}_interval"] = _interval(draws)
        shown = table.sample(min(EXAMPLES, len(table)), random_state=seed % 2**32)
        scored[kind]["examples"] = shown[
            ["unit", "rule", "auroc", "balanced_accuracy", "information", "density"]
        ].to_dict("records")
    differences = {}
    for kind in scored:
        ours = "feature_strong" if kind.endswith("_strong") else "feature"
        if kind != ours and ours in scored:
            differences[f"{ours} - {kind}"] = {
                f"{measure}_{average}": {
                    "difference": scored[ours][f"{measure}_{average}"]
                    - scored[kind][f"{measure}_{average}"],
                    "interval": _interval(
                        drawn[ours][measure][average] - drawn[kind][measure][average]
                    ),
                }
                for measure in MEASURES
                for average in ("median", "mean")
            }
    return {"scores": scored, "differences": differences}


def _interval(draws: Float[np.ndarray, " draw"]) -> list[float]:
    return np.quantile(draws, [0.025, 0.975]).tolist()


def against_neurons(scores: pd.DataFrame) -> go.Figure:
    """The original's figure, with rules in the place of people: how many per cent of the neurons and of the features score how well, overlaid.

    As they are; with the neurons thresholded to features' densities; and so again for the strong half of features' activations.
    """
    panels = {
        "as they are": ("feature", "neuron"),
        "at equal densities": ("feature", "neuron_matched"),
        "the strong half, at equal densities": ("feature_strong", "neuron_strong"),
    }
    fig = make_subplots(
        1, len(panels), subplot_titles=list(panels), shared_yaxes=True, horizontal_spacing=0.04
    )
    for column, (feature, neuron) in enumerate(panels.values(), 1):
        for kind, name, colour in (
            (neuron, "neurons", figures.PALETTE[1]),
            (feature, "features", figures.PALETTE[0]),
        ):
            values = scores.loc[scores["kind"] == kind, "auroc"]
            fig.add_histogram(
                x=values,
                histnorm="percent",
                xbins={"start": 0.4, "end": 1.0001, "size": 0.025},
                opacity=0.6,
                marker_color=colour,
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
            fig.add_vline(
                x=values.median(), line={"color": colour, "dash": "dash"}, row=1, col=column
            )
    fig.update_layout(
        barmode="overlay",
        title="How well a short rule foretells when a unit fires (dashed: medians)",
        legend={"x": 0.01, "y": 0.98},
    )
    fig.update_xaxes(title="AUROC on the other documents", range=[0.45, 1.0])
    fig.update_yaxes(title="share of units (%)", col=1)
    return fig


def by_kind(scores: pd.DataFrame) -> go.Figure:
    """AUROC and information explained of every kind: each unit's distribution, the middle half as a box, the median as its line."""
    fig = make_subplots(
        1,
        2,
        subplot_titles=[MEASURES["auroc"], MEASURES["information"]],
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    kinds = [kind for kind in KINDS if (scores["kind"] == kind).any()]
    for column, measure in enumerate(("auroc", "information"), 1):
        for kind in reversed(kinds):
            colour = (
                figures.PALETTE[0]
                if kind.startswith("feature")
                else figures.PALETTE[1]
                if kind.startswith("neuron")
                else figures.PALETTE[5]
            )
            fig.add_violin(
                x=scores.loc[scores["kind"] == kind, measure],
                name=KINDS[kind],
                orientation="h",
                side="positive",
                width=1.7,
                points=False,
                box_visible=True,
                line_color=colour,
                showlegend=False,
                spanmode="hard",
                row=1,
                col=column,
            )
    fig.update_layout(title="Rules scored on the other half of the documents")
    fig.update_xaxes(range=[0.4, 1.0], col=1)
    fig.update_xaxes(range=[-0.15, 1.0], tickformat=".0%", col=2)
    return fig
