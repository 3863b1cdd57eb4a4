"""What the studies found, as tables and figures: for notebook 03 and the report."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plotly
import plotly.graph_objects as go
import scipy
from plotly.subplots import make_subplots

from sae_lib import figures
from sae_lib.files import write_atomically
from sae_lib.formats import count, interval, number, percent, signed
from suite import project
from suite.charts import MODEL, chart
from suite.runs import Run

STUDIES = ("recipes", "widths", "classical", "saelens", "resampling", "sanity", "deviations")
STUDIES += ("full_budget", "transcoder", "absorption", "universality", "gaussian")
STUDIES += ("larger", "blind")
STARTS = {
    "small_tied": "small tied start",
    "independent": "independent start",
}
# what the study of resampling decides by, declared before it was run: the first is primary
DECIDING = {"dead_share": "dead features", "recovered_mean": "loss recovered"}
SETTING = ["lambda", "k", "lr"]
HOW = {  # changes to resampling, in the study of it
    "moments-kept": "with Adam's moments kept",
    "rate-warmed-up-again": "with the rate warmed up again over 5 % of training",
    "weaker-encoders": "with new encoders a tenth as long",
}
LOOKS = (("solid", "circle"), ("dash", "diamond"), ("dot", "square"))  # of one recipe's contenders
COMPARED = {  # in the study of universality: whose features are compared with whose
    "ceiling": "two autoencoders of one language model (ceiling)",
    "models": "two language models",
    "neurons": "neurons of two language models, as dense as features (null)",
    "fresh": "two untrained language models (null)",
    "trained_and_fresh": "a trained and an untrained language model (null)",
    "shuffled": "two language models, on different text (null)",
}
QUALITIES = {
    "information": "the information that rules explain",
    "ablation": "the loss that ablating a feature costs",
}
QUALITY = 0.98  # loss recovered (mean ablation) at the study's L0, to which trainers are timed …
NEAR_L0 = 1.05  # … where L0 is at most so many times that
SPEED_GOAL = 8  # times as fast as the best of SAELens' trainers, declared beforehand
AROUND = 4  # the figure of recipes shows L0 from the study's over this to this many times it
MOST_APART = 1.15  # times: the loss recovered of pairs whose L0 differ by more is not compared
UNIVERSAL = 0.5  # the correlation from which a feature counts as universal
MEASURES = ["recovered_zero", "recovered_mean", "fvu", "l0_mean", "dead_share", "alive"]
AGREEMENT = {  # of seeds: columns, and what they are called in a study
    "mmcs": "mean",
    "mmcs_null": "null",
    "mmcs_data": "data",
    "matched": "matched",
    "matched_data": "matched_data",
}
PANELS = {  # of the figure of widths: a measure's title and the format of its axis
    "recovered_mean": ("loss recovered (mean ablation)", ".1%"),
    "fvu": ("FVU", ""),
    "dead_share": ("dead share", ".1%"),
    "mmcs": ("MMCS of two seeds", ".2f"),
}


def publish(run: Run) -> Path:
    """Keep the run's studies in the checkout."""
    to = project.root() / "report" / "studies"
    for which in STUDIES:
        if (own := run.results_folder / f"study_{which}.json").exists():
            write_atomically(to / f"{which}.json", own.read_text())
    return to


def load_study(run: Run, which: str) -> dict | None:
    """The run's own study (with `own` true), else the published one, else None."""
    own = run.results_folder / f"study_{which}.json"
    for path in (own, project.published("studies") / f"{which}.json"):
        if path.is_file():
            return json.loads(path.read_text()) | {"own": path == own}
    return None


def load_studies(run: Run) -> dict[str, dict | None]:
    return {which: load_study(run, which) for which in STUDIES}


# --- tables ---


def over_seeds(points: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row per group: means over its seeds, their number, and the least, the most and the spread
    (their difference) of loss recovered.
    """
    groups = points.groupby(by, sort=False, dropna=False)
    recovered = groups["recovered_mean"]
    found = {"seeds": groups.size(), "least": recovered.min(), "most": recovered.max()}
    rows = groups.mean(numeric_only=True).assign(**found).reset_index()
    return rows.assign(spread=rows["most"] - rows["least"])


def recipes_rows(study: dict) -> pd.DataFrame:
    """A row per contender at the study's L0, the best first: means over seeds, least, most and
    spread of loss recovered, agreement between seeds and with what is no feature.
    """
    points = pd.DataFrame(study["points"])
    rows = _with_agreement(points[points["l0"] == study["about"]["l0"]], "contender", study)
    return rows.sort_values("recovered_mean", ascending=False, ignore_index=True)


def widths_rows(study: dict) -> pd.DataFrame:
    """The same, a row per width."""
    rows = _with_agreement(pd.DataFrame(study["points"]), "d_sae", study)
    return rows.sort_values("d_sae", ignore_index=True)


def splitting_rows(study: dict) -> pd.DataFrame:
    """A row per pair of widths in words: what becomes of the narrow dictionary's living features,
    and how many of the wide one's are parts, also with another narrow feature as the parent.
    """
    table = []
    for s in study["splitting"]:
        cells = {"Features": f"{count(s['narrow'])} to {count(s['wide'])}"}
        shares = {"Two or more parts": "split_share", "One part": "kept_share"}
        shares |= {
            "No counterpart": "lost_share",
            "Parts, of frequent wide ones": "parts_share",
        }
        shares |= {"By density alone (null)": "null_share"}
        table.append(cells | {title: percent(s[share]) for title, share in shares.items()})
    return pd.DataFrame(table)


def agreement_sentence(study: dict) -> str:
    """Whether the recipe that recovers most is also the one whose seeds agree most, beyond the
    directions of activations.
    """
    rows = recipes_rows(study)
    rows = rows[~rows["contender"].str.contains("bfloat16|as given")].set_index("contender")
    agree = (rows["matched"] - rows["matched_data"]).astype(float)
    best, least, most = agree.index[0], agree.idxmin(), agree.idxmax()
    more, others = (agree > agree[best]).sum(), len(rows) - 1
    link = scipy.stats.spearmanr(rows["recovered_mean"], agree)
    meaning = "no relation is shown"
    if link.pvalue < 0.05:
        finds = "find too" if link.statistic > 0 else "do not find"
        meaning = f"a better reconstruction goes with features that other seeds {finds}"
    return (
        f"`{best}` recovers most ({percent(rows['recovered_mean'].iloc[0])}, mean ablation),"
        f" {_lead(study, *rows.index[:2])} Its seeds match by {number(rows['matched'].iloc[0])},"
        f" {signed(agree[best])} beyond the activations; {more} of the other {others} recipes do so"
        f" by more. The differences lie from {signed(agree[least])} (`{least}`) to"
        f" {signed(agree[most])} (`{most}`). Their rank correlation with what is recovered is"
        f" {signed(link.statistic)}: {meaning}."
    )


def _lead(study: dict, best: str, second: str) -> str:
    """By how much the best recipe recovers more than the second, paired by seed."""
    points = pd.DataFrame(study["points"]).query("l0 == l0")  # those of all seeds
    of = points.pivot(index="seed", columns="contender", values="recovered_mean")
    return f"in percentage points {_in_points(of[best] - of[second])} more than `{second}`."


def _in_points(differences: pd.Series) -> str:
    """The mean of paired differences of shares in percentage points, and its 95 % interval."""
    mean, half = mean_and_half_width(100 * differences)
    ends = "one seed" if half != half else interval(mean - half, mean + half, signed)
    return f"{signed(mean)} ({ends})"


def widths_sentence(study: dict) -> str:
    """What each step to a wider dictionary adds to the loss recovered, paired by seed."""
    steps = [f"to {count(w)} features {_in_points(d)}" for w, d in _steps_of_width(study).items()]
    return f"Each step adds, in percentage points with 95 % intervals: {'; '.join(steps)}."


def _steps_of_width(study: dict) -> dict[int, pd.Series]:
    """By how much more each width recovers than the one before, seed by seed."""
    points = pd.DataFrame(study["points"])
    of = points.pivot(index="seed", columns="d_sae", values="recovered_mean")
    return {wide: of[wide] - of[narrow] for narrow, wide in itertools.pairwise(of.columns)}


def widths_title(study: dict) -> str:
    """Up to which width each step is shown to recover more."""
    best = None
    for wide, steps in _steps_of_width(study).items():
        mean, half = mean_and_half_width(steps)
        if not mean > half:
            break
        best = wide
    said = f"Near L0 {study['about']['l0']:.0f} a wider dictionary"
    widest = max(point["d_sae"] for point in study["points"])
    if best is None:
        return f"{said} is not shown to recover more"
    return f"{said} recovers more" + (f", up to {count(best)} features" if best < widest else "")


def _with_agreement(points: pd.DataFrame, by: str, study: dict) -> pd.DataFrame:
    rows = over_seeds(points, [by])
    agreement = [study["mmcs"][str(of)] for of in rows[by]]
    for column, key in AGREEMENT.items():
        rows[column] = [of[key] for of in agreement]
    return rows[[by, "seeds", *SETTING, *MEASURES, "least", "most", "spread", *AGREEMENT]]


def mean_and_half_width(values: pd.Series) -> tuple[float, float]:
    """The mean over seeds, and half of its 95 % interval by Student's t; NaN for one seed."""
    t = scipy.stats.t.ppf(0.975, max(1, len(values) - 1))
    return values.mean(), t * values.std() / len(values) ** 0.5


def absorption_rows(study: dict) -> pd.DataFrame:
    """A row per recipe in words: means over seeds; of the excess over the null its 95 % interval
    over seeds.
    """
    table = []
    for name, of in pd.DataFrame(study["points"]).groupby("contender", sort=False):
        mean, half = mean_and_half_width(of["excess"])
        cells = {"Recipe": name, "L0": f"{of['l0_mean'].mean():.1f}"}
        cells["Loss recovered (mean ablation)"] = percent(of["recovered_mean"].mean())
        cells["Pairs"] = f"{of['pairs'].mean():.0f}"
        for title, column in (("F1 of the parent", "f1"), ("Absorbed", "rate"), ("Null", "null")):
            cells[title] = percent(of[column].mean())
        written = signed(100 * mean)
        if not np.isnan(half):
            written += f" ({interval(100 * (mean - half), 100 * (mean + half), signed)})"
        table.append(cells | {"Above the null, points": written})
    return pd.DataFrame(table)


def absorption_sentence(study: dict) -> str:
    """Which recipes absorb more than the null: by the mean over seeds of the excess over it."""
    found = {}
    for name, of in pd.DataFrame(study["points"]).groupby("contender", sort=False):
        found[name] = mean_and_half_width(of["excess"])
    above = [f"`{name}`" for name, (mean, half) in found.items() if mean > half]
    return (
        f"Above the null, by a 95 % interval over seeds: {', '.join(above) or 'no recipe'}"
        f" ({len(above)} of {len(found)} recipes; {0.025 * len(found):.1f} by chance, as only the"
        " upper side counts)."
    )


def universality_rows(study: dict) -> pd.DataFrame:
    """A row per comparison in words: means over language models, with their 95 % intervals."""
    points, table = pd.json_normalize(study["points"]), []
    for name, what in COMPARED.items():
        cells = {"Features of": what}
        for column, title in (("raw", "raw"), ("residual", "token regressed out")):
            of = f"compared.{name}.{column}"
            cells[f"Best correlation, {title}"] = with_interval(points[of])
            cells[f"Universal, {title}"] = with_interval(points[f"{of}_share"], percent)
        table.append(cells)
    return pd.DataFrame(table)


def with_interval(values: pd.Series, written: Callable[[float], str] = "{:.2f}".format) -> str:
    """The mean over seeds, in brackets its 95 % interval where there is one."""
    mean, half = mean_and_half_width(values)
    ends = "" if np.isnan(half) else f" ({written(mean - half)} to {written(mean + half)})"
    return f"{written(mean)}{ends}".replace("-", "\N{MINUS SIGN}")


def universality_sentences(study: dict) -> list[str]:
    """Whether features are universal, and whether those that are more so are better, whichever way
    it came out. Primary, declared before the study was run: what is left once the token is
    regressed out; and for the second question with the density held.
    """
    points, beside = pd.json_normalize(study["points"]), {}
    by = {"residual": "mean", "residual_share": "share", "raw": "mean", "raw_share": "share"}
    for column, what in by.items():
        but, found = [], {name: points[f"compared.{name}.{column}"] for name in COMPARED}
        for null, described in [*COMPARED.items()][2:]:
            mean, half = mean_and_half_width(found["models"] - found[null])
            if not mean > half:
                verdict = "less" if mean < -half else "level"
                short = described.removesuffix(" (null)")
                short = short.replace("two untrained language models", "untrained ones")
                but.append(f"{short} ({verdict})")
        written = percent if what == "share" else "{:.2f}".format
        ours, fresh = (written(found[name].mean()) for name in ("models", "fresh"))
        beside[column] = f"({ours}; untrained ones {fresh}) more than every null"
        beside[column] += f" but {', '.join(but)}" if but else ""
    least = study["about"]["universal"]
    said = [
        "Primary is what is left with the current token regressed out: two models agree by the mean"
        f" best correlation {beside['residual']}, and by the share of features with one of at least"
        f" {least} {beside['residual_share']}. Raw they agree by the mean {beside['raw']}, and by"
        f" the share {beside['raw_share']}."
    ]
    for quality, what in QUALITIES.items():
        held, free, most, least = (
            points[f"links.{quality}.{name}"]
            for name in ("density_held", "spearman", "most", "least")
        )
        mean, half = mean_and_half_width(held)
        verdict = "no relation is shown"
        if abs(mean) > half:
            verdict = f"more universal features have {'more' if mean > 0 else 'less'} of it"
        said.append(
            f"Universality and {what}: Spearman's correlation with the density held is"
            f" {with_interval(held)}, without {with_interval(free)}: {verdict}. Its median is"
            f" {number(most.mean())} in the most universal third of the features and"
            f" {number(least.mean())} in the least universal."
        )
    return said


def gaussian_sentence(study: dict) -> str:
    """Whether width buys more on activations than on a Gaussian like them, whichever way it came
    out: by the share of the narrow dictionary's FVU that the wide one leaves, seed by seed.
    """
    table = pd.DataFrame(study["points"]).pivot(index="seed", columns=["data", "d_sae"])["fvu"]
    narrow, wide = sorted({width for _, width in table})
    left = {kind: table[kind, wide] / table[kind, narrow] for kind in ("activations", "Gaussian")}
    mean, half = mean_and_half_width(left["activations"] - left["Gaussian"])
    verdict = "no difference is shown"
    if abs(mean) > half:
        verdict = f"width buys {'more' if mean < 0 else 'less'} on the activations"
    fell = {kind: [percent(table[kind, width].mean()) for width in (narrow, wide)] for kind in left}
    said = [" to ".join(fell[kind]) for kind in left]
    return (
        f"With TopK at L0 {study['about']['l0']:.0f}, going from {count(narrow)} to {count(wide)}"
        f" features takes the variance unexplained from {said[0]}; on a Gaussian with the same mean"
        f" and covariance, from {said[1]}. The shares left differ by {signed(100 * mean)} points"
        f" ({interval(100 * (mean - half), 100 * (mean + half), signed)}): {verdict}."
    )


def predicted_by_graphs(study: dict) -> str:
    """Spearman's correlation of predicted and actual changes of the logits, of the first transcoder
    in the table: the mean over seeds, the least and the most.
    """
    points = pd.json_normalize(study["points"])
    of = points[points["contender"] == points["contender"][0]]["graphs.spearman"]
    return f"{number(of.mean())} ({number(of.min())} to {number(of.max())} over seeds)"


def transcoder_rows(study: dict) -> pd.DataFrame:
    """A row per transcoder in words: means over seeds, and of its graphs how often ablating the
    largest edges changes more than ablating random ones.
    """
    table = []
    for name, of in pd.DataFrame(study["points"]).groupby("contender", sort=False):
        kind = "with a linear skip" if name == "skip_transcoder" else "plain"
        cells = {"Transcoder": kind, "L0": f"{of['l0_mean'].mean():.1f}"}
        for title, column in (("zero", "recovered_zero"), ("mean", "recovered_mean")):
            cells[f"Loss recovered, {title}"] = percent(of[column].mean())
        cells["Fire at all"] = percent(1 - of["dead_share"].mean())
        cells["Alive"] = percent(of["alive"].mean() / study["about"]["d_sae"])
        graphs = pd.DataFrame(of["graphs"].tolist())
        cells["Largest edges matter more"] = percent(graphs["larger"].mean())
        cells["Predicted against actual (Spearman)"] = f"{graphs['spearman'].mean():.2f}"
        table.append(cells)
    return pd.DataFrame(table)


def resampling_differences(points: list[dict]) -> list[dict]:
    """With resampling minus without it, by start and deciding measure: the mean over seeds, each
    against itself, and its 95 % interval; the mean `l0` with it and without it, and how many times
    the one is the other in the seed where they are most `apart`.
    """
    table, found = pd.DataFrame(points).set_index(["resampling", "start", "seed"]), []
    for start, measure in itertools.product(STARTS, DECIDING):
        values = table[measure]
        mean, half = mean_and_half_width(values[True][start] - values[False][start])
        cell = {"start": start, "measure": measure, "mean": mean}
        l0 = [table["l0_mean"][on][start] for on in (True, False)]
        times = l0[0] / l0[1]
        apart = {"l0": [of.mean() for of in l0], "apart": max(times.max(), (1 / times).max())}
        found.append(cell | {"interval": [mean - half, mean + half]} | apart)
    return found


def l0_apart(one: float, other: float) -> bool:
    """Whether two L0 are so far apart that the loss recovered is not compared."""
    return max(one / other, other / one) > MOST_APART


def resampling_verdict(d: dict) -> str:
    """What a difference shows. Loss recovered depends on the L0, so it is not compared where that
    is another.
    """
    low, high = d["interval"]
    if d["measure"] == "recovered_mean" and d["apart"] > MOST_APART:
        return f"not compared: L0 {number(d['l0'][0])} with it, {number(d['l0'][1])} without"
    if low is None or low <= 0 <= high:
        return "no difference is shown"
    return "more" if low > 0 else "less"


def resampling_sentence(study: dict) -> str:
    """What resampling did, by the deciding measures, whichever way it came out."""
    parts: dict[str, list[str]] = {start: [] for start in STARTS}
    for d in study["differences"]:
        ends = [None if end is None else 100 * end for end in d["interval"]]
        said = f"{DECIDING[d['measure']]} {signed(100 * d['mean'])} ({interval(*ends, signed)};"
        parts[d["start"]].append(f"{said} {resampling_verdict(d)})")
    starts = "; ".join(f"from the {STARTS[s]}, {', '.join(said)}" for s, said in parts.items())
    n = len(study["differences"])
    return (
        f"With resampling minus without it, in percentage points with 95 % intervals: {starts}."
        f" Of {n} intervals {0.05 * n:.1f} exclude zero by chance."
    )


def how_differences(points: list[dict], variants: list[dict]) -> list[dict]:
    """Of each change in `HOW`: its share of dead features minus that of resampling as published,
    from the same start and seed, and the 95 % interval.
    """
    table, found = pd.DataFrame(points).set_index(["resampling", "start", "seed"]), []
    published = table["dead_share"][True]["independent"]
    for how, of in pd.DataFrame(variants).groupby("how", sort=False):
        changes = of.set_index("seed")["dead_share"] - published
        mean, half = mean_and_half_width(changes)
        interval = {"mean": mean, "interval": [mean - half, mean + half]}
        found.append({"how": how, "dead_share": of["dead_share"].mean()} | interval)
    return found


def how_sentence(study: dict) -> str:
    """What the last resampling of an independent start disturbs, how many of the dead features it
    can have touched, and whether changes to it help; empty where it touched none.
    """
    points = pd.DataFrame(study["points"])
    points = points[points["resampling"] & (points["start"] == "independent")]
    if (points["resampled"] == 0).any():
        return ""
    error, l0 = (
        pd.DataFrame([event[key] for event in points["disturbed"]]).mean()
        for key in ("squared_error", "l0")
    )
    share = (l0[1] - l0[0]) / pd.DataFrame(points["disturbed"].tolist())["resampled"].mean()
    dead = (points["dead_share"] * points["d_sae"]).mean()
    untouched = dead - points["resampled"].mean()
    said = (
        f"From the independent start the last resampling raises the L0 from {number(l0[0])} to"
        f" {number(l0[1])} and the squared error {number(error[1] / error[0])} times: a new"
        f" feature, without a bias, fires on {percent(share)} of the inputs at first."
    )
    if untouched > 0:
        said += (
            f" Of {count(dead)} features that are dead in the end at least {count(untouched)} had"
            " never been resampled."
        )
    changes = []
    for d in study["how"]:
        ends = [None if end is None else 100 * end for end in d["interval"]]
        changes.append(f"{HOW[d['how']]} {signed(100 * d['mean'])} ({interval(*ends, signed)})")
    return (
        f"{said} Of changes tried afterwards the dead share moves, in percentage points,"
        f" {'; '.join(changes)}."
    )


def resampling_rows(study: dict) -> pd.DataFrame:
    """A row per start, without and with resampling, and per change to it: means over seeds."""
    points, variants = pd.DataFrame(study["points"]), pd.DataFrame(study["variants"])
    points["resampling"] = points["resampling"].map({True: "with", False: "without"})
    variants["resampling"] = variants["how"].map(HOW)
    both = pd.concat([points, variants.assign(start="independent")])
    rows = over_seeds(both, ["start", "resampling"])
    columns = ["start", "resampling", "seeds", "resampled", *MEASURES]
    return rows[columns].replace({"start": STARTS})


def has_quality(record: dict, l0: float) -> bool:
    """Whether an autoencoder recovers `QUALITY` of the loss at that L0, or less."""
    return record["recovered_mean"] >= QUALITY and record["l0_mean"] <= NEAR_L0 * l0


def saelens_rows(study: dict) -> pd.DataFrame:
    """A row per trainer in words, at its best rate."""
    points = pd.DataFrame(study["tuning"])
    tried = points.groupby("contender")["lr"].unique()
    rows = []
    for r in points[points["best"]].to_dict("records"):
        cells = {"Trainer": r["contender"], "Rate": f"{r['lr']:g}"}
        cells["Rates tried"] = ", ".join(f"{lr:g}" for lr in sorted(tried[r["contender"]]))
        cells["λ or k"] = f"k = {r['k']}" if r["k"] else f"λ = {number(r['lambda'], 3)}"
        cells |= {"L0": f"{r['l0_mean']:.1f}", "Recovered, mean": percent(r["recovered_mean"])}
        cells |= {"FVU": f"{r['fvu']:.3f}", "Dead": percent(r["dead_share"])}
        rows.append(cells | {"Alive": count(r["alive"])})
    return pd.DataFrame(rows)


def saelens_times(study: dict) -> pd.DataFrame:
    """A row in words per trainer and number of activations that was timed, least to most over
    seeds.
    """
    rows = []
    points = pd.DataFrame(study["points"])
    for (name, n), of in points.groupby(["contender", "activations"], sort=False):
        reached = sum(has_quality(r, study["about"]["l0"]) for r in of.to_dict("records"))
        cells = {"Trainer": name, "Activations": count(n)}
        cells["Recovered, mean"] = _least_to_most(of["recovered_mean"], percent)
        cells["L0"] = _least_to_most(of["l0_mean"], "{:.1f}".format)
        cells["Seconds"] = _least_to_most(of["seconds"], number)
        rows.append(cells | {f"Seeds with {percent(QUALITY)}": f"{reached} of {len(of)}"})
    return pd.DataFrame(rows)


def _least_to_most(values: pd.Series, say: Callable[[float], str]) -> str:
    ends = list(dict.fromkeys([say(values.min()), say(values.max())]))
    return " to ".join(ends)


def saelens_sentence(study: dict) -> str:
    """The best of each side, and how many times the other's seconds to the quality one needs."""
    names, seconds = [], []
    for side in (True, False):
        of = [p for p in study["points"] if p["contender"].startswith("SAELens") is side]
        last = [p for p in of if p["activations"] == of[-1]["activations"]]
        reached = all(has_quality(p, study["about"]["l0"]) for p in last)
        names.append(of[-1]["contender"])
        seconds.append(pd.Series([p["seconds"] for p in last]) if reached else None)
    best = f"The best of SAELens' trainers is `{names[0]}`; ours is `{names[1]}`."
    for name, took in zip(names, seconds, strict=True):
        if took is None:
            return f"{best} `{name}` did not reach {percent(QUALITY)} with all seeds."
    theirs, ours = seconds
    ratios = (theirs.mean() / ours.mean(), theirs.min() / ours.max(), theirs.max() / ours.min())
    ratio, least, most = map(number, ratios)
    met = "met" if ratios[0] >= SPEED_GOAL else "missed"
    return (
        f"{best} To {percent(QUALITY)} at L0 {study['about']['l0']:.0f} they take"
        f" {number(theirs.mean())} s and {number(ours.mean())} s, the harvest of the activations"
        f" included: SAELens' takes {ratio} times as long ({least} to {most}, whichever seeds are"
        f" compared). The goal, {SPEED_GOAL} times, is {met}."
    )


def rows_of(studies: dict[str, dict | None]) -> dict[str, list[dict]]:
    """The rows of every study that is there, by its name."""
    found = {}
    for which, make in ROWS.items():
        if study := studies[which]:
            rows = make(study).astype(object)
            found[which] = rows.where(rows.notna(), None).to_dict("records")
    return found


ROWS = {
    "recipes": recipes_rows,
    "widths": widths_rows,
    "saelens": saelens_rows,
    "resampling": resampling_rows,
    "transcoder": transcoder_rows,
    "absorption": absorption_rows,
    "universality": universality_rows,
}


# --- figures ---


def frontier(points: pd.DataFrame, title: str = "Who keeps more at the same L0?") -> go.Figure:
    """Loss recovered over L0, a line per contender in its recipe's colour; bars span the seeds.
    What is lost is drawn logarithmically.
    """
    rows = over_seeds(points, ["contender", *SETTING]).sort_values("l0_mean")
    recovered = rows["recovered_mean"]
    rows["lost"] = (1 - recovered).clip(lower=1e-3)
    rows["above"], rows["below"] = recovered - rows["least"], rows["most"] - recovered
    colours = {name: figures.colour(name) for name in rows["contender"]}
    order = {"contender": points["contender"].unique().tolist()}
    how = {"color_discrete_map": colours, "category_orders": order, "title": title}
    fig, used = chart("frontier", rows, **how), Counter()
    for trace in fig.data:  # contenders of the same recipe
        dash, symbol = LOOKS[used[trace.line.color] % len(LOOKS)]
        trace.update(line_dash=dash, marker_symbol=symbol)
        used[trace.line.color] += 1
    return fig


def recipes_figure(study: dict) -> go.Figure:
    """The frontier of every recipe, within `AROUND` of the study's L0."""
    points = pd.DataFrame(study["points"])
    best, at = recipes_rows(study).iloc[0], study["about"]["l0"]
    points = points[points["l0_mean"].between(at / AROUND, at * AROUND)]
    title = f"At L0 {at:.0f}, {best['contender']} recovers most: {percent(best['recovered_mean'])}"
    return frontier(points, f"{title} (mean ablation, mean over seeds)")


def absorption_figure(study: dict) -> go.Figure:
    """The share absorbed by each recipe, a point per seed, beside that of random sets of tokens."""
    kinds = {"rate": "exact labels", "null": "random sets of tokens"}
    points = pd.DataFrame(study["points"])
    more = points.groupby("contender")["excess"].apply(_clearly_above_zero)
    title = (
        f"{more.sum()} of {len(more)} recipes absorb more tokens than random sets of tokens give"
    )
    points = points.melt("contender", list(kinds), "labels").replace({"labels": kinds})
    colours = {"exact labels": figures.PALETTE[0], "random sets of tokens": figures.PALETTE[5]}
    return chart("absorption", points, color_discrete_map=colours, title=title)


def _clearly_above_zero(values: pd.Series) -> bool:
    mean, half = mean_and_half_width(values)
    return bool(mean > half)


def widths_figure(study: dict) -> go.Figure:
    """What width buys near the same L0: loss recovered, FVU, dead share, and agreement of seeds."""
    rows = widths_rows(study)
    nulls = [
        rows[["d_sae"]].assign(mmcs=rows[column], of=what)
        for what, column in (("random directions", "mmcs_null"), ("activations", "mmcs_data"))
    ]
    both = pd.concat([rows.assign(of="features"), *nulls]).melt(["d_sae", "of"], list(PANELS))
    titles = {"variable": {key: name for key, (name, _) in PANELS.items()}}
    colours = [figures.PALETTE[0], figures.PALETTE[5], figures.PALETTE[5]]
    how = {"title": widths_title(study), "color_discrete_sequence": colours}
    fig = chart("widths", both.dropna().replace(titles), **how)
    for column, (_, form) in enumerate(PANELS.values(), 1):
        fig.update_yaxes(tickformat=form, col=column)
    for null, dash in (("random directions", "dot"), ("activations", "dash")):
        fig.update_traces(line_dash=dash, selector={"name": null})
    return fig.update_xaxes(tickvals=rows["d_sae"].tolist())


def classical_sentence(study: dict) -> str:
    """How far the best setting's score varies over seeds, beside the best of other widths."""

    def score(record: dict) -> float:
        return record["fvu"] + record["l0_mean"] / study["d_in"]

    least, most = (end(map(score, study["best"])) for end in (min, max))
    width = study["best"][0]["d_sae"]
    other = min((p for p in study["points"] if p["d_sae"] != width), key=score)
    shown = "is" if score(other) > most else "is not"
    return (
        f"The score is FVU + L0 / d_in: {number(least)} to {number(most)} over these seeds, and"
        f" {number(score(other))} for the best setting with {count(other['d_sae'])} features, so"
        f" the width {shown} shown to matter."
    )


def classical_figure(study: dict) -> go.Figure:
    """FVU + L0 / d_in over λ, a line per learning rate, a panel per width; stars stopped early."""
    points = pd.DataFrame(study["points"]).sort_values(["d_sae", "lr", "lambda"])
    whole = study["about"]["activations"] // 1024 * 1024
    points["rate"] = points["lr"].map("rate {:g}".format)
    points["width"] = points["d_sae"].map("{:,} features".format)
    points["symbol"] = np.where(points["activations"] < whole, "star", "circle")
    colours = plotly.colors.sequential.Plasma[::3]  # rates are no recipes
    best = study["best"][0]
    title = f"Tied weights do best at λ = {best['lambda']:g}, rate {best['lr']:g},"
    title += f" {count(best['d_sae'])} features (stars stopped early)"
    fig = chart("classical", points, color_discrete_sequence=colours, title=title)
    for trace in fig.data:
        trace.marker.update(size=10, symbol=trace.customdata[:, 0].tolist())
    return fig.update_xaxes(tickvals=sorted(points["lambda"].unique()))


def resampling_figure(study: dict) -> go.Figure:
    """Features silent along the way, a line per cell, bars over the range of its seeds; beside it
    what is dead, recovered (mean ablation) and alive at the end, bars for 95 % intervals.
    """
    recent = f"silent for {count(study['window'])} activations"
    ends = {"dead_share": "dead at the end", "recovered_mean": "loss recovered", "alive": "alive"}
    titles, widths = [recent, *ends.values()], [0.4, 0.2, 0.2, 0.2]
    fig = make_subplots(1, 4, column_widths=widths, subplot_titles=titles, horizontal_spacing=0.09)
    cells = pd.DataFrame(study["points"]).groupby(["start", "resampling"], sort=False)
    curves = pd.DataFrame(study["curves"]).groupby(["start", "resampling"], sort=False)
    colours = dict(zip(STARTS, (figures.PALETTE[0], MODEL), strict=True))  # of one recipe
    for (start, on), curve in curves:
        side = -0.1 if start == "small_tied" else 0.1  # so that no bar hides another
        silent = curve.groupby("activations")["silent"].agg(["mean", "min", "max"])
        name = f"{STARTS[start]}, {'with' if on else 'without'} resampling"
        look = {"name": name, "marker_color": colours[start], "legendgroup": name}
        look |= {"line_dash": "solid" if on else "dot"}
        low, high = silent["mean"] - silent["min"], silent["max"] - silent["mean"]
        bars = {"array": high, "arrayminus": low, "thickness": 1}
        at = {"x": silent.index, "y": silent["mean"], "error_y": bars}
        fig.add_scatter(**at, **look, mode="lines", row=1, col=1)
        look |= {"showlegend": False, "marker_symbol": "circle" if on else "x", "marker_size": 10}
        for column, measure in enumerate(ends, 2):
            mean, half = mean_and_half_width(cells.get_group((start, on))[measure])
            at = {"x": [on + side], "y": [mean], "error_y": {"array": [half]}}
            fig.add_scatter(**at, **look, mode="markers", row=1, col=column)
            ticks = {"tickvals": [0, 1], "ticktext": ["without", "with"], "range": [-0.5, 1.5]}
            fig.update_xaxes(title="resampling", **ticks, col=column)
    for column, form in enumerate((".0%", ".0%", ".1%", ","), 1):
        fig.update_yaxes(tickformat=form, col=column)
    fig.update_xaxes(title="activations seen", col=1)
    legend = {"orientation": "h", "x": 0, "y": -0.3, "yanchor": "top"}
    fig.update_xaxes(tickformat="~s", col=1)
    return fig.update_layout(title=resampling_title(study["differences"]), legend=legend)


def resampling_title(differences: list[dict]) -> str:
    """Which of the deciding measures resampling is shown to change, and which way."""
    said: dict[str, list[str]] = {}
    for d in differences:
        if way := {"more": "raises", "less": "lowers"}.get(resampling_verdict(d)):
            said.setdefault(f"{way} {DECIDING[d['measure']]}", []).append(STARTS[d["start"]])
    if not said:
        return "Resampling is not shown to change dead features or the loss, from either start"
    changes = (
        f"{what} ({'both starts' if len(starts) == len(STARTS) else starts[0]})"
        for what, starts in said.items()
    )
    return f"Resampling {', '.join(changes)}"


def resampling_brief(differences: list[dict]) -> str:
    """The same with how much it changes the primary measure, in points."""
    primary = [d for d in differences if d["measure"] == [*DECIDING][0]]
    sizes = (f"{signed(100 * d['mean'])} ({STARTS[d['start']]})" for d in primary)
    said = resampling_title(differences).replace("Resampling", "resampling")
    return f"{said}: {', '.join(sizes)} points of {DECIDING[primary[0]['measure']]}"


def not_at_one_l0(differences: list[dict]) -> str:
    """Of which starts the loss recovered is not compared, for the figure's caption."""
    verdicts = {
        d["start"]: resampling_verdict(d) for d in differences if d["measure"] != "dead_share"
    }
    starts = [STARTS[start] for start, of in verdicts.items() if of.startswith("not compared")]
    return f"; of the {' and the '.join(starts)} the losses are not at one L0" if starts else ""


def study_figures(studies: dict[str, dict | None]) -> dict[str, go.Figure]:
    """The figure of every study that is there, by the name of its file."""
    draw = {
        "recipes": recipes_figure,
        "widths": widths_figure,
        "classical": classical_figure,
        "resampling": resampling_figure,
        "absorption": absorption_figure,
    }
    return {
        f"study_{which}": make(studies[which]) for which, make in draw.items() if studies[which]
    }
