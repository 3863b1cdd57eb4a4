"""Explanations of features by a chat model, and how well they predict where the feature fires:
optional, and skipped without a model.

A model sees excerpts of one half of the held-out documents and explains; it is then asked about
excerpts of the other half, by the explanation alone. The null gives each feature the explanation of
another one; neurons go through the same code.

Detection and fuzzing after Paulo et al. 2024, "Automatically Interpreting Millions of Features in
Large Language Models" (delphi): detection asks in which excerpts a feature fires at all, fuzzing
whether the marked tokens are those that it fires on. There the wrong marks are in silent excerpts,
which detection can tell; here they are in excerpts where the feature does fire, on other tokens.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, groupby, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Integer
from jinja2 import Template

from sae_lib.features.firing import ALIVE, Firing, firing, spread_rows
from sae_lib.features.statistics import interval
from sae_lib.model.activations import HookPoint
from sae_lib.progress import tqdm
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Selected
from sae_lib.sae.directions import coordinate_directions
from sae_lib.settings import ExplainSettings, FeatureSettings
from sae_lib.text.display import Vocabulary, plain
from sae_lib.text.tokens import Tokens

LEFT, RIGHT = "⟦", "⟧"  # unlike << and >>, in hardly any text or code
POOL = 20_000  # tokens drawn at random, among which each feature finds excerpts where it is silent
LONGEST_EXPLANATION = 400  # characters
PROMPTS = Template(Path(__file__).with_name("prompts.j2").read_text("utf-8"))
TESTS = ("detection", "fuzzing")
Marks = tuple[bool, ...]  # of an excerpt's tokens; () marks none


class Window(NamedTuple):
    """An excerpt: its tokens, on which of them the feature fires, and the document that it is
    from.
    """

    ids: tuple[int, ...]
    on: tuple[bool, ...]
    document: int


@dataclass
class Unit:
    """A feature or neuron, with excerpts that it is explained from (`shown`) and tested on
    (`active`, `silent`), its explanation and the answers of its tests.
    """

    # feature, neuron_matched (at the density of the feature in the same place), neuron, or
    # swapped: a feature tested with another one's explanation
    kind: str
    index: int
    density: float
    shown: list[Window]
    active: list[Window]
    silent: list[Window]
    repeated: int  # excerpts with the very tokens of a shown one, left out of the test
    explanation: str | None = None
    rating: int | None = None
    # by test (truth, answer) for each excerpt, the answer None where none could be read
    answers: dict[str, list] = field(default_factory=partial(defaultdict, list), init=False)

    def row(self) -> dict:
        """A row of explanations.parquet. Balanced accuracy: the mean of the shares right among
        the yes and among the no; chance is 0.5.
        """
        row = {
            "kind": self.kind,
            "feature": self.index,
            "density": self.density,
            "explanation": self.explanation,
            "rating": self.rating,
        }
        for test in TESTS:
            read = [pair for pair in self.answers[test] if None not in pair]
            read = np.array(read).reshape(-1, 2)
            right = (read[:, 0] == read[:, 1]).astype(float)
            samples = [right[read[:, 0] == truth] for truth in (True, False)]
            low, high = interval(samples, _balanced)
            accuracy = _balanced(*samples, axis=0) if all(map(len, samples)) else np.nan
            row |= {test: accuracy, f"{test}_low": low, f"{test}_high": high}
        said = [answer for _, answer in chain(*self.answers.values())]
        counts = {"n": len(said), "unparsed": said.count(None), "repeated": self.repeated}
        return row | counts


Units = dict[str, list[Unit]]
Ask = Callable[[str], str | None]  # a prompt → a chat model's reply, None where none came


class HeldoutText:
    """At most `n_tokens` of the held-out text in rows, spread evenly, whose documents are split
    into a half to explain from and a half to test on.
    """

    def __init__(self, tokens: Tokens, context: int, n_tokens: int, s: FeatureSettings, seed: int):
        rows = tokens.rows("heldout", context)
        number = spread_rows(np.arange(rows.size).reshape(rows.shape), n_tokens)
        self.rows, self.s = rows[number[:, 0] // context], s
        first = tokens.table["heldout"]["first_token"].to_numpy()
        self.document = np.searchsorted(first, number, side="right") - 1
        order = np.random.default_rng(seed).permutation(len(first))
        self.for_tests = np.isin(np.arange(len(first)), order[: len(first) // 2])

    def window(self, token: int, firing: Firing) -> Window:
        """The excerpt around a token: `context` tokens before it and `after` behind, within its
        row and document.
        """
        length = self.rows.shape[1]
        row, position = divmod(token, length)
        end = min(length, position + self.s.after + 1)
        reach = np.arange(max(0, position - self.s.context), end)
        document = self.document[row]
        reach = reach[document[reach] == document[position]]
        places = row * length + reach
        on = np.append(firing.token, -1)[np.searchsorted(firing.token, places)] == places
        ids = tuple(self.rows[row, reach].tolist())
        return Window(ids, tuple(on.tolist()), int(document[position]))

    def windows(
        self, order: Integer[np.ndarray, " n"], firing: Firing, for_tests: bool, seen: set[tuple]
    ) -> Iterator[Window]:
        """Excerpts of one half of the documents, around the tokens in `order`: one of a document's
        part of a row, and none in the very words of another; `seen` keeps track.

        Tokens that begin a row have no text before them, and are skipped.
        """
        half = self.for_tests[self.document.ravel()[order]] == for_tests
        for token in order[half].tolist():
            row, position = divmod(token, self.rows.shape[1])
            place = ("place", row, int(self.document[row, position]))
            if position and place not in seen:
                window = self.window(token, firing)
                if window.ids not in seen:
                    seen |= {place, window.ids}
                    yield window


def strongest(firing: Firing, n: int) -> Firing:
    """The n largest activations, in the order of the text."""
    kept = np.sort(np.argsort(-firing.value, kind="stable")[:n])
    return Firing(firing.token[kept], firing.value[kept])


def draw_unit(text: HeldoutText, kind: str, index: int, fires: Firing, s: ExplainSettings) -> Unit:
    """Draw the excerpts of one unit. Those where it is silent come from one pool for all: they
    depend on no explanation.
    """
    rng = np.random.default_rng((s.seed, index))
    by_chance = rng.permutation(fires.token)
    by_value = fires.token[np.argsort(-fires.value, kind="stable")]
    seen: set[tuple] = set()
    shown = list(islice(text.windows(by_value, fires, False, seen), s.examples // 2))
    others = text.windows(by_chance, fires, False, seen)
    shown += islice(others, s.examples - len(shown))
    active, repeated, seen, of_shown = [], 0, set(), {w.ids for w in shown}
    for window in text.windows(by_chance, fires, True, seen):
        if len(active) == 2 * s.test_examples:
            break
        if window.ids in of_shown:
            repeated += 1
        else:
            active.append(window)
    size = text.rows.size
    pool = np.random.default_rng((s.seed, size)).permutation(size)[:POOL]
    silent = (w for w in text.windows(pool, fires, True, seen) if not any(w.on))
    silent = list(islice(silent, s.test_examples))
    return Unit(kind, index, len(fires.token) / size, shown, active, silent, repeated)


# --- asking and testing ---


class Question(NamedTuple):
    """One excerpt of a test as it is shown, and whether yes is right."""

    text: str
    truth: bool


def _balanced(yes: np.ndarray, no: np.ndarray, axis: int) -> np.ndarray | float:
    return (yes.mean(axis) + no.mean(axis)) / 2


def make_units(
    hook: HookPoint,
    sae: SparseAutoencoder,
    table: pd.DataFrame,
    text: HeldoutText,
    n: int,
    s: ExplainSettings,
) -> Units:
    """By kind `n` units each: random features that fire often enough to be tested, and for each
    a random neuron, as it is and at its density.
    """
    rng = np.random.default_rng(s.seed)
    features = rng.permutation(np.flatnonzero(table["n_active"].to_numpy() >= ALIVE))[:n]
    neurons = rng.choice(sae.d_in, min(len(features), sae.d_in), replace=False)
    directions = coordinate_directions(sae.d_in, hook.device)
    chosen = {
        "feature": Selected(sae, torch.from_numpy(features)),
        "neuron": Selected(directions, torch.from_numpy(neurons)),
    }
    fires = firing(hook, chosen, text.rows)
    pairs = zip(fires["neuron"], fires["feature"], strict=False)
    fires["neuron_matched"] = [strongest(neuron, len(f.token)) for neuron, f in pairs]
    units = {}
    for kind in ("feature", *s.baselines):
        numbers = features if kind == "feature" else neurons
        of_kind = zip(numbers.tolist(), fires[kind], strict=True)
        units[kind] = [draw_unit(text, kind, i, fired, s) for i, fired in of_kind]
    return units


def ask_about(ask: Ask, units: Units, vocabulary: Vocabulary, s: ExplainSettings) -> Iterator[Unit]:
    """Explain all units, then test one of each kind after the other, so that an early end leaves
    kinds that compare.

    Each is yielded before it is tested: where `ask` raises, it keeps the answers so far.
    """
    features = units["feature"]
    # the first of each kind, the second of each kind, …; there may be fewer neurons than features
    together = [[u for u in group if u] for group in zip_longest(*units.values())]
    for unit in tqdm(list(chain(*together)), desc="explain"):
        if excerpts := [shown(vocabulary, w, w.on) for w in unit.shown]:
            unit.explanation = read_explanation(ask(prompt("explain", excerpts)))
            if s.rating:
                unit.rating = read_rating(ask(prompt("rate", excerpts)))
    for i, group in enumerate(tqdm(together, desc="detect")):
        if len(features) > max(1, i):
            of_another = features[i - 1].explanation
            group.insert(1, replace(features[i], kind="swapped", explanation=of_another))
        for unit in group:
            yield unit
            _test(ask, unit, vocabulary, s)


def _test(ask: Ask, unit: Unit, vocabulary: Vocabulary, s: ExplainSettings) -> None:
    for test in TESTS if unit.explanation is not None else ():
        rng = np.random.default_rng((s.seed, unit.index))
        asked = questions(test, vocabulary, unit, s.test_examples, rng)
        if len({q.truth for q in asked}) < 2:
            continue  # a neuron that is silent in no excerpt: nothing to tell apart
        for start in range(0, len(asked), s.batch):
            texts, truths = zip(*asked[start : start + s.batch], strict=True)
            reply = ask(prompt(test, texts, unit.explanation))
            said = read_answers(reply, len(texts)) or [None] * len(texts)
            unit.answers[test] += zip(truths, said, strict=True)


# --- what is asked ---


def shown(vocabulary: Vocabulary, window: Window, marked: Marks = ()) -> str:
    """An excerpt on one line, every sign in it visible, the marked tokens in brackets."""
    parts, tokens = [], zip_longest(window.ids, marked, fillvalue=False)
    for mark, run in groupby(tokens, key=lambda pair: pair[1]):
        data = vocabulary.joined(token for token, _ in run)
        text = plain(data).replace(LEFT, "[").replace(RIGHT, "]")
        parts.append(f"{LEFT}{text}{RIGHT}" if mark else text)
    return "".join(parts)


def misplaced(window: Window, rng: np.random.Generator) -> Marks:
    """As many marks as the unit fires, all on tokens where it is silent (fewer where there are
    not enough of these).
    """
    silent = np.flatnonzero(~np.array(window.on))
    chosen = rng.choice(silent, min(sum(window.on), len(silent)), replace=False)
    return tuple(np.isin(np.arange(len(window.on)), chosen).tolist())


def questions(
    test: str, vocabulary: Vocabulary, unit: Unit, n: int, rng: np.random.Generator
) -> list[Question]:
    """The questions of a test, shuffled; fewer where there are not so many excerpts.

    detection: `n` excerpts where the unit fires and as many where it does not. fuzzing: `n`
    excerpts with the right tokens marked and `n` others, where it fires too, with wrong ones.
    """
    if test == "detection":
        yes = [(w, ()) for w in unit.active[:n]]
        no = [(w, ()) for w in unit.silent[:n]]
    else:
        yes = [(w, w.on) for w in unit.active[0::2][:n]]
        no = [(w, misplaced(w, rng)) for w in unit.active[1::2][:n] if not all(w.on)]
    texts = [shown(vocabulary, *excerpt) for excerpt in yes + no]
    return [Question(texts[i], bool(i < len(yes))) for i in rng.permutation(len(texts))]


def prompt(task: str, excerpts: Sequence[str], explanation: str = "") -> str:
    """What is asked; `task` is explain, rate, or one of `TESTS`."""
    marks = {"left": LEFT, "right": RIGHT}
    return PROMPTS.render(task=task, excerpts=excerpts, explanation=explanation, **marks)


# --- what is answered ---


def read_explanation(reply: str | None) -> str | None:
    """The explanation on one line, or None where the reply has none."""
    line = plain(" ".join(_after_thinking(reply).split()))
    line = re.sub("^explanation: ", "", line, flags=re.IGNORECASE)
    return line[:LONGEST_EXPLANATION] or None


def read_answers(reply: str | None, n: int) -> list[bool] | None:
    """The last list of exactly `n` zeros and ones in a reply, or None: what is not understood is
    not guessed at.
    """
    exactly = rf"\[\s*[01]\s*(?:,\s*[01]\s*){{{n - 1}}}\]"
    lists = re.findall(exactly, _after_thinking(reply))
    return [digit == "1" for digit in re.findall("[01]", lists[-1])] if lists else None


def read_rating(reply: str | None) -> int | None:
    """The rating from 1 to 5, where the reply holds one number and it is one of these."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", _after_thinking(reply))
    return int(numbers[0]) if len(numbers) == 1 and numbers[0] in list("12345") else None


def _after_thinking(reply: str | None) -> str:
    """What comes after a model's thinking aloud; nothing where it never ended."""
    return "" if "<think>" in (answer := (reply or "").rpartition("</think>")[2]) else answer


# --- what it says ---


def summary(rows: pd.DataFrame) -> dict:
    """By kind: the mean over units of detection, fuzzing and rating with 95 % bootstrap
    intervals over units, and counts.
    """
    kinds = {}
    for kind, part in rows.groupby("kind", sort=False) if len(rows) else ():
        kinds[kind] = {"units": len(part), "unexplained": int(part["explanation"].isna().sum())}
        kinds[kind] |= part[["n", "unparsed"]].sum().to_dict()
        for score in (*TESTS, "rating"):
            values = part[score].dropna().to_numpy(dtype=float)
            low, high = interval([values], np.mean)
            mean = values.mean() if len(values) else None
            kinds[kind][score] = {"mean": mean, "low": low, "high": high, "units": len(values)}
    totals = {name: sum(kind[name] for kind in kinds.values()) for name in ("n", "unparsed")}
    return {"kinds": kinds} | totals
