"""The kinds of figure that notebook 01 draws again and again, arrows in the plane and curves with
seeds, and its table of the talk's claims.
"""

import math

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

from sae_lib.formats import short
from sae_lib.toy import metrics
from suite.charts import chart

IMPORTANCE = [[0, "#12355b"], [0.5, "#3b8ea5"], [1, "#e0b13c"]]  # most important: dark blue
SHARED = [[0, "#3b6fb6"], [0.25, "#b9a3c9"], [1, "#d1603d"]]  # alone: blue, in superposition: red
GREY = "#c4ccd6"
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


def talk_claims(
    W: Float[Tensor, "cell seed 2 5"], cells: list[tuple[str, float, float]]
) -> list[dict[str, str]]:
    """The statements of the talk's five cases, each with the density ranges where it holds and
    where not.

    "Every" means at least 95 % of the represented features, "almost every" at least 80 %; intervals
    are Wilson's.
    """
    kept = metrics.represented(W)
    shared, five = kept & ~metrics.alone(W), kept.all(-1)
    features = "share of represented features in superposition"
    # the statement, what is measured, cases, hits among which, and the least and most of them
    claims = [
        ("no case represents all five", "share of seeds with five", "", five, five | True, 0, 0),
        (
            "most important = least dense: every feature in superposition",
            *(features, "2", shared, kept, 0.95, 1),
        ),
        (
            "equal importance: almost every feature in superposition",
            *(features, "5", shared, kept, 0.8, 1),
        ),
    ]
    table = []
    for claim, measured, case, hits, among, least, most in claims:
        row = {"the talk says": claim, "measured": measured, "holds": [], "does not hold": []}
        for span in dict.fromkeys(cell[1:] for cell in cells):
            here = [c[1:] == span and c[0].startswith(case) for c in cells]
            k, n = int(hits[here].sum()), int(among[here].sum())
            (low, high), part = metrics.wilson(k, n), k / max(n, 1)
            text = f"p {span[0]:g}–{span[1]:g}: {part:.0%} ({low:.0%} to {high:.0%})"
            row["holds" if n and least <= part <= most else "does not hold"].append(text)
        for name in ("holds", "does not hold"):
            row[name] = "; ".join(row[name]) or "nowhere"
        table.append(row)
    return table
