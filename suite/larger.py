"""A larger run beside the report's own, as a study: its settings, measures and features, without
the text that it was made from.
"""

from collections.abc import Callable
from typing import Any

from sae_lib.formats import millions
from suite.report.content import cards_of, overrides
from suite.report.machine import machine
from suite.runs import Run

TRAINING = ("activations", "seconds", "activations_per_second", "final_silent")
LISTED = ("feature", "rank", "kinds", "fires_on", "raises", "own", "followed", "base")
LISTED += ("information", "lower_share")


def study(run: Run, summary: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """Make `results/study_larger.json` of a run with settings of its own (the whole of it, where it
    was not made yet); `summary` makes its gallery. Only the features that the report shows as cards
    keep their examples.
    """
    recipe, measured = run.settings.sae.recipe, run.results("evaluation")
    run.results("scores")
    if (features := run.find_results("gallery")) is None:
        features = summary(run)
        run.save_results("gallery", features)
    model, trained = run.summary("language_model"), run.summary("autoencoder")
    shown = {card["feature"] for card in cards_of(features)}
    cards = {
        of: [
            card if card["feature"] in shown else {key: card[key] for key in LISTED}
            for card in listed
        ]
        for of, listed in features["cards"].items()
    }
    here = machine()
    about = {
        "recipe": recipe,
        "d_sae": run.settings.sae.d_sae,
        "text": _text(run),
        "vocabulary": len(run.get("tokens").tokenizer),
        "lm_tokens": model["tokens"],
        "lm_seconds": model["seconds"],
        "parameters": model["parameters"],
        "heldout": model["curve"][-1]["heldout"],
        "overrides": overrides(run.settings),
        "cpu": here["cpu"],
        "threads": here["torch_threads"],
        "commit": here["commit"],
        "date": here["date"],
    }
    made = {
        "about": about,
        "evaluation": _scalars(measured[recipe]),
        "neurons": _scalars(measured["neurons"]),
        "training": {key: trained[key] for key in TRAINING},
        "autoencoder": features["autoencoder"],
        "tokens": features["tokens"],
        "kinds": features["kinds"],
        "cards": cards,
    }
    run.save_results("study_larger", made)
    return run.load_results("study_larger")


def _scalars(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if isinstance(value, int | float)}


def _text(run: Run) -> str:
    """Where the text comes from, without the folder that it lay in on this machine."""
    corpus = run.settings.corpus
    name = corpus.source.rpartition("/")[2]
    return f"`{name}`, {millions(corpus.train_tokens)} training tokens"
