"""The kinds of figure that notebook 01 draws again and again, arrows in the plane and curves with
seeds, and its table of the talk's claims.
"""

import math

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

from sae_lib.formats import interval, percent, short, signed
from sae_lib.toy import metrics
from suite.charts import chart

IMPORTANCE = [[0, "#12355b"], [0.5, "#3b8ea5"], [1, "#e0b13c"]]  # most important: dark blue
SHARED = [[0, "#3b6fb6"], [0.25, "#b9a3c9"], [1, "#d1603d"]]  # alone: blue, in superposition: red
GREY = "#c4ccd6"
AGREES = 0.9  # of the cases, from which a statement about all of them counts as held
BARE = dict(showticklabels=False, ticks="", showgrid=False, zeroline=False)


def shades(n: int, scale: list = IMPORTANCE) -> list[str]:
    """n colours along a scale."""
    return sample_colorscale(scale, [i / max(n - 1, 1) for i in range(n)])


def arrow_panels(titles: list[str], title: str, columns: int = 5, panel: int = 190) -> go.Figure:
    """Empty small multiples of the plane, for `add_arrows`."""
    columns = min(len(titles), columns)
    rows = math.ceil(len(titles) / columns)
    gap = dict(horizontal_spacing=0.02, vertical_spacing=0.22 / rows + 0.02)
    fig = make_subplots(rows, columns, subplot_titles=titles, **gap)
    frame = BARE | dict(range=[-1.4, 1.4], mirror=True, showline=True, linecolor="#dddddd")
    fig.update_xaxes(frame).update_yaxes(frame).update_annotations(font_size=13)
    fig.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    width = max(panel * columns + 90, 10 * len(title) + 40)  # at which the title fits
    size = dict(width=width, height=(panel + 38) * rows + 70)
    return fig.update_layout(title=title, margin=dict(l=60, r=20, t=95, b=20), **size)


def add_arrows(
    fig: go.Figure, k: int, W: Tensor, colors: list[str] | None = None, width: int = 3
) -> None:
    """One arrow per column of `W [2, feature]` in panel k, and the polygon around those
    represented.
    """
    where = dict(xaxis=f"x{k + 1}", yaxis=f"y{k + 1}", showlegend=False)
    corners = W[:, metrics.represented(W)].T.tolist()
    if len(corners) > 2 and colors is None:
        corners.sort(key=lambda corner: math.atan2(*corner))
        x, y = zip(*corners, corners[0], strict=True)
        line = dict(color="#bbb", width=1, dash="dot")
        fig.add_scatter(x=x, y=y, mode="lines", line=line, **where)
    marker = dict(symbol=["circle", "arrow"], size=[1, 11], angleref="previous", opacity=1)
    for i, (x, y) in enumerate(W.T.tolist()):
        line = dict(color=(colors or shades(W.shape[1]))[i], width=width)
        said = f"feature {i}<br>length {math.hypot(x, y):.2f}<extra></extra>"
        at = dict(x=[0, x], y=[0, y], mode="lines+markers", hovertemplate=said)
        fig.add_scatter(**at, **where, line=line, marker=marker)


def polygons(
    Ws: Tensor, titles: list[str], title: str, columns: int = 5, colors: list[str] | None = None
) -> go.Figure:
    """Small multiples of models with two hidden dimensions, one arrow for each feature."""
    fig = arrow_panels(titles, title, columns)
    for k, W in enumerate(Ws):
        add_arrows(fig, k, W, colors)
    return fig


def curves(
    x: Tensor,
    panels: dict[str, dict[str, Tensor]],
    title: str,
    columns: int = 3,
    x_title: str = "density p",
) -> go.Figure:
    """For each panel, series of `[setting, seed]`: the mean over seeds with 1.96 standard
    errors.
    """
    points = []
    for panel, series in panels.items():
        for name, values in series.items():
            n, values = values.shape[1], values.float()
            errors = 1.96 * values.std(1, correction=min(n - 1, 1)) / n**0.5
            means = {"x": x.tolist(), "mean": values.mean(1).tolist(), "error": errors.tolist()}
            points.append(pd.DataFrame(means | {"panel": panel, "series": name}))
    columns, ticks = min(columns, len(panels)), x.tolist()
    rows = math.ceil(len(panels) / columns)
    size = {"width": 330 * columns + 120, "height": 330 * rows + 130, "title": title}
    gaps = {"facet_col_spacing": 0.2 / columns, "facet_row_spacing": 0.25 / rows}
    how = {"facet_col_wrap": columns, "log_x": min(ticks) > 0, "labels": {"x": x_title}}
    fig = chart("toy_curves", pd.concat(points), **size, **gaps, **how)
    fig.update_xaxes(tickvals=ticks, ticktext=[short(v) for v in ticks])
    legend = dict(orientation="h", x=0, y=-0.25 / rows - 0.08, title=None)
    return fig.update_layout(legend=legend)


def talk_cases(
    W: Float[Tensor, "cell seed 2 5"], cells: list[tuple[str, float, float]]
) -> list[dict[str, str]]:
    """A row per case, over all its ranges of density: how many features the models represent, and
    how many of these are in superposition, with Wilson's intervals.
    """
    kept, table = metrics.represented(W), []
    for case in dict.fromkeys(cell[0] for cell in cells):
        here = [cell[0] == case for cell in cells]
        k, n = kept[here], kept[here].sum(-1).flatten()
        row = {"Case": case, "Three or fewer": str(int((n <= 3).sum()))}
        row |= {"Four": str(int((n == 4).sum())), "All five": share_of(n == 5)}
        shared = ~metrics.alone(W[here])
        table.append(row | {"In superposition": share_of(shared[k])})
    return table


def talk_claims(
    W: Float[Tensor, "cell seed 2 5"], cells: list[tuple[str, float, float]]
) -> list[dict[str, str]]:
    """The statements of the talk's five cases, each by the same threshold: it holds where the whole
    interval of the share that agrees lies above `AGREES`, and does not where all of it lies below.
    """
    kept = metrics.represented(W)
    shared, five = kept & ~metrics.alone(W), kept.all(-1)
    features, table = "represented features that are in superposition", []
    for claim, measured, case, hits, among in (
        (
            "no case represents all five",
            "models that represent at most four",
            "",
            ~five,
            five | True,
        ),
        ("in case 2 every feature is in superposition", features, "2", shared, kept),
        ("at equal importance almost every feature is", features, "5", shared, kept),
    ):
        here = [cell[0].startswith(case) for cell in cells]
        agree = hits[here][among[here]]
        low, high = metrics.wilson(int(agree.sum()), len(agree))
        verdict = "holds" if low > AGREES else "does not hold" if high < AGREES else "open"
        if not case:
            few = kept[here].sum(-1) <= 3
            measured += f" (at most three: {int(few.sum())} of {few.numel()})"
        row = {"The talk says": claim, "Measured": measured, "Share": share_of(agree)}
        table.append(row | {f"At {100 * AGREES:.0f} %": verdict})
    return table


def talk_mechanism(W: Float[Tensor, "cell seed 2 5"], cells: list[tuple[str, float, float]]) -> str:
    """Whether features stand alone more often where the important ones are dense (case 1) than
    where they are sparse (case 2).
    """
    kept, alone = metrics.represented(W), metrics.alone(W)
    found = []
    for case in "12":
        here = [cell[0].startswith(case) for cell in cells]
        found.append(alone[here][kept[here]])
    low, high = metrics.shares_apart(*(n for of in found for n in (int(of.sum()), len(of))))
    shown = "a difference is seen" if low > 0 else "no difference is shown"
    first, second = map(share_of, found)
    return (
        f"Of the represented features {first} stand alone in case 1, {second} in case 2,"
        f" {interval(100 * low, 100 * high, signed)} points apart: {shown}, as far as features of"
        " one model count as independent."
    )


def share_of(hits: Bool[Tensor, " n"]) -> str:
    """`3 of 72, 4.17 % (1.43 to 11.6)`."""
    k, n = int(hits.sum()), len(hits)
    low, high = metrics.wilson(k, n)
    return f"{k} of {n}, {percent(k / max(n, 1))} ({interval(100 * low, 100 * high)})"
