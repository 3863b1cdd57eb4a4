"""A grid of autoencoders on one language model, and the frontier between sparsity and loss
recovered that they draw.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sae_lib.errors import CorpusError, SettingsError, TrainingError, shown
from sae_lib.features import evaluation
from sae_lib.files import digest
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import RECIPES, Recipe, resolve, training_fingerprint, uses
from sae_lib.settings import RECIPE_VALUES, SAESettings, load
from suite import stages, study_figures
from suite.runs import Run

MOST_POINTS = 1000
SEEDS = (0, 1, 2)
NEAR = 0.2  # of log L0: rates that come no nearer are not compared
L0 = 16.0  # at which everything is compared
RATES = (0.5, 1.0, 2.0)  # times a recipe's learning rate; the best one at that L0 is kept
FURTHER = 4  # steps beyond them at most, while the best one is at an edge
WARD_RATES = (10.0, 30.0)  # times ward_2024's, which is far from done at its own
Trained = list[tuple[SAESettings, dict]]  # autoencoders and their records
SETTING = ["recipe", "d_sae", "lambda", "k", "lr", "precision", "activations"]


@contextmanager
def also_known(recipes: Mapping[str, Recipe]) -> Iterator[None]:
    """Inside, settings may name these recipes as well."""
    before = dict(RECIPES)
    RECIPES.update(recipes)
    try:
        yield
    finally:
        RECIPES.clear()
        RECIPES.update(before)


def split(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(overrides with one value, settings of `sae` with several): `sae.l1=1,2,4` is an axis of
    the grid.
    """
    single, axes = [], {}
    for override in overrides:
        key, _, text = override.partition("=")
        if not key.startswith("sae.") or "," not in text or text.lstrip().startswith("["):
            single.append(override)
            continue
        values = [value.strip() for value in text.split(",")]
        if key in axes or "" in values or len(set(values)) < len(values):
            raise SettingsError(
                f"sweep: {shown(override)} gives an axis or a value twice, or an empty value;"
                " expected different values, for example sae.l1=1,2,4"
            )
        axes[key] = values
    if not axes:
        raise SettingsError(
            "sweep: no setting has several values; give at least one of sae, for example --set "
            "sae.l1=1,2,4 --set sae.seed=0,1,2"
        )
    if (points := math.prod(map(len, axes.values()))) > MOST_POINTS:
        raise SettingsError(f"sweep: {points:,} points; at most {MOST_POINTS} are trained at once")
    return single, axes


def grid(profile: str, single: list[str], axes: dict[str, list[str]]) -> dict[str, SAESettings]:
    """The autoencoder's settings at every point, by name; checked before anything is trained.
    What a recipe does not use is left out for it.
    """
    points = {}
    for values in itertools.product(*axes.values()):
        chosen = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
        settings = load(profile, [*single, *chosen]).sae
        if recipe := RECIPES.get(settings.recipe):
            ignored = [n for n in RECIPE_VALUES if getattr(settings, n) and not uses(recipe, n)]
            settings = settings.model_copy(update=dict.fromkeys(ignored))
            chosen = [c for c in chosen if c[4:].partition("=")[0] not in ignored]
        resolve(settings)
        points[" ".join(c.removeprefix("sae.") for c in chosen)] = settings
    return points


def sweep(profile: str, run_dir: str | Path, overrides: list[str]) -> Path:
    """Train and evaluate every point, in the folder of the run without the grid; returns
    `results/sweep.json`.

    A finished point is not done again, and points of earlier sweeps of the same run stay in the
    table and the figure.
    """
    single, axes = split(overrides)
    grid_points = grid(profile, single, axes)
    run = stages.open_run(profile, run_dir, single)
    hook = stages.hook(run)
    for settings in grid_points.values():
        measure(run, hook, settings)
    found = points(run)
    run.figure(frontier(found), "frontier")
    return run.save_results("sweep", {"points": found})


def points(run: Run) -> list[dict]:
    """Every point that the run has trained and evaluated, by sweeps and studies."""
    files = sorted((run.results_folder / "sweep").glob("*.json"))
    return [plain_record(run.load_results(f"sweep/{path.stem}")) for path in files]


def plain_record(record: dict) -> dict:
    """A point without the density of each feature."""
    return {key: value for key, value in record.items() if key not in ("density", "made_from")}


def measure(run: Run, hook: HookPoint, settings: SAESettings) -> dict:
    """Train and evaluate one autoencoder, where that has not been done: what it is, `MEASURES`,
    and the density of its features. `choosing` has the same measures on the documents on which
    settings are chosen, the others are of the rest of the held-out text.
    """
    evaluated = {"evaluation": run.settings.evaluation.model_dump(), "choosing": stages.CHOOSING}
    made_from, folder = stages.fingerprint_of(run, settings) | evaluated, folder_of(run, settings)
    where = f"sweep/{run.folder.name}/{folder.name}" if run.parent else f"sweep/{folder.name}"
    return run.kept_results(where, made_from, partial(measured_in, run, hook, settings, folder))


def measured_in(run: Run, hook: HookPoint, settings: SAESettings, folder: Path) -> dict:
    """The record of `measure`, of an autoencoder trained into `folder`."""
    stages.make_other_autoencoder(run, hook, settings, folder)
    measured, few = evaluated(run, hook, SparseAutoencoder.load(folder, hook.device))
    summary = stages.read_summary(folder)
    recipe, seed = summary["recipe"], settings.seed
    record = {"lambda": recipe["l1"], "seed": run.settings.seed if seed is None else seed}
    record |= {"k": recipe["k"], "lr": recipe["lr"]}
    record |= settings.model_dump(include={"recipe", "d_sae", "precision"})
    record |= {key: summary[key] for key in ("seconds", "activations", "activations_per_second")}
    record |= {key: measured[key] for key in (*study_figures.MEASURES, "density")}
    return record | {"choosing": {key: few[key] for key in study_figures.MEASURES}}


def evaluated(run: Run, hook: HookPoint, sae: SparseAutoencoder) -> tuple[dict, dict]:
    """All measures on the held-out documents that studies report, and on those they choose on."""
    s, (choosing, rows) = run.settings.evaluation, stages.heldout_parts(run)
    if len(rows) == 0:
        raise CorpusError(
            "the held-out text has one document: one to choose settings on and another to report "
            "them on are needed; give more text (corpus.heldout_tokens)"
        )
    measured = evaluation.evaluate(hook, {"": sae}, rows, s)[""]
    few = {name: max(1, int(n * stages.CHOOSING)) for name, n in s.model_dump().items()}
    return measured, evaluation.evaluate(hook, {"": sae}, choosing, s.model_copy(update=few))[""]


def folder_of(run: Run, settings: SAESettings) -> Path:
    """Where the autoencoder of a point lies."""
    return run.folder / "sweep" / point_name(settings)


def point_name(settings: SAESettings) -> str:
    return f"{settings.recipe}-{digest(training_fingerprint(settings))[:8]}"


def changed(settings: SAESettings, **values) -> SAESettings:
    return settings.model_copy(update=values)


def about(run: Run) -> dict:
    """What a study was made on."""
    return {
        "corpus": run.settings.corpus.source.rpartition("/")[2],
        "activations": run.settings.sae.activations,
        "l0": L0,
        "seeds": len(SEEDS),
        "choosing": stages.CHOOSING,
        "lm_tokens": run.summary("language_model")["tokens"],
        "heldout_tokens": run.settings.evaluation.tokens,
    }


def save_study(run: Run, which: str, found: dict) -> dict:
    """Save `results/study_<which>.json`, with what it was made on; returns it as read."""
    run.save_results(f"study_{which}", found | {"about": about(run)})
    return run.load_results(f"study_{which}")


def at_its_best_rate(
    run: Run, hook: HookPoint, given: SAESettings, lr: float, rates: Sequence[float]
) -> tuple[SAESettings, list[dict]]:
    """(settings near the L0 at the rate, of `rates` times `lr` and further ones while the best is
    at an end, that recovers most there; the records of all).
    """

    start = given  # with the λ of the rate before: the search is shorter

    def trained(times: float) -> Trained:
        nonlocal start
        pair = at_l0(run, hook, changed(start, lr=rounded(lr * times)), L0, tolerance=0.15)
        start = changed(given, l1=pair[0].l1)
        return [pair]

    found = until_the_best_is_inside(rates, trained, comparable_and_recovered)
    best, _ = max(found, key=lambda pair: comparable_and_recovered(pair[1]))
    return best, [plain_record(record) for _, record in found]


def comparable_and_recovered(record: dict) -> tuple[bool, float]:
    """Orders the points of a recipe: first those near enough to the L0, then by loss recovered."""
    return abs(_off(record, L0)) < NEAR, record["choosing"]["recovered_mean"]


def _off(record: dict, l0: float) -> float:
    """log(L0 / l0), where settings are chosen."""
    return math.log(max(record["choosing"]["l0_mean"], 1e-2) / l0)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def until_the_best_is_inside(
    grid: Sequence[float], train: Callable[[float], Trained], score: Callable[[dict], Any]
) -> Trained:
    """Train at every value of `grid`; while the best by `score` is at one of its ends, also at
    the next value beyond, at most `FURTHER` times. Values at which training fails are left out.
    """
    found: dict[float, Trained] = {}
    wanted = list(grid)
    for _ in range(FURTHER + 1):
        for value in wanted:
            with suppress(TrainingError) if found else nullcontext():
                found[value] = train(value)
        best = max(found, key=lambda value: max(score(record) for _, record in found[value]))
        values = sorted({*found, *wanted})
        beyond = {a: a * a / b for a, b in (values[:2], values[:-3:-1])} if values[1:] else {}
        wanted = [beyond[best]] if best in beyond else []
    return list(itertools.chain.from_iterable(found.values()))


def at_l0(
    run: Run,
    hook: HookPoint,
    settings: SAESettings,
    l0: float,
    tolerance: float = 0.05,
    tries: int = 4,
    seed: int = SEEDS[0],
) -> tuple[SAESettings, dict]:
    """The settings with that seed, and λ (or k) such that the L0 on the choosing part of the
    held-out documents is within `tolerance` of `l0`, or as near as `tries` trainings come; and that
    training's record.

    log L0 falls about linearly with log λ: a first guess from the recipe's λ, then secants.
    """
    settings = changed(settings, seed=seed)
    recipe = resolve(settings)
    if recipe.k:
        settings = changed(settings, k=round(l0))
        return settings, measure(run, hook, settings)

    def trained(l1: float) -> tuple[SAESettings, dict]:
        candidate = changed(settings, l1=l1)
        return candidate, measure(run, hook, candidate)

    return towards_l0(trained, math.log(recipe.l1) - math.log(l0 / L0), l0, tolerance, tries)


def towards_l0(
    trained: Callable[[float], tuple[Any, dict]],
    log_l1: float,
    l0: float,
    tolerance: float,
    tries: int,
) -> tuple[Any, dict]:
    """What `trained` gives for the λ that comes nearest to `l0`; the search begins at log λ."""
    tried: list[tuple[float, float, Any, dict]] = []  # log(L0 / l0), log λ
    slope = -1.0
    for _ in range(tries):
        candidate, record = trained(float(f"{math.exp(log_l1):.4g}"))
        tried.append((_off(record, l0), log_l1, candidate, record))
        tried.sort(key=lambda attempt: abs(attempt[0]))
        off, nearest, *_ = tried[0]
        if abs(off) <= math.log1p(tolerance):
            break
        if len(tried) > 1 and nearest != tried[1][1]:
            slope = min(-0.3, max(-4.0, (tried[1][0] - off) / (tried[1][1] - nearest)))
        log_l1 = nearest - off / slope
    return tried[0][2:]


def table(points: list[dict]) -> pd.DataFrame:
    """A row per setting: means over its seeds, their number, and the spread (largest − smallest)
    of loss recovered.
    """
    rows = study_figures.over_seeds(pd.DataFrame(points), SETTING).drop(columns="seed")
    return rows.sort_values(["recipe", "d_sae", "l0_mean"], ignore_index=True)


def frontier(points: list[dict]) -> go.Figure:
    """Loss recovered over L0, a line per recipe (and width), bars for the spread of the seeds."""
    frame = pd.DataFrame(points).sort_values(["recipe", "d_sae"])
    several = frame["d_sae"].nunique() > 1
    width = frame["d_sae"].map(", {:,} features".format) if several else ""
    return study_figures.frontier(frame.assign(contender=frame["recipe"] + width))
