"""The command `explain`: a chat model explains features of a run and is tested on other
documents.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sae_lib.device import device_of
from sae_lib.errors import ChatError
from sae_lib.files import write_atomically
from sae_lib.formats import NONE
from sae_lib.interpretability.explain import (
    TESTS,
    HeldoutText,
    ask_about,
    make_units,
    summary,
)
from sae_lib.text.display import Vocabulary
from suite import chat, stages
from suite.runs import Run

UNSCORED = {  # settings that no score depends on
    "timeout",
    "attempts",
    "max_requests",
    "max_tokens",
    "max_cost",
    "price_prompt",
    "price_answer",
    "features",
}


def explain(
    run: Run, features: int | None = None, model: str = "", say: Callable[[str], None] = print
) -> dict | None:
    """Explain `features` random features (default `explain.features`) of one autoencoder, test
    that, and save the results.

    The chat model is a local Hugging Face one (`model`, a folder or hub name) or the endpoint of
    the environment (see `chat.py`). Where there is neither, one sentence is said and the result is
    None. A limit that is reached ends it early, with what was scored so far; another call goes on
    from there, as every reply is kept. Raises `ChatError` where the endpoint refuses or is gone.
    """
    s, name = run.settings.explain, run.settings.sae.recipe
    features = features or s.features
    try:
        client = chat.find(model, s, device_of(run.settings.device))
    except chat.NotConfigured as reason:
        say(f"Explanations by a chat model are skipped: {reason}.")
        return None
    made_from = stages.features_fingerprint(run, name) | {
        "explain": s.model_dump(mode="json", exclude=UNSCORED),
        "model": client.name,
        "n": features,
    }
    where, table = run.results_name("explanations", name), stages.explanations_file(run, name)
    if (found := run.saved_results(where, made_from)) and not found["stopped"] and table.exists():
        say(sentence(found, table))
        return found
    asking = chat.Chat(client, s, chat.Cache(table.parent / "replies.jsonl", replies_beside(run)))
    units = units_of(run, name, features)
    vocabulary = Vocabulary(run.get("tokens").tokenizer)
    tested, stopped = [], None
    try:
        for unit in ask_about(asking.ask, units, vocabulary, s):
            tested.append(unit)
    except (chat.LimitReached, ChatError) as reason:  # those before it are kept
        stopped = reason
    if isinstance(stopped, ChatError) and not tested:
        raise stopped
    rows = pd.DataFrame([unit.row() for unit in tested])
    write_atomically(table, rows.to_parquet(index=False))
    about = {"model": client.name, "recipe": name, "features": len(units["feature"])}
    results = about | {"stopped": stopped and str(stopped)} | summary(rows) | asking.spent()
    run.save_results(where, results, made_from)
    say(sentence(run.load_results(where), table))
    if isinstance(stopped, ChatError):
        raise ChatError(
            f"{stopped}; the scores so far are in {table}; run the same command to continue"
        )
    return run.saved_results(where, made_from)


def sentence(results: dict, table: Path) -> str:
    """The outcome in one line."""
    scores = []
    for test in TESTS:
        for kind, of_kind in results["kinds"].items():
            mean = of_kind[test]["mean"]
            scores.append(f"{kind} {test} {NONE if mean is None else f'{mean:.2f}'}")
    ended = f"; ended early: {results['stopped']}" if results["stopped"] else ""
    return (
        f"{results['model']}: {', '.join(scores) or 'nothing scored'};"
        f" {results['unparsed']} of {results['n']} answers could not be read;"
        f" {results['requests']} requests{ended}; {table}"
    )


def units_of(run: Run, name: str, n: int) -> dict:
    """Features of the run and neurons beside them, with their excerpts."""
    s = run.settings
    tokens, n_tokens = run.get("tokens"), s.evaluation.tokens
    text = HeldoutText(tokens, s.lm.context, n_tokens, s.features, s.explain.seed)
    table = run.get("features", name)[0]
    hook, sae = stages.hook(run), run.get("autoencoder", name)
    return make_units(hook, sae, table, text, n, s.explain)


def replies_beside(run: Run) -> tuple[Path, ...]:
    """Replies kept by other runs beside this one: a run with a higher limit does not pay again
    for what a lower one asked.
    """
    pattern = "interpretability/explanations-*/replies.jsonl"
    beside = run.root.parent
    return tuple(sorted(p for depth in ("*", "*/*") for p in beside.glob(f"{depth}/{pattern}")))
