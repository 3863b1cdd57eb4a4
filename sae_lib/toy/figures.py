"""Figures of the toy experiments, drawn from their plain results: polygons, WᵀW beside norms, phases, plateaus, shrinkage."""

import math

import plotly.graph_objects as go
import torch
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from sae_lib.figures import PALETTE

IMPORTANCE = [[0, "#12355b"], [0.5, "#3b8ea5"], [1, "#e0b13c"]]  # most important: dark blue
SHARED = [[0, "#3b6fb6"], [0.25, "#b9a3c9"], [1, "#d1603d"]]  # alone: blue, in superposition: red
DIVERGING = "RdBu"
POLYTOPES = {
    "1 alone": 1,
    "3/4 tetrahedron": 3 / 4,
    "2/3 triangle": 2 / 3,
    "1/2 antipodal": 1 / 2,
    "2/5 pentagon": 2 / 5,
    "3/8 antiprism": 3 / 8,
}


def number(x: float) -> str:
    """A density or loss, short."""
    return f"{x:.2g}" if x < 100 else f"{x:.0f}"


def shades(n: int, scale=IMPORTANCE) -> list[str]:
    """n colours along a scale."""
    return sample_colorscale(scale, [i / max(n - 1, 1) for i in range(n)])


def grid_of(n: int, columns: int) -> tuple[int, int]:
    """Rows and columns for n panels."""
    columns = min(n, columns)
    return math.ceil(n / columns), columns


def add_arrows(
    fig: go.Figure,
    W: list,
    row: int | None = None,
    col: int | None = None,
    colors: list[str] | None = None,
    limit: float = 1.35,
    dash: str = "solid",
    outline: bool = True,
) -> None:
    """One arrow per column of `W [2][feature]`, and the polygon around those longer than 0.5."""
    where = dict(row=row, col=col) if row else {}
    x, y = W
    kept = sorted(
        (i for i in range(len(x)) if math.hypot(x[i], y[i]) > 0.5),
        key=lambda i: math.atan2(y[i], x[i]),
    )
    if outline and len(kept) > 2:
        ring = [*kept, kept[0]]
        fig.add_scatter(
            x=[x[i] for i in ring],
            y=[y[i] for i in ring],
            mode="lines",
            line=dict(color="#bbbbbb", width=1, dash="dot"),
            hoverinfo="skip",
            showlegend=False,
            **where,
        )
    for i, color in enumerate(colors or shades(len(x))):
        fig.add_scatter(
            x=[0, x[i]],
            y=[0, y[i]],
            mode="lines+markers",
            line=dict(color=color, width=3, dash=dash),
            marker=dict(
                symbol=["circle", "arrow"],
                size=[1, 11],
                angleref="previous",
                color=color,
                opacity=1,
            ),
            name=f"feature {i}",
            hovertemplate=f"feature {i}<br>length {math.hypot(x[i], y[i]):.2f}<extra></extra>",
            showlegend=False,
            **where,
        )
    axis = dict(
        range=[-limit, limit],
        showgrid=False,
        zeroline=False,
        showticklabels=False,
        ticks="",
        mirror=True,
        showline=True,
        linecolor="#dddddd",
    )
    fig.update_xaxes(**axis, **where)
    fig.update_yaxes(
        **axis, scaleanchor=(fig.get_subplot(row, col).yaxis.anchor if row else "x"), **where
    )


def polygon(W: list, title: str = "", size: int = 380) -> go.Figure:
    """One model's features as arrows in the plane."""
    fig = go.Figure()
    add_arrows(fig, W)
    return fig.update_layout(
        template="sae_lib",
        title=title,
        width=size,
        height=size + 40,
        margin=dict(l=20, r=20, t=60, b=20),
    )


def polygons(
    Ws: list, titles: list[str], title: str = "", columns: int = 5, panel: int = 190
) -> go.Figure:
    """Small multiples of `polygon`."""
    rows, columns = grid_of(len(Ws), columns)
    fig = make_subplots(
        rows,
        columns,
        subplot_titles=titles,
        horizontal_spacing=0.02,
        vertical_spacing=0.22 / rows + 0.02,
    )
    for k, W in enumerate(Ws):
        add_arrows(fig, W, k // columns + 1, k % columns + 1)
    fig.update_annotations(font_size=13)
    return fig.update_layout(
        template="sae_lib",
        title=title,
        width=max(panel * columns + 50, 480),
        height=(panel + 38) * rows + 70,
        margin=dict(l=20, r=20, t=95, b=20),
    )


def introduction(r: dict) -> go.Figure:
    """Polygons by density, best of the seeds."""
    titles = [
        f"p = {number(p)}<br>{k} features"
        for p, k in zip(r["p"], [sum(n > 0.5 for n in row) for row in r["norms"]], strict=True)
    ]
    return polygons(
        r["W"],
        titles,
        "Five features in two dimensions: rarer features, richer polygons",
        5 if len(titles) <= 10 else 7,
    )


def introduction_seeds(r: dict) -> go.Figure:
    """How many features the seeds represent at each density."""
    fig = go.Figure()
    for k, color in zip(range(2, 6), shades(4, SHARED), strict=True):
        fig.add_bar(
            x=[number(p) for p in r["p"]],
            y=[sum(n == k for n in row) / len(row) for row in r["n_represented"]],
            name=f"{k} features",
            marker_color=color,
        )
    return fig.update_layout(
        template="sae_lib",
        title="The same settings, other seeds: how many features each represents",
        barmode="stack",
        xaxis=dict(type="category", title="density p"),
        yaxis=dict(title="share of seeds", range=[0, 1]),
        legend=dict(orientation="h", x=0, y=1.12),
        width=860,
        height=400,
    )


def gram(W: list) -> list:
    """WᵀW of `W [hidden][feature]`."""
    W = torch.tensor(W)
    return (W.mT @ W).tolist()


def weights_and_norms(r: dict, title: str | None = None) -> go.Figure:
    """WᵀW above, norms below coloured by how much of a feature's direction others use, one column for each density."""
    columns, n = len(r["p"]), r["n"]
    fig = make_subplots(
        2,
        columns,
        subplot_titles=[f"p = {number(p)}" for p in r["p"]],
        row_heights=[0.55, 0.45],
        vertical_spacing=0.06,
        horizontal_spacing=0.012,
    )
    for k in range(columns):
        fig.add_heatmap(
            z=gram(r["W"][k]),
            colorscale=DIVERGING,
            zmid=0,
            zmin=-1.2,
            zmax=1.2,
            row=1,
            col=k + 1,
            showscale=k == columns - 1,
            colorbar=dict(title="WᵀW", len=0.5, y=0.77, thickness=12),
        )
        color = [min(i, 1) for i in r["interference"][k]]
        fig.add_bar(
            x=r["norms"][k],
            y=list(range(n)),
            orientation="h",
            marker=dict(
                color=color,
                colorscale=SHARED,
                cmin=0,
                cmax=1,
                showscale=k == columns - 1,
                colorbar=dict(title="shared", len=0.45, y=0.2, thickness=12),
            ),
            row=2,
            col=k + 1,
            showlegend=False,
        )
    fig.update_yaxes(autorange="reversed", showticklabels=False, ticks="", showgrid=False)
    fig.update_xaxes(showticklabels=False, ticks="", showgrid=False, row=1)
    fig.update_xaxes(range=[0, 1.35], tickvals=[0, 1], title="‖Wᵢ‖", showgrid=True, row=2)
    fig.update_yaxes(title="features", col=1)
    title = (
        title
        or f"{n} features in {r['m']} dimensions, importance {r['importance_base']}<sup>i</sup>"
    )
    return fig.update_layout(
        template="sae_lib",
        title=title,
        width=150 * columns + 150,
        height=470,
        bargap=0.05,
        margin=dict(l=50, r=40, t=90, b=55),
    )


def phase_diagram(results: dict) -> go.Figure:
    """What becomes of the extra feature, by density and importance; one panel for each result, titled by its key."""
    fig = make_subplots(1, len(results), subplot_titles=list(results), horizontal_spacing=0.12)
    scale = [
        [0, "#e9e9e9"],
        [1 / 3, "#e9e9e9"],
        [1 / 3, "#d1603d"],
        [2 / 3, "#d1603d"],
        [2 / 3, "#3b6fb6"],
        [1, "#3b6fb6"],
    ]
    for k, r in enumerate(results.values()):
        log = lambda values: [math.log10(v) for v in values]  # noqa: E731
        fig.add_heatmap(
            x=log(r["importance"]),
            y=log(r["density"]),
            z=r["phase"],
            zmin=-0.5,
            zmax=2.5,
            colorscale=scale,
            xgap=2,
            ygap=2,
            row=1,
            col=k + 1,
            showscale=False,
            customdata=r["norm"],
            hovertemplate="norm %{customdata:.2f}<extra></extra>",
        )
        fig.update_xaxes(
            title="relative importance of the extra feature",
            tickvals=[-1, 0, 1],
            ticktext=["0.1", "1", "10"],
            showgrid=False,
            zeroline=False,
            row=1,
            col=k + 1,
        )
        fig.update_yaxes(
            title="density p",
            tickvals=[-2, -1, 0],
            ticktext=["0.01", "0.1", "1"],
            showgrid=False,
            zeroline=False,
            row=1,
            col=k + 1,
        )
    for name, color in (
        ("not represented", "#e9e9e9"),
        ("in superposition", "#d1603d"),
        ("has a dimension of its own", "#3b6fb6"),
    ):
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker=dict(symbol="square", size=14, color=color),
            name=name,
        )
    return fig.update_layout(
        template="sae_lib",
        title="What becomes of the extra feature",
        width=480 * len(results) + 40,
        height=500,
        legend=dict(orientation="h", x=0, y=-0.2),
        margin=dict(t=90, b=100),
    )


def plateaus(r: dict) -> go.Figure:
    """Dimensions per feature, and every feature's dimensionality, over 1/(1−S)."""
    fig = make_subplots(
        1,
        2,
        subplot_titles=[
            f"m / ‖W‖² ({r['n']} features, {r['m']} dimensions)",
            "Dᵢ of every represented feature",
        ],
        horizontal_spacing=0.1,
    )
    fig.add_scatter(
        x=r["inverse_density"],
        y=r["dimensions_per_feature"],
        mode="lines+markers",
        line=dict(color=PALETTE[0], width=3),
        marker_size=8,
        row=1,
        col=1,
        showlegend=False,
    )
    for y in (1, 0.5):
        fig.add_hline(y=y, line=dict(dash="dot", color="#888"), row=1, col=1)
    spread = torch.Generator().manual_seed(0)
    for s, kept in zip(r["inverse_density"], r["dimensionality"], strict=True):
        x = (s * (1 + 0.03 * torch.randn(len(kept), generator=spread))).tolist()
        fig.add_scatter(
            x=x,
            y=kept,
            mode="markers",
            marker=dict(size=5, color=PALETTE[0], opacity=0.35),
            row=1,
            col=2,
            showlegend=False,
        )
    for name, y in POLYTOPES.items():
        fig.add_hline(y=y, line=dict(dash="dot", color="#888", width=1), row=1, col=2)
        fig.add_annotation(
            x=math.log10(32),
            y=y,
            text=name,
            showarrow=False,
            xanchor="right",
            yanchor="top" if name.startswith("3/8") else "bottom",
            font=dict(size=11, color="#555"),
            row=1,
            col=2,
        )
    fig.update_xaxes(
        type="log", title="1/(1−S)", tickvals=[1, 2, 5, 10, 20], range=[-0.05, math.log10(33)]
    )
    fig.update_yaxes(range=[0, 1.15])
    return fig.update_layout(
        template="sae_lib",
        title="Equal features: dimensions per feature stick at 1 and at ½",
        width=1080,
        height=470,
        margin=dict(t=95),
    )


def varied_density(r: dict) -> go.Figure:
    """The varied feature's norm and the share of seeds that keep it, over its density; polygons below."""
    picks = (
        [round(i * (len(r["factor"]) - 1) / 4) for i in range(5)]
        if len(r["factor"]) >= 5
        else list(range(len(r["factor"])))
    )
    fig = make_subplots(
        2,
        len(picks),
        specs=[[{"colspan": len(picks)}, *[None] * (len(picks) - 1)], [{}] * len(picks)],
        row_heights=[0.55, 0.45],
        vertical_spacing=0.2,
        subplot_titles=["", *[f"×{number(r['factor'][i])}" for i in picks]],
    )
    fig.add_scatter(
        x=r["factor"],
        y=r["norm_varied"],
        mode="lines+markers",
        name="norm, best seed",
        line=dict(color=PALETTE[0], width=3),
        row=1,
        col=1,
    )
    fig.add_scatter(
        x=r["factor"],
        y=r["varied_represented"],
        mode="lines+markers",
        name="share of seeds that represent it",
        line=dict(color=PALETTE[1], width=2, dash="dot"),
        row=1,
        col=1,
    )
    fig.update_xaxes(
        type="log",
        title="density of the varied feature / density of the others (0.05)",
        dtick=1,
        row=1,
        col=1,
    )
    for k, i in enumerate(picks):
        add_arrows(fig, r["W"][i], 2, k + 1, colors=[PALETTE[1]] + ["#7f93ab"] * 4)
    return fig.update_layout(
        template="sae_lib",
        title="One feature's density varied: a square becomes a pentagon",
        width=960,
        height=620,
        legend=dict(x=0.02, y=0.98),
    )


def correlated(pairs: dict, anti: dict, sets: dict) -> go.Figure:
    """Correlated pairs, anti-correlated pairs and three correlated sets as arrows; two sets of ten as WᵀW."""
    fig = make_subplots(
        1,
        4,
        subplot_titles=[
            "2 correlated pairs:<br>orthogonal within a pair",
            "2 anti-correlated pairs:<br>antipodal within a pair",
            "3 correlated sets of 2:<br>side by side",
            "2 correlated sets of 10 in<br>10 dimensions: WᵀW",
        ],
        horizontal_spacing=0.035,
    )
    two, three = (
        [PALETTE[0]] * 2 + [PALETTE[1]] * 2,
        [PALETTE[0]] * 2 + [PALETTE[1]] * 2 + [PALETTE[2]] * 2,
    )
    for col, (W, colors) in enumerate(
        ((pairs["W"][0], two), (anti["W"][-1], two), (sets["3x2"]["W"][0], three)), 1
    ):
        add_arrows(fig, W, 1, col, colors=colors, limit=1.5)
    fig.add_heatmap(
        z=gram(sets["2x10"]["W"][0]),
        colorscale=DIVERGING,
        zmid=0,
        zmin=-1.2,
        zmax=1.2,
        row=1,
        col=4,
        colorbar=dict(thickness=12),
    )
    fig.update_yaxes(
        autorange="reversed",
        showticklabels=False,
        ticks="",
        row=1,
        col=4,
        scaleanchor="x4",
        constrain="domain",
    )
    fig.update_xaxes(showticklabels=False, ticks="", row=1, col=4, constrain="domain")
    fig.update_annotations(font_size=13)
    return fig.update_layout(
        template="sae_lib",
        title="Features that come together, features that exclude each other",
        width=1120,
        height=400,
        margin=dict(l=20, r=20, t=120, b=20),
    )


def learning_dynamics(r: dict) -> go.Figure:
    """Dimensionality of every feature and the loss, over training."""
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.6, 0.4])
    for i in range(len(r["dimensionality"][0])):
        fig.add_scatter(
            x=r["step"],
            y=[row[i] for row in r["dimensionality"]],
            mode="lines",
            line=dict(width=1, color="rgba(59,111,182,0.35)"),
            row=1,
            col=1,
            showlegend=False,
        )
    fig.add_hline(y=0.5, line=dict(dash="dot", color="#888"), row=1, col=1)
    fig.add_scatter(
        x=r["step"],
        y=r["loss"],
        mode="lines",
        line=dict(color=PALETTE[1], width=2),
        row=2,
        col=1,
        showlegend=False,
    )
    fig.update_yaxes(title="Dᵢ (0 below norm ½)", row=1, col=1)
    fig.update_yaxes(title="loss", row=2, col=1)
    fig.update_xaxes(title="step", row=2, col=1)
    return fig.update_layout(
        template="sae_lib",
        title="Features jump between dimensionalities while the loss falls",
        width=900,
        height=540,
    )


def adversarial(r: dict) -> go.Figure:
    """Vulnerability against features per dimension."""
    fig = go.Figure()
    for (name, label), color in zip(
        {
            "same_inputs": "the same inputs for all (p = 0.3)",
            "own_density": "inputs of each model's own density",
        }.items(),
        PALETTE,
        strict=False,
    ):
        x, y = (
            [v for row in values for v in row]
            for values in (r["features_per_dimension"], r[name]["vulnerability"])
        )
        fig.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=f"{label}: correlation {r[name]['correlation']:.2f}",
            marker=dict(size=9, color=color, opacity=0.75),
        )
    return fig.update_layout(
        template="sae_lib",
        title="More features per dimension, easier to fool",
        xaxis_title="features per dimension, ‖W‖²/m",
        yaxis_title="added loss / dense model's",
        legend=dict(x=0.02, y=0.98),
        width=820,
        height=460,
    )


def five_cases(r: dict) -> go.Figure:
    """Stacked bars: how many features are represented, and how many of them alone, for every case and density range."""
    cases = list(dict.fromkeys(row["case"] for row in r["rows"]))
    fig = make_subplots(
        2,
        len(cases),
        subplot_titles=[
            c.replace(", ", ",<br>").replace(" = ", " =<br>").replace(" with ", "<br>with ")
            for c in cases
        ],
        shared_yaxes=True,
        horizontal_spacing=0.015,
        vertical_spacing=0.08,
    )
    for col, case in enumerate(cases, 1):
        rows = [row for row in r["rows"] if row["case"] == case]
        x = [f"{number(row['low'])}–{number(row['high'])}" for row in rows]
        for k, color in zip(range(2, 6), shades(4, SHARED), strict=True):
            fig.add_bar(
                x=x,
                y=[row["represented_counts"][k] / row["seeds"] for row in rows],
                name=f"{k} features",
                marker_color=color,
                showlegend=col == 1,
                row=1,
                col=col,
            )
        share = [row["alone_share"] for row in rows]
        fig.add_scatter(
            x=x,
            y=[s[0] for s in share],
            error_y=dict(
                type="data",
                symmetric=False,
                array=[s[2] - s[0] for s in share],
                arrayminus=[s[0] - s[1] for s in share],
            ),
            mode="markers",
            marker=dict(size=8, color="#333"),
            showlegend=False,
            row=2,
            col=col,
        )
    fig.update_yaxes(title="share of seeds", range=[0, 1], row=1, col=1)
    fig.update_yaxes(title="represented features<br>that stand alone", row=2, col=1)
    fig.update_yaxes(
        range=[0, 1.1 * max(row["alone_share"][2] for row in r["rows"])], tickformat=".0%", row=2
    )
    fig.update_xaxes(tickangle=-60, tickfont_size=11)
    fig.update_xaxes(showticklabels=False, row=1)
    fig.update_annotations(font_size=12)
    return fig.update_layout(
        template="sae_lib",
        barmode="stack",
        title="Five cases of uneven densities (lowest–highest within one model)",
        width=1120,
        height=600,
        legend=dict(orientation="h", x=0, y=-0.22),
        margin=dict(t=120, b=120),
    )
