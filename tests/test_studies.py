"""Studies: λ is found for an L0, seeds agree more than chance, splitting is told from chance,
and the report quotes what was found.
"""

import json

import pytest
import torch

from sae_lib.features import evaluation
from sae_lib.sae.recipes import RECIPES
from suite import project, stages, studies, study_figures, sweep


def made(run, name):
    return json.loads((run.results_folder / f"{name}.json").read_text())


def fake_measure(slope, factor):
    """L0 = factor · λ^slope, instead of a training."""
    asked = []

    def measure(run, hook, settings):
        asked.append(settings.l1)
        return {"l0_mean": factor * settings.l1**slope, "recovered_mean": 0.5}

    return measure, asked


@pytest.mark.parametrize("slope, factor", [(-1.0, 30.0), (-0.6, 80.0), (-1.7, 40.0)])
def test_the_penalty_is_found_for_an_l0(small_run, hook, monkeypatch, slope, factor):
    measure, asked = fake_measure(slope, factor)
    monkeypatch.setattr(sweep, "measure", measure)
    settings, record = studies.at_l0(small_run, hook, small_run.settings.sae, 16.0)
    assert (
        record["l0_mean"] == pytest.approx(16, rel=0.05)
        and settings.l1 == asked[-1]
        and len(asked) <= 4
    )


def test_topk_is_given_its_k_and_trained_once(small_run, hook, monkeypatch):
    measure, asked = fake_measure(-1, 1)
    monkeypatch.setattr(
        sweep, "measure", lambda run, hook, s: asked.append(s.k) or {"l0_mean": 16.0}
    )
    settings, _ = studies.at_l0(
        small_run, hook, small_run.settings.sae.model_copy(update={"recipe": "topk"}), 16.0
    )
    assert asked == [16] and settings.k == 16


def test_mmcs_of_the_same_directions_is_one_and_of_random_ones_small():
    directions = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    shuffled = 3 * directions[torch.randperm(50)]
    assert evaluation.mmcs(directions, shuffled) == pytest.approx(1, abs=1e-5)
    assert (
        evaluation.mmcs(directions, torch.randn(50, 64, generator=torch.Generator().manual_seed(1)))
        < 0.5
    )
    two = torch.tensor([[1.0, 0], [0, 1]])
    assert evaluation.mmcs(two, torch.tensor([[1.0, 1]])) == pytest.approx(0.5**0.5)


@pytest.fixture(scope="module")
def study_run(small_overrides, small_run, tmp_path_factory):
    """A run beside the small one, with one study of each kind, smaller in everything."""

    run = stages.open_run(
        "smoke",
        small_run.folder.parent / "studies",
        [
            *small_overrides,
            "sae.dead_window=3000",
            "sae.activations=20000",
            "evaluation.tokens=4096",
            "evaluation.loss_tokens=1024",
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "SEEDS", (0, 1))
        patch.setattr(studies, "WIDTHS", (32, 64))
        patch.setattr(studies, "RATES", (1.0,))
        patch.setattr(studies, "WARD_RATES", (10.0,))
        patch.setattr(
            studies,
            "RECIPES",
            {name: RECIPES[name] for name in ("bricken_2023", "ward_2024", "topk", "tied")},
        )
        patch.setattr(studies, "FRONTIER", (8.0,))
        patch.setattr(studies, "GRID", {"l1": (1.0,), "lr": (1.0,)})
        for which in ("widths", "classical", "recipes"):
            studies.study(run, which)
    return run


def test_a_study_of_recipes_compares_all_at_one_l0(study_run):
    study = made(study_run, "study_recipes")
    groups = {
        name: [p for p in study["points"] if (p["contender"], p["l0"]) == (name, 16.0)]
        for name in {p["contender"] for p in study["points"]}
    }
    assert {
        "bricken_2023",
        "ward_2024, as given",
        "ward_2024, retuned",
        "topk",
        "tied",
        "bricken_2023, bfloat16",
    } == set(groups)
    assert all(sorted(r["seed"] for r in records) == [0, 1] for records in groups.values())
    assert any(
        p["contender"] == "bricken_2023" and p["l0"] is None and p["l0_mean"] != 16
        for p in study["points"]
    ), "what the search trained belongs to the frontier"
    rows = study_figures.recipes_rows(study).to_dict("records")
    assert [r["recovered_mean"] for r in rows] == sorted(
        (r["recovered_mean"] for r in rows), reverse=True
    )
    by_name = {r["contender"]: r for r in rows}
    assert by_name["topk"]["l0_mean"] == pytest.approx(16, rel=0.02)
    assert all(0 < r["mmcs_null"] < 0.6 for r in rows)
    given = [p["recovered_mean"] for p in groups["ward_2024, as given"]]
    row = by_name["ward_2024, as given"]
    assert (row["least"], row["most"]) == (min(given), max(given))
    assert row["recovered_mean"] == pytest.approx(sum(given) / len(given))


def test_a_study_of_widths_finds_parts_more_often_than_chance(study_run):
    study = made(study_run, "study_widths")
    assert study_figures.widths_rows(study)["d_sae"].tolist() == [32, 64]
    for s in study["splitting"]:
        assert s["split_share"] + s["kept_share"] + s["lost_share"] == pytest.approx(1, abs=1e-5)
        assert s["null_share"] <= s["parts_share"]


def test_the_same_dictionary_is_part_of_itself(study_run, hook):
    settings = study_run.settings.sae.model_copy(
        update={
            "d_sae": 32,
            "precision": "float32",
            "seed": 0,
            "l1": made(study_run, "study_widths")["points"][0]["lambda"],
        }
    )
    found = studies.splitting(study_run, hook, settings, settings)
    assert found["parts_share"] == 1 and found["split_share"] == 0 and found["mean_parts"] <= 1


def test_the_classical_study_keeps_the_best_score(study_run):
    study = made(study_run, "study_classical")
    best = min(study["points"], key=lambda p: p["score"])
    assert {(b["d_sae"], b["lambda"], b["lr"]) for b in study["best"]} == {
        (best["d_sae"], best["lambda"], best["lr"])
    }
    assert all(
        p["score"] == pytest.approx(p["fvu"] + p["l0_mean"] / study["d_in"])
        for p in study["points"]
    )


def test_studies_are_drawn_published_and_found(study_run, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "find", lambda: tmp_path)
    own = {which: study_figures.load_study(study_run, which) for which in study_figures.STUDIES}
    assert own["recipes"]["own"] and own["saelens"] is None
    assert set(study_figures.study_figures(own)) == {
        "study_recipes",
        "study_widths",
        "study_classical",
    }
    study_figures.publish(study_run)
    assert sorted(p.name for p in (tmp_path / "report/studies").iterdir()) == [
        "classical.json",
        "recipes.json",
        "widths.json",
    ]
    (study_run.results_folder / "study_widths.json").rename(
        study_run.results_folder / "hidden.json"
    )
    assert study_figures.load_study(study_run, "widths")["own"] is False
    (study_run.results_folder / "hidden.json").rename(
        study_run.results_folder / "study_widths.json"
    )


def test_our_seconds_stand_beside_saelens_of_the_same_point():
    point = {
        "lr": 1e-3,
        "threads": 2,
        "recovered_zero": 0.9,
        "recovered_mean": 0.95,
        "fvu": 0.1,
        "dead_share": 0.0,
        "l0_mean": 16.0,
    }
    theirs = [
        point | {"contender": "SAELens standard", "lambda": 3.0, "activations": n, "seconds": s}
        for n, s in ((1024, 10.0), (4096, 40.0))
    ]
    ours = [
        point
        | {
            "contender": "bricken_2023, float32",
            "lambda": 1.8,
            "beside": 3.0,
            "activations": 4096,
            "seconds": s,
            "recovered_mean": s / 10,
        }
        for s in (7.0, 9.0)
    ]
    rows = study_figures.saelens_rows({"points": ours + theirs}).to_dict("records")
    assert [(r["contender"], r["activations"], r["seeds"]) for r in rows] == [
        ("SAELens standard", 1024, 1),
        ("SAELens standard", 4096, 1),
        ("bricken_2023, float32", 4096, 2),
    ]
    assert [r["speed"] for r in rows] == [1, 1, 5] and rows[2]["recovered_mean"] == pytest.approx(
        0.8
    )


def test_a_point_of_saelens_is_drawn_where_it_saw_as_many_activations(study_run):
    study = made(study_run, "study_recipes")
    n = study["points"][0]["activations"]
    theirs = [
        study["points"][0]
        | {"contender": "SAELens standard", "lambda": float(i), "activations": n * i}
        for i in (1, 2)
    ]
    crosses = [
        trace
        for trace in study_figures.recipes_figure(study, {"points": theirs}).data
        if trace.name == "SAELens standard"
    ]
    assert [len(trace.x) for trace in crosses] == [1]
