"""The report's tables of measures: which result stands in which cell, written by which format."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from sae_lib import formats as f
from sae_lib.text.markup import plain, table
from suite import study_figures

Value = Callable[[float | None], str]

# label, key in results/evaluation.json, its format, the original's fact (or none) with its own
# format, note
MEASURES: tuple[tuple[str, str, Value, str | None, str], ...] = (
    ("Loss recovered, zero ablation", "recovered_zero", f.percent, "recovered_zero", "ᵃ"),
    ("Loss recovered, mean ablation", "recovered_mean", f.percent, None, ""),
    ("L0, mean", "l0_mean", f.number, "l0_mean", "ᵇ"),
    ("L0, median", "l0_median", f.count, "l0_median", "ᵇ"),
    ("FVU", "fvu", f.small, None, ""),
    ("MSE per dimension", "mse", f.small, "mse", "ᶜ"),
    ("KL, nats/token", "kl", f.small, None, ""),
    ("Cross-entropy, clean, nats/token", "ce_clean", f.nats, "ce_clean", "ᵃ"),
    ("Cross-entropy, spliced", "ce_spliced", f.nats, "ce_spliced", "ᵃ"),
    ("Cross-entropy, zero-ablated", "ce_zero", f.nats, "ce_zero", "ᵃ"),
    ("Cross-entropy, mean-ablated", "ce_mean", f.nats, None, ""),
    ("Dead share", "dead_share", f.percent, "dead", "ᵈ"),
    ("Alive", "alive", f.count, "alive", "ᵉ"),
    ("Median density", "density_median", f.percent, "density_mode", "ᶠ"),
)
TRAINED: tuple[tuple[str, str, Value, str, str], ...] = (
    ("Training activations", "activations", f.count, "activations", "ᵍ"),
    ("Training time", "seconds", f.duration, "seconds", "ʰ"),
    ("Activations per second", "activations_per_second", f.count, "activations_per_second", "ʰ"),
)
COMPARED = (  # of variants of one recipe
    ("Loss recovered, zero", "recovered_zero", f.percent),
    ("Loss recovered, mean", "recovered_mean", f.percent),
    ("FVU", "fvu", f.small),
    ("L0, mean", "l0_mean", f.number),
    ("Dead share", "dead_share", f.percent),
    ("Alive", "alive", f.count),
)


def of_original(key: str | None, write: Value, facts: dict[str, float]) -> str:
    """The original's cell: its own figure in our format, or that it reported none."""
    if key is None:
        return "not reported"
    if key == "dead":
        return f"{f.exact(100 * facts['dead_low'])} to {f.exact(100 * facts['dead_high'])} %"
    if key == "density_mode":
        return f"mode ≈ {f.exact(100 * facts[key])} %"
    return f.exact(facts[key]) if key in ("l0_mean", "mse") else write(facts[key])


def main_table(v: dict[str, Any]) -> str:
    """original / ours (every recipe trained) / neurons."""
    names = v["recipe_names"]
    header = ["", "original", *(f"{v['labels'].get(n, 'ours')} (`{n}`)" for n in names), "neurons"]
    rows = []
    for label, key, write, fact, note in MEASURES:
        ours = [write(v["evaluation"][name][key]) for name in (*names, "neurons")]
        rows.append([f"{label}{note}", of_original(fact, write, v["original"]), *ours])
    if v["summaries"]:
        for label, key, write, fact, note in TRAINED:
            ours = [
                write(v["summaries"][name][key]) if name in v["summaries"] else f.NONE
                for name in names
            ]
            rows.append([f"{label}{note}", of_original(fact, write, v["original"]), *ours, f.NONE])
    widths = [
        f.count(v["original"]["d_sae"]),
        *[f.count(v["s"].sae.d_sae)] * len(names),
        f.count(v["d_in"]),
    ]
    return table(header, [["Features (neurons)", *widths], *rows])


def width_table(v: dict[str, Any]) -> str:
    rows = [
        [
            f.count(w["d_sae"]),
            f"{f.exact(round(w['d_sae'] / v['d_in'], 2))} ×",
            *(write(w[key]) for _, key, write in COMPARED),
        ]
        for w in v["widths"]
    ]
    return table(
        ["Features", "Times the layer's width", *(label for label, _, _ in COMPARED)], rows, left=0
    )


def resampling_table(v: dict[str, Any]) -> str:
    """One row per autoencoder: what was resampled, and what is silent at the end."""
    rows = []
    for name, r in v["resampled"].items():
        dead = (
            f.NONE
            if not r["times"]
            else " to ".join(dict.fromkeys([f.count(r["dead_least"]), f.count(r["dead_most"])]))
        )
        e = v["evaluation"].get(name)
        held = (
            [f.percent(e["dead_share"]), f.count(e["alive"]), f.percent(e["recovered_zero"])]
            if e
            else [f.NONE] * 3
        )
        rows.append(
            [
                f"`{name}`",
                f.count(r["times"]),
                dead,
                f.count(r["touched"]),
                f.percent(r["silent"]),
                *held,
            ]
        )
    header = [
        "Autoencoder",
        "Rounds",
        "Dead at a round",
        "Touched",
        "Silent at the end",
        "Dead, held-out",
        "Alive",
        "Recovered (zero)",
    ]
    return table(header, rows)


def event_table(events: list[dict[str, Any]], per_step: float) -> str:
    """Resampling by resampling, of one training."""
    rows = [
        [
            f.count(e["step"]),
            f.count(e["step"] * per_step),
            f.count(e["dead"]),
            f.count(e["resampled"]),
        ]
        for e in events
    ]
    return table(["Step", "Activations seen", "Dead", "Touched"], rows, left=0)


def kind_table(text: dict[str, Any], most: int = 12) -> str:
    """Tokens per kind of text, training and held-out side by side, largest first."""
    columns = [(split, what) for split in ("train", "heldout") for what in ("documents", "tokens")]
    kinds = pd.DataFrame(
        {key: {k: v[key[1]] for k, v in text[key[0]]["kinds"].items()} for key in columns}
    )
    kinds = kinds.reindex(columns=columns).fillna(0)
    tokens = kinds[columns[1]] + kinds[columns[3]]
    kinds = kinds.loc[tokens.sort_values(ascending=False, kind="stable").index]
    rows = [(plain(kind), row) for kind, row in kinds[:most].iterrows()]
    if len(kinds) > most:
        rows.append((f"{len(kinds) - most} others", kinds[most:].sum()))
    rows.append(("**all**", pd.Series([text[split][what] for split, what in columns], columns)))
    cells = []
    for kind, row in rows:
        counts = [f.count(row[column]) for column in columns]
        share = f.percent(row[columns[1]] / text["train"]["tokens"])
        cells.append([kind, *counts[:2], share, *counts[2:]])
    head = ["Training documents", "Training tokens", "Share", "Held-out documents"]
    return table(["Kind", *head, "Held-out tokens"], cells)


def length_table(text: dict[str, Any]) -> str:
    quantiles = list(text["train"]["length_quantiles"])
    named = {"0.0": "shortest", "0.5": "median", "1.0": "longest"}
    header = ["Tokens per document", *(named.get(q, f"{float(q) * 100:.0f} %") for q in quantiles)]
    return table(
        header,
        [
            [split, *(f.count(text[key]["length_quantiles"][q]) for q in quantiles)]
            for split, key in (("training", "train"), ("held-out", "heldout"))
        ],
    )


def record_table(rows: list[list[Any]]) -> str:
    """Name and value, for the facts of a run."""
    return table(["", ""], rows, left=2)


def last_table(v: dict[str, Any]) -> str:
    """The last-layer MLP's measures: its autoencoder and its neurons."""
    e = v["last_mlp"]["evaluation"]
    measures = (
        *COMPARED[:4],
        ("L0, median", "l0_median", f.count),
        *COMPARED[4:],
        ("KL, nats/token", "kl", f.small),
    )
    header = ["", *(f"`{n}`" if n != "neurons" else n for n in e)]
    return table(
        header, [[label, *(write(r[key]) for r in e.values())] for label, key, write in measures]
    )


def recipes_study_table(v: dict[str, Any]) -> str:
    """The recipes at the same L0, the best first."""
    rows = []
    for r in study_figures.recipes_rows(v["studies"]["recipes"]):
        setting = f"k = {f.count(r['k'])}" if r["k"] else f"λ = {f.exact(r['lambda'])}"
        rows.append(
            [plain(r["contender"]), f"{setting}, rate {f.exact(r['lr'])}", *_study_cells(r)]
        )
    return table(["Recipe", "Setting", *STUDY_HEAD], rows, left=2)


def widths_study_table(v: dict[str, Any]) -> str:
    """The widths at the same L0."""
    rows = [
        [
            f.count(r["d_sae"]),
            f"λ = {f.exact(r['lambda'])}, rate {f.exact(r['lr'])}",
            *_study_cells(r),
        ]
        for r in study_figures.widths_rows(v["studies"]["widths"])
    ]
    return table(["Features", "Setting", *STUDY_HEAD], rows, left=2)


def saelens_table(v: dict[str, Any]) -> str:
    """SAELens' own trainer, and ours at the L0 that it reached."""
    rows = []
    for r in study_figures.saelens_rows(v["studies"]["saelens"]):
        setting, seconds = (
            f"λ = {f.exact(r['lambda'])}, rate {f.exact(r['lr'])}",
            f"{f.count(round(r['seconds']))} ({f.number(r['speed'], 2)})",
        )
        measures = (
            f.percent(r["recovered_zero"]),
            f.percent(r["recovered_mean"]),
            f.small(r["fvu"]),
            f.number(r["l0_mean"]),
            f.percent(r["dead_share"]),
        )
        rows.append(
            [
                plain(r["contender"]),
                setting,
                f.millions(r["activations"]),
                f.count(r["seeds"]),
                *measures,
                f.count(r["threads"]),
                seconds,
            ]
        )
    return table(
        [
            "Trainer",
            "Setting",
            "Activations",
            "Seeds",
            "Recovered, zero",
            "Recovered, mean",
            "FVU",
            "L0",
            "Dead",
            "Threads",
            "Seconds",
        ],
        rows,
        left=2,
    )


STUDY_HEAD = (
    "Seeds",
    "Recovered, zero",
    "Recovered, mean",
    "Spread",
    "FVU",
    "L0",
    "Dead",
    "MMCS (random)",
)


def _study_cells(r: dict[str, Any]) -> list[str]:
    mmcs = f"{f.number(r['mmcs'])} ({f.number(r['mmcs_null'])})"
    return [
        f.count(r["seeds"]),
        f.percent(r["recovered_zero"]),
        f.percent(r["recovered_mean"]),
        f.percent(r["spread"]),
        f.small(r["fvu"]),
        f.number(r["l0_mean"]),
        f.percent(r["dead_share"]),
        mmcs,
    ]


def compared(v: dict[str, Any], one: str, other: str) -> str:
    """A sentence on two contenders of the study of recipes at its L0, whichever way it came out."""
    d = study_figures.difference(v["studies"]["recipes"], one, other)
    verdict = (
        "all seeds of the one lie on the same side of all seeds of the other"
        if d["apart"]
        else "which is within the spread of the seeds"
    )
    return (
        f"{plain(one)} recovers {f.percent(d['one'])} (mean ablation), {plain(other)} "
        f"{f.percent(d['other'])}: {verdict}."
    )


def rates_tried(v: dict[str, Any]) -> str:
    """The learning rates that the study of recipes tried, by recipe."""
    tried: dict[str, set[float]] = {}
    for point in v["studies"]["recipes"]["tuning"]:
        tried.setdefault(point["recipe"], set()).add(point["lr"])
    return ", ".join(
        f"{' and '.join(map(f.exact, sorted(rates)))} (`{name}`)" for name, rates in tried.items()
    )
