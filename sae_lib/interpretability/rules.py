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
Values = dict[int, list[int]]  # attribute → raw values
Table = Int[Array, "n attribute"]  # a value of every attribute of every token
Tokens = Int[Array, " m"]  # numbers of tokens in a text
Codes = Int[Array, " code"]
MIN_COUNT = 5  # a value that occurs less often in the learning half is no condition
MIN_SHARE = 0.01  # of a split's tokens: a value without any firing that is rarer makes no "not"
MIN_GAIN = 0.01  # share of the firing's entropy that a condition has to explain at least
# 1 would be best for balanced accuracy, but makes rules say "fires" of half the text for a tenth
# more than usual
MIN_ODDS = 2.0
# a set of values stops growing where it has brought this share of what more values would
ENOUGH_GAIN = 0.98
NEVER = "no rule found"


class Encoding:
    """The values of each attribute that the learning half holds often enough, numbered through:
    `starts[a]` is any other value of attribute a.
    """

    def __init__(self, raw: Table):
        self.values = []  # raw, ascending, per attribute
        for column in raw.T:
            known, counts = np.unique(column, return_counts=True)
            self.values.append(known[(counts >= MIN_COUNT) & (known != NONE)])
        sizes = [len(v) + 1 for v in self.values]
        *self.starts, self.size = np.cumsum([0, *sizes]).tolist()
        # of each code: its attribute, its raw value (of any other: `NONE`), what naming it costs
        self.attribute = np.repeat(np.arange(len(sizes)), sizes)
        self.value = np.concatenate([[NONE, *v] for v in self.values])
        self.cost = np.log(sizes)[self.attribute]  # nats
        self.attribute_cost = float(np.log(len(sizes)))

    def encode(self, raw: Table) -> Table:
        # −1 for a value that is not there, which makes the code of any other value
        columns = zip(self.values, raw.T, self.starts, strict=True)
        return np.stack([pd.Index(v).get_indexer(c) + (1 + at) for v, c, at in columns], axis=1)


class Text:
    """A half of the text: its tokens' codes, how often each code occurs, and where."""

    def __init__(self, codes: Table, encoding: Encoding):
        self.codes, self.n, self.encoding = codes, len(codes), encoding
        self.counts = np.bincount(codes.ravel(), minlength=encoding.size)
        self.tokens = codes.ravel().argsort(kind="stable") // codes.shape[1]  # of each code in turn
        self.firsts = np.append(0, np.cumsum(self.counts))

    def where(self, codes: Codes) -> Tokens:
        return np.concatenate([self.tokens[self.firsts[c] : self.firsts[c + 1]] for c in codes])

    def count(self, tokens: Tokens) -> Codes:
        return np.bincount(self.codes[tokens].ravel(), minlength=self.encoding.size)


@dataclass(frozen=True)
class Leaf:
    """Where the conditions of `path` (number, whether it holds) lead; the unit fires on the
    share `rate` of the tokens there.
    """

    path: Path
    rate: float


@dataclass(frozen=True)
class Rule:
    """`conditions`: codes of one attribute each, at most eight. `leaves`: by falling rate.
    `density`: of the unit, on the learning half.
    """

    conditions: tuple[Array, ...]
    leaves: tuple[Leaf, ...]
    density: float

    def __post_init__(self):
        by_rate = sorted(self.leaves, key=lambda leaf: -leaf.rate)
        object.__setattr__(self, "leaves", tuple(by_rate))

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
    among: Bool[Array, " n"]  # its tokens
    n: int
    firing: Tokens  # those of its tokens where the unit fires
    counts: Codes | None = None  # of its tokens by code, where it may be split
    firing_counts: Codes | None = None
    gain: float = 0.0
    values: Codes | None = None  # of its best split


def learn(text: Text, firing: Tokens, conditions: int = 4, values: int = 6) -> Rule:
    """The rule for a unit that fires on the tokens `firing`: at most `conditions` of at most
    `values` values each.

    A condition must bring more log-likelihood (nats) than naming its values costs, ln(number of
    values of the attribute) each, and `MIN_GAIN` of all.
    """
    density = len(firing) / text.n
    min_gain = MIN_GAIN * float(_entropy(len(firing), text.n))
    root = _Node((), np.ones(text.n, bool), text.n, firing, text.counts, text.count(firing))
    _find_split(text, root, values, min_gain)
    leaves, chosen = [root], []
    while len(chosen) < conditions and (node := max(leaves, key=lambda leaf: leaf.gain)).gain > 0:
        leaves.remove(node)
        yes, no = _split(text, node, len(chosen))
        chosen.append(node.values)
        leaves += [yes, no]
        if len(chosen) < conditions:
            few, many = sorted((yes, no), key=lambda leaf: leaf.n)
            few.counts = text.count(np.flatnonzero(few.among))
            few.firing_counts = text.count(few.firing)
            many.counts = node.counts - few.counts
            many.firing_counts = node.firing_counts - few.firing_counts
            for leaf in (yes, no):
                _find_split(text, leaf, values, min_gain)
    rated = [Leaf(leaf.path, (len(leaf.firing) + density) / (leaf.n + 1)) for leaf in leaves]
    return Rule(tuple(chosen), tuple(rated), density)


def _split(text: Text, node: _Node, number: int) -> tuple[_Node, _Node]:
    """The two halves of a node under its best condition."""
    inside = text.where(node.values)
    inside = inside[node.among[inside]]
    among = np.zeros_like(node.among)
    among[inside] = True
    fires, rest, n = among[node.firing], node.among & ~among, len(inside)
    yes = _Node((*node.path, (number, True)), among, n, node.firing[fires])
    no = _Node((*node.path, (number, False)), rest, node.n - n, node.firing[~fires])
    return yes, no


def _find_split(text: Text, node: _Node, most_values: int, min_gain: float) -> None:
    """The condition that explains most of a node's firing, over all attributes at once.

    Of each attribute the values on which the unit fires most above (or, for a "not", below) the
    node's rate are taken one by one, by what each would bring alone.
    """
    fired, n = len(node.firing), node.n
    if fired in (0, n):
        return
    common = (node.firing_counts > 0) | (node.counts > MIN_SHARE * n)
    encoding = text.encoding
    codes = np.flatnonzero((encoding.value != NONE) & common)
    p, m = node.firing_counts[codes].astype(float), node.counts[codes].astype(float)
    cost, attribute = encoding.cost[codes], encoding.attribute[codes]
    alone = rel_entr(p, m * fired / n) + rel_entr(m - p, m * (n - fired) / n)
    above = p * n > m * fired
    for side in (above, ~above):
        among = np.flatnonzero((alone > cost) & side)
        order = among[np.lexsort((-alone[among], attribute[among]))]
        first = np.searchsorted(attribute[order], attribute[order])
        order = order[np.arange(len(order)) - first < most_values]
        if len(order) == 0:
            continue
        first = np.searchsorted(attribute[order], attribute[order])
        each = np.stack([p[order], m[order], cost[order]])
        summed = np.cumsum(each, axis=1)
        ps, ms, costs = summed - summed[:, first] + each[:, first]
        apart = _entropy(ps, ms) + _entropy(fired - ps, n - ms)
        gain = _entropy(fired, n) - apart - costs - encoding.attribute_cost
        best = int(gain.argmax())
        if gain[best] > max(min_gain, node.gain):
            start = first[best]
            enough = gain[start : best + 1] >= ENOUGH_GAIN * gain[best]
            stop = start + int(np.argmax(enough))
            node.gain, node.values = float(gain[stop]), codes[order[start : stop + 1]]


def _entropy(fired, n):
    """Nats of `n` tokens of which `fired` fire, under one rate for all."""
    return _xlogx(n) - _xlogx(fired) - _xlogx(n - fired)


def _xlogx(x):
    return x * np.log(np.maximum(x, 1e-300))


def leaf_of(rule: Rule, text: Text) -> Int[Array, " n"]:
    """The number of the leaf that each token of a text comes to."""
    held = np.zeros(text.n, dtype=np.uint8)  # bit c: whether condition c holds
    for number, values in enumerate(rule.conditions):
        held[text.where(values)] |= 1 << number
    bits = np.arange(1 << len(rule.conditions))
    leaves = np.empty_like(bits)
    for i, leaf in enumerate(rule.leaves):
        leaves[[all((b >> c & 1) == holds for c, holds in leaf.path) for b in bits]] = i
    return leaves[held]


@np.errstate(divide="ignore", invalid="ignore")
def score(rule: Rule, leaf: Int[Array, " n"], firing: Tokens) -> Score:
    """The rule's scores on tokens in its leaves `leaf`, where the unit fires on the tokens
    `firing`; NaN where it fires on all of them or on none: nothing is left to predict.
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
    texts: tuple[Text, Text], firing: tuple[Array, ...], conditions: int, values: int
) -> tuple[Rule, Score]:
    """Rule and score of a unit that fires on the tokens `firing` of the two halves: of each half
    their numbers, rising, or a mask of all its tokens.
    """
    firing = tuple(np.flatnonzero(half) if half.dtype == bool else half for half in firing)
    rule = learn(texts[0], firing[0], conditions, values)
    return rule, score(rule, leaf_of(rule, texts[1]), firing[1])


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
        parts, leaves = [], rule.says_fires
        for i, leaf in enumerate(leaves):
            allowed, excluded = self._values(rule, leaf.path, [one.path for one in leaves[:i]])
            if all(allowed.values()):
                parts.append(f"{self._words(allowed, excluded)} ({share(leaf.rate)})")
        return "; ".join(parts) or NEVER

    def values(self, rule: Rule) -> list[str]:
        """What the rule's parts ask for, each value for itself (`after ` + "`(`"): what rules can
        have in common.
        """
        phrases: dict[str, None] = {}
        for leaf in rule.says_fires:
            for a, values in self._values(rule, leaf.path)[0].items():
                phrases |= dict.fromkeys(self._phrase(a, [v]) for v in values)
        return list(phrases)

    def _values(self, rule: Rule, path: Path, told: list[Path] = ()) -> tuple[Values, Values]:
        """The values that a path leaves of the attributes that it names values of; and those that
        it rules out of others, where the paths `told` do not imply it.
        """
        allowed, excluded, steps = {}, {}, []
        for i, (number, holds) in enumerate(path):
            codes, beside = rule.conditions[number], (*path[:i], (number, True))
            apart = [leaf.path for leaf in rule.leaves if leaf.path[: i + 1] == beside]
            implied = all(other in told for other in apart)
            a, values = int(self.encoding.attribute[codes[0]]), self.encoding.value[codes].tolist()
            steps.append((a, values, holds, implied))
        for a, values, holds, _ in sorted(steps, key=lambda step: not step[2]):
            if holds or a in allowed:
                allowed[a] = [v for v in allowed.get(a, values) if (v in values) == holds]
        if self.token in allowed:  # which then says all of its shape and of how it begins itself
            known = [step for step in steps if self._is_of_token(*step[:2])]
            steps = [step for step in steps if step not in known]
            for a, values, holds, _ in known:
                of, tokens = self.of_token[a], allowed[self.token]
                allowed[self.token] = [t for t in tokens if (of[t] in values) == holds]
                allowed.pop(a, None)
        for a, values, holds, implied in steps:
            if not (holds or implied or a in allowed):
                excluded.setdefault(a, []).extend(values)
        return allowed, excluded

    def _is_of_token(self, a: int, values: list[int]) -> bool:
        return a == self.shape or (a == self.beginning and max(values) < OWN_BEGINNINGS)

    def _words(self, allowed: Values, excluded: Values) -> str:
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
