"""The report's tables and lines about features: rules and their scores, what is known of one,
explanations, clamping.
"""

from typing import Any

from sae_lib import formats as f
from sae_lib.interpretability import scores
from sae_lib.text.markup import code, plain, table
from suite.report.tables import Value


def rules_table(v: dict[str, Any]) -> str:
    """How well rules predict each kind of unit."""
    rows = []
    for kind, s in v["interpretability"]["scores"].items():
        low, high = s["auroc_median_interval"]
        auroc = f"{f.number(s['auroc_median'])} ({f.interval(low, high)})"
        rows.append(
            [
                scores.KINDS[kind],
                f.count(s["n"]),
                f.percent(s["density_median"]),
                auroc,
                f.number(s["balanced_accuracy_median"]),
                f.percent(s["information_median"]),
                f.number(s["conditions_mean"], 2),
            ]
        )
    return table(
        [
            "Units",
            "Number",
            "Density, median",
            "AUROC",
            "Balanced accuracy",
            "Information",
            "Conditions",
        ],
        rows,
    )


def rules_compared(v: dict[str, Any]) -> str:
    """Sentences on features against matched neurons and against an untrained model's features,
    whichever way they came out.
    """
    said = []
    for pair, other, what in (
        ("feature - neuron_matched", "matched neurons", "over all activations"),
        ("feature_strong - neuron_strong", "matched neurons", "over the strong half"),
        (
            "feature - untrained_matched",
            "the features of an untrained model's autoencoder",
            "at matched densities",
        ),
    ):
        if pair in v["interpretability"]["differences"]:
            d = v["interpretability"]["differences"][pair]["auroc_median"]
            low, high = d["interval"]
            verdict = (
                "ours are predicted better"
                if low > 0
                else "the others are predicted better"
                if high < 0
                else "the interval holds 0, so neither is ahead"
            )
            said.append(
                f"The median AUROC of features minus that of {other} is "
                f"{f.signed(d['difference'])} {what} (95 % interval "
                f"{f.interval(low, high, f.signed)}): {verdict}."
            )
    return " ".join(said)


def read_closely(v: dict[str, Any], entry: dict[str, Any]) -> str:
    """What is known of a feature beyond its strongest examples: rule and scores, an example from
    each tenth, the effect of clamping.
    """
    score, lines = entry["score"], []
    if score["rule"]:
        lines.append(
            f"Rule: {code(score['rule'], False)}; AUROC {f.number(score['auroc'])}, balanced "
            f"accuracy {f.number(score['balanced_accuracy'])} on other documents."
        )
    else:
        lines.append("Rule: none was scored (too few activations in one half of the documents).")
    clamped = {c["feature"]: c for c in (v["clamping"] or {}).get("features", ())}.get(
        entry["feature"]
    )
    if clamped:
        lines += ["", clamping_line(clamped)]
    lines.append("")
    for tenth in entry["tenths"]:
        for e in tenth["examples"]:
            lines.append(
                f"- {f.number(e['activation'])} (of {f.percent(tenth['share'])}): "
                f"{code(e['before'], False)}**{code(e['token'], False)}**{code(e['after'], False)}"
            )
    return "\n".join(lines) + "\n"


def explanation_table(v: dict[str, Any]) -> str:
    """What a chat model's explanations scored, by kind of unit, and how many of its answers
    could not be read.
    """
    e, rows = v["explanations"], []
    for kind, s in e["kinds"].items():
        cells = [
            f"{f.number(s[test]['mean'])} ({f.interval(s[test]['low'], s[test]['high'])})"
            if s[test]["units"]
            else f.NONE
            for test in ("detection", "fuzzing")
        ]
        rows.append(
            [
                plain(kind),
                f.count(s["units"]),
                *cells,
                f"{f.count(s['unparsed'])} of {f.count(s['n'])}",
            ]
        )
    early = f" It ended early: {plain(e['stopped'])}." if e["stopped"] else ""
    said = (
        f"Explanations by {plain(e['model'])} from one half of the documents, tested on the "
        "other: balanced accuracy of telling which excerpts activate (detection) and whether "
        f"the marked tokens do (fuzzing).{early}"
    )
    return (
        said
        + "\n\n"
        + table(["Units", "Number", "Detection", "Fuzzing", "Unreadable answers"], rows)
    )


def clamping_table(v: dict[str, Any]) -> str:
    """What a feature held at its maximum does, beside what it is held against: means with the
    range of the draws, and the most that any of them gains.
    """
    features = v["clamping"]["features"]
    header = [
        "Feature",
        "",
        "Value",
        "KL",
        *(f"KL, {name}" for name in features[0]["nulls"]),
        "Its tokens",
        "Gained",
        "Most gained by the others",
    ]
    rows = []
    for c in features:
        before, after = c["probability_before"], c["probability_after"]
        kl = [between(null["kl"], f.small) for null in c["nulls"].values()]
        tokens = [
            f"{f.percent(before)} → {f.percent(after)}",
            f.percent(after - before),
            f.percent(max(null["change"][2] for null in c["nulls"].values())),
        ]
        rows.append(
            [c["feature"], c["chosen"], f.number(c["value"]), f.small(c["kl"]), *kl, *tokens]
        )
    return table(header, rows, left=2)


def clamping_ablation_table(v: dict[str, Any]) -> str:
    """What the loss loses without a feature, where it is active."""
    rows = []
    for a in v["clamping"]["ablation"]:
        interval, null = (
            f.interval(a["low"], a["high"], f.small),
            between([a["null"], a["null_least"], a["null_most"]], f.small),
        )
        rows.append(
            [
                a["feature"],
                f.count(a["n_active"]),
                f.small(a["active"]),
                interval,
                f.percent(a["hurt"]),
                null,
            ]
        )
    return table(
        [
            "Feature",
            "Places",
            "Change of the loss",
            "95 % interval",
            "Worse at",
            "Random directions",
        ],
        rows,
    )


def clamping_line(c: dict[str, Any]) -> str:
    """One feature's clamp in a sentence, for its page in the report."""
    nulls = ", ".join(
        f"{name} {f.interval(*null['kl'][1:3], f.small)}" for name, null in c["nulls"].items()
    )
    moved = ", ".join(
        f"{code(m['token'])} {f.percent(m['before'])} → {f.percent(m['after'])}"
        for m in c["movers"][:3]
    )
    gained = f"{f.percent(c['probability_before'])} → {f.percent(c['probability_after'])}"
    verdict = (
        "more than along any direction that it was held against"
        if c["beyond_nulls"]
        else "no more than along some direction that it was held against"
    )
    return (
        f"Held at {f.number(c['value'])}: KL {f.small(c['kl'])} nats ({nulls}); its top-logit "
        f"tokens together {gained}, {verdict}; moved most: {moved}."
    )


def between(values: list[float], write: Value) -> str:
    """A mean and the range around it."""
    mean, least, most = map(write, values)
    return f"{mean} ({least}\u00a0to\u00a0{most})"
