"""The kinds of figure that notebook 01 draws again and again: arrows in the plane, curves with
seeds, neurons, WᵀW with norms.
"""

import math

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

from sae_lib.figures import PALETTE
from sae_lib.toy import metrics
from sae_lib.toy.experiments import Result

IMPORTANCE = [[0, "#12355b"], [0.5, "#3b8ea5"], [1, "#e0b13c"]]  # most important: dark blue
SHARED = [[0, "#3b6fb6"], [0.25, "#b9a3c9"], [1, "#d1603d"]]  # alone: blue, in superposition: red
GREY = "#c4ccd6"
BARE = dict(showticklabels=False, ticks="", showgrid=False, zeroline=False)


def number(x: float) -> str:
    """A density or loss, short."""
    return f"{x:.2g}" if x < 100 else f"{x:.0f}"


def shades(n: int, scale: list = IMPORTANCE) -> list[str]:
    """n colours along a scale."""
    return sample_colorscale(scale, [i / max(n - 1, 1) for i in range(n)])


def arrow_panels(titles: list[str], title: str, columns: int = 5, panel: int = 190) -> go.Figure:
    """Empty small multiples of the plane, for `add_arrows`."""
    columns = min(len(titles), columns)
    rows = math.ceil(len(titles) / columns)
    gap = dict(horizontal_spacing=0.02, vertical_spacing=0.22 / rows + 0.02)
    fig = make_subplots(rows, columns, subplot_titles=titles, **gap)
    frame = dict(range=[-1.4, 1.4], mirror=True, showline=True, linecolor="#dddddd")
    fig.update_xaxes(**BARE, **frame)
    for row in range(1, rows + 1):
        for col in range(1, columns + 1):
            at = dict(row=row, col=col)
            fig.update_yaxes(scaleanchor=fig.get_subplot(**at).yaxis.anchor, **BARE, **frame, **at)
    fig.update_annotations(font_size=13)
    size = dict(width=max(panel * columns + 90, 480), height=(panel + 38) * rows + 70)
    return fig.update_layout(title=title, margin=dict(l=60, r=20, t=95, b=20), **size)


def add_arrows(
    fig: go.Figure, k: int, W: Tensor, colors: list[str] | None = None, width: int = 3
) -> None:
    """One arrow per column of `W [2, feature]` in panel k, and the polygon around those
    represented.
    """
    columns = len(fig._grid_ref[0])
    where = dict(row=k // columns + 1, col=k % columns + 1, showlegend=False)
    kept = W[:, metrics.represented(W)]
    ring = kept[:, kept[1].atan2(kept[0]).argsort()]
    if ring.shape[1] > 2 and colors is None:
        x, y = ring[:, [*range(ring.shape[1]), 0]].tolist()
        fig.add_scatter(
            x=x, y=y, mode="lines", line=dict(color="#bbb", width=1, dash="dot"), **where
        )
    for i, (x, y) in enumerate(W.T.tolist()):
        color = (colors or shades(W.shape[1]))[i]
        fig.add_scatter(
            x=[0, x],
            y=[0, y],
            mode="lines+markers",
            line=dict(color=color, width=width),
            marker=dict(symbol=["circle", "arrow"], size=[1, 11], angleref="previous", opacity=1),
            hovertemplate=f"feature {i}<br>length {math.hypot(x, y):.2f}<extra></extra>",
            **where,
        )


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
    columns = min(columns, len(panels))
    rows, names = math.ceil(len(panels) / columns), [n for s in panels.values() for n in s]
    gap = dict(horizontal_spacing=0.2 / columns, vertical_spacing=0.25 / rows)
    fig = make_subplots(rows, columns, subplot_titles=list(panels), **gap)
    colors = dict(zip(dict.fromkeys(names), PALETTE, strict=False))
    for k, series in enumerate(panels.values()):
        for name, values in series.items():
            n, values = values.shape[1], values.float()
            error = 1.96 * values.std(1) / n**0.5 if n > 1 else 0 * values[:, 0]
            fig.add_scatter(
                x=x.tolist(),
                y=values.mean(1).tolist(),
                error_y=dict(type="data", array=error.tolist(), thickness=1, width=3),
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=name in names,
                line=dict(color=colors[name], width=2.5),
                row=k // columns + 1,
                col=k % columns + 1,
            )
            names = [n for n in names if n != name]
    ticks = dict(tickvals=x.tolist(), ticktext=[number(v) for v in x.tolist()], tickangle=-45)
    fig.update_xaxes(type="log" if x.min() > 0 else "linear", **ticks)
    fig.update_xaxes(title=x_title, row=rows)
    fig.update_yaxes(rangemode="tozero")
    legend = dict(orientation="h", x=0, y=-0.25 / rows - 0.08)
    size = dict(width=330 * columns + 120, height=330 * rows + 130)
    return fig.update_layout(title=title, legend=legend, margin=dict(t=95, b=110), **size)


def neurons(panels: dict[str, Tensor], title: str) -> go.Figure:
    """Weights `[neuron, feature]` of each neuron as stacked bars, one colour for each feature."""
    fig = make_subplots(
        1, len(panels), subplot_titles=list(panels), shared_yaxes=True, horizontal_spacing=0.03
    )
    for col, W in enumerate(panels.values(), 1):
        for i, color in enumerate(shades(W.shape[1])):
            y = W[:, i].tolist()
            fig.add_bar(y=y, marker_color=color, name=f"feature {i}", row=1, col=col)
    fig.update_xaxes(title="neuron", dtick=1)
    fig.update_yaxes(title="weights, stacked by feature", col=1)
    fig.update_annotations(font_size=12)
    size = dict(width=min(300, 1100 // len(panels)) * len(panels) + 150, height=420)
    return fig.update_layout(
        title=title, barmode="relative", showlegend=False, margin=dict(t=110), **size
    )


def gram(W: Tensor, **colorbar) -> go.Heatmap:
    """WᵀW, where off-diagonal colour is interference."""
    return go.Heatmap(
        z=(W.mT @ W).tolist(), colorscale="RdBu", zmid=0, zmin=-1.2, zmax=1.2, **colorbar
    )


def weights_and_norms(r: Result, title: str) -> go.Figure:
    """WᵀW above; norms below, coloured by how much of a feature's direction others use. One
    column for each density.
    """
    columns, titles = len(r.p), [f"p = {number(p)}" for p in r.p.tolist()]
    gap = dict(row_heights=[0.55, 0.45], vertical_spacing=0.06, horizontal_spacing=0.012)
    fig = make_subplots(2, columns, subplot_titles=titles, **gap)
    for k, W in enumerate(r.best_W):
        last, col = k == columns - 1, k + 1
        bar = dict(title="WᵀW", len=0.5, y=0.77, thickness=12)
        fig.add_trace(gram(W, showscale=last, colorbar=bar), row=1, col=col)
        fig.add_bar(
            x=W.norm(dim=0).tolist(),
            orientation="h",
            marker=dict(
                color=metrics.interference(W).clamp(max=1).tolist(),
                colorscale=SHARED,
                cmin=0,
                cmax=1,
                showscale=last,
                colorbar=dict(title="shared", len=0.45, y=0.2, thickness=12),
            ),
            row=2,
            col=col,
        )
    fig.update_yaxes(autorange="reversed", **BARE)
    fig.update_xaxes(row=1, **BARE)
    fig.update_xaxes(range=[0, 1.35], tickvals=[0, 1], title="‖Wᵢ‖", row=2)
    fig.update_yaxes(title="features", col=1)
    margin = dict(l=50, r=40, t=90, b=55)
    size = dict(width=150 * columns + 150, height=470)
    return fig.update_layout(title=title, showlegend=False, bargap=0.05, margin=margin, **size)
