"""A grid of autoencoders: what its overrides mean, and that it trains, measures, draws and is
not done twice.
"""

import json

import pytest

from sae_lib.errors import SettingsError
from sae_lib.sae import training
from suite import sweep


def test_values_with_commas_are_the_axes():
    single, axes = sweep.split(
        ["lm.lr=1e-3", "sae.l1=1,2", "sae.compare=[ward_2024, topk]", "sae.recipe=topk,tied"]
    )
    assert single == ["lm.lr=1e-3", "sae.compare=[ward_2024, topk]"] and axes == {
        "sae.l1": ["1", "2"],
        "sae.recipe": ["topk", "tied"],
    }
    points = sweep.grid("smoke", [], {"sae.l1": ["1", "2"], "sae.seed": ["0", "1", "2"]})
    assert len(points) == 6 and points["l1=2 seed=1"].l1 == 2 and points["l1=2 seed=1"].seed == 1


def test_an_axis_is_left_out_for_a_recipe_that_has_no_use_for_it():
    points = sweep.grid(
        "laptop", [], {"sae.l1": ["1", "2"], "sae.k": ["8"], "sae.recipe": ["april_2024", "topk"]}
    )
    assert sorted(points) == ["k=8 recipe=topk", "l1=1 recipe=april_2024", "l1=2 recipe=april_2024"]
    assert points["k=8 recipe=topk"].l1 is None and points["l1=2 recipe=april_2024"].k is None


def test_a_grid_of_one_point_and_an_unknown_value_are_refused():
    with pytest.raises(SettingsError, match="no setting has several values"):
        sweep.split(["sae.l1=1"])
    with pytest.raises(SettingsError, match="nonsense.*bricken_2023"):
        sweep.grid("smoke", [], {"sae.recipe": ["topk", "nonsense"]})


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["sae.l1=,"], "sae.l1=,"),
        (["sae.l1=1,,2"], "sae.l1=1,,2"),
        (["sae.l1=1,1"], "sae.l1=1,1"),
        (["sae.l1=1,2", "sae.l1=3,4"], "sae.l1=3,4"),
        ([f"sae.seed={','.join(map(str, range(100)))}", f"sae.k={'1,' * 5}2"], "twice"),
        ([f"sae.{name}={','.join(map(str, range(1, 101)))}" for name in ("seed", "k")], "10,000"),
    ],
)
def test_axes_that_cannot_be_meant_are_refused(overrides, named):
    with pytest.raises(SettingsError, match=named):
        sweep.split(overrides)


def test_a_single_value_is_left_out_for_recipes_without_it():
    points = sweep.grid("smoke", ["sae.l1=3"], {"sae.recipe": ["topk", "jumprelu"]})
    assert (points["recipe=topk"].l1, points["recipe=jumprelu"].l1) == (None, 3)


def test_a_sweep_trains_measures_and_is_not_done_twice(small_run, small_overrides, monkeypatch):
    overrides = [*small_overrides, "sae.recipe=bricken_2023,topk", "sae.seed=0,1"]
    path = sweep.sweep("smoke", small_run.folder, overrides)
    points = json.loads(path.read_text())["points"]
    assert {(p["recipe"], p["seed"]) for p in points} == {
        (r, s) for r in ("bricken_2023", "topk") for s in (0, 1)
    }
    frame = sweep.table(points)
    assert (
        list(frame["recipe"]) == ["bricken_2023", "topk"]
        and list(frame["seeds"]) == [2, 2]
        and (frame["spread"] > 0).all()
    )
    assert (small_run.folder / "figures" / "frontier.png").exists()
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("trained again"))
    assert sweep.sweep("smoke", small_run.folder, overrides) == path
