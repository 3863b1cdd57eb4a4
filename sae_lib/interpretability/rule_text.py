"""A rule as a reader gets it: "` [` after `al.` (84 %); ` [` (3 %)": of the parts the first that applies says how often the unit fires there."""

from sae_lib.interpretability.rules import Encoding, Rule
from sae_lib.interpretability.token_attributes import OF_THE_TOKEN, attributes, beginnings, shapes
from sae_lib.visible import Vocabulary

NEVER = "no rule found"
Path = tuple[tuple[int, bool], ...]
Sets = dict[int, list[int]]  # attribute → raw values


class RuleWriter:
    """Puts rules into words, with tokens made visible."""

    def __init__(self, encoding: Encoding, vocabulary: Vocabulary):
        self.attributes, self.encoding = attributes(vocabulary), encoding
        names = [attribute.name for attribute in self.attributes]
        self.token, self.shape, self.beginning = (
            names.index("token"),
            names.index("shape"),
            names.index("beginning"),
        )
        self.of_token = {self.shape: shapes(vocabulary), self.beginning: beginnings(vocabulary)}

    def text(self, rule: Rule) -> str:
        """The leaves where the rule says "fires", by falling rate. A "not" that the parts before it imply is left out."""
        parts: list[str] = []
        told: list[Path] = []
        for leaf in rule.says_fires:
            allowed = self._allowed(rule, leaf.path)
            excluded = self._excluded(
                rule,
                tuple(
                    step
                    for i, step in enumerate(leaf.path)
                    if not _implied(rule, leaf.path[:i], step, told)
                ),
                allowed,
            )
            if all(allowed.values()):
                parts.append(f"{self._words(allowed, excluded)} ({share(leaf.rate)})")
            told.append(leaf.path)
        return "; ".join(parts) if parts else NEVER

    def values(self, rule: Rule) -> list[str]:
        """What the rule's parts ask for, each value for itself (`after ` + "`(`"): what rules can have in common."""
        named = [
            self._phrase(a, [v])
            for leaf in rule.says_fires
            for a, values in self._allowed(rule, leaf.path).items()
            for v in values
        ]
        return list(dict.fromkeys(named))

    def asks_for_context(self, rule: Rule) -> bool:
        """Whether the rule asks for more than what the token itself is."""
        return any(
            self._condition(rule, number)[0] not in (self.token, self.shape)
            for number in range(len(rule.conditions))
        )

    def _allowed(self, rule: Rule, path: Path) -> Sets:
        """The values that a path leaves of the attributes that it names values of."""
        steps = [(*self._condition(rule, number), holds) for number, holds in path]
        allowed: Sets = {}
        for a, values, holds in sorted(steps, key=lambda step: not step[2]):
            if holds:
                allowed[a] = [v for v in allowed.get(a, values) if v in values]
            elif a in allowed:
                allowed[a] = [v for v in allowed[a] if v not in values]
        if self.token in allowed:
            for a, values, holds in steps:
                if self._known_from_token(a, values):
                    allowed[self.token] = [
                        t for t in allowed[self.token] if (self.of_token[a][t] in values) == holds
                    ]
                    allowed.pop(a, None)
        return allowed

    def _known_from_token(self, a: int, values: list[int]) -> bool:
        return a == self.shape or (a == self.beginning and max(values) < OF_THE_TOKEN)

    def _excluded(self, rule: Rule, path: Path, allowed: Sets) -> Sets:
        """The values that a path rules out of the other attributes."""
        excluded: Sets = {}
        for number, holds in path:
            a, values = self._condition(rule, number)
            if (
                not holds
                and a not in allowed
                and not (self.token in allowed and self._known_from_token(a, values))
            ):
                excluded.setdefault(a, []).extend(values)
        return excluded

    def _condition(self, rule: Rule, number: int) -> tuple[int, list[int]]:
        pairs = [self.encoding.raw(int(code)) for code in rule.conditions[number]]
        return pairs[0][0], [value for _, value in pairs]

    def _words(self, allowed: Sets, excluded: Sets) -> str:
        nouns = [a for a in allowed if self.attributes[a].is_noun]
        words = [" that is ".join(self._phrase(a, allowed[a]) for a in nouns) or "any token"]
        words += [self._phrase(a, values) for a, values in allowed.items() if a not in nouns]
        return " ".join(
            words + [f"not {self._phrase(a, values)}" for a, values in excluded.items()]
        )

    def _phrase(self, a: int, values: list[int]) -> str:
        names = [self.attributes[a].value(v) for v in values]
        return self.attributes[a].phrase.format(
            " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        )


def share(rate: float) -> str:
    """A share in per cent with one or two digits that mean something."""
    return f"{100 * rate:.0f} %" if rate >= 0.0095 else f"{100 * rate:.1g} %"


def _implied(rule: Rule, before: Path, step: tuple[int, bool], told: list[Path]) -> bool:
    """Whether all that a "not" sets apart was told already."""
    number, holds = step
    beside = (*before, (number, True))
    return not holds and all(
        leaf.path in told for leaf in rule.leaves if leaf.path[: len(beside)] == beside
    )
