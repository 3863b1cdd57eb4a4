"""What the template is given: the run's results, the original's facts, and the derived values
that take more than a filter.
"""

import json
import shlex
from typing import Any

import pandas as pd

from sae_lib import settings as settings_module
from sae_lib.errors import ArtefactError
from sae_lib.settings import Section, Settings
from sae_lib.text.markup import plain
from suite import study_figures
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
    "study_recipes": "`python -m suite study`",
    "study_widths": "`python -m suite study`",
    "study_classical": "`python -m suite study`",
    "study_saelens": "`python -m benchmarks.saelens_frontier`",
}
RESULTS = ("run", *(name for name in NOTEBOOK_OF if not name.startswith("study_")))
KINDS = 12  # of text that have a row of their own


def load(run: Run) -> dict[str, Any]:
    """Every result of the run by name, None for one that is not there; `ArtefactError` where the
    evaluation is missing, without which there is no report.
    """
    results: dict[str, Any] = dict.fromkeys(RESULTS)
    for name in RESULTS:
        if (run.results_folder / f"{name}.json").exists():
            results[name] = run.load_results(name)
            results[name].pop("made_from", None)
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
    from sae_lib.features.evaluation import ALIVE
    from sae_lib.interpretability.scores import KINDS as UNIT_KINDS
    from sae_lib.sae.recipes import RECIPES

    results, s = load(run), run.settings
    evaluation, main = results["evaluation"], s.sae.recipe
    widths = sorted((w, f"{main}-d_sae_{w}") for w in s.sae.widths)
    widths = [(w, name) for w, name in widths if name in evaluation] + [(s.sae.d_sae, main)]
    studies = {which: study_figures.load_study(run, which) for which in study_figures.STUDIES}
    return results | {
        "s": s,
        "settings_hash": settings_hash(s),
        "command": command(run),
        "overrides": overrides(s),
        "original": {key: fact["value"] for key, fact in ORIGINAL["facts"].items()},
        "original_facts": ORIGINAL["facts"],
        "original_name": ORIGINAL["name"],
        "original_repository": ORIGINAL["repository"],
        "main": main,
        "recipe_names": [n for n in evaluation if n in RECIPES and n != main] + [main],
        "widths": [{"d_sae": w, "name": name, **evaluation[name]} for w, name in widths],
        "kinds": kinds(results["activations"]["text"]) if results["activations"] else [],
        "alive_at": ALIVE,
        "unit_kinds": UNIT_KINDS,
        "notebook_of": NOTEBOOK_OF,
        "studies": studies,
        "rows": {
            which: rows(studies[which]).to_dict("records")
            for which, rows in study_figures.ROWS.items()
            if studies[which]
        },
    }


def kinds(text: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(kind of text, its training part, its held-out part), the largest first, then the rest as
    one, and all.
    """
    splits = ("train", "heldout")
    columns = [(split, what) for split in splits for what in ("documents", "tokens")]
    parts = [pd.DataFrame.from_dict(text[split]["kinds"], "index") for split in splits]
    frame = pd.concat(parts, axis=1, keys=splits).reindex(columns=columns).fillna(0)
    tokens = frame.xs("tokens", axis=1, level=1).sum(axis=1)
    frame = frame.loc[tokens.sort_values(ascending=False, kind="stable").index]
    rows = [(plain(kind), row) for kind, row in frame[:KINDS].iterrows()]
    if len(frame) > KINDS:
        rows.append((f"{len(frame) - KINDS} others", frame[KINDS:].sum()))
    return [(kind, row["train"], row["heldout"]) for kind, row in rows] + [
        ("**all**", text["train"], text["heldout"])
    ]


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
