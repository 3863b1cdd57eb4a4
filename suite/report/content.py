"""What the template is given: the run's results, the original's facts, and the derived values
that take more than a filter.
"""

import itertools
import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

import yaml

from sae_lib import settings as settings_module
from sae_lib.errors import ArtefactError
from sae_lib.settings import Section, Settings
from sae_lib.toy import metrics
from suite import deviations_views, project, rule_figures, sanity_views, study_figures
from suite.original import ORIGINAL
from suite.runs import Run, settings_hash

NOTEBOOK_OF = {
    "toy": "01_toy_superposition",
    "activations": "02_activations",
    "training": "03_sae_training",
    "evaluation": "03_sae_training",
    "features": "04_feature_browser",
    "interpretability": "04_feature_browser",
    "clusters": "04_feature_browser",
    "explanations": "04_feature_browser",
    "last_mlp": "05_stheno_last_mlp",
    "clamping": "06_clamping",
    "deviations": "07_original_vs_method",
    "circuits": "08_circuits",
    "why": "08_circuits",
    "gallery": "08_circuits",
    "study_recipes": "`python -m suite study`",
    "study_widths": "`python -m suite study`",
    "study_classical": "`python -m suite study`",
    "study_resampling": "`python -m suite study`",
    "study_saelens": "`python -m benchmarks.saelens_study`",
    "study_sanity": "`python -m suite sanity`",
    "study_deviations": "`python -m suite study`",
    "study_full_budget": "`python -m suite study`",
    "study_larger": "`python -m suite study`",
    "study_blind": "`python -m suite blind`",
    "study_transcoder": "`python -m suite study`",
    "study_absorption": "`python -m suite study`",
    "study_universality": "`python -m suite study`",
    "study_gaussian": "`python -m suite study`",
}
# What a reader made of features, by the hash of the autoencoder's weights: numbers of features mean
# nothing for any other.
NAMES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text("utf-8"))
RESULTS = ("run", *(name for name in NOTEBOOK_OF if not name.startswith("study_")))


def load(run: Run) -> dict[str, Any]:
    """Every result of the run by name, None for one that is not there; `ArtefactError` where the
    evaluation is missing, without which there is no report.
    """
    results = {name: run.find_results(name) for name in RESULTS}
    notebook = NOTEBOOK_OF["evaluation"]
    if results["evaluation"] is None:
        raise ArtefactError(
            f"no report: results/evaluation.json is missing in {run.folder}; run notebook "
            f"{notebook} first (`python -m suite run --profile {run.settings.profile} --only "
            f"{notebook[:2]}`, or the evaluate stage)"
        )
    for name in (run.settings.sae.recipe, "neurons"):
        if name not in results["evaluation"]:
            raise ArtefactError(
                f"results/evaluation.json of {run.folder} has no entry {name!r}; run notebook "
                f"{notebook} again"
            )
    return results


def context(run: Run) -> dict[str, Any]:
    """The template's values."""
    from sae_lib.features.clamping import ranks_sentence
    from sae_lib.features.evaluation import ALIVE
    from sae_lib.interpretability import scores
    from sae_lib.sae.recipes import RECIPES
    from suite import circuits
    from suite.rule_figures import KINDS as UNIT_KINDS

    studies = study_figures.load_studies(run)
    results = load(run)
    ranked = results["clamping"] and results["clamping"]["ranks"]
    return results | {
        "s": run.settings,
        "main": run.settings.sae.recipe,
        "settings_hash": settings_hash(run.settings),
        "command": command(run),
        "overrides": overrides(run.settings),
        "source": ORIGINAL,
        "original": {key: fact["value"] for key, fact in ORIGINAL["facts"].items()},
        "recipes": RECIPES,
        "alive_at": ALIVE,
        "unit_kinds": UNIT_KINDS,
        "circuit_units": circuits.UNITS,
        "density_tolerance": scores.DENSITY_TOLERANCE,
        "notebook_of": NOTEBOOK_OF,
        "names_of": NAMES,
        "cards_of": cards_of,
        "side_by_side": side_by_side,
        "weights_compared": results["circuits"]
        and circuits.compared(results["circuits"]["weights"]),
        "clamping_ranks": ranked and ranks_sentence(ranked),
        "studies": studies,
        "rows": study_figures.rows_of(studies),
        "sanity": sanity_views if studies["sanity"] else None,
        "deviations_views": deviations_views,
        "rule_figures": rule_figures,
        "by_chance": circuits.writers_by_chance,
        "shares_apart": metrics.shares_apart,
        "rehearsal": rehearsal(),
        "study_views": study_figures,
    }


def rehearsal() -> dict[str, Any] | None:
    """The rehearsal of a large model's path (`benchmarks/rehearsal.py`), where it was published."""
    path = (project.find() or Path()) / "benchmarks" / "rehearsal.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def cards_of(gallery: dict[str, Any]) -> list[dict[str, Any]]:
    """The best token detector, the two best features of context, and the first one drawn."""
    cards = gallery["cards"]
    return [*cards["token"][:1], *cards["context"][:2], *cards["drawn"][:1]]


def side_by_side(left: str, right: str, width: int = 44) -> str:
    """Two texts in columns of that many characters; longer lines are broken."""
    columns = []
    for text in (left, right):
        lines = text.strip("\n").split("\n")
        columns.append([part for line in lines for part in textwrap.wrap(line, width) or [""]])
    pairs = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(f"{a:{width}} | {b}".rstrip() for a, b in pairs)


def overrides(settings: Settings) -> list[str]:
    """The `--set` values that turn the profile into these settings."""
    return _differences(settings, settings_module.load(settings.profile))


def command(run: Run) -> str:
    """The command that makes this run again."""
    given = "".join(f" --set {shlex.quote(o)}" for o in overrides(run.settings))
    return f"python -m suite run --profile {run.settings.profile}{given}"


def _differences(mine: Section, default: Section | None, prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in type(mine).model_fields:
        value, usual = getattr(mine, name), getattr(default, name, None)
        if isinstance(value, Section):
            found += _differences(value, usual, f"{prefix}{name}.")
        elif value != usual or default is None:
            shown = value if isinstance(value, str) else json.dumps(value)
            found.append(f"{prefix}{name}={shown}")
    return found
