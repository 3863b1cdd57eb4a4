"""Notebook 07: each deviation changes what it says and nothing else, and what is concluded."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from sae_lib.errors import SettingsError
from sae_lib.features.firing import Firing
from sae_lib.model import language_model
from sae_lib.model.original import fold_attention_scale, one_position_each
from sae_lib.sae.initialise import initialise
from sae_lib.sae.recipes import RECIPES, of_recipe, resolve
from sae_lib.settings import LanguageModelSettings
from suite import deviations, deviations_views, sanity, stages, sweep
from suite.original import FACTS


def test_a_deviation_changes_one_value():
    changes = {
        "norm": {"decoder_norm"},
        "dead_test": {"resampling"},
        "resampling_end": {"resampling"},
        "loss_units": {"mse", "l1"},
        "b_dec": {"b_dec"},
        "encoder_start": {"init"},
        "positions": {"positions"},
    }
    bases = {base: asdict(deviations.OWN[base]) for base in deviations.BASES}
    for name, recipe in deviations.OWN.items():
        base = deviations.base_of(name)
        of = {key for key, value in asdict(recipe).items() if value != bases[base][key]}
        assert of - {"name"} == changes.get(name[len(base) + 1 :], set()), name
    tests = deviations.OWN["original+dead_test"].resampling, deviations.OWN["original"].resampling
    assert tests[0] == replace(tests[1], fresh_sample=0)
    for name in ("original", "method"):  # the same λ in the other units
        other = deviations.OWN[name + ("+" if name == "original" else "-") + "loss_units"]
        ours, theirs = deviations.OWN[name].objective(512), other.objective(512)
        ratio = theirs.sparsity / theirs.mse
        assert ratio == pytest.approx(ours.sparsity / ours.mse, rel=1e-3)


def test_its_recipes_are_known_only_inside(small_run):
    settings = small_run.settings.sae.model_copy(update={"recipe": "method-norm"})
    with sweep.also_known(deviations.OWN):
        assert resolve(settings).decoder_norm == "dimensions"
    with pytest.raises(SettingsError, match="method-norm"):
        resolve(settings)


def test_only_the_start_of_b_dec_differs():
    mean = torch.arange(6.0)
    starts = [initialise(r, mean, 12, 0) for r in (RECIPES["ward_2024"], deviations.OWN["method"])]
    assert starts[0].b_dec.abs().max() <= 12**-0.5 and torch.equal(starts[1].b_dec, mean)
    for name, start in zip(("original+b_dec", "method-b_dec"), starts, strict=True):
        other = initialise(deviations.OWN[name], mean, 12, 0)
        for own, given in zip(other.state_dict().items(), start.state_dict().items(), strict=True):
            assert torch.equal(own[1], given[1]) == (own[0] != "b_dec")


def test_one_position_of_each_row(hook, small_run, monkeypatch):
    rows = small_run.get("tokens").rows("train", small_run.settings.lm.context)[:40]
    computed, activations = [], hook.activations

    def counted(tokens: torch.Tensor) -> torch.Tensor:
        computed.append(len(tokens))
        return activations(tokens)

    monkeypatch.setattr(hook, "activations", counted)
    table, chosen = one_position_each(hook, rows, 1000, 0)
    assert sum(computed) == 40, "a row that is drawn again is not computed again"
    assert chosen.shape[1] == rows.shape[1] and chosen.size <= 1000 == len(table.table)
    whole = hook.activations(torch.from_numpy(rows.astype(np.int64))).flatten(0, 1)
    distance = torch.cdist(table.table.double(), whole.double())
    nearest, place = distance.min(1)
    assert nearest.max() < 1e-4, "each is the activation of a token"
    row, position = np.divmod(place.numpy(), rows.shape[1])
    assert len(set(row)) == 40 and len(set(position)) > 0.5 * rows.shape[1]
    assert torch.equal(table.table, one_position_each(hook, rows, 1000, 0)[0].table)
    assert not torch.equal(table.table, one_position_each(hook, rows, 1000, 1)[0].table)


def test_the_originals_attention_survives_being_saved(tmp_path):
    settings = {"d_model": 32, "n_heads": 4, "d_mlp": 48, "context": 12}
    torch.manual_seed(0)
    model = language_model.build(LanguageModelSettings(attention="ward_2024", **settings), 50, 0)
    attention = model.transformer.h[0].attn
    assert torch.equal(attention.c_proj.weight, torch.eye(32)) and not attention.c_proj.bias.any()
    with torch.no_grad():
        attention.c_attn.weight.normal_(0, 0.5)
        attention.c_attn.bias.normal_(0, 0.5)
    tokens = torch.randint(50, (3, 12))
    before = model(input_ids=tokens).logits
    x = torch.randn(2, 5, 32)
    q, k, v = (x @ attention.c_attn.weight + attention.c_attn.bias).split(32, -1)
    q, k, v = (part.view(2, 5, 4, 8).transpose(1, 2) for part in (q, k, v))
    scores = (q @ k.mT / 32**0.5).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)
    by_hand = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)
    torch.testing.assert_close(attention(x, attention_mask=mask[None, None])[0], by_hand)
    fold_attention_scale(model).save_pretrained(tmp_path)
    loaded = language_model.open_model(str(tmp_path))
    assert loaded.transformer.h[0].attn.scaling == 8**-0.5
    torch.testing.assert_close(loaded(input_ids=tokens).logits, before, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs architecture gpt2"):
        LanguageModelSettings(attention="ward_2024", architecture="llama", **settings)


def test_healthy_features_that_a_short_test_calls_dead():
    density = np.array([0.0, 0.0, 1e-4, 1e-2])
    expected = 0.9999**9856 / (2 + 0.9999**9856)
    found = deviations.wrongly_called_dead(density, 9856)
    assert found == pytest.approx(expected, rel=1e-6)
    assert deviations.wrongly_called_dead(np.array([1.0]), 9856) is None
    rng, n = np.random.default_rng(0), 200
    density = np.concatenate([np.zeros(50), rng.uniform(1e-3, 1e-2, 50)])
    silent = (rng.random((400, n, 100)) >= density).all(1)
    counted = silent[:, 50:].sum() / silent.sum()
    assert deviations.wrongly_called_dead(density, n) == pytest.approx(counted, rel=0.05)


def test_the_first_firings_are_not_the_strongest():
    rising = Firing(np.arange(1000), np.arange(1000.0))
    falling = Firing(np.arange(1000), -np.arange(1000.0))
    rare = Firing(np.arange(5), np.ones(5))
    found = deviations.first_against_top([rising, falling, rare])
    assert found["often"] == pytest.approx(2 / 3) and found["strongest"] == 0.5
    assert found["shared"] == 0.5
    assert deviations.first_against_top([rising])["shared"] == 0
    assert deviations.first_against_top([rare])["shared"] is None


def made_up(values: dict[str, list[float]], **l0: float) -> dict:
    same = {"information": 0.4, "alive": 1000}
    points = [
        {"contender": name, "seed": seed, "recovered_mean": v, "l0_mean": l0.get(name, 16.0)} | same
        for name, of in values.items()
        for seed, v in enumerate(of)
    ]
    return {"points": points, "times": [dict.fromkeys(values, 2.0)]}


def test_effects_have_the_deviations_sign_and_are_said_whichever_way():
    study = made_up(
        {
            "original": [0.80, 0.82, 0.81],
            "original+norm": [0.90, 0.93, 0.91],  # put right: it recovers more
            "method": [0.97, 0.96, 0.98],
            "method-norm": [0.91, 0.91, 0.92],  # got wrong: less
            "method, other seeds": [0.96, 0.98, 0.97],
        }
    )
    rows = deviations_views.effects(study).set_index(["base", "deviation", "measure"])
    primary = rows.xs("recovered_mean", level="measure")
    assert primary["effect"]["original", "norm"] == pytest.approx(-10.333, abs=1e-3)
    assert primary["effect"]["method", "norm"] == pytest.approx(-5.667, abs=1e-3)
    null = primary.loc["method", "other seeds"]
    assert null["low"] < 0 < null["high"]
    said = deviations_views.sentence(study)
    original, method = said.split("In the method, ")
    assert "1 of 1 change" in original and "decoder normalised along dimensions −10.3" in original
    assert method.startswith("1 of 1 change") and "Other seeds alone, the null, change" in method
    slow = {"original": 3, "original+norm": 2, "method": 4, "method-norm": 2}
    study["times"] = [slow, slow | {"original": 9, "method-norm": 8}, slow]
    found = [row["Time, with over without"] for row in deviations_views.rows(study)]
    assert found == ["1.50 (1.50 to 4.50)", "0.500 (0.500 to 2.00)", "–"]
    said = deviations_views.brief(study)
    assert said.endswith(": of the axis −5.67 in the method and −10.3 in the original")
    once = made_up({"method": [0.9], "method-norm": [0.5]})
    assert deviations_views.brief(once).endswith(": of the axis no change shown in the method")
    assert deviations_views.brief(made_up({"method": [0.9], "method-b_dec": [0.5]})) == ""
    assert "0 of 1 change" in deviations_views.sentence(once)
    table = deviations_views.rows(study)
    assert [row["In"] for row in table] == ["original", "method", "method"]
    for point in study["points"]:
        point |= {"norms": [0.9, 1.5 if point["contender"] in ("original", "method-norm") else 1]}
    (how,) = deviations_views.mechanisms(study)
    assert how["Deviation"] == deviations_views.TITLES["norm"]
    ends = [f"in the {base} 1.50, without it 1.00: as expected" for base in ("original", "method")]
    assert how["With it"].endswith("; ".join(ends))
    for point in study["points"]:
        point["norms"] = [0.9, 1.0 + (point["seed"] if "+" in point["contender"] else 0)]
    (how,) = deviations_views.mechanisms(study)
    assert how["With it"].count("no difference is shown") == 2, "of three seeds one has no change"
    for point in study["points"]:
        point["l0_mean"] = 16.0 + 4 * ("+" in point["contender"])
    (how,) = deviations_views.mechanisms(study)
    assert "in the original" in how["With it"] and how["With it"].count("not compared") == 1

    names = {y for trace in deviations_views.figure(study).data for y in trace.y}
    assert names == {deviations_views.TITLES[d] for d in ("norm", "other seeds")}


def test_how_far_lambda_carries_over_is_said_with_what_hardly_reconstructs():
    fvu, l0 = {"original": (0.8, 0.9)}, {"method": (12.0, 15.0)}
    points = [
        {"contender": name, "d_mlp": width, "fvu": fvu.get(name, (0.2, 0.1))[i]}
        | {"l0_mean": l0.get(name, (4.0, 1.0))[i]}
        for name in deviations_views.UNITS
        for i, width in enumerate((256, 512))
    ]
    said = deviations_views.carried_sentence({"carried": points})
    assert "4.00 (mean over dimensions" in said and "1.25 (sum, activations scaled" in said
    assert said.endswith("at this λ with: mean over dimensions (original).")
    rows = deviations_views.carried_rows({"carried": points})
    assert rows[0]["L0 (FVU) at 512 neurons"] == "1.0 (0.90)"
    well = [point | {"fvu": 0.1} for point in points]
    assert "Hardly" not in deviations_views.carried_sentence({"carried": well})


def test_for_whom_lambda_was_searched():
    points = [{"contender": "method", "lambda": 2.0}, {"contender": "method", "lambda": 2.0}]
    assert deviations_views.searched({"points": points}) == "on the first seed"
    points[1]["lambda"] = 2.1
    assert deviations_views.searched({"points": points}) == "for every seed"


def test_no_verdict_where_l0_differ_and_none_smaller_than_other_seeds():
    values = {"method": [0.9, 0.9, 0.9], "method-norm": [0.91, 0.911, 0.912]}
    study = made_up(values)
    assert "In the method, 1 of 1 change" in deviations_views.sentence(study)
    study = made_up(values, method=8.0)
    said = deviations_views.sentence(study)
    assert "In the method, none is compared: L0 differ by more than 15 %." in said
    assert not {y for trace in deviations_views.figure(study).data for y in trace.y}
    assert deviations_views.rows(study)[0]["L0 with it, without"] == "16.0, 8.00"
    study = made_up(values)
    of_seed_1 = [p for p in study["points"] if (p["contender"], p["seed"]) == ("method", 1)]
    of_seed_1[0]["l0_mean"] *= 1.4  # the means over seeds are near each other
    assert "none is compared" in deviations_views.sentence(study)
    study = made_up(values | {"method, other seeds": [0.93, 0.89, 0.90]})
    said = deviations_views.sentence(study)
    assert "0 of 1 change" in said and "No change is shown by: decoder normalised" in said
    assert "Of 1 intervals of 95 %, 0.1 exclude zero by chance" in said


@pytest.fixture(scope="module")
def small_study(small_overrides, small_run):
    overrides = [*small_overrides, "sae.activations=10000", "sae.dead_window=3000"]
    overrides += ["sae.resampling_inputs=1024"]
    overrides += ["evaluation.tokens=4096", "evaluation.loss_tokens=1024"]
    overrides += ["interpretability.tokens=4096"]
    run = stages.open_run("smoke", small_run.folder.parent / "deviations", overrides)
    own = {n: deviations.OWN[n] for n in ("original", "original+loss_units", "method")}
    own |= {"original-positions": deviations.OWN["original-positions"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deviations, "OWN", own)
        patch.setattr(deviations, "WIDTHS", (32, 64))
        for name, value in (("SEEDS", (0, 1)), ("RATES", (1.0,)), ("WARD_RATES", (10.0,))):
            patch.setattr(sweep, name, value)
        patch.setattr(deviations, "TRIES", 2)
        patch.setattr(sanity, "UNITS", 20)
        patch.setitem(FACTS, "activations", 30000)
        yield run, deviations.study(run), deviations.full_budget(run)


def test_a_study_measures_every_deviation(small_study):
    run, study, _ = small_study
    points = pd.DataFrame(study["points"])
    names = [*deviations.OWN, deviations.OTHER_SEEDS, "method-attention"]
    assert list(points["contender"].unique()) == names
    assert (points.groupby("contender")["seed"].agg(list).map(str) == "[0, 1]").all()
    assert points["called_dead"].between(0, 1).all()
    assert points["recovered_mean"].nunique() > len(names)
    other = points.set_index("contender")
    recovered = other["recovered_mean"]
    assert not set(recovered["method"]) & set(recovered[deviations.OTHER_SEEDS]), "the null"
    assert (other.loc["method", "norms"].map(lambda n: n[1] - n[0]) < 1e-4).all(), "unit features"
    assert {(c["contender"], c["d_mlp"]) for c in study["carried"]} >= {("original", 32)}
    assert [set(turn) for turn in study["times"]] == [set(deviations.OWN)] * 2
    assert all(seconds > 0 for turn in study["times"] for seconds in turn.values())
    assert study["models"]["standard"] != study["models"]["attention"]
    said = deviations_views.sentence(study)
    assert "In the original, " in said and "makes another language model" in said
    assert len(deviations_views.carried_rows(study)) == 3
    assert len(deviations_views.contenders(study)) == len(names)
    assert len(deviations_views.mechanisms(study)) == 3  # units, positions, attention


def test_a_finished_study_is_not_made_again(small_study, monkeypatch):
    run, study, _ = small_study
    monkeypatch.setattr(stages, "fit", lambda *_: pytest.fail("trained again"))
    assert deviations.study(run)["points"] == study["points"]


def test_the_full_budget_is_the_originals_recipe_as_given(small_study):
    run, _, full = small_study
    recipe = resolve(of_recipe(run.settings.sae, "ward_2024"))
    assert full["record"]["lr"] == recipe.lr and full["record"]["lambda"] == recipe.l1
    assert full["record"]["activations"] == 30000 // recipe.batch * recipe.batch
    assert full["dead"] == [] and len(full["curve"]) > 0


def test_lambda_is_searched_for_every_seed_from_that_of_the_seed_before(small_run, monkeypatch):
    asked = []

    def at_l0(run, hook, given, l0, tolerance, tries, seed):
        asked.append((given.l1, seed))
        return given.model_copy(update={"l1": 2.0 + seed, "seed": seed}), {"density": [0.5]}

    monkeypatch.setattr(sweep, "SEEDS", (0, 1, 2))
    monkeypatch.setattr(sweep, "at_l0", at_l0)
    monkeypatch.setattr(deviations.Deviations, "more", lambda *_: {"information": 0.1})
    study = object.__new__(deviations.Deviations)
    given = small_run.settings.sae.model_copy(update={"l1": 1.5})
    points = study.points(small_run, "method", given, shift=100)
    assert asked == [(1.5, 100), (102.0, 101), (103.0, 102)]
    assert [p["seed"] for p in points] == [0, 1, 2], "pairs are those of the same number"
