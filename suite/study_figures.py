"""What the studies found, as tables, figures and sentences: for notebook 03 and the report."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lib import figures
from sae_lib.files import write_atomically
from suite import project
from suite.runs import Run

STUDIES = ("recipes", "widths", "classical", "saelens")
MEASURES = ("recovered_zero", "recovered_mean", "fvu", "l0_mean", "dead_share")


def publish(run: Run) -> Path:
    """Keep the run's studies in the checkout."""
    to = project.root() / "report" / "studies"
    for which in STUDIES:
        if (run.results_folder / f"study_{which}.json").exists():
            write_atomically(
                to / f"{which}.json", (run.results_folder / f"study_{which}.json").read_text()
            )
    return to


def load_study(run: Run, which: str) -> dict | None:
    """The run's own study (with `own` true), else the published one, else None."""
    for folder, name, own in (
        (run.results_folder, f"study_{which}", True),
        (project.published("studies"), which, False),
    ):
        if (path := folder / f"{name}.json").is_file():
            return json.loads(path.read_text()) | {"own": own}
    return None


def by_contender(points: list[dict], l0: float) -> dict[str, list[dict]]:
    """The points at one L0, by contender: a record per seed."""
    groups = defaultdict(list)
    for point in points:
        if point.get("l0", l0) == l0:
            groups[point["contender"]].append(point)
    return dict(groups)


def mean(records: list[dict], key: str) -> float:
    return sum(r[key] for r in records) / len(records)


def spread(records: list[dict], key: str) -> float:
    """Largest minus smallest over the seeds."""
    return max(r[key] for r in records) - min(r[key] for r in records)


def recipes_rows(study: dict) -> list[dict]:
    """A row per contender, the best first: means over seeds, spread of loss recovered, MMCS
    between seeds.
    """
    rows = []
    for name, records in by_contender(study["points"], study["about"]["l0"]).items():
        row = {
            "contender": name,
            "seeds": len(records),
            "lr": records[0]["lr"],
            "lambda": records[0]["lambda"],
            "k": records[0]["k"],
        }
        row |= {key: mean(records, key) for key in MEASURES} | {
            "spread": spread(records, "recovered_mean")
        }
        rows.append(
            row | {"mmcs": study["mmcs"][name]["mean"], "mmcs_null": study["mmcs"][name]["null"]}
        )
    return sorted(rows, key=lambda row: -row["recovered_mean"])


def widths_rows(study: dict) -> list[dict]:
    """A row per width: means over seeds, spread, MMCS between seeds."""
    rows = []
    for width in sorted({p["d_sae"] for p in study["points"]}):
        records, agreement = (
            [p for p in study["points"] if p["d_sae"] == width],
            study["mmcs"][str(width)],
        )
        row = {
            "d_sae": width,
            "seeds": len(records),
            "lr": records[0]["lr"],
            "lambda": records[0]["lambda"],
        } | {key: mean(records, key) for key in MEASURES}
        rows.append(
            row
            | {
                "spread": spread(records, "recovered_mean"),
                "mmcs": agreement["mean"],
                "mmcs_null": agreement["null"],
            }
        )
    return rows


def saelens_rows(study: dict) -> list[dict]:
    """A row per point of SAELens' trainer and per contender of ours at its L0: means over seeds,
    and seconds against SAELens' of that point.
    """
    rows = []
    for theirs in sorted(
        (p for p in study["points"] if "beside" not in p),
        key=lambda p: (p["activations"], -p["l0_mean"]),
    ):
        groups = defaultdict(list)
        for p in study["points"]:
            if p.get("beside") == theirs["lambda"] and p["activations"] == theirs["activations"]:
                groups[p["contender"]].append(p)
        for name, records in {theirs["contender"]: [theirs], **groups}.items():
            row = {
                "contender": name,
                "seeds": len(records),
                "seconds": mean(records, "seconds"),
                "speed": theirs["seconds"] / mean(records, "seconds"),
            }
            row |= {key: records[0][key] for key in ("activations", "lr", "lambda", "threads")}
            rows.append(row | {key: mean(records, key) for key in MEASURES})
    return rows


def difference(study: dict, one: str, other: str, key: str = "recovered_mean") -> dict:
    """How two contenders compare at the study's L0: means, their difference, and whether every
    seed of one is above every seed of the other.
    """
    groups = by_contender(study["points"], study["about"]["l0"])
    a, b = ([r[key] for r in groups[name]] for name in (one, other))
    return {
        "one": sum(a) / len(a),
        "other": sum(b) / len(b),
        "difference": sum(a) / len(a) - sum(b) / len(b),
        "apart": min(a) > max(b) or max(a) < min(b),
    }


def recipes_figure(study: dict, saelens: dict | None = None) -> go.Figure:
    """Loss recovered over L0, a line per recipe; bars span the seeds. What is lost is drawn
    logarithmically. SAELens' own trainer beside them where it was measured.
    """
    fig = go.Figure()
    groups = defaultdict(lambda: defaultdict(list))
    budgets = {point["activations"] for point in study["points"]}
    theirs = [p for p in (saelens or {"points": []})["points"] if p["activations"] in budgets]
    for point in study["points"] + [p for p in theirs if p["contender"].startswith("SAELens")]:
        setting = (point["lambda"], point.get("k", 0), point["lr"])
        groups[point["contender"]][setting].append(point)
    for number, (name, settings) in enumerate(groups.items()):
        fig.add_trace(_seeds_trace(name, settings.values(), number))
    fig.update_xaxes(
        title="features active per activation (L0), logarithmic",
        type="log",
        tickvals=[4, 8, 16, 32, 64],
    )
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    fig.update_yaxes(
        title="loss recovered (mean ablation)",
        type="log",
        autorange="reversed",
        tickvals=ticks,
        ticktext=[f"{1 - t:.0%}" for t in ticks],
    )
    fig.update_layout(title="Sparsity against faithfulness: every recipe on the same activations")
    return fig


def _seeds_trace(name: str, settings: Iterable[list[dict]], number: int) -> go.Scatter:
    """What one contender loses at each of its settings: means, with bars over its seeds."""
    rows = sorted(settings, key=lambda records: mean(records, "l0_mean"))
    lost = [[max(1 - r["recovered_mean"], 1e-3) for r in records] for records in rows]
    y = [sum(values) / len(values) for values in lost]
    above = [max(values) - m for values, m in zip(lost, y, strict=True)]
    below = [m - min(values) for values, m in zip(lost, y, strict=True)]
    again, at = divmod(number, len(figures.PALETTE))  # colours repeat, with another dash and symbol
    theirs = name.startswith("SAELens")
    symbol = "x" if theirs else "diamond" if again else "circle"
    return go.Scatter(
        x=[mean(records, "l0_mean") for records in rows],
        y=y,
        name=name,
        mode="markers" if len(rows) == 1 or theirs else "lines+markers",
        line=dict(color=figures.PALETTE[at], dash="dash" if again % 2 else "solid"),
        marker=dict(color=figures.PALETTE[at], size=9, symbol=symbol),
        error_y=dict(type="data", symmetric=False, array=above, arrayminus=below, thickness=1.2),
    )


def widths_figure(study: dict) -> go.Figure:
    """What width buys at the same L0: loss recovered, FVU, dead share, and agreement of seeds."""
    rows = widths_rows(study)
    panels = (
        ("recovered_mean", "loss recovered (mean ablation)", ".1%"),
        ("fvu", "FVU", ""),
        ("dead_share", "dead share", ".1%"),
        ("mmcs", "MMCS of two seeds", ".2f"),
    )
    fig = make_subplots(
        1, 4, subplot_titles=[title for _, title, _ in panels], horizontal_spacing=0.07
    )
    for column, (key, _, form) in enumerate(panels, 1):
        fig.add_scatter(
            x=[r["d_sae"] for r in rows],
            y=[r[key] for r in rows],
            mode="lines+markers",
            line_color=figures.PALETTE[0],
            showlegend=False,
            row=1,
            col=column,
        )
        if key == "mmcs":
            fig.add_scatter(
                x=[r["d_sae"] for r in rows],
                y=[r["mmcs_null"] for r in rows],
                mode="lines",
                line=dict(color=figures.PALETTE[5], dash="dot"),
                name="random directions",
                row=1,
                col=column,
            )
        fig.update_xaxes(
            type="log",
            tickvals=[r["d_sae"] for r in rows],
            tickangle=-45,
            title="features",
            row=1,
            col=column,
        )
        fig.update_yaxes(tickformat=form, row=1, col=column)
    fig.update_annotations(font_size=13)
    fig.update_layout(
        title=f"The same recipe at the same L0 ({study['about']['l0']:.0f}) and different widths",
        legend=dict(x=1, y=1.25, xanchor="right"),
    )
    return fig


def classical_figure(study: dict) -> go.Figure:
    """FVU + L0 / d_in over λ, a line per learning rate, a panel per width; stars stopped early."""
    widths = sorted({p["d_sae"] for p in study["points"]})
    fig = make_subplots(
        1,
        len(widths),
        subplot_titles=[f"{w:,} features" for w in widths],
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    rates = sorted({p["lr"] for p in study["points"]})
    for column, width in enumerate(widths, 1):
        for rate, colour in zip(rates, figures.PALETTE, strict=False):
            points = sorted(
                (p for p in study["points"] if p["d_sae"] == width and p["lr"] == rate),
                key=lambda p: p["lambda"],
            )
            early = [
                p["activations"] < study["about"]["activations"] // 1024 * 1024 for p in points
            ]
            fig.add_scatter(
                x=[p["lambda"] for p in points],
                y=[p["score"] for p in points],
                mode="lines+markers",
                name=f"rate {rate:g}",
                legendgroup=str(rate),
                showlegend=column == 1,
                line_color=colour,
                marker=dict(size=10, symbol=["star" if e else "circle" for e in early]),
                text=[
                    f"L0 {p['l0_mean']:.1f}, FVU {p['fvu']:.3f}, {p['activations']:,} activations"
                    for p in points
                ],
                row=1,
                col=column,
            )
        fig.update_xaxes(
            title="λ",
            type="log",
            tickvals=sorted({p["lambda"] for p in study["points"]}),
            row=1,
            col=column,
        )
    fig.update_yaxes(title="FVU + L0 / d_in", row=1, col=1)
    fig.update_layout(
        title="Tied weights, L1, early stopping: which λ and rate (stars stopped early)"
    )
    return fig


def study_figures(studies: dict[str, dict | None]) -> dict[str, go.Figure]:
    """The figure of every study that is there, by the name of its file."""
    found = {which: study for which, study in studies.items() if study}
    figs = (
        {"study_recipes": recipes_figure(found["recipes"], found.get("saelens"))}
        if "recipes" in found
        else {}
    )
    figs |= {"study_widths": widths_figure(found["widths"])} if "widths" in found else {}
    return figs | (
        {"study_classical": classical_figure(found["classical"])} if "classical" in found else {}
    )
