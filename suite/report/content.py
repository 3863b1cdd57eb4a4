"""What the template is given: the run's results, the original's facts, and the derived values
that take more than a filter.
"""

import hashlib
import json
import shlex
from typing import Any

from sae_lib import settings as settings_module
from sae_lib.errors import ArtefactError
from sae_lib.settings import Section
from suite import study_figures
from suite.original import ORIGINAL
from suite.runs import Run

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
    "study_recipes": "`python -m suite study`",
    "study_widths": "`python -m suite study`",
    "study_classical": "`python -m suite study`",
    "study_saelens": "`python -m benchmarks.saelens_frontier`",
}
ESSENTIAL = ("evaluation",)
OPTIONAL = (
    "run",
    "activations",
    "training",
    "toy",
    "features",
    "interpretability",
    "clusters",
    "explanations",
    "last_mlp",
    "clamping",
)
LABELS = {"ward_2024": "ours, faithful", "bricken_2023": "ours, as published"}


def load(run: Run) -> dict[str, Any]:
    """Every result of the run by name, None for one that is not there; `ArtefactError` where one
    is missing that the report stands on.
    """
    results: dict[str, Any] = {}
    for name in ESSENTIAL:
        if not (run.results_folder / f"{name}.json").exists():
            stage = (
                f"python -m suite run --profile {run.settings.profile} --only "
                f"{NOTEBOOK_OF[name][:2]}"
            )
            raise ArtefactError(
                f"no report: results/{name}.json is missing in {run.folder}; run notebook "
                f"{NOTEBOOK_OF[name]} first (`{stage}`, or the {name.removesuffix('ion')}e stage)"
            )
    for name in ESSENTIAL + OPTIONAL:
        there = (run.results_folder / f"{name}.json").exists()
        results[name] = (
            {k: v for k, v in run.load_results(name).items() if k != "made_from"} if there else None
        )
    for name in (run.settings.sae.recipe, "neurons"):
        if name not in results["evaluation"]:
            raise ArtefactError(
                f"results/evaluation.json of {run.folder} has no entry {name!r}; run notebook "
                f"{NOTEBOOK_OF['evaluation']} again"
            )
    return results


def context(run: Run) -> dict[str, Any]:
    """The template's values."""
    from sae_lib.features.evaluation import ALIVE
    from sae_lib.sae.recipes import RECIPES

    results, s = load(run), run.settings
    evaluation, main = results["evaluation"], s.sae.recipe
    d_in = len(evaluation["neurons"]["density"])
    recipes = [n for n in evaluation if n in RECIPES and n != main] + [main]
    widths = sorted(
        (w, f"{main}-d_sae_{w}") for w in s.sae.widths if f"{main}-d_sae_{w}" in evaluation
    )
    summaries = results["training"]["summaries"] if results["training"] else {}
    activations = results["activations"]
    return results | {
        "s": s,
        "settings_hash": settings_hash(run),
        "command": command(run),
        "overrides": overrides(s),
        "original": {k: v["value"] for k, v in ORIGINAL["facts"].items()},
        "original_name": ORIGINAL["name"],
        "original_ratings": ratings(),
        "original_repository": ORIGINAL["repository"],
        "machine": (results["run"] or {}).get("machine"),
        "seconds": (results["run"] or {}).get("seconds"),
        "main": main,
        "ours": evaluation[main],
        "neurons": evaluation["neurons"],
        "d_in": d_in,
        "faithful": evaluation.get("ward_2024") if main != "ward_2024" else None,
        "recipe_names": recipes,
        "labels": LABELS,
        "narrow": [{"d_sae": w, "name": n, **evaluation[n]} for w, n in widths if w <= d_in],
        "widths": [
            {"d_sae": w, "name": n, **evaluation[n]} for w, n in [*widths, (s.sae.d_sae, main)]
        ],
        "summaries": summaries,
        "resampled": {name: resampling(t) for name, t in summaries.items()},
        "lm": activations["language_model"] if activations else None,
        "text": activations["text"] if activations else None,
        "few_tokens": evaluation[main]["tokens"]
        < 0.95 * ORIGINAL["facts"]["alive_tokens"]["value"],
        "alive_at": ALIVE,
        "notebook_of": NOTEBOOK_OF,
        "studies": {which: study_figures.load_study(run, which) for which in study_figures.STUDIES},
    }


def resampling(summary: dict[str, Any]) -> dict[str, Any]:
    """What the resamplings of one training touched, summed up."""
    dead = [e["dead"] for e in summary["resampling"]]
    return {
        "times": len(dead),
        "touched": sum(e["resampled"] for e in summary["resampling"]),
        "dead_least": min(dead, default=None),
        "dead_most": max(dead, default=None),
        "silent": summary["final_silent"],
        "per_step": summary["activations"] / summary["curve"][-1]["step"],
    }


def ratings() -> str:
    """The original's figures of interpretability, in words."""
    facts = {k: v["value"] for k, v in ORIGINAL["facts"].items()}
    return "; ".join(
        f"{how}, neurons {facts[f'neurons_{key}']}, features {facts[f'features_{key}']}"
        for how, key in (("by hand", "by_hand"), ("by a chat model", "by_model"))
    )


def settings_hash(run: Run) -> str:
    """The hash that also names the folder of a run with overrides."""
    return hashlib.sha256(run.settings.model_dump_json().encode()).hexdigest()[:8]


def overrides(settings: settings_module.Settings) -> list[str]:
    """The `--set` values that turn the profile into these settings."""
    return [
        f"{key}={_shown(value)}"
        for key, value in _differences(settings, settings_module.load(settings.profile))
    ]


def command(run: Run) -> str:
    """The command that makes this run again."""
    return " ".join(
        [
            "python -m suite run --profile",
            run.settings.profile,
            *(f"--set {shlex.quote(o)}" for o in overrides(run.settings)),
        ]
    )


def _differences(mine: Section, default: Section | None, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in type(mine).model_fields:
        value, usual = getattr(mine, name), getattr(default, name, None)
        if isinstance(value, Section):
            found += _differences(value, usual, f"{prefix}{name}.")
        elif value != usual or default is None:
            found.append((f"{prefix}{name}", value))
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
