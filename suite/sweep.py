"""A grid of autoencoders on one language model, and the frontier between sparsity and loss
recovered that they draw.
"""

import itertools
import math
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from sae_lib.errors import CorpusError, SettingsError, shown
from sae_lib.features import evaluation
from sae_lib.files import digest
from sae_lib.model.activations import HookPoint
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import RECIPES, resolve, uses
from sae_lib.settings import RECIPE_VALUES, SAESettings, load
from suite import stages, study_figures
from suite.runs import Run

MOST_POINTS = 1000
SETTING = ["recipe", "d_sae", "lambda", "k", "lr", "precision", "activations"]


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
    made_from, s = stages.fingerprint_of(run, settings), run.settings.evaluation
    made_from |= {"evaluation": s.model_dump(), "choosing": stages.CHOOSING}
    folder = folder_of(run, settings)
    where = f"sweep/{run.folder.name}/{folder.name}" if run.parent else f"sweep/{folder.name}"
    if found := run.saved_results(where, made_from):
        return found
    stages.make_other_autoencoder(run, hook, settings, folder)
    dictionary = {folder.name: SparseAutoencoder.load(folder, hook.device)}
    choosing, rows = stages.heldout_parts(run)
    if len(rows) == 0:
        raise CorpusError(
            "the held-out text has one document: one to choose settings on and another to report "
            "them on are needed; give more text (corpus.heldout_tokens)"
        )
    measured = evaluation.evaluate(hook, dictionary, rows, s)[folder.name]
    few = {name: max(1, int(n * stages.CHOOSING)) for name, n in s.model_dump().items()}
    few = evaluation.evaluate(hook, dictionary, choosing, s.model_copy(update=few))[folder.name]
    summary = stages.read_summary(folder)
    seed = run.settings.seed if settings.seed is None else settings.seed
    record = {"lambda": summary["recipe"]["l1"], "seed": seed}
    record |= {key: summary["recipe"][key] for key in ("k", "lr")}
    record |= settings.model_dump(include={"recipe", "d_sae", "precision"})
    record |= {key: summary[key] for key in ("seconds", "activations", "activations_per_second")}
    record |= {key: measured[key] for key in (*study_figures.MEASURES, "density")}
    record |= {"choosing": {key: few[key] for key in study_figures.MEASURES}}
    run.save_results(where, record, made_from)
    return run.saved_results(where, made_from)


def folder_of(run: Run, settings: SAESettings) -> Path:
    """Where the autoencoder of a point lies."""
    return run.folder / "sweep" / point_name(settings)


def point_name(settings: SAESettings) -> str:
    return f"{settings.recipe}-{digest(training.training_fingerprint(settings))[:8]}"


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
