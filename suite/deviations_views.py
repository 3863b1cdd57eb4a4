"""What the study of the original's deviations found, as sentences, tables and figures."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sae_lib.figures import PALETTE, colour
from sae_lib.formats import count, interval, number, percent, signed
from suite.charts import chart
from suite.original import FACTS
from suite.study_figures import MOST_APART, mean_and_half_width

NULL = "other seeds"
ANOTHER_MODEL = "attention"  # trains a language model of its own
TITLES = {
    "norm": "decoder normalised along dimensions",
    "dead_test": f"dead after {FACTS['dead_sample']:,} silent activations",
    "resampling_end": "resampling to the end of training",
    "loss_units": "squared error as a mean",
    "b_dec": "b_dec starts at random",
    "encoder_start": "independent encoder, as in the paper",
    "positions": "one position of each row",
    "attention": "the original's attention",
    NULL: "nothing but other seeds (null)",
}
PRIMARY = "recovered_mean"  # declared before the study was run
# measure → (what it is called, factor)
MEASURES = {
    PRIMARY: ("loss recovered, points", 100),
    "information": ("rule information, points", 100),
    "alive": ("features alive", 1),
}
# deviation → (how it works; the column that would bear it out, what that is called, its format;
# whether it is expected to be larger, 1, or smaller, -1, with the deviation)
MECHANISMS = {
    "norm": (
        "The norm of a feature is free, and L1 counts activations, not what they write. Norm moves"
        " to features that save penalty by it.",
        ("norms", "95 % quantile of the features' norms over the median", number, 1),
    ),
    "dead_test": (
        "A healthy feature of density p is silent on n activations with probability (1 − p)ⁿ. It"
        " counts as dead, and is overwritten.",
        ("called_dead", "called dead by this test at the end", percent, 1),
    ),
    "resampling_end": (
        "Resampling goes on to the end, so fewer features are dead then. Those that are overwritten"
        " late have little time left to learn.",
        ("dead_share", "dead on held-out text", percent, -1),
    ),
    "loss_units": (
        "A mean divides the error and its gradient by the layer's width; Adam's step hardly depends"
        " on that scale. Once λ is searched for the same L0, the trade-off is the same.",
        ("fvu", "FVU", number, 1),
    ),
    "b_dec": (
        "Features see activations that are not centred until b_dec has moved to their mean. It is"
        " trained, so a bad start costs the time until then.",
        ("fvu", "FVU", number, 1),
    ),
    "encoder_start": (
        "A feature whose encoder does not point along its decoder writes what it does not read."
        " More fall silent on the way, and resampling these disturbs the others (section 7).",
        ("dead_share", "dead on held-out text", percent, 1),
    ),
    "positions": (
        "A batch has no neighbours of the same text, and training sees activations of more rows."
        " The original computed 128 positions for each; here a row is computed once, so that cost"
        " is not measured.",
        ("fvu", "FVU", number, -1),
    ),
    "attention": (
        "Smaller logits spread the attention, and without a projection each head writes to its own"
        " dimensions. The layer above is another one, with other features.",
        ("fvu", "FVU", number, 1),
    ),
}
UNITS = {  # of the squared error
    "original": "mean over dimensions (original)",
    "original+loss_units": "sum over dimensions",
    "method": "sum, activations scaled to d_in (method)",
}
WHERE = {"original": "in the original", "method": "in the method"}


def effects(study: dict) -> pd.DataFrame:
    """A row per deviation, base and measure: what the deviation changes, with it minus without it,
    paired by seed: `effect` and its 95 % interval `low`, `high` (Student's t; None for one seed).

    `original+X` has X put right, so the effect of X is the original's value minus its. `l0` is the
    mean L0 with the deviation and without it, and `verdict` what the interval says: "change" where
    it excludes zero and, where other seeds were tried as the null, the effect is larger than either
    end of theirs; "none shown"; "L0 apart" where those of any seed are too far apart.
    """
    points, records = pd.DataFrame(study["points"]).set_index("seed"), []
    values = dict(list(points.groupby("contender", sort=False)))
    for name, of in values.items():
        base = next(base for base in WHERE if name.startswith(base))
        if name == base:
            continue
        deviation, put_right = name[len(base) :].strip("+-, "), "+" in name
        l0 = [of["l0_mean"].mean(), values[base]["l0_mean"].mean()][:: -1 if put_right else 1]
        times = (of["l0_mean"] / values[base]["l0_mean"]).dropna()  # seed by seed
        apart = np.maximum(times, 1 / times).max()
        for measure, (_, factor) in MEASURES.items():
            changes = factor * (of[measure] - values[base][measure]).astype(float)
            mean, half = mean_and_half_width((-changes if put_right else changes).dropna())
            ends = [mean - half, mean + half] if half == half else [None, None]
            records.append((base, deviation, measure, l0, apart, mean, *ends))
    columns = ["base", "deviation", "measure", "l0", "apart", "effect", "low", "high"]
    table = pd.DataFrame(records, columns=columns).astype({"low": float, "high": float})
    null = table[table["deviation"] == NULL].set_index(["base", "measure"])[["low", "high"]]
    chance = null.abs().max(axis=1).reindex(table[["base", "measure"]]).fillna(0).to_numpy()
    apart = (table["low"] > 0) | (table["high"] < 0)
    change = apart & (table["effect"].abs() > chance)
    verdict = change.map({True: "change", False: "none shown"})
    return table.assign(verdict=verdict.mask(table["apart"] > MOST_APART, "L0 apart"))


def searched(study: dict) -> str:
    """For whom λ was searched, by whether the seeds of a contender share it."""
    each = pd.DataFrame(study["points"]).groupby("contender")["lambda"].nunique()
    return "for every seed" if (each > 1).any() else "on the first seed"


def sentence(study: dict) -> str:
    """Which deviations change the primary measure, and which do not, whichever way it came out."""
    table = effects(study).query("measure == @PRIMARY")
    judged = table[~table["deviation"].isin([NULL, ANOTHER_MODEL])]
    said = [_of_base(base, of) for base, of in judged.groupby("base", sort=False)]
    for r in table[table["deviation"] == NULL].dropna().to_dict("records"):
        ends = interval(r["low"], r["high"], signed)
        said.append(f"Other seeds alone, the null, change it by {signed(r['effect'])} ({ends}).")
    n = (judged["verdict"] != "L0 apart").sum()
    said.append(f"Of {n} intervals of 95 %, {0.05 * n:.1f} exclude zero by chance.")
    for r in table[table["deviation"] == ANOTHER_MODEL].dropna().to_dict("records"):
        losses = study["models"]
        said.append(
            f"The original's attention makes another language model ({number(losses['attention'])}"
            f" nats for {number(losses['standard'])}): {signed(r['effect'])} points"
            f" ({interval(r['low'], r['high'], signed)}), from one model each."
        )
    return " ".join(said)


def brief(study: dict) -> str:
    """What the two plainest faults change, in the method and in the original, where measured."""
    table = effects(study).query("measure == @PRIMARY").set_index(["deviation", "base"])
    shown = {"none shown": "no change shown", "L0 apart": "not compared"}
    said = []
    for deviation, what in (("norm", "axis"), ("dead_test", "test")):
        measured = [base for base in ("method", "original") if (deviation, base) in table.index]
        rows = {base: table.loc[deviation, base] for base in measured}
        parts = (
            f"{shown.get(row['verdict'], signed(row['effect']))} {WHERE[base]}"
            for base, row in rows.items()
        )
        said += [f"of the {what} {' and '.join(parts)}"] if rows else []
    return f"The effect on the loss recovered, in points: {'; '.join(said)}" if said else ""


def _of_base(base: str, of: pd.DataFrame) -> str:
    """The verdicts of one base in words."""
    named = {verdict: [] for verdict in ("change", "none shown", "L0 apart")}
    for r in of.sort_values("effect", kind="stable").to_dict("records"):
        ends, but = interval(r["low"], r["high"], signed), ""
        if r["verdict"] == "none shown" and (r["low"] > 0 or r["high"] < 0):
            but = f" ({ends}: less than other seeds alone)"
        effect = f" {signed(r['effect'])} ({ends})" if r["verdict"] == "change" else but
        named[r["verdict"]].append(TITLES[r["deviation"]] + effect)
    changes, none, apart = ("; ".join(names) for names in named.values())
    n = len(of) - len(named["L0 apart"])
    more = 100 * (MOST_APART - 1)
    if n == 0:
        return f"{WHERE[base].capitalize()}, none is compared: L0 differ by more than {more:.0f} %."
    said = f"{WHERE[base].capitalize()}, {len(named['change'])} of {n} change the loss recovered"
    said += f", in percentage points: {changes}." if changes else "."
    said += f" No change is shown by: {none}." if none else ""
    return said + (f" Not compared, as L0 differ by over {more:.0f} %: {apart}." if apart else "")


def rows(study: dict) -> list[dict[str, str]]:
    """The table: a row per deviation and base."""
    table, timed = [], times(study)
    for (base, deviation), of in effects(study).groupby(["base", "deviation"], sort=False):
        cells = {"Deviation": TITLES[deviation], "In": base}
        for r in of.to_dict("records"):
            ends = f" ({interval(r['low'], r['high'], signed)})" if r["low"] == r["low"] else ""
            cells[MEASURES[r["measure"]][0]] = signed(r["effect"]) + ends
        cells["L0 with it, without"] = ", ".join(map(number, r["l0"]))
        ratio = timed.get((base, deviation))
        cells["Time, with over without"] = "–" if ratio is None else ratio
        shown = {"change": "yes", "none shown": "no", "L0 apart": "not compared"}
        verdict = shown[of.loc[of["measure"] == PRIMARY, "verdict"].item()]
        apart = {NULL: "null", ANOTHER_MODEL: "another model"}
        cells["Changes the loss recovered"] = apart.get(deviation, verdict)
        table.append(cells)
    return table


def times(study: dict) -> dict[tuple[str, str], str]:
    """How many times as long a training takes with the deviation as without it: the median over
    turns and, in brackets, the least and the most, by (base, deviation).
    """
    seconds = pd.DataFrame(study["times"])
    found = {}
    for name in seconds:
        base = next(base for base in WHERE if name.startswith(base))
        ratio = seconds[name] / seconds[base]
        ratio = 1 / ratio if "+" in name else ratio
        low, middle, high = ratio.quantile([0, 0.5, 1])
        said = f"{number(middle)} ({number(low)} to {number(high)})"
        found[base, name[len(base) :].strip("+-")] = said
    return found


def mechanisms(study: dict) -> list[dict[str, str]]:
    """A row per deviation: how it may work, a measurement with it and without it, and where that
    bears it out: an interval over paired seeds, without zero, on the side that is expected, of
    pairs whose L0 are near.
    """
    points, table = pd.DataFrame(study["points"]), []
    points["norms"] = [norms[1] for norms in points["norms"]]
    of = {name: p.set_index("seed") for name, p in points.groupby("contender", sort=False)}
    for deviation, (how, (column, called, written, sign)) in MECHANISMS.items():
        said = []
        for base, where in WHERE.items():
            for pair in ((base, f"{base}+{deviation}"), (f"{base}-{deviation}", base)):
                if {*pair} <= set(of):
                    having, lacking = (of[name][column].astype(float) for name in pair)
                    times = of[pair[0]]["l0_mean"] / of[pair[1]]["l0_mean"]
                    mean, half = mean_and_half_width(sign * (having - lacking).dropna())
                    borne_out = "no difference is shown"
                    if abs(mean) > half:
                        borne_out = "as expected" if mean > 0 else "the reverse"
                    if max(times.max(), (1 / times).max()) > MOST_APART:
                        borne_out = "not compared"
                    having, lacking = (written(part.mean()) for part in (having, lacking))
                    said.append(f"{where} {having}, without it {lacking}: {borne_out}")
        if said:
            evidence = f"{called}: {'; '.join(said)}"
            table.append({"Deviation": TITLES[deviation], "How": how, "With it": evidence})
    return table


def called_dead(study: dict) -> list[dict[str, str]]:
    """A row per contender: whom the original's test calls dead after training, and how many of
    these fire on the held-out text, beside what their densities let expect.
    """
    return [
        {
            "Recipe": described(name),
            "Called dead": percent(r["called_dead"]),
            "Of these, fire on held-out text": percent(r["wrongly"]),
            "Expected from (1 − p)ⁿ": percent(r["wrongly_expected"]),
        }
        for name, r in contenders(study).astype(object).where(lambda t: t.notna(), None).iterrows()
    ]


def described(name: str) -> str:
    """A contender in words: `original+norm` is the original with its norm put right."""
    base = next(base for base in WHERE if name.startswith(base))
    deviation = name[len(base) :].strip("+-, ")
    how = "without: " if "+" in name else "with: " if "-" in name else ", "
    return f"{base}{' ' if how != ', ' else ''}{how}{TITLES[deviation]}" if deviation else base


def contenders(study: dict) -> pd.DataFrame:
    """Means over seeds: what each is like, and whom the original's test calls dead."""
    points = pd.DataFrame(study["points"])
    columns = ["l0_mean", PRIMARY, "alive", "information", "called_dead"]
    columns += ["wrongly", "wrongly_expected"]
    return (
        points.astype({c: float for c in columns}).groupby("contender", sort=False)[columns].mean()
    )


def figure(study: dict) -> go.Figure:
    """What each deviation changes, a panel per measure; bars are 95 % intervals over seeds. Pairs
    whose L0 are too far apart are left out.
    """
    found = effects(study).query("verdict != 'L0 apart'")
    judged = ~found["deviation"].isin([NULL, ANOTHER_MODEL])
    primary = found[(found["measure"] == PRIMARY) & judged]
    said = [
        f"{(of['verdict'] == 'change').sum()} of {len(of)} {WHERE[base]}"
        for base, of in primary.groupby("base", sort=False)
    ]
    title = f"Deviations that change the loss recovered: {', '.join(said)}"
    found = found.assign(half=(found["high"] - found["low"]) / 2)
    titles = {measure: title for measure, (title, _) in MEASURES.items()}
    colours = {"original": colour("ward_2024"), "method": colour("bricken_2023")}
    colours = {WHERE[base]: of for base, of in colours.items()}
    order = {"deviation": [TITLES[d] for d in TITLES if d in set(found["deviation"])]}
    how = {"category_orders": order, "color_discrete_map": colours}
    found = found.replace({"deviation": TITLES, "base": WHERE, "measure": titles})
    fig = chart("deviations", found, title=title, **how)
    fig.add_vline(0, line_dash="dot", line_color=PALETTE[5])
    return fig


def carried_rows(study: dict) -> list[dict[str, str]]:
    """L0, and FVU in brackets, where λ is kept while the layer's width changes."""
    table = pd.DataFrame(study["carried"]).set_index(["contender", "d_mlp"])[["l0_mean", "fvu"]]
    widths = table.index.unique("d_mlp")
    found = []
    for name, title in UNITS.items():
        cells = {"Squared error": title}
        for width in widths:
            l0, fvu = table.loc[name, width]
            cells[f"L0 (FVU) at {count(width)} neurons"] = f"{l0:.1f} ({fvu:.2f})"
        found.append(cells)
    return found


def carried_sentence(study: dict) -> str:
    """How far λ carries over to other widths: the largest L0 over the smallest, and where FVU is
    above one half, that this is the ratio of autoencoders that hardly reconstruct.
    """
    of = pd.DataFrame(study["carried"]).groupby("contender", sort=False)
    times, poor = of["l0_mean"].max() / of["l0_mean"].min(), of["fvu"].min() > 0.5
    said = [f"{number(times[name])} ({title})" for name, title in UNITS.items()]
    hardly = [title for name, title in UNITS.items() if poor[name]]
    return (
        f"Over these widths the largest L0 is this many times the smallest: {'; '.join(said)}."
        + (
            f" Hardly anything is reconstructed at this λ with: {'; '.join(hardly)}."
            if hardly
            else ""
        )
    )


def full_sentence(study: dict) -> str:
    """How the original's own budget ends, beside what it reported."""
    record, dead = study["record"], pd.DataFrame(study["dead"])
    after = dead["dead"][dead["activations"] > 0.09 * record["activations"]]
    low, high = FACTS["dead_low"], FACTS["dead_high"]
    inside = after.between(low, high)
    answer = "comes out" if inside.mean() > 0.5 else "does not come out"
    return (
        f"On {record['activations'] / 1e6:.1f} million activations the original's course {answer}:"
        f" its test finds {percent(dead['dead'].iloc[0])} of the features dead at its first"
        f" resampling, {percent(dead['dead'].max())} at most (reported:"
        f" {percent(FACTS['dead_peak'])}), and after 9 % of training a median of"
        f" {percent(after.median())} (reported: {percent(low)} to {percent(high)}; {inside.sum()}"
        f" of {len(after)} tests lie there). In the end {count(record['alive'])} features are"
        f" alive; it recovers {percent(record['recovered_zero'])} (zero;"
        f" {percent(FACTS['recovered_zero'])} there) and"
        f" {percent(record['recovered_mean'])} (mean) at L0 {record['l0_mean']:.1f}"
        f" ({FACTS['l0_mean']:.0f} there). One seed; its λ may be too large for our smaller"
        " activations (appendix B), which was not tested."
    )


def full_figure(study: dict) -> go.Figure:
    """Dead by the original's test at every resampling, and silent on the training stream."""
    dead = pd.DataFrame(study["dead"])
    most, last = percent(dead["dead"].max()), percent(dead["dead"].iloc[-1])
    title = f"At its full budget, the original's test calls {most} dead at most, {last} at the end"
    fig = chart("full_budget", dead, title=title)
    for value, text in (("dead_low", "least"), ("dead_high", "most"), ("dead_peak", "peak")):
        look = {"line_dash": "dot", "line_color": PALETTE[5]}
        fig.add_hline(FACTS[value], **look, annotation_text=f"reported: {text}")
    return fig.update_traces(line_color=colour("ward_2024"))
