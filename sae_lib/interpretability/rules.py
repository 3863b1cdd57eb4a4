"""A short rule for when a unit fires, learned from one half of the documents and scored on the other: explained without a model.

A rule is a small decision tree. Each of its splits, a condition, asks whether one attribute of a token (`token_attributes.py`) has one of
a few values; each leaf holds the share of its tokens on which the unit fires. It is grown greedily by likelihood: balanced accuracy or AUROC
as the aim would hardly see a condition that makes a rule precise, since at a density of 0.3 % ten false alarms for each hit cost 0.015 of either.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

Array = np.ndarray
SEEN = 5  # a value that occurs less often in the learning half is no condition
COMMON = 0.01  # share of a split's tokens from which a value without any firing is looked at, for a "not"
WORTH = 0.01  # share of the firing's entropy that a condition has to explain at least
ODDS = 2.0  # 1 would be best for balanced accuracy, but makes rules say "fires" of half the text for a tenth more than usual
NEARLY = (
    0.98  # a set of values stops growing where it has brought this share of what more values would
)


@dataclass(frozen=True)
class Encoding:
    """The values of each attribute that the learning half holds often enough, numbered through: `starts[a]` is any other value of attribute a."""

    values: list[Array]  # raw, ascending, per attribute
    starts: Int[Array, " attribute_and_end"]

    @classmethod
    def of(cls, raw: Int[Array, "n attribute"], nothing: int = -1) -> "Encoding":
        """`nothing` is the raw value that stands for an attribute's absence; it is no condition."""
        values = []
        for column in raw.T:
            found, counts = np.unique(column, return_counts=True)
            values.append(found[(counts >= SEEN) & (found != nothing)])
        return cls(values, np.concatenate([[0], np.cumsum([len(v) + 1 for v in values])]))

    def encode(self, raw: Int[Array, "n attribute"]) -> Int[Array, "n attribute"]:
        codes = np.empty(raw.shape, dtype=np.int64)
        for a, values in enumerate(self.values):
            at = np.searchsorted(values, raw[:, a])
            known = np.append(values, [-1])[at] == raw[:, a]
            codes[:, a] = self.starts[a] + np.where(known & (at < len(values)), at + 1, 0)
        return codes

    def raw(self, code: int) -> tuple[int, int]:
        """(attribute, raw value) of a code."""
        a = int(np.searchsorted(self.starts, code, side="right")) - 1
        return a, int(self.values[a][code - self.starts[a] - 1])


class Text:
    """A half of the text: its tokens' codes, how often each code occurs, where, and what naming it costs."""

    def __init__(self, codes: Int[Array, "n attribute"], encoding: Encoding):
        self.codes, self.n, self.size = codes, len(codes), int(encoding.starts[-1])
        self.counts = np.bincount(codes.ravel(), minlength=self.size)
        self.tokens = codes.ravel().argsort(kind="stable") // codes.shape[1]  # of each code in turn
        self.firsts = np.concatenate([[0], np.cumsum(self.counts)])
        sizes = np.diff(encoding.starts)
        self.attribute = np.repeat(np.arange(len(sizes)), sizes)
        self.cost = np.log(sizes)[self.attribute]  # nats
        self.attribute_cost = float(np.log(len(sizes)))
        self.is_value = np.ones(self.size, dtype=bool)
        self.is_value[encoding.starts[:-1]] = False

    def where(self, codes: Int[Array, " value"]) -> Int[Array, " m"]:
        return np.concatenate([self.tokens[self.firsts[c] : self.firsts[c + 1]] for c in codes])

    def count(self, tokens: Int[Array, " m"]) -> Int[Array, " code"]:
        return np.bincount(self.codes[tokens].ravel(), minlength=self.size)

    def having(self, tokens: Int[Array, " m"], values: Int[Array, " value"]) -> Bool[Array, " m"]:
        wanted = np.zeros(self.size, dtype=bool)
        wanted[values] = True
        return wanted[self.codes[tokens, self.attribute[values[0]]]]


@dataclass(frozen=True)
class Leaf:
    """Where the conditions of `path` (number, whether it holds) lead; the unit fires on the share `rate` of the tokens there."""

    path: tuple[tuple[int, bool], ...]
    rate: float


@dataclass(frozen=True)
class Rule:
    """`conditions`: codes of one attribute each. `leaves`: by falling rate. `density`: of the unit, on the learning half."""

    conditions: tuple[Array, ...]
    leaves: tuple[Leaf, ...]
    density: float

    @property
    def says_fires(self) -> tuple[Leaf, ...]:
        """The leaves that count as firing in a yes or no: where the odds are `ODDS` times the unit's own."""
        return tuple(
            leaf
            for leaf in self.leaves
            if leaf.rate * (1 - self.density) >= ODDS * self.density * (1 - leaf.rate)
        )


@dataclass(frozen=True)
class Score:
    """How well a rule foretells firing on tokens that it was not learned from.

    `balanced_accuracy` of "fires"; `auroc` of the rate; `precision` and `recall` of "fires"; `information`: the share of the firing's entropy that
    the rates explain, 1 − cross-entropy / entropy, which unlike the first two sees every false alarm.
    """

    auroc: float
    balanced_accuracy: float
    precision: float
    recall: float
    information: float


@dataclass
class _Node:
    path: tuple[tuple[int, bool], ...]
    among: Bool[Array, " n"] | None  # its tokens; None: all
    n: int
    firing: Int[Array, " m"]  # those of its tokens where the unit fires
    counts: Int[Array, " code"] | None = None  # of its tokens by code, where it may be split
    firing_counts: Int[Array, " code"] | None = None
    gain: float = 0.0
    values: Int[Array, " value"] | None = None  # of its best split


def learn(text: Text, firing: Int[Array, " m"], conditions: int = 4, values: int = 6) -> Rule:
    """The rule for a unit that fires on the tokens `firing`: at most `conditions` of at most `values` values each.

    A condition must bring more log-likelihood (nats) than naming its values costs, ln(number of values of the attribute) each, and `WORTH` of all.
    """
    density = len(firing) / text.n
    worth = WORTH * float(_entropy(len(firing), text.n))
    root = _Node((), None, text.n, firing, text.counts, text.count(firing))
    _find_split(text, root, values, worth)
    leaves, chosen = [root], []
    while len(chosen) < conditions and (node := max(leaves, key=lambda leaf: leaf.gain)).gain > 0:
        leaves.remove(node)
        leaves += _split(text, node, len(chosen), grow=len(chosen) + 1 < conditions)
        chosen.append(node.values)
        for leaf in leaves[-2:]:
            if leaf.counts is not None:
                _find_split(text, leaf, values, worth)
    rated = [Leaf(leaf.path, (len(leaf.firing) + density) / (leaf.n + 1)) for leaf in leaves]
    return Rule(tuple(chosen), tuple(sorted(rated, key=lambda leaf: -leaf.rate)), density)


def _split(text: Text, node: _Node, number: int, grow: bool) -> list[_Node]:
    """The two halves of a node under its best condition; counted only where they may be split again."""
    inside, fires = text.where(node.values), text.having(node.firing, node.values)
    if node.among is not None:
        inside = inside[node.among[inside]]
    yes = _Node((*node.path, (number, True)), None, len(inside), node.firing[fires])
    no = _Node((*node.path, (number, False)), None, node.n - len(inside), node.firing[~fires])
    if grow:
        yes.among = np.zeros(text.n, dtype=bool)
        yes.among[inside] = True
        no.among = ~yes.among if node.among is None else node.among & ~yes.among
        yes.counts, yes.firing_counts = text.count(inside), text.count(yes.firing)
        no.counts, no.firing_counts = (
            node.counts - yes.counts,
            node.firing_counts - yes.firing_counts,
        )
    return [yes, no]


def _find_split(text: Text, node: _Node, most_values: int, worth: float) -> None:
    """The condition that explains most of a node's firing, over all attributes at once.

    Of each attribute the values on which the unit fires most above (or, for a "not", below) the node's rate are taken one by one, by what each would bring alone.
    """
    fired, n = len(node.firing), node.n
    if fired in (0, n):
        return
    seen = np.flatnonzero(text.is_value & ((node.firing_counts > 0) | (node.counts > COMMON * n)))
    p, m = node.firing_counts[seen].astype(float), node.counts[seen].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(p > 0, p * np.log(p * n / (m * fired)), 0) + np.where(
            m > p, (m - p) * np.log((m - p) * n / (m * (n - fired))), 0
        )
    worth_naming, above = alone > text.cost[seen], p * n > m * fired
    for among in (np.flatnonzero(worth_naming & above), np.flatnonzero(worth_naming & ~above)):
        if len(among) == 0:
            continue
        order = among[np.lexsort((-alone[among], text.attribute[seen[among]]))]
        attribute = text.attribute[seen[order]]
        rank = np.arange(len(order)) - np.searchsorted(attribute, attribute)
        order, first = order[rank < most_values], (np.arange(len(order)) - rank)[rank < most_values]
        first = np.unique(first, return_inverse=True)[1]
        first = np.searchsorted(first, first)  # where the attribute's values begin
        summed = np.cumsum(np.stack([p[order], m[order], text.cost[seen[order]]]), axis=1)
        ps, ms, costs = (
            summed
            - summed[:, first]
            + np.stack([p[order], m[order], text.cost[seen[order]]])[:, first]
        )
        gain = (
            _entropy(fired, n)
            - _entropy(ps, ms)
            - _entropy(fired - ps, n - ms)
            - costs
            - text.attribute_cost
        )
        best = int(gain.argmax())
        if gain[best] > max(worth, node.gain):
            start = first[best]
            stop = start + int(np.argmax(gain[start : best + 1] >= NEARLY * gain[best]))
            node.gain, node.values = float(gain[stop]), seen[order[start : stop + 1]]


def _entropy(fired, n):
    """Nats of `n` tokens of which `fired` fire, under one rate for all."""
    fired, n = np.asarray(fired, dtype=float), np.asarray(n, dtype=float)
    return _xlogx(n) - _xlogx(fired) - _xlogx(n - fired)


def _xlogx(x):
    return x * np.log(np.maximum(x, 1e-300))


def leaf_of(rule: Rule, text: Text) -> Int[Array, " n"]:
    """The number of the leaf that each token of a text comes to."""
    held = np.zeros(text.n, dtype=np.uint8)  # bit c: whether condition c holds
    for number, values in enumerate(rule.conditions):
        held[text.where(values)] |= 1 << number
    cases = range(1 << len(rule.conditions))
    leaf = [
        next(
            i
            for i, leaf in enumerate(rule.leaves)
            if all((case >> c & 1) == holds for c, holds in leaf.path)
        )
        for case in cases
    ]
    return np.array(leaf)[held]


def score(rule: Rule, leaf: Int[Array, " n"], firing: Int[Array, " m"]) -> Score:
    """The rule's scores on tokens in its leaves `leaf`, where the unit fires on the tokens `firing`."""
    n = np.bincount(leaf, minlength=len(rule.leaves)).astype(float)
    p = np.bincount(leaf[firing], minlength=len(rule.leaves)).astype(float)
    q, rate = n - p, np.array([leaf.rate for leaf in rule.leaves])
    fired, silent, says = (
        p.sum(),
        q.sum(),
        len(rule.says_fires),
    )  # the first leaves: they are sorted by rate
    hits, alarms = p[:says].sum(), n[:says].sum()
    auroc = (p @ (silent - np.cumsum(q)) + p @ q / 2) / (fired * silent)
    crossed = -(p @ np.log(rate) + q @ np.log1p(-rate))
    return Score(
        auroc=float(auroc),
        balanced_accuracy=float((hits / fired + 1 - (alarms - hits) / silent) / 2),
        precision=float(hits / alarms) if alarms else 0.0,
        recall=float(hits / fired),
        information=float(1 - crossed / _entropy(fired, fired + silent)),
    )


def learn_and_score(
    texts: tuple[Text, Text],
    learning: list[Array],
    scoring: list[Array],
    conditions: int,
    values: int,
) -> list[tuple[Rule, Score]]:
    """Rule and score of each unit: `learning` and `scoring` are the tokens of the two halves where it fires."""
    done = []
    for learned_from, scored_on in zip(learning, scoring, strict=True):
        rule = learn(texts[0], learned_from, conditions, values)
        done.append((rule, score(rule, leaf_of(rule, texts[1]), scored_on)))
    return done
