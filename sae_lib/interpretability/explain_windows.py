"""Excerpts of held-out text for explaining a feature and for testing the explanation, from two halves of the documents.

An excerpt lies in one document, so none is shared between the halves. Where a feature fires is `f > 0`, as everywhere.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer

from sae_lib.features import evaluation
from sae_lib.model.activations import Source
from sae_lib.sae.dictionaries import Dictionary, activations_of, coordinate_directions
from sae_lib.settings import ExplainSettings, FeatureSettings
from sae_lib.text.tokens import Tokens

POOL = 20_000  # tokens drawn at random, among which each feature finds excerpts where it is silent


class Window(NamedTuple):
    """An excerpt: its tokens, on which of them the feature fires, and the document that it is from."""

    ids: tuple[int, ...]
    on: tuple[bool, ...]
    document: int


class Firing(NamedTuple):
    """Where a unit fires: tokens of the text in order, and its activation on each."""

    token: Integer[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]

    def strongest(self, n: int) -> "Firing":
        kept = np.sort(np.argsort(-self.value, kind="stable")[:n])
        return Firing(self.token[kept], self.value[kept])


@dataclass
class Unit:
    """A feature or neuron, with excerpts that it is explained from (`shown`) and tested on (`active`, `silent`)."""

    kind: str  # feature, neuron_matched (at the density of the feature in the same place) or neuron
    index: int
    density: float
    shown: list[Window]
    active: list[Window]
    silent: list[Window]
    repeated: int  # excerpts with the very tokens of a shown one, left out of the test
    explanation: str | None = None
    rating: int | None = None


class Text:
    """Rows of held-out text whose documents are split into a half to explain from and a half to test on."""

    def __init__(
        self,
        rows: Integer[np.ndarray, "row position"],
        numbers: Integer[np.ndarray, " row"],
        tokens: Tokens,
        s: FeatureSettings,
        seed: int,
    ):
        self.rows, self.s = rows, s
        first = tokens.table["heldout"]["first_token"].to_numpy()
        place = numbers[:, None] * rows.shape[1] + np.arange(rows.shape[1])
        self.document = (np.searchsorted(first, place, side="right") - 1).astype(np.int32)
        order = np.random.default_rng(seed).permutation(len(first))
        self.for_tests = np.isin(np.arange(len(first)), order[: len(first) // 2])

    @classmethod
    def of(
        cls, tokens: Tokens, context: int, n_tokens: int, s: FeatureSettings, seed: int
    ) -> "Text":
        """At most `n_tokens` of the held-out text, spread evenly."""
        rows = tokens.rows("heldout", context)
        wanted = max(1, min(len(rows), n_tokens // context))
        numbers = np.unique(np.linspace(0, len(rows) - 1, wanted).astype(int))
        return cls(rows[numbers], numbers, tokens, s, seed)

    def in_tests(self, token: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        return self.for_tests[self.document.ravel()[token]]

    def window(self, token: int, firing: Firing) -> Window:
        """The excerpt around a token: `context` tokens before it and `after` behind, within its row and document."""
        row, position = divmod(token, self.rows.shape[1])
        reach = np.arange(
            max(0, position - self.s.context), min(self.rows.shape[1], position + self.s.after + 1)
        )
        reach = reach[self.document[row, reach] == self.document[row, position]]
        places = row * self.rows.shape[1] + reach
        at = np.searchsorted(firing.token, places)
        on = np.append(firing.token, -1)[at] == places
        return Window(
            tuple(self.rows[row, reach].tolist()),
            tuple(on.tolist()),
            int(self.document[row, position]),
        )

    def windows(
        self, order: Integer[np.ndarray, " n"], firing: Firing, seen: set[tuple]
    ) -> Iterator[Window]:
        """Excerpts around the tokens in `order`: one of a document's part of a row, and none in the very words of another; `seen` keeps track.

        Tokens that begin a row have no text before them, and are skipped.
        """
        for token in order.tolist():
            row, position = divmod(token, self.rows.shape[1])
            place = ("place", row, int(self.document[row, position]))
            if position and place not in seen:
                window = self.window(token, firing)
                if window.ids not in seen:
                    seen |= {place, window.ids}
                    yield window


@torch.no_grad()
def firing(
    hook: Source, dictionary: Dictionary, features: list[int], neurons: list[int], rows: np.ndarray
) -> tuple[list[Firing], list[Firing]]:
    """Where the features, and where the neurons, fire over all of `rows`: one pass, and memory for the activations above zero only."""
    found: tuple[list, list] = ([], [])
    for first, x in evaluation.chunks(hook, rows, "activations"):
        for parts, d, units in zip(
            found,
            (dictionary, coordinate_directions(x.shape[1], x.device)),
            (features, neurons),
            strict=True,
        ):
            acts = activations_of(d, x, torch.tensor(units, device=x.device))
            token, unit = (acts > 0).nonzero(as_tuple=True)
            parts.append(
                tuple(
                    t.cpu().numpy() for t in ((token + first).int(), unit.int(), acts[token, unit])
                )
            )
    result = []
    for parts, units in zip(found, (features, neurons), strict=True):
        token, unit, value = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.argsort(unit, kind="stable")
        bounds = np.searchsorted(unit[order], np.arange(len(units) + 1))
        result.append(
            [
                Firing(token[order[a:b]], value[order[a:b]])
                for a, b in zip(bounds[:-1], bounds[1:], strict=True)
            ]
        )
    return result[0], result[1]


def unit(text: Text, kind: str, index: int, fires: Firing, s: ExplainSettings) -> Unit:
    """Draw the excerpts of one unit. Those where it is silent come from one pool for all: they depend on no explanation."""
    rng = np.random.default_rng((s.seed, index))
    drawn, testing = rng.permutation(len(fires.token)), text.in_tests(fires.token)
    strongest = np.argsort(-fires.value, kind="stable")
    seen: set[tuple] = set()
    shown = _take(
        text.windows(fires.token[strongest[~testing[strongest]]], fires, seen), s.examples // 2
    )
    shown += _take(
        text.windows(fires.token[drawn[~testing[drawn]]], fires, seen), s.examples - len(shown)
    )
    of_shown, seen = {w.ids for w in shown}, set()
    active, repeated = [], 0
    for window in text.windows(fires.token[drawn[testing[drawn]]], fires, seen):
        if len(active) == 2 * s.test_examples:
            break
        active, repeated = (
            (active, repeated + 1) if window.ids in of_shown else ([*active, window], repeated)
        )
    pool = np.random.default_rng((s.seed, text.rows.size)).permutation(text.rows.size)[:POOL]
    silent = (w for w in text.windows(pool[text.in_tests(pool)], fires, seen) if not any(w.on))
    return Unit(
        kind,
        index,
        len(fires.token) / text.rows.size,
        shown,
        active,
        _take(silent, s.test_examples),
        repeated,
    )


def _take(windows: Iterable[Window], n: int) -> list[Window]:
    return [w for _, w in zip(range(n), windows, strict=False)]
