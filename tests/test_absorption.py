"""Absorption: constructed dictionaries whose answer is known, and the study at a tiny size."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from sae_lib.features.absorption import (
    MIN_RECALL,
    Fires,
    Half,
    absorption,
    find_pairs,
    label_directions,
    parent_features,
    shuffled_labels,
)
from suite import absorption as study_module
from suite import stages, study_figures, sweep
from suite.runs import Run
from suite.stages import STAGES

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


def measured(absorbed: set[int], parents: int = 1, changed=None, null_share=None):
    f, W_dec = changed or dictionary(absorbed, parents)
    halves = [texts(0), texts(1)]
    made = tuple(Half(ids, Fires(csc_array(f[ids])), has) for ids, _, has in halves)
    pairs = find_pairs(*zip(*((half.ids, half.labels) for half in made), strict=True))
    ids, x, has = (of[:3000] for of in halves[0])
    directions = label_directions(x.astype(np.float32), ids, has, pairs)
    null = np.zeros_like(directions) + np.eye(TYPES + 1, dtype=np.float32)[TYPES - 1]
    null = null if null_share is None else null_share * directions
    return absorption(W_dec.astype(np.float32), directions, null, made, pairs).set_index("child")


def test_an_absorbed_child_is_found_and_the_others_are_not():
    table = measured({0})
    assert len(table) == LABELLED and table["rate"][0] == 1 and table["n"].between(250, 400).all()
    assert (table["rate"].drop(0) == 0).all() and (table["f1"] > 0.85).all()
    assert (table["recall"] > 0.99).all() and (table["null"] == 0).all()


def test_the_null_is_asked_about_a_direction_of_the_same_length():
    table = measured({0}, null_share=0.01)
    assert (table["null"] == table["rate"]).all() and table["rate"][0] == 1


def test_directions_of_a_label_that_is_not_there_are_not_finite():
    ids, x, has = texts(0)
    labels = np.concatenate([has, np.zeros_like(has)], axis=1)
    x = x.astype(np.float32)
    found = label_directions(x, ids, labels, [(0, 3), (1, 3)])
    mean = x[has[:, 0] & (ids != 3)].mean(0) - x[~has[:, 0]].mean(0)
    assert found[0] == pytest.approx(mean, abs=1e-5) and not np.isfinite(found[1]).any()


def test_a_parent_that_has_only_its_tokens_features_is_not_told():
    """Nothing is absorbed where there is no general feature: the child's carries the label too."""
    types, ids = 60, [np.random.default_rng(seed).integers(60, size=20_000) for seed in (0, 1)]
    W_dec = np.eye(types, types + 1, dtype=np.float32)
    W_dec[:30, types] = 1
    made = [Half(of, Fires(csc_array(np.eye(types)[of])), (of < 30)[:, None]) for of in ids]
    pairs = find_pairs(*zip(*((half.ids, half.labels) for half in made), strict=True))
    directions = label_directions(W_dec[ids[0]], ids[0], made[0].labels, pairs)
    table = absorption(W_dec, directions, directions, tuple(made), pairs)
    assert (table["rate"] > 0.9).all() and (table["recall"] < MIN_RECALL).all()


def test_without_absorption_nothing_is_found():
    table = measured(set())
    assert (table["rate"] == 0).all() and (table["recall"] == 1).all()


def test_a_parent_in_two_features_is_not_absorbed():
    table = measured(set(), parents=2)
    assert (table["rate"] == 0).all() and (table["f1"] == 1).all()


def test_a_missed_token_that_nobody_carries_is_not_absorbed():
    f, W_dec = dictionary({0})
    W_dec[0, GENERAL] = 0  # the parent is silent, and the child's feature is only the child's
    assert measured(set(), changed=(f, W_dec))["rate"][0] == 0


def test_shuffled_labels_are_as_frequent_sets_of_tokens():
    ids = tuple(np.random.default_rng(seed).integers(200, size=9000) for seed in (0, 1))
    labels = tuple(np.stack([half < 20, half % 2 == 0, half > 500], axis=1) for half in ids)
    shuffled = shuffled_labels(ids, labels, 0)
    shares = np.array([half.mean(0) for half in shuffled])
    assert shares[:, 0] == pytest.approx(0.1, abs=0.02)
    assert shares[:, 1] == pytest.approx(0.5, abs=0.02) and (shares[:, 2] < 0.02).all()
    assert abs(np.corrcoef(shuffled[0][:, 1], labels[0][:, 1])[0, 1]) < 0.3
    for half, has in zip(ids, shuffled, strict=True):
        types = {(t, h) for t, h in zip(half.tolist(), has[:, 1].tolist(), strict=True)}
        assert len(types) == 200  # all occurrences of a token have it, or none


def test_features_of_a_parent_are_added_while_they_help():
    label = np.arange(100) < 60

    def found(table, child=()):
        fires = Fires(csc_array(table))
        hits = fires.count(np.flatnonzero(label))
        return parent_features(fires, label, hits, np.array(child, dtype=int))

    table = np.zeros((100, 5))
    table[:30, 0] = table[30:59, 1] = table[59:61, 2] = 1.0
    table[:, 3] = 2.0
    chosen, f1 = found(table)
    assert chosen[0] == 3 and f1 == pytest.approx(0.75)
    table[:, 3] = 0
    chosen, f1 = found(table)
    assert chosen.tolist() == [0, 1] and f1 == pytest.approx(118 / 119)
    chosen, f1 = found(table, range(30))  # without which the first feature says nothing
    assert chosen.tolist() == [1] and f1 == pytest.approx(58 / 59)


def test_pairs_are_frequent_children_that_are_not_the_whole_parent():
    ids = np.repeat([0, 1, 2, 3], [70, 25, 25, 5])
    labels = np.stack([np.ones(125, bool), ids < 2, ids == 3], axis=1)
    assert find_pairs((ids, ids), (labels, labels)) == [(0, 1), (0, 2)]


def test_what_is_absorbed_is_said_whichever_way_it_came_out():
    def said(**excess):
        points = [
            {"contender": name, "seed": seed, "excess": value}
            for name, values in excess.items()
            for seed, value in enumerate(values)
        ]
        return study_figures.absorption_sentence({"points": points})

    apart = said(a=[0.10, 0.11, 0.12], b=[0.01, -0.02, 0.01], c=[0.05, 0.06, 0.05])
    assert "over seeds: `a`, `c` (2 of 3 recipes; 0.1 by chance, as only" in apart
    assert "over seeds: no recipe (0 of 2" in said(a=[0.02, -0.01, 0.01], b=[-0.01, 0.01, 0.02])
    assert "no recipe" in said(a=[0.02], b=[0.01])


def test_the_study_compares_recipes_over_seeds_and_goes_on(small_run, monkeypatch):
    smaller = small_run.settings.interpretability.model_copy(update={"tokens": 4096})
    settings = small_run.settings.model_copy(update={"interpretability": smaller})
    run = Run(settings, small_run.folder.with_name("absorbing"), STAGES)
    monkeypatch.setattr(sweep, "SEEDS", (0, 1))
    monkeypatch.setattr(study_module, "RECIPES", ("topk", "matryoshka"))
    monkeypatch.setattr(study_module, "DIRECTION_TOKENS", 2048)
    study = study_module.study(run)
    assert [(p["contender"], p["seed"]) for p in study["points"]] == [
        (name, seed) for name in ("topk", "matryoshka") for seed in (0, 1)
    ]
    for point in study["points"]:
        assert 0 <= point["rate"] <= 1 and point["excess"] == pytest.approx(
            point["rate"] - point["null"], abs=1e-6
        )
        assert len(point["examples"]) > 2 and point["examples"][0]["parent"]
    assert study["about"]["pairs"] > 5
    table = study_figures.absorption_rows(study)
    assert table["Recipe"].tolist() == ["topk", "matryoshka"]
    shown = study_figures.absorption_figure(study)
    assert sum(len(trace.y) for trace in shown.data) == 8, "a point per seed, and its null"
    assert "Above the null" in study_figures.absorption_sentence(study)
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
    assert study_module.study(run)["points"] == study["points"]
