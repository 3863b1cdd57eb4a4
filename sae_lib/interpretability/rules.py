"""A short rule for when a unit fires, learned from one half of the documents and scored on the
other: explained without a model.

A rule is a small decision tree. Each of its splits, a condition, asks whether one attribute of a
token (`token_attributes.py`) has one of a few values; each leaf holds the share of its tokens on
which the unit fires. It is grown greedily by likelihood: balanced accuracy or AUROC as the aim
would hardly see a condition that makes a rule precise, since at a density of 0.3 % ten false alarms
for each hit cost 0.015 of either.

A reader gets it as "` [` after `al.` (84 %); ` [` (3 %)": of the parts the first that applies says
how often the unit fires there.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from scipy.special import rel_entr

from sae_lib.interpretability.token_attributes import (
    NONE,
    OWN_BEGINNINGS,
    attributes,
    beginnings,
    shapes,
)
from sae_lib.text.display import Vocabulary

Array = np.ndarray
Path = tuple[tuple[int, bool], ...]  # conditions by number, and whether each holds
Step = tuple[int, list[int], bool]  # attribute, raw values, whether it is one of them
Sets = dict[int, list[int]]  # attribute → raw values
MIN_COUNT = 5  # a value that occurs less often in the learning half is no condition
MIN_SHARE = 0.01  # of a split's tokens: a value without any firing that is rarer makes no "not"
MIN_GAIN = 0.01  # share of the firing's entropy that a condition has to explain at least
# 1 would be best for balanced accuracy, but makes rules say "fires" of half the text for a tenth
# more than usual
MIN_ODDS = 2.0
# a set of values stops growing where it has brought this share of what more values would
ENOUGH_GAIN = 0.98
NEVER = "no rule found"


@dataclass(frozen=True)
class Encoding:
    """The values of each attribute that the learning half holds often enough, numbered through:
    `starts[a]` is any other value of attribute a.
    """

    values: list[Array]  # raw, ascending, per attribute
    starts: Int[Array, " attribute_and_end"]

    @classmethod
    def of(cls, raw: Int[Array, "n attribute"]) -> "Encoding":
        values = []
        for column in raw.T:
            found, counts = np.unique(column, return_counts=True)
            values.append(found[(counts >= MIN_COUNT) & (found != NONE)])
        return cls(values, np.concatenate([[0], np.cumsum([len(v) + 1 for v in values])]))

    def encode(self, raw: Int[Array, "n attribute"]) -> Int[Array, "n attribute"]:
        # −1 for a value that is not there, which makes the code of any other value
        found = [
            pd.Index(v).get_indexer(column) for v, column in zip(self.values, raw.T, strict=True)
        ]
        return self.starts[:-1] + 1 + np.stack(found, axis=1)

    def raw(self, code: int) -> tuple[int, int]:
        """(attribute, raw value) of a code."""
        a = int(np.searchsorted(self.starts, code, side="right")) - 1
        return a, int(self.values[a][code - self.starts[a] - 1])


class Text:
    """A half of the text: its tokens' codes, how often each code occurs, where, and what naming
    it costs.
    """

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
        return np.isin(self.codes[tokens, self.attribute[values[0]]], values)


@dataclass(frozen=True)
class Leaf:
    """Where the conditions of `path` (number, whether it holds) lead; the unit fires on the
    share `rate` of the tokens there.
    """

    path: Path
    rate: float


@dataclass(frozen=True)
class Rule:
    """`conditions`: codes of one attribute each. `leaves`: by falling rate. `density`: of the
    unit, on the learning half.
    """

    conditions: tuple[Array, ...]
    leaves: tuple[Leaf, ...]
    density: float

    @property
    def says_fires(self) -> tuple[Leaf, ...]:
        """The leaves that count as firing in a yes or no: where the odds are `MIN_ODDS` times
        the unit's own.
        """
        odds = MIN_ODDS * self.density
        return tuple(f for f in self.leaves if f.rate * (1 - self.density) >= odds * (1 - f.rate))


@dataclass(frozen=True)
class Score:
    """How well a rule predicts firing on tokens that it was not learned from.

    `balanced_accuracy` of "fires"; `auroc` of the rate; `precision` and `recall` of "fires";
    `information`: the share of the firing's entropy that the rates explain, 1 − cross-entropy /
    entropy, which unlike the first two sees every false alarm.
    """

    auroc: float
    balanced_accuracy: float
    precision: float
    recall: float
    information: float


@dataclass
class _Node:
    path: Path
    among: Bool[Array, " n"] | None  # its tokens; None: all
    n: int
    firing: Int[Array, " m"]  # those of its tokens where the unit fires
    counts: Int[Array, " code"] | None = None  # of its tokens by code, where it may be split
    firing_counts: Int[Array, " code"] | None = None
    gain: float = 0.0
    values: Int[Array, " value"] | None = None  # of its best split


def learn(text: Text, firing: Int[Array, " m"], conditions: int = 4, values: int = 6) -> Rule:
    """The rule for a unit that fires on the tokens `firing`: at most `conditions` of at most
    `values` values each.

    A condition must bring more log-likelihood (nats) than naming its values costs, ln(number of
    values of the attribute) each, and `MIN_GAIN` of all.
    """
    density = len(firing) / text.n
    min_gain = MIN_GAIN * float(_entropy(len(firing), text.n))
    root = _Node((), None, text.n, firing, text.counts, text.count(firing))
    _find_split(text, root, values, min_gain)
    leaves, chosen = [root], []
    while len(chosen) < conditions and (node := max(leaves, key=lambda leaf: leaf.gain)).gain > 0:
        leaves.remove(node)
        halves = _split(text, node, len(chosen))
        chosen.append(node.values)
        if len(chosen) < conditions:
            _count(text, node, *halves)
            for leaf in halves:
                _find_split(text, leaf, values, min_gain)
        leaves += halves
    rated = [Leaf(leaf.path, (len(leaf.firing) + density) / (leaf.n + 1)) for leaf in leaves]
    return Rule(tuple(chosen), tuple(sorted(rated, key=lambda leaf: -leaf.rate)), density)


def _split(text: Text, node: _Node, number: int) -> list[_Node]:
    """The two halves of a node under its best condition."""
    inside, fires = text.where(node.values), text.having(node.firing, node.values)
    if node.among is not None:
        inside = inside[node.among[inside]]
    among = np.zeros(text.n, dtype=bool)
    among[inside] = True
    rest = ~among if node.among is None else node.among & ~among
    yes = _Node((*node.path, (number, True)), among, len(inside), node.firing[fires])
    no = _Node((*node.path, (number, False)), rest, node.n - len(inside), node.firing[~fires])
    return [yes, no]


def _count(text: Text, node: _Node, yes: _Node, no: _Node) -> None:
    """Count the codes in both halves of a node."""
    yes.counts = text.count(np.flatnonzero(yes.among))
    yes.firing_counts = text.count(yes.firing)
    no.counts = node.counts - yes.counts
    no.firing_counts = node.firing_counts - yes.firing_counts


def _find_split(text: Text, node: _Node, most_values: int, min_gain: float) -> None:
    """The condition that explains most of a node's firing, over all attributes at once.

    Of each attribute the values on which the unit fires most above (or, for a "not", below) the
    node's rate are taken one by one, by what each would bring alone.
    """
    fired, n = len(node.firing), node.n
    if fired in (0, n):
        return
    common = (node.firing_counts > 0) | (node.counts > MIN_SHARE * n)
    seen = np.flatnonzero(text.is_value & common)
    p, m = node.firing_counts[seen].astype(float), node.counts[seen].astype(float)
    cost, attributes = text.cost[seen], text.attribute[seen]
    alone = rel_entr(p, m * fired / n) + rel_entr(m - p, m * (n - fired) / n)
    above = p * n > m * fired
    for among in (np.flatnonzero((alone > cost) & side) for side in (above, ~above)):
        order = among[np.lexsort((-alone[among], attributes[among]))]
        first = np.searchsorted(attributes[order], attributes[order])
        order = order[np.arange(len(order)) - first < most_values]
        if len(order) == 0:
            continue
        first = np.searchsorted(attributes[order], attributes[order])
        each = np.stack([p[order], m[order], cost[order]])
        summed = np.cumsum(each, axis=1)
        ps, ms, costs = summed - summed[:, first] + each[:, first]
        apart = _entropy(ps, ms) + _entropy(fired - ps, n - ms)
        gain = _entropy(fired, n) - apart - costs - text.attribute_cost
        best = int(gain.argmax())
        if gain[best] > max(min_gain, node.gain):
            start = first[best]
            enough = gain[start : best + 1] >= ENOUGH_GAIN * gain[best]
            stop = start + int(np.argmax(enough))
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
    leaves = np.empty(1 << len(rule.conditions), dtype=np.int64)  # by those bits
    for i, leaf in enumerate(rule.leaves):
        bits = np.arange(len(leaves))
        leaves[[all((b >> c & 1) == holds for c, holds in leaf.path) for b in bits]] = i
    return leaves[held]


def score(rule: Rule, leaf: Int[Array, " n"], firing: Int[Array, " m"]) -> Score:
    """The rule's scores on tokens in its leaves `leaf`, where the unit fires on the tokens
    `firing`.
    """
    n = np.bincount(leaf, minlength=len(rule.leaves)).astype(float)
    p = np.bincount(leaf[firing], minlength=len(rule.leaves)).astype(float)
    q, rate = n - p, np.array([leaf.rate for leaf in rule.leaves])
    fired, silent = p.sum(), q.sum()
    says = len(rule.says_fires)  # the first leaves: they are sorted by rate
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
    """Rule and score of each unit: `learning` and `scoring` are the tokens of the two halves
    where it fires.
    """
    done = []
    for learned_from, scored_on in zip(learning, scoring, strict=True):
        rule = learn(texts[0], learned_from, conditions, values)
        done.append((rule, score(rule, leaf_of(rule, texts[1]), scored_on)))
    return done


class RuleWriter:
    """Puts rules into words, with tokens made visible."""

    def __init__(self, encoding: Encoding, vocabulary: Vocabulary):
        self.attributes, self.encoding = attributes(vocabulary), encoding
        names = [attribute.name for attribute in self.attributes]
        self.token, self.shape, self.beginning = map(names.index, ("token", "shape", "beginning"))
        self.of_token = {self.shape: shapes(vocabulary), self.beginning: beginnings(vocabulary)}

    def text(self, rule: Rule) -> str:
        """The leaves where the rule says "fires", by falling rate. A "not" that the parts before it
        imply is left out.
        """
        parts: list[str] = []
        told: list[Path] = []
        for leaf in rule.says_fires:
            steps, allowed = self._steps(rule, leaf.path), self._allowed(rule, leaf.path)
            if all(allowed.values()):
                nots = [s for i, s in enumerate(steps) if not _implied(rule, leaf.path, i, told)]
                words = self._words(allowed, self._excluded(nots, allowed))
                parts.append(f"{words} ({share(leaf.rate)})")
            told.append(leaf.path)
        return "; ".join(parts) or NEVER

    def values(self, rule: Rule) -> list[str]:
        """What the rule's parts ask for, each value for itself (`after ` + "`(`"): what rules can
        have in common.
        """
        named: dict[str, None] = {}
        for leaf in rule.says_fires:
            for a, values in self._allowed(rule, leaf.path).items():
                named |= dict.fromkeys(self._phrase(a, [v]) for v in values)
        return list(named)

    def asks_for_context(self, rule: Rule) -> bool:
        """Whether the rule asks for more than what the token itself is."""
        asked = {self.encoding.raw(int(codes[0]))[0] for codes in rule.conditions}
        return not asked <= {self.token, self.shape}

    def _steps(self, rule: Rule, path: Path) -> list[Step]:
        """The conditions along a path in raw values."""
        steps = []
        for number, holds in path:
            pairs = [self.encoding.raw(int(code)) for code in rule.conditions[number]]
            steps.append((pairs[0][0], [value for _, value in pairs], holds))
        return steps

    def _allowed(self, rule: Rule, path: Path) -> Sets:
        """The values that a path leaves of the attributes that it names values of."""
        steps = self._steps(rule, path)
        allowed: Sets = {}
        for a, values, holds in sorted(steps, key=lambda step: not step[2]):
            if holds or a in allowed:
                allowed[a] = [v for v in allowed.get(a, values) if (v in values) == holds]
        for a, values, holds in steps:
            if self.token in allowed and self._known_from_token(a, values):
                of, tokens = self.of_token[a], allowed[self.token]
                allowed[self.token] = [t for t in tokens if (of[t] in values) == holds]
                allowed.pop(a, None)
        return allowed

    def _known_from_token(self, a: int, values: list[int]) -> bool:
        own = a == self.beginning and max(values) < len(OWN_BEGINNINGS)
        return a == self.shape or own

    def _excluded(self, steps: list[Step], allowed: Sets) -> Sets:
        """The values that a path rules out of the other attributes."""
        excluded: Sets = {}
        for a, values, holds in steps:
            known = self.token in allowed and self._known_from_token(a, values)
            if not (holds or a in allowed or known):
                excluded.setdefault(a, []).extend(values)
        return excluded

    def _words(self, allowed: Sets, excluded: Sets) -> str:
        phrases = {a: self._phrase(a, values) for a, values in allowed.items()}
        nouns = [phrases.pop(a) for a in allowed if self.attributes[a].is_noun]
        nots = (f"not {self._phrase(a, values)}" for a, values in excluded.items())
        return " ".join([" that is ".join(nouns) or "any token", *phrases.values(), *nots])

    def _phrase(self, a: int, values: list[int]) -> str:
        *names, last = (self.attributes[a].value(v) for v in values)
        listed = f"{', '.join(names)} or {last}" if names else last
        return self.attributes[a].phrase.format(listed)


def share(rate: float) -> str:
    """A share in per cent with one or two digits that mean something."""
    return f"{100 * rate:.0f} %" if rate >= 0.0095 else f"{100 * rate:.1g} %"


def _implied(rule: Rule, path: Path, step: int, told: list[Path]) -> bool:
    """Whether all that the "not" of a step sets apart was told already."""
    number, holds = path[step]
    beside = (*path[:step], (number, True))
    apart = [leaf.path for leaf in rule.leaves if leaf.path[: len(beside)] == beside]
    return not holds and all(other in told for other in apart)
