"""Absorption: constructed dictionaries whose answer is known, and the study at a tiny size."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from sae_lib.features.absorption import Half, absorption, find_pairs, parent_features
from suite import absorption as study_module
from suite import stages, sweep

# token types 0 to 5 have the label, 6 to 11 have it not; dimension 12 is the label's own
TYPES, LABELLED, GENERAL = 12, 6, 12


def texts(seed: int, n: int = 4000):
    ids = np.random.default_rng(seed).integers(TYPES, size=n)
    x = np.eye(TYPES + 1)[ids]
    x[:, GENERAL] = ids < LABELLED
    return ids, x, (ids < LABELLED)[:, None]


def dictionary(absorbed: set[int], parents: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(activations of each feature on each type, decoder): a feature per type, and one of the label
    (or several that share it) which the `absorbed` types silence and carry themselves.
    """
    f, W_dec = np.zeros((TYPES, TYPES + parents)), np.zeros((TYPES + parents, TYPES + 1))
    for t in range(TYPES):
        f[t, t], W_dec[t, t] = 1, 1
        if t in absorbed:
            W_dec[t, GENERAL] = 1
        elif t < LABELLED:
            f[t, TYPES + t % parents] = 1
    W_dec[TYPES:, GENERAL] = 1
    return f, W_dec


def measured(absorbed: set[int], parents: int = 1, seed: int = 0):
    f, W_dec = dictionary(absorbed, parents)
    halves = [texts(seed), texts(seed + 1)]
    made = tuple(Half(ids, csc_array(f[ids]), has) for ids, _, has in halves)
    pairs = find_pairs(*zip(*((half.ids, half.labels) for half in made), strict=True))
    x = halves[0][1][:3000].astype(np.float32)
    return absorption(W_dec.astype(np.float32), x, made, pairs, 0).set_index("child")


def test_an_absorbed_child_is_found_and_the_others_are_not():
    table = measured({0})
    assert len(table) == LABELLED and table["rate"][0] == 1
    assert (table["rate"][1:] == 0).all() and (table["f1"] > 0.85).all()
    assert table["null"][0] == 0  # the parent's other tokens are not absorbed
    assert table["null"][1:].between(0.1, 0.3).all()  # a fifth of these are the absorbed child's


def test_without_absorption_nothing_is_found():
    table = measured(set())
    assert (table[["rate", "null"]] == 0).all(axis=None) and (table["recall"] == 1).all()


def test_a_parent_in_two_features_is_not_absorbed():
    table = measured(set(), parents=2)
    assert (table["rate"] == 0).all() and (table["f1"] == 1).all()


def test_without_any_parent_feature_the_null_is_as_high():
    table = measured(set(range(LABELLED)))
    assert (table["rate"] == table["null"]).all()


def test_a_missed_token_that_nobody_carries_is_not_absorbed():
    f, W_dec = dictionary({0})
    W_dec[0, GENERAL] = 0  # silent parent, and the child's feature is only the child's
    halves = [texts(0), texts(1)]
    made = tuple(Half(ids, csc_array(f[ids]), has) for ids, _, has in halves)
    table = absorption(W_dec.astype(np.float32), halves[0][1].astype(np.float32), made, [(0, 0)], 0)
    assert table["rate"][0] == 0


def test_features_of_a_parent_are_added_while_they_help():
    label = np.arange(100) < 60
    table = np.zeros((100, 5))
    table[:30, 0] = table[30:59, 1] = table[59:61, 2] = 1.0
    table[:, 3] = 2.0
    chosen, f1 = parent_features(csc_array(table), label)
    assert chosen[0] == 3 and f1 == pytest.approx(0.75)
    table[:, 3] = 0
    chosen, f1 = parent_features(csc_array(table), label)
    assert chosen.tolist() == [0, 1] and f1 == pytest.approx(118 / 119)


def test_pairs_are_frequent_children_that_are_not_the_whole_parent():
    ids = np.repeat([0, 1, 2, 3], [70, 25, 25, 5])
    labels = np.stack([np.ones(125, bool), ids < 2, ids == 3], axis=1)
    assert find_pairs((ids, ids), (labels, labels)) == [(0, 1), (0, 2)]


def test_the_study_compares_recipes_over_seeds_and_goes_on(small_run, monkeypatch):
    monkeypatch.setattr(sweep, "SEEDS", (0, 1))
    monkeypatch.setattr(study_module, "RECIPES", ("topk", "matryoshka"))
    monkeypatch.setattr(study_module, "DIRECTION_TOKENS", 2048)
    study = study_module.study(small_run)
    assert [(p["contender"], p["seed"]) for p in study["points"]] == [
        (name, seed) for name in ("topk", "matryoshka") for seed in (0, 1)
    ]
    for point in study["points"]:
        assert 0 <= point["rate"] <= 1 and point["excess"] == pytest.approx(
            point["rate"] - point["null"], abs=1e-6
        )
        assert len(point["examples"]) > 2 and point["examples"][0]["parent"]
    assert study["about"]["pairs"] > 20
    table = study_module.rows(study)
    assert [row["Recipe"] for row in table] == ["topk", "matryoshka"]
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
    assert study_module.study(small_run)["points"] == study["points"]
