"""Excerpts of held-out text for explaining a feature and for testing the explanation, from two
halves of the documents.

An excerpt lies in one document, so none is shared between the halves. Where a feature fires is `f >
0`, as everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from sae_lib.features.firing import Firing, spread_rows
from sae_lib.settings import ExplainSettings, FeatureSettings
from sae_lib.text.tokens import Tokens

POOL = 20_000  # tokens drawn at random, among which each feature finds excerpts where it is silent


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
    (`active`, `silent`).
    """

    kind: str  # feature, neuron_matched (at the density of the feature in the same place) or neuron
    index: int
    density: float
    shown: list[Window]
    active: list[Window]
    silent: list[Window]
    repeated: int  # excerpts with the very tokens of a shown one, left out of the test
    explanation: str | None = None
    rating: int | None = None


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

    def in_tests(self, token: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        return self.for_tests[self.document.ravel()[token]]

    def window(self, token: int, firing: Firing) -> Window:
        """The excerpt around a token: `context` tokens before it and `after` behind, within its
        row and document.
        """
        length = self.rows.shape[1]
        row, position = divmod(token, length)
        end = min(length, position + self.s.after + 1)
        reach = np.arange(max(0, position - self.s.context), end)
        reach = reach[self.document[row, reach] == self.document[row, position]]
        places = row * length + reach
        on = np.append(firing.token, -1)[np.searchsorted(firing.token, places)] == places
        ids, document = self.rows[row, reach], self.document[row, position]
        return Window(tuple(ids.tolist()), tuple(on.tolist()), int(document))

    def windows(
        self, order: Integer[np.ndarray, " n"], firing: Firing, seen: set[tuple]
    ) -> Iterator[Window]:
        """Excerpts around the tokens in `order`: one of a document's part of a row, and none in the
        very words of another; `seen` keeps track.

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


def strongest(firing: Firing, n: int) -> Firing:
    """The n largest activations, in the order of the text."""
    kept = np.sort(np.argsort(-firing.value, kind="stable")[:n])
    return Firing(firing.token[kept], firing.value[kept])


def draw_unit(text: HeldoutText, kind: str, index: int, fires: Firing, s: ExplainSettings) -> Unit:
    """Draw the excerpts of one unit. Those where it is silent come from one pool for all: they
    depend on no explanation.
    """
    rng = np.random.default_rng((s.seed, index))
    by_chance = fires.token[rng.permutation(len(fires.token))]
    by_value = fires.token[np.argsort(-fires.value, kind="stable")]
    seen: set[tuple] = set()
    first = text.windows(by_value[~text.in_tests(by_value)], fires, seen)
    shown = list(islice(first, s.examples // 2))
    others = text.windows(by_chance[~text.in_tests(by_chance)], fires, seen)
    shown += islice(others, s.examples - len(shown))
    active, repeated, seen, of_shown = [], 0, set(), {w.ids for w in shown}
    for window in text.windows(by_chance[text.in_tests(by_chance)], fires, seen):
        if len(active) == 2 * s.test_examples:
            break
        if window.ids in of_shown:
            repeated += 1
        else:
            active.append(window)
    size = text.rows.size
    pool = np.random.default_rng((s.seed, size)).permutation(size)[:POOL]
    silent = (w for w in text.windows(pool[text.in_tests(pool)], fires, seen) if not any(w.on))
    silent = list(islice(silent, s.test_examples))
    return Unit(kind, index, len(fires.token) / size, shown, active, silent, repeated)
