"""Figures of the toy experiments with neurons, of the open problems, and of the autoencoder on the toy model."""

import statistics

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lib.figures import PALETTE
from sae_lib.toy.figures import add_arrows, number, shades


def band(
    fig: go.Figure,
    x: list,
    rows: list[list[float]],
    name: str,
    color: str,
    dash: str = "solid",
    show: bool = True,
    **where,
) -> None:
    """Mean over seeds as a line, its 95 % interval (1.96 standard errors) as a whisker."""
    mean = [statistics.mean(v) for v in rows]
    error = [1.96 * statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0 for v in rows]
    fig.add_scatter(
        x=x,
        y=mean,
        mode="lines+markers",
        name=name,
        line=dict(color=color, width=2.5, dash=dash),
        marker_size=7,
        showlegend=show,
        legendgroup=name,
        error_y=dict(type="data", array=error, thickness=1, width=3),
        **where,
    )


def density_axis(fig: go.Figure, values: list[float], title: str = "density p", **where) -> None:
    """Densities on a log axis, labelled where they were measured."""
    fig.update_xaxes(
        type="log", title=title, tickvals=values, ticktext=[number(v) for v in values], **where
    )


def neuron_bars(fig: go.Figure, W: list, row: int, col: int) -> None:
    """A neuron's weights as stacked bars, one colour for each feature."""
    for i, color in enumerate(shades(len(W[0]))):
        fig.add_bar(
            x=list(range(len(W))),
            y=[w[i] for w in W],
            marker_color=color,
            showlegend=False,
            name=f"feature {i}",
            row=row,
            col=col,
        )


def privileged_basis(r: dict) -> go.Figure:
    """Weights of five hidden ReLU neurons at each density, best seed."""
    n = len(r["p"])
    titles = [
        f"p = {number(p)}<br>best {max(m)} of 5"
        for p, m in zip(r["p"], r["monosemantic"], strict=True)
    ]
    fig = make_subplots(1, n, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.01)
    for k in range(n):
        neuron_bars(fig, r["W"][k], 1, k + 1)
    fig.update_xaxes(title="neuron", tickvals=list(range(5)))
    fig.update_yaxes(title="weights, stacked by feature", col=1)
    fig.update_annotations(font_size=12)
    return fig.update_layout(
        template="sae_lib",
        barmode="relative",
        title="ReLU on the hidden layer: neurons serve one feature when features are dense, several when rare",
        width=150 * n + 90,
        height=420,
        margin=dict(t=110),
    )


def two_layers(r: dict, title: str) -> go.Figure:
    """Input and output weights of the neurons, stacked by feature."""
    fig = make_subplots(1, 2, subplot_titles=["weights in", "weights out"], horizontal_spacing=0.08)
    neuron_bars(fig, r["W"], 1, 1)
    neuron_bars(fig, [list(col) for col in zip(*r["W_out"], strict=True)], 1, 2)
    fig.update_xaxes(title="neuron", dtick=1)
    return fig.update_layout(
        template="sae_lib",
        barmode="relative",
        title=title,
        width=880,
        height=400,
        margin=dict(t=95),
    )


def absolute_value_large(r: dict) -> go.Figure:
    """Share of monosemantic neurons by density, and for each neuron the share of its squared weight in its top feature."""
    fig = make_subplots(
        1,
        2,
        subplot_titles=[
            "monosemantic neurons",
            "squared weight in the top feature, neurons in order",
        ],
        horizontal_spacing=0.12,
    )
    fig.add_scatter(
        x=r["p"],
        y=r["monosemantic_share"],
        mode="lines+markers",
        line=dict(color=PALETTE[0], width=3),
        marker_size=8,
        showlegend=False,
        row=1,
        col=1,
    )
    for p, share, color in zip(r["p"], r["top_weight_share"], shades(len(r["p"])), strict=True):
        fig.add_scatter(
            y=sorted(share, reverse=True),
            mode="lines",
            name=f"p = {number(p)}",
            line=dict(color=color, width=2.5),
            row=1,
            col=2,
        )
    density_axis(fig, r["p"], row=1, col=1)
    fig.update_yaxes(range=[0, 1.03])
    fig.update_yaxes(title="share of 40 neurons", row=1, col=1)
    fig.update_xaxes(title="neuron", row=1, col=2)
    return fig.update_layout(
        template="sae_lib",
        title="y = |x|, 100 features through 40 neurons",
        width=980,
        height=420,
        margin=dict(t=95),
    )


def dropout(r: dict) -> go.Figure:
    """Alignment with neurons against the same weights rotated at random, by dropout rate."""
    fig = make_subplots(
        1,
        len(r["p"]),
        subplot_titles=[f"p = {number(p)}" for p in r["p"]],
        shared_yaxes=True,
        horizontal_spacing=0.02,
    )
    x = [row["rate"] for row in r["rates"]]
    for k in range(len(r["p"])):
        band(
            fig,
            x,
            [row["alignment"][k] for row in r["rates"]],
            "trained",
            PALETTE[0],
            show=k == 0,
            row=1,
            col=k + 1,
        )
        band(
            fig,
            x,
            [row["rotated"][k] for row in r["rates"]],
            "the same, rotated at random",
            PALETTE[5],
            dash="dot",
            show=k == 0,
            row=1,
            col=k + 1,
        )
    fig.update_xaxes(title="dropout", tickvals=x)
    fig.update_yaxes(title="largest share of a feature<br>on one neuron", col=1)
    return fig.update_layout(
        template="sae_lib",
        title="4.1 Dropout on the hidden layer: a privileged basis?",
        width=240 * len(r["p"]) + 160,
        height=420,
        legend=dict(orientation="h", x=0, y=-0.36),
        margin=dict(t=95, b=110),
    )


def square(r: dict) -> go.Figure:
    """x² against |x|: unexplained share and monosemantic share."""
    fig = make_subplots(
        1,
        2,
        subplot_titles=["unexplained variance of the target", "neurons that serve one feature"],
        horizontal_spacing=0.1,
    )
    for name, color in (("abs", PALETTE[0]), ("square", PALETTE[1])):
        band(
            fig,
            r["p"],
            r[name]["unexplained"],
            {"abs": "|x|", "square": "x²"}[name],
            color,
            row=1,
            col=1,
        )
        band(
            fig,
            r["p"],
            r[name]["monosemantic_share"],
            {"abs": "|x|", "square": "x²"}[name],
            color,
            show=False,
            row=1,
            col=2,
        )
    density_axis(fig, r["p"])
    fig.update_yaxes(rangemode="tozero")
    return fig.update_layout(
        template="sae_lib",
        title="4.3 Computing x² instead of |x|, 10 features through 20 neurons",
        width=940,
        height=410,
        margin=dict(t=95),
    )


def pair_functions(r: dict) -> go.Figure:
    """AND, OR, max: unexplained variance and pairs per neuron for three widths."""
    tasks = ("AND", "OR", "max")
    fig = make_subplots(
        2,
        3,
        subplot_titles=[f"{t} of 10 pairs" for t in tasks],
        shared_yaxes="rows",
        horizontal_spacing=0.03,
        vertical_spacing=0.1,
    )
    for col, task in enumerate(tasks, 1):
        for i, (m, color) in enumerate(zip(r["neurons"], PALETTE, strict=False)):
            band(
                fig,
                r["p"],
                r[task]["unexplained"][i],
                f"{m} neurons",
                color,
                show=col == 1,
                row=1,
                col=col,
            )
            band(
                fig,
                r["p"],
                r[task]["pairs_per_neuron"][i],
                f"{m} neurons",
                color,
                show=False,
                row=2,
                col=col,
            )
    density_axis(fig, r["p"])
    fig.update_xaxes(title=None, row=1)
    fig.update_yaxes(rangemode="tozero")
    fig.update_yaxes(title="unexplained variance", row=1, col=1)
    fig.update_yaxes(title="pairs per neuron", row=2, col=1)
    return fig.update_layout(
        template="sae_lib",
        title="4.5 and 4.6 Functions of two inputs through 20, 10 and 5 neurons",
        width=1020,
        height=600,
        legend=dict(orientation="h", x=0, y=-0.19),
        margin=dict(t=95, b=110),
    )


def many_hidden(r: dict) -> go.Figure:
    """Six sums of ten |x| against sixty separate |x|."""
    fig = make_subplots(
        1,
        3,
        subplot_titles=[
            "unexplained variance",
            "inputs per neuron",
            "of a neuron's inputs, share<br>with the same output",
        ],
        horizontal_spacing=0.07,
    )
    for name, color in (("sums", PALETTE[0]), ("separate", PALETTE[1])):
        for col, key in enumerate(("unexplained", "inputs_per_neuron", "same_output_share"), 1):
            band(
                fig,
                r["p"],
                r[name][key],
                {"sums": "6 outputs, each a sum of 10", "separate": "60 outputs"}[name],
                color,
                show=col == 1,
                row=1,
                col=col,
            )
    fig.add_hline(
        y=r["chance"],
        line=dict(dash="dot", color="#888"),
        annotation_text="chance",
        annotation_position="bottom right",
        row=1,
        col=3,
    )
    density_axis(fig, r["p"])
    fig.update_yaxes(rangemode="tozero")
    return fig.update_layout(
        template="sae_lib",
        title="4.13 Many more hidden features (60) than outputs (6), 24 neurons",
        width=1100,
        height=440,
        legend=dict(orientation="h", x=0, y=-0.33),
        margin=dict(t=105, b=110),
    )


def value_types(r: dict) -> go.Figure:
    """Features represented by density for four kinds of feature values."""
    fig = go.Figure()
    labels = {
        "uniform": "uniform on [0, 1]",
        "upper_half": "uniform on [0.5, 1]",
        "discrete": "1, 2 or 3",
        "binary": "always 1",
    }
    for (name, label), color in zip(labels.items(), PALETTE, strict=False):
        fig.add_scatter(
            x=r["p"],
            y=[sum(row) / len(row) for row in r[name]["n_represented"]],
            mode="lines+markers",
            name=label,
            line=dict(color=color, width=2.5),
            marker_size=8,
        )
    density_axis(fig, r["p"])
    return fig.update_layout(
        template="sae_lib",
        title="4.7–4.9 Other feature values, 5 features in 2 dimensions",
        yaxis_title="features represented (mean)",
        width=820,
        height=430,
    )


def gelu(r: dict) -> go.Figure:
    """GELU against ReLU."""
    fig = make_subplots(
        1,
        3,
        subplot_titles=["features represented", "loss", "mean interference"],
        horizontal_spacing=0.08,
    )
    for name, color in (("relu", PALETTE[0]), ("gelu", PALETTE[1])):
        for col, key in enumerate(("n_represented", "loss", "interference"), 1):
            band(
                fig,
                r["p"],
                r[name][key],
                {"relu": "ReLU", "gelu": "GELU"}[name],
                color,
                show=col == 1,
                row=1,
                col=col,
            )
    density_axis(fig, r["p"])
    fig.update_xaxes(tickangle=-45)
    fig.update_yaxes(type="log", exponentformat="power", row=1, col=2)
    return fig.update_layout(
        template="sae_lib",
        title="4.10 GELU for the output's ReLU, 20 features in 5 dimensions",
        width=1080,
        height=420,
        margin=dict(t=95),
    )


def classification(r: dict) -> go.Figure:
    """Directions learned by cross-entropy and by squared error, and the classes told apart."""
    picks = (
        [round(i * (len(r["p"]) - 1) / 3) for i in range(4)]
        if len(r["p"]) >= 4
        else list(range(len(r["p"])))
    )
    fig = make_subplots(
        2,
        len(picks),
        subplot_titles=[
            f"p = {number(r['p'][i])}<br>{max(r['classes_told_apart'][i])} of 10 classes"
            for i in picks
        ]
        + [f"{max(r['squared_represented'][i])} represented" for i in picks],
        horizontal_spacing=0.02,
        vertical_spacing=0.12,
    )
    for col, i in enumerate(picks, 1):
        for row, W in ((1, r["W"][i]), (2, r["squared_W"][i])):
            longest = max((x * x + y * y) ** 0.5 for x, y in zip(*W, strict=True))
            add_arrows(
                fig,
                [[v / (longest if row == 1 else 1) for v in axis] for axis in W],
                row,
                col,
                outline=False,
            )
    fig.update_yaxes(title="cross-entropy<br>(scaled)", row=1, col=1)
    fig.update_yaxes(title="squared error", row=2, col=1)
    fig.update_annotations(font_size=13)
    return fig.update_layout(
        template="sae_lib",
        title="4.12 Which feature is the largest? 10 classes and “none” through 2 dimensions",
        width=230 * len(picks) + 100,
        height=620,
        margin=dict(t=115, b=20),
    )


def autoencoder(r: dict) -> go.Figure:
    """Decoder directions over the true ones for four instances of each variant."""
    labels = {"without": "no resampling", "with": "resampling", "transposed": "transposed start"}
    shown = min(4, r["instances"])
    fig = make_subplots(
        3,
        shown,
        horizontal_spacing=0.015,
        vertical_spacing=0.07,
        subplot_titles=[f"{r[name]['recovered'][i]} of 5" for name in labels for i in range(shown)],
    )
    for row, name in enumerate(labels, 1):
        for i in range(shown):
            add_arrows(fig, r["W"][i], row, i + 1, colors=["#c4ccd6"] * 5, outline=False)
            add_arrows(
                fig,
                r[name]["decoder"][i],
                row,
                i + 1,
                colors=[PALETTE[1]] * 5,
                dash="solid",
                outline=False,
            )
        fig.update_yaxes(
            title=f"{labels[name]}<br>all five: {r[name]['all_five'][0]}/{r['instances']}",
            title_font_size=13,
            row=row,
            col=1,
        )
    fig.update_annotations(font_size=13)
    for trace in fig.data:
        trace.line.width = 6 if trace.line.color == "#c4ccd6" else 2
    return fig.update_layout(
        template="sae_lib",
        title="True directions (grey) and what the autoencoder's latents found (red)",
        width=170 * shown + 170,
        height=660,
        margin=dict(l=90, r=20, t=95, b=20),
    )


def shrinkage(r: dict) -> go.Figure:
    """Output norm against input norm when one feature is active."""
    fig = go.Figure()
    best = r["with"]
    top = max(max(row) for row in best["single_input"])
    fig.add_scatter(
        x=[0, top],
        y=[0, top],
        mode="lines",
        line=dict(color="#999", dash="dot"),
        name="perfect: out = in",
    )
    fig.add_scatter(
        x=[0, r["l1"], top],
        y=[0, 0, top - r["l1"]],
        mode="lines",
        line=dict(color=PALETTE[2], dash="dash"),
        name=f"best latent by hand: in − {r['l1']:g}",
    )
    for i, (x, y) in enumerate(zip(best["single_input"], best["single_output"], strict=True)):
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line=dict(color=PALETTE[1], width=2),
            name="autoencoder, each feature",
            showlegend=i == 0,
        )
    return fig.update_layout(
        template="sae_lib",
        title="L1 shrinks: one active feature, norm in and norm out",
        xaxis_title="norm of the hidden vector",
        yaxis_title="norm of the reconstruction",
        width=760,
        height=460,
        legend=dict(x=0.02, y=0.98),
    )
