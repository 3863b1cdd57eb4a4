"""Explanations of features by a chat model, and how well they predict where the feature fires: optional, and skipped without a model.

A model sees excerpts of one half of the held-out documents and explains; it is then asked about excerpts of the other half, by the
explanation alone. The null gives each feature the explanation of another one; neurons go through the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib import evaluation, language_model, training
from sae_lib.activations import HookPoint
from sae_lib.device import device_of
from sae_lib.errors import ChatError
from sae_lib.features import load_features, make_features
from sae_lib.interpretability import chat, explain_prompts, explain_windows
from sae_lib.interpretability.asking import Cache, Chat, LimitReached
from sae_lib.interpretability.explain_prompts import Question
from sae_lib.interpretability.explain_windows import Text, Unit
from sae_lib.progress import tqdm
from sae_lib.recipes import variant
from sae_lib.runs import Run, write_atomically
from sae_lib.settings import ExplainSettings
from sae_lib.tokens import open_tokens
from sae_lib.visible import Vocabulary

RESAMPLES = 2000  # of the bootstrap
FREE = {
    "timeout",
    "attempts",
    "max_requests",
    "max_tokens",
    "max_cost",
    "price_prompt",
    "price_answer",
}  # settings that no score depends on


@dataclass
class Scored:
    """The answers about one unit: (truth, answer) for each excerpt, the answer None where none could be read."""

    kind: str  # that of the unit, or swapped: a feature tested with another one's explanation
    unit: Unit
    explanation: str | None
    answers: dict[str, list[tuple[bool, bool | None]]] = field(
        default_factory=lambda: {"detection": [], "fuzzing": []}
    )

    def row(self) -> dict:
        """A row of explanations.parquet. Balanced accuracy: the mean of the shares right among the yes and among the no; chance is 0.5."""
        row = {
            "kind": self.kind,
            "feature": self.unit.index,
            "density": self.unit.density,
            "explanation": self.explanation,
            "rating": self.unit.rating,
        }
        for test, answers in self.answers.items():
            hits = [
                np.array(
                    [
                        said == truth
                        for truth, said in answers
                        if said is not None and truth == sort
                    ],
                    dtype=float,
                )
                for sort in (True, False)
            ]
            low, high = interval(hits, lambda yes, no, axis: (yes.mean(axis) + no.mean(axis)) / 2)
            row |= {
                test: (hits[0].mean() + hits[1].mean()) / 2
                if len(hits[0]) and len(hits[1])
                else np.nan,
                f"{test}_low": low,
                f"{test}_high": high,
            }
        asked = [said for answers in self.answers.values() for _, said in answers]
        return row | {
            "n": len(asked),
            "unparsed": sum(said is None for said in asked),
            "repeated": self.unit.repeated,
        }


def interval(samples: list[np.ndarray], statistic: Callable) -> tuple[float, float]:
    """95 % bootstrap percentiles of a statistic of independent samples; NaN where one has fewer than two values."""
    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    drawn = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def explain(
    run: Run,
    features: int | None = None,
    model: str = "",
    name: str = "",
    say: Callable[[str], None] = print,
) -> dict | None:
    """Explain `features` random features (default `explain.features`) of one autoencoder, test that, and save the results.

    The chat model is a local Hugging Face one (`model`, a folder or hub name) or the endpoint of the environment (`sae_lib/interpretability/chat.py`).
    Where there is neither, one sentence is said and the result is None. A limit that is reached ends it early, with what was scored
    so far; another call goes on from there, as every reply is kept. Raises `ChatError` where the endpoint refuses or is gone.
    """
    s, name = run.settings.explain, name or run.settings.sae.recipe
    features = features or s.features
    try:
        client = chat.find(model, s, device_of(run))
    except chat.NotConfigured as reason:
        say(f"Explanations by a chat model are skipped: {reason}.")
        return None
    sae = variant(run.settings, name)
    made_from = training.sae_made_from(run, sae) | {
        "evaluation": run.settings.evaluation.model_dump(),
        "features": run.settings.features.model_dump(),
        "explain": s.model_dump(mode="json", exclude=FREE | {"features"}),
        "model": client.name,
        "n": features,
    }
    where = "_".join(
        [
            "explanations",
            *([name] if name != run.settings.sae.recipe else []),
            *([run.folder.name] if run.parent else []),
        ]
    )
    table = explanations_file(run, name)
    if (found := run.saved_results(where, made_from)) and not found["stopped"] and table.exists():
        say(sentence(found, table))
        return found
    units = make_units(run, name, features)
    asking = Chat(client, s, Cache(table.parent / "replies.jsonl", _replies_beside(run)))
    scored, stopped, error = ask_about(asking, units, Vocabulary(open_tokens(run).tokenizer), s)
    if error and not scored:
        raise error
    rows = pd.DataFrame([one.row() for one in scored])
    write_atomically(table, rows.to_parquet(index=False))
    results = (
        {
            "model": client.name,
            "recipe": name,
            "features": len(units["feature"]),
            "stopped": stopped,
        }
        | summary(rows)
        | _spent(asking)
    )
    run.save_results(where, results, made_from)
    say(sentence(run.load_results(where), table))
    if error:
        raise ChatError(
            f"{error}; the scores so far are in {table}; run the same command to continue"
        )
    return run.saved_results(where, made_from)


def explanations_file(run: Run, name: str = "") -> Path:
    """Where the explanations of an autoencoder's features lie, a row per feature, null and neuron."""
    return (
        run.folder
        / "interpretability"
        / f"explanations-{name or run.settings.sae.recipe}"
        / "explanations.parquet"
    )


def make_units(run: Run, name: str, n: int) -> dict[str, list[Unit]]:
    """By kind `n` units each: random features that fire often enough to be tested, and for each a random neuron, as it is and at its density."""
    s = run.settings.explain
    table, _ = load_features(make_features(run, name))
    rng = np.random.default_rng(s.seed)
    often = np.flatnonzero(table["n_active"].to_numpy() >= evaluation.ALIVE)
    features = rng.permutation(often)[:n].tolist()
    hook = HookPoint(language_model.load(run), variant(run.settings, name).hook_name)
    sae = training.load_autoencoder(run, name)
    neurons = rng.choice(sae.d_in, min(len(features), sae.d_in), replace=False).tolist()
    text = Text.of(run)
    of_features, of_neurons = explain_windows.firing(hook, sae, features, neurons, text.rows)
    units = {
        "feature": [
            explain_windows.unit(text, "feature", i, f, s)
            for i, f in zip(features, of_features, strict=True)
        ]
    }
    for kind in s.baselines:
        fires = (
            of_neurons
            if kind == "neuron"
            else [f.strongest(len(g.token)) for f, g in zip(of_neurons, of_features, strict=False)]
        )
        units[kind] = [
            explain_windows.unit(text, kind, i, f, s) for i, f in zip(neurons, fires, strict=True)
        ]
    return units


def ask_about(
    asking: Chat, units: dict[str, list[Unit]], vocabulary: Vocabulary, s: ExplainSettings
) -> tuple[list[Scored], str | None, ChatError | None]:
    """Explain all units, then test one of each kind after the other, so that an early end leaves kinds that compare.

    Returns what was scored, the sentence why it ended early, and the error where that was one.
    """
    scored: list[Scored] = []
    try:
        with tqdm(total=sum(map(len, units.values())), desc="explain") as bar:
            for unit in (unit for together in _together(units) for unit in together):
                _explain(asking, unit, vocabulary, s.rating)
                bar.update()
        features = units["feature"]
        with tqdm(total=len(features), desc="detect") as bar:
            for i, together in enumerate(_together(units)):
                tests = [Scored(unit.kind, unit, unit.explanation) for unit in together]
                if len(features) > 1 and i < len(features):
                    tests.insert(1, Scored("swapped", features[i], features[i - 1].explanation))
                for one in tests:
                    scored.append(one)
                    _test(asking, one, vocabulary, s)
                bar.update()
    except LimitReached as limit:
        return scored, str(limit), None
    except ChatError as error:
        return scored, str(error), error
    return scored, None, None


def _together(units: dict[str, list[Unit]]) -> list[list[Unit]]:
    """The first of each kind, the second of each kind, …; there may be fewer neurons than features."""
    return [
        [of_kind[i] for of_kind in units.values() if i < len(of_kind)]
        for i in range(max(map(len, units.values())))
    ]


def _explain(asking: Chat, unit: Unit, vocabulary: Vocabulary, rating: bool) -> None:
    excerpts = [explain_prompts.shown(vocabulary, w, w.on) for w in unit.shown]
    if excerpts:
        unit.explanation = explain_prompts.read_explanation(
            asking.ask(explain_prompts.prompt(explain_prompts.EXPLAIN, excerpts))
        )
        if rating:
            unit.rating = explain_prompts.read_rating(
                asking.ask(explain_prompts.prompt(explain_prompts.RATE, excerpts))
            )


def _test(asking: Chat, one: Scored, vocabulary: Vocabulary, s: ExplainSettings) -> None:
    if one.explanation is None:
        return
    for test, template in (
        ("detection", explain_prompts.DETECT),
        ("fuzzing", explain_prompts.FUZZ),
    ):
        questions: list[Question] = getattr(explain_prompts, test)(
            vocabulary, one.unit, s.test_examples, np.random.default_rng((s.seed, one.unit.index))
        )
        if len({q.truth for q in questions}) < 2:
            continue  # a neuron that is silent in no excerpt: nothing to tell apart
        for start in range(0, len(questions), s.batch):
            batch = questions[start : start + s.batch]
            reply = asking.ask(
                explain_prompts.prompt(template, [q.text for q in batch], one.explanation)
            )
            said = explain_prompts.read_answers(reply, len(batch)) or [None] * len(batch)
            one.answers[test] += [(q.truth, answer) for q, answer in zip(batch, said, strict=True)]


def summary(rows: pd.DataFrame) -> dict:
    """By kind: the mean over units of detection, fuzzing and rating with 95 % bootstrap intervals over units, and counts."""
    kinds = {}
    for kind, part in rows.groupby("kind", sort=False) if len(rows) else ():
        kinds[kind] = {
            "units": len(part),
            "unexplained": int(part["explanation"].isna().sum()),
            "n": int(part["n"].sum()),
            "unparsed": int(part["unparsed"].sum()),
        }
        for score in ("detection", "fuzzing", "rating"):
            values = part[score].dropna().to_numpy(dtype=float)
            low, high = interval([values], np.mean)
            kinds[kind][score] = {
                "mean": values.mean() if len(values) else None,
                "low": low,
                "high": high,
                "units": len(values),
            }
    return {
        "kinds": kinds,
        "n": int(rows["n"].sum()) if len(rows) else 0,
        "unparsed": int(rows["unparsed"].sum()) if len(rows) else 0,
    }


def sentence(results: dict, table: Path) -> str:
    """The outcome in one line."""
    scores = [
        f"{kind} {test} " + (f"{v[test]['mean']:.2f}" if v[test]["mean"] is not None else "–")
        for test in ("detection", "fuzzing")
        for kind, v in results["kinds"].items()
    ]
    ended = f"; ended early: {results['stopped']}" if results["stopped"] else ""
    return f"{results['model']}: {', '.join(scores) or 'nothing scored'}; {results['unparsed']} of {results['n']} answers could not be read; {results['requests']} requests{ended}; {table}"


def _spent(asking: Chat) -> dict:
    return {
        "requests": asking.requests,
        "from_cache": asking.cached,
        "prompt_tokens": asking.prompt_tokens,
        "answer_tokens": asking.answer_tokens,
        "cost": asking.cost,
        "without_reply": dict(asking.no_reply),
    }


def _replies_beside(run: Run) -> tuple[Path, ...]:
    """Replies kept by other runs beside this one: a run with a higher limit does not pay again for what a lower one asked."""
    root = (run.parent or run).folder
    return tuple(
        sorted(
            p
            for depth in ("*", "*/*")
            for p in root.parent.glob(f"{depth}/interpretability/explanations-*/replies.jsonl")
        )
    )
