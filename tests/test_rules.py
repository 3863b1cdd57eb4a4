"""Rules: planted ones are found and put into words, noise is not; scores against scikit-learn;
the scanner and the attributes on small texts.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from sae_lib.interpretability import rules
from sae_lib.interpretability.rules import (
    NEVER,
    Encoding,
    Leaf,
    Rule,
    RuleWriter,
    Text,
    leaf_of,
    learn,
    score,
    share,
)
from sae_lib.interpretability.rules import learn_and_score as learn_and_score_one
from sae_lib.interpretability.token_attributes import (
    NAMES,
    NONE,
    attributes,
    raw_values,
    surroundings,
)
from sae_lib.text.display import Vocabulary
from sae_lib.text.tokenizer import train_tokenizer

AROUND, BEGINNINGS, PLACES, SHAPES = (
    NAMES[name] for name in ("around", "beginning", "place", "shape")
)
LINES = (
    2
    * (
        'def first(a, b):\n    return a.b(1) + "two words"  # add them\n\n\n'
        "class Second:\n    x = [first(3, 4), 'five']\n"
    )
    + "(a;b,c)(a,c;b)\n" * 2
    + "It doesn't (usually) say more than `this`.\n" * 3
)
SOURCE = LINES * 24


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SOURCE], 320)


@pytest.fixture(scope="module")
def real(tokenizer):
    """(ids, raw values, texts of both halves, writer) of a text whose halves are alike."""
    ids = np.array(tokenizer(SOURCE, add_special_tokens=False)["input_ids"])
    raw = raw_values(ids, np.array([0]), 64, Vocabulary(tokenizer), set(tokenizer.all_special_ids))
    middle = len(ids) // 128 * 64
    encoding = Encoding(raw[:middle])
    texts = tuple(Text(encoding.encode(part), encoding) for part in (raw[:middle], raw[middle:]))
    return SimpleNamespace(
        ids=ids,
        raw=raw,
        texts=texts,
        middle=middle,
        writer=RuleWriter(encoding, Vocabulary(tokenizer)),
    )


def learn_and_score(texts, learning, scoring, conditions, values):
    """Of several units."""
    firing = zip(learning, scoring, strict=True)
    return [learn_and_score_one(texts, one, conditions, values) for one in firing]


def random_texts(
    seed: int, n: int = 4000, attributes: int = 4, most: int = 12
) -> tuple[Text, Text, np.ndarray]:
    raw = np.random.default_rng(seed).integers(0, most, (2 * n, attributes))
    encoding = Encoding(raw[:n])
    return Text(encoding.encode(raw[:n]), encoding), Text(encoding.encode(raw[n:]), encoding), raw


def halves_of(fires: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.flatnonzero(half) for half in np.split(fires, 2))


PLANTED = {
    "one value": lambda r: r[:, 0] == 3,
    "a set": lambda r: np.isin(r[:, 1], [2, 5, 7]),
    "both": lambda r: (r[:, 0] == 3) & (r[:, 2] == 1),
    "a not": lambda r: (r[:, 0] == 3) & (r[:, 2] != 1),
    "either": lambda r: (r[:, 0] == 3) | (r[:, 3] == 4),
    "nearly always": lambda r: r[:, 1] != 6,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_rule_is_found_and_scores_one(name):
    learning, scoring, raw = random_texts(0)
    [(rule, scored)] = learn_and_score(
        (learning, scoring), *([half] for half in halves_of(PLANTED[name](raw))), 4, 6
    )
    assert scored.auroc > 0.999 and scored.balanced_accuracy > 0.999 and scored.information > 0.99
    assert scored.precision == scored.recall == 1
    assert len(rule.conditions) <= 2  # nothing is added to what says it all


def test_noise_gets_half_and_mostly_no_rule():
    learning, scoring, _ = random_texts(1)
    rng = np.random.default_rng(0)
    firing = [rng.choice(4000, 120, replace=False) for _ in range(40)]
    done = learn_and_score((learning, scoring), firing[:20], firing[20:], 4, 6)
    assert np.mean([s.auroc for _, s in done]) == pytest.approx(0.5, abs=0.02) and np.mean(
        [s.balanced_accuracy for _, s in done]
    ) == pytest.approx(0.5, abs=0.02)
    assert (
        np.mean([len(r.conditions) for r, _ in done]) < 1
        and max(s.information for _, s in done) < 0.02
    )


def test_shuffling_the_labels_of_a_perfect_unit_gives_half():
    learning, scoring, raw = random_texts(2)
    first, second = halves_of(PLANTED["both"](raw))
    rng = np.random.default_rng(0)
    shuffled = [
        (rng.permutation(4000)[: len(first)], rng.permutation(4000)[: len(second)])
        for _ in range(20)
    ]
    done = learn_and_score(
        (learning, scoring), [a for a, _ in shuffled], [b for _, b in shuffled], 4, 6
    )
    assert np.mean([s.auroc for _, s in done]) == pytest.approx(0.5, abs=0.03)


def test_the_scoring_half_has_no_say_in_the_rule():
    learning, scoring, raw = random_texts(3)
    first, second = halves_of(PLANTED["either"](raw))
    other_text, opposite = random_texts(4)[1], np.setdiff1d(np.arange(4000), second)
    rules = [
        learn_and_score((learning, text), [first], [fires], 4, 6)[0][0]
        for text, fires in ((scoring, second), (scoring, opposite), (other_text, second))
    ]
    for rule in rules[1:]:
        assert rule.leaves == rules[0].leaves and all(
            (a == b).all() for a, b in zip(rule.conditions, rules[0].conditions, strict=True)
        )


def test_what_fires_the_other_way_round_on_the_scoring_half_scores_below_half():
    learning, scoring, raw = random_texts(3)
    first, second = halves_of(PLANTED["one value"](raw))
    scored = learn_and_score(
        (learning, scoring), [first], [np.setdiff1d(np.arange(4000), second)], 4, 6
    )[0][1]
    assert scored.auroc < 0.01 and scored.balanced_accuracy < 0.01 and scored.information < 0


@pytest.mark.filterwarnings("error")
def test_where_all_tokens_fire_nothing_is_left_to_predict():
    learning, scoring, raw = random_texts(4)
    first, _ = halves_of(PLANTED["nearly always"](raw))
    everywhere = np.arange(4000)
    for fires in (first, everywhere):
        ((_, scored),) = learn_and_score((learning, scoring), [fires], [everywhere], 4, 6)
        assert np.isnan(scored.auroc) and np.isnan(scored.balanced_accuracy)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.floats(0.01, 0.6))
def test_rules_keep_to_their_caps_and_to_the_counts(seed, conditions, values, density):
    learning, scoring, raw = random_texts(seed, 1500, 3, 9)
    rng = np.random.default_rng(seed)
    rate = density * rng.uniform(0, 1.6, 9)[raw[:, 0]] * rng.uniform(0, 1.6, 9)[raw[:, 1]]
    first, second = halves_of(rng.random(3000) < np.clip(rate, 0.005, 1))
    rule = learn(learning, first, conditions, values)
    assert len(rule.conditions) <= conditions and len(rule.leaves) == len(rule.conditions) + 1
    assert all(
        1 <= len(c) <= values and len({learning.encoding.attribute[v] for v in c}) == 1
        for c in rule.conditions
    )
    leaf, fires = leaf_of(rule, learning), np.isin(np.arange(1500), first)
    for i, one in enumerate(rule.leaves):
        assert one.rate == pytest.approx(
            (fires[leaf == i].sum() + rule.density) / ((leaf == i).sum() + 1)
        )
    check_score(rule, scoring, second)


def check_score(rule: Rule, text: Text, firing: np.ndarray) -> None:
    leaf, fires = leaf_of(rule, text), np.isin(np.arange(text.n), firing)
    rate = np.array([one.rate for one in rule.leaves])[leaf]
    says = rate / (1 - rate) >= 2 * rule.density / (1 - rule.density)
    scored = score(rule, leaf, firing)
    assert scored.auroc == pytest.approx(roc_auc_score(fires, rate))
    assert scored.balanced_accuracy == pytest.approx(balanced_accuracy_score(fires, says))
    assert scored.precision == pytest.approx(
        precision_score(fires, says, zero_division=0)
    ) and scored.recall == pytest.approx(recall_score(fires, says))
    assert scored.information == pytest.approx(
        1 - log_loss(fires, rate) / log_loss(fires, np.full(text.n, fires.mean())), abs=1e-6
    )


def test_rare_and_absent_values_are_no_condition():
    raw = np.array([[0, NONE]] * 50 + [[1, 5]] * 50 + [[2, NONE]] * 4)
    encoding = Encoding(raw)
    assert [v.tolist() for v in encoding.values] == [[0, 1], [5]]
    assert encoding.encode(np.array([[0, 5], [1, NONE], [2, 7], [-3, 4]])).tolist() == [
        [1, 4],
        [2, 3],
        [0, 3],
        [0, 3],
    ]
    assert encoding.attribute[[2, 4]].tolist() == [0, 1]
    assert encoding.value[[2, 4]].tolist() == [1, 5]


# --- in words ---


def rule_for(real, tokenizer, wanted) -> str:
    """The rule for a unit that fires where `wanted(token, the one before in the row)`, without its
    shares; it must do well on the other half.
    """
    fires = np.array(
        [
            wanted(tokenizer.decode([t]), tokenizer.decode([real.ids[i - 1]]) if i % 64 else None)
            for i, t in enumerate(real.ids)
        ]
    )
    learning, scoring = np.flatnonzero(fires[: real.middle]), np.flatnonzero(fires[real.middle :])
    [(rule, scored)] = learn_and_score(real.texts, [learning], [scoring], 4, 6)
    assert scored.auroc > 0.97 and all(leaf.rate > 0.9 for leaf in rule.says_fires)
    return re.sub(r" \(\d+ %\)", "", real.writer.text(rule))


def test_rules_read_as_a_person_would_say_them(real, tokenizer):
    assert rule_for(real, tokenizer, lambda t, p: t == "a") == "`a`"
    assert rule_for(real, tokenizer, lambda t, p: t == "," and p == "a") == "`,` after `a`"
    assert rule_for(real, tokenizer, lambda t, p: t == "," and p not in ("a", None)) in (
        "`,` not after `a`",
        "`,` after `3` or `,` after `b`",
    )
    assert rule_for(real, tokenizer, lambda t, p: t.strip() in ("1", "3", "4")) == "digits"
    assert (
        real.writer.text(
            learn(real.texts[0], np.random.default_rng(0).choice(real.middle, 30, replace=False))
        )
        == NEVER
    )


def test_a_not_is_said_only_where_no_earlier_part_implies_it(real):
    """Always on `,` after `a`, on half of the other commas, and never on one kind of them."""
    code = lambda attribute, name: next(  # noqa: E731
        c
        for c in range(
            int(real.writer.encoding.starts[attribute]) + 1,
            int(real.writer.encoding.starts[attribute + 1]),
        )
        if real.writer.attributes[attribute].value(real.writer.encoding.value[c]) == name
    )  # noqa: E731
    comma, a, three = code(0, "`,`"), code(1, "`a`"), code(1, "`3`")
    leaves = lambda *rates: tuple(  # noqa: E731
        Leaf(path, rate)
        for path, rate in zip(
            (((0, True), (1, True)), ((0, True), (1, False)), ((0, False),)), rates, strict=True
        )
    )  # noqa: E731
    conditions = (np.array([comma]), np.array([a]))
    assert (
        real.writer.text(Rule(conditions, leaves(1.0, 0.5, 0.0), 0.01))
        == "`,` after `a` (100 %); `,` (50 %)"
    )
    assert (
        real.writer.text(Rule(conditions, leaves(0.0, 0.5, 0.0), 0.01))
        == "`,` not after `a` (50 %)"
    )
    assert (
        real.writer.text(Rule((conditions[0], np.array([a, three])), leaves(0.9, 0.0, 0.0), 0.01))
        == "`,` after `a` or `3` (90 %)"
    )
    assert real.writer.values(
        Rule((conditions[0], np.array([a, three])), leaves(0.9, 0.0, 0.0), 0.01)
    ) == ["`,`", "after `a`", "after `3`"]


def test_shares_keep_the_digits_that_mean_something():
    assert [share(r) for r in (1.0, 0.843, 0.031, 0.0096, 0.004, 0.00031)] == [
        "100 %",
        "84 %",
        "3 %",
        "1 %",
        "0.4 %",
        "0.03 %",
    ]


# --- the scanner ---


def around(text: str) -> list[str]:
    return [AROUND[k] for k in surroundings(text.encode(), np.arange(len(text.encode())))[0]]


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("f(a, [b])", "a", "inside (…)"),
        ("f(a, [b])", "b", "inside […]"),
        ("f(a, [b])", "f", "outside brackets and quotes"),
        ("{x: (1)} y", "x", "inside {…}"),
        ("{x: (1)} y", "y", "outside brackets and quotes"),
        ('s = "a(b" + c', "b", "inside a string"),
        ('s = "a(b" + c', "c", "outside brackets and quotes"),
        ("x = r'b' + c", "b", "inside a string"),
        ("x = 'a\\'b' + c", "c", "outside brackets and quotes"),
        ("it doesn't say", "y", "outside brackets and quotes"),
        ("an open ' mark\nnext", "x", "outside brackets and quotes"),
        ('"""a "b" \n c""" d', "c", "inside a string of several lines"),
        ('"""a\n""" d', "d", "outside brackets and quotes"),
        ("a = 1  # why (not)\nb", "w", "in a comment"),
        ("a = 1  # why (not\nb", "b", "outside brackets and quotes"),
        ("x // note\ny", "n", "in a comment"),
        ("http://site", "s", "outside brackets and quotes"),
        ("/* a\n b */ c", "b", "in a comment"),
        ("/* a\n b */ c", "c", "outside brackets and quotes"),
        ("see `code` or", "d", "inside `…`"),
        ("```\ncode\n``` q", "d", "inside `…`"),
        ("```\ncode\n``` q", "q", "outside brackets and quotes"),
        ('<a href="x">text</a>', "h", "inside <…>"),
        ('<a href="x">text</a>', "t", "outside brackets and quotes"),
        ("if a < b: c", "c", "outside brackets and quotes"),
        ("open (and never\n\nnew", "w", "outside brackets and quotes"),
        ("f(a,\n\n  b)", "b", "inside (…)"),
        ("((a) b) c", "b", "inside (…)"),
        (") a (b", "a", "outside brackets and quotes"),
        ("([a) b", "b", "outside brackets and quotes"),
    ],
)
def test_surroundings(text, place, expected):
    assert around(text)[text.rindex(place)] == expected


def test_depth_counts_open_brackets():
    assert surroundings(b"a(b[c]d)e", np.arange(9))[1].tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 0]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="()[]{}\"'`#/*\\<>a \n", max_size=60))
def test_the_scanner_takes_any_text(text):
    inside, depth = surroundings(text.encode(), np.arange(len(text)))
    assert (
        len(inside) == len(text)
        and (inside >= 0).all()
        and (inside < len(AROUND)).all()
        and (depth >= 0).all()
    )


# --- attributes ---


def test_attributes_of_a_small_text(tokenizer):
    text = "def f(a):\n    return a.b  # note\n"
    ids = np.array(
        tokenizer(text, add_special_tokens=False)["input_ids"]
        + [tokenizer.eos_token_id]
        + tokenizer("x = 1\n", add_special_tokens=False)["input_ids"]
    )
    second = int(np.flatnonzero(ids == tokenizer.eos_token_id)[0]) + 1
    vocabulary = Vocabulary(tokenizer)
    raw = raw_values(ids, np.array([0, second]), 8, vocabulary, set(tokenizer.all_special_ids))
    names = [a.name for a in attributes(vocabulary)]
    value = lambda i, name: int(raw[i, names.index(name)])  # noqa: E731
    decoded = [tokenizer.decode([t]) for t in ids]
    assert (
        (raw[1:8, 1] == ids[:7]).all()
        and raw[0, 1] == raw[8, 1] == NONE
        and raw[9, 2] == NONE
        and raw[10, 2] == ids[8]
    )  # nothing from another row
    a, dot, note = (
        decoded.index("a"),
        decoded.index("."),
        next(
            i
            for i, t in enumerate(decoded)
            if "note".startswith(t.strip()) and t.strip() and i > decoded.index(".")
        ),
    )
    assert (
        AROUND[value(a, "around")] == "inside (…)"
        and value(a, "depth") == 1
        and SHAPES[value(a, "shape")] == "a single letter"
    )
    assert (
        BEGINNINGS[value(dot, "beginning")] == "right after a letter"
        and SHAPES[value(dot, "shape")] == "a full stop"
    )
    assert AROUND[value(note, "around")] == "in a comment"
    assert (
        attributes(vocabulary)[names.index("line")].value(value(dot, "line")) == "`return`"
        and value(0, "line") == NONE
    )
    assert (
        value(dot, "indent") == 2
        and PLACES[value(0, "place")]
        == PLACES[value(second, "place")]
        == "at the start of the text"
    )
    assert AROUND[value(second, "around")] == "outside brackets and quotes"
    assert (
        attributes(vocabulary)[names.index("pair")].value(value(1, "pair"))
        == f"`{vocabulary.name(int(ids[1]))}` after `{vocabulary.name(int(ids[0]))}`"
    )
    assert value(0, "position") == value(8, "position") == 0 and value(9, "position") == 1


def test_a_bracket_left_open_does_not_reach_into_the_next_document(tokenizer):
    first, second = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("x = (1, ", "y"))
    raw = raw_values(
        np.array([*first, *second]),
        np.array([0, len(first)]),
        64,
        Vocabulary(tokenizer),
        set(tokenizer.all_special_ids),
    )
    around_column = [a.name for a in attributes(Vocabulary(tokenizer))].index("around")
    assert (
        AROUND[raw[-1, around_column]] == "outside brackets and quotes"
        and AROUND[raw[len(first) - 1, around_column]] == "inside (…)"
    )


def test_both_halves_of_a_split_are_counted_by_their_own_tokens(real, monkeypatch):
    text, find, nodes = real.texts[0], rules._find_split, []

    def checked(text, node, *rest):
        assert np.array_equal(node.counts, text.count(np.flatnonzero(node.among)))
        assert np.array_equal(node.firing_counts, text.count(node.firing))
        nodes.append(node.path)
        find(text, node, *rest)

    monkeypatch.setattr(rules, "_find_split", checked)
    most, *others = np.argsort(-text.counts)[[3, 8, 15]]  # three values of attributes
    firing = np.union1d(text.where(np.array([most])), text.where(np.array(others)))
    learn(text, firing[firing % 7 > 0])
    assert {len(path) for path in nodes} >= {0, 1, 2}


def test_where_a_unit_fires_may_be_a_mask():
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 9, (3000, 2))
    fires = raw[:, 0] == 3
    encoding = Encoding(raw)
    texts = (Text(encoding.encode(raw), encoding),) * 2
    masks, numbers = (fires, fires), (np.flatnonzero(fires),) * 2
    found = [learn_and_score_one(texts, of, 4, 6)[1] for of in (masks, numbers)]
    assert found[0] == found[1] and found[0].auroc == 1


def test_a_rule_sorts_its_leaves():
    leaves = Leaf(((0, False),), 0.1), Leaf(((0, True),), 0.9)
    assert [leaf.rate for leaf in Rule((), leaves, 0.2).leaves] == [0.9, 0.1]
