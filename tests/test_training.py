"""The training loop: schedules, norms, resampling at work, exact resumption."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_lib import checkpoints
from sae_lib.checkpoints import CheckpointFolder
from sae_lib.errors import ArtefactError, SettingsError, TrainingError
from sae_lib.features import evaluation
from sae_lib.model.activations import ActivationTable
from sae_lib.sae import training
from sae_lib.sae.engine import sparse_step
from sae_lib.sae.initialise import SOFT_FROZEN, initialise
from sae_lib.sae.recipes import (
    BRICKEN_2023,
    RECIPES,
    WARD_2024,
    at_width,
    is_resampling_step,
    of_recipe,
    rate_after_resampling,
    resolve,
    training_fingerprint,
    variants,
)
from sae_lib.settings import SAESettings, load
from suite import stages, sweep

D_IN, TRUE_FEATURES, VOCABULARY = 16, 32, 4096


class SyntheticHook(ActivationTable):
    """Stands where a language model's hook would: token t has activations made of a few known
    directions.
    """

    def __init__(self, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(
            torch.randn(TRUE_FEATURES, D_IN, generator=g), dim=1
        )
        active = torch.rand(VOCABULARY, TRUE_FEATURES, generator=g) < 2 / TRUE_FEATURES
        super().__init__(
            (active * (0.5 + 0.5 * torch.rand(VOCABULARY, TRUE_FEATURES, generator=g)))
            @ self.directions
        )

    def recovered(self, sae) -> float:
        """Share of the true directions that some feature points along (cosine > 0.9)."""
        rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
        return ((self.directions @ rows.T).max(1).values > 0.9).float().mean().item()


ROWS = np.random.default_rng(0).integers(0, VOCABULARY, (400, 32))


def fit(tmp_path, **changes):
    hook = SyntheticHook()
    settings = SAESettings(
        **{
            "d_sae": 64,
            "activations": 60_000,
            "batch": 100,
            "l1": 0.4,
            "buffer_rows": 50,
            "dead_window": 5000,
            "resampling_inputs": 2000,
            "log_every": 20,
            "checkpoint_every": 10**6,
        }
        | changes
    )
    return hook, *training.fit(hook, ROWS, settings, 0, CheckpointFolder(tmp_path, {"x": 1}))


def test_features_have_unit_norm_and_the_wrong_axis_has_not():
    sae = training.initialise(BRICKEN_2023, torch.zeros(8), 32, 0)
    with torch.no_grad():
        sae.W_dec.normal_()
    training.constrain(sae, BRICKEN_2023)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    training.constrain(sae, WARD_2024)
    torch.testing.assert_close(sae.W_dec.norm(dim=0), torch.ones(8))
    assert sae.W_dec.norm(dim=1).mean().item() == pytest.approx((8 / 32) ** 0.5, rel=0.05), (
        "columns average √(d_in/d_sae), the original's mistake"
    )


def test_the_gradient_along_a_feature_is_removed():
    sae = training.initialise(BRICKEN_2023, torch.zeros(8), 32, 0)
    optimiser = torch.optim.SGD(sae.parameters(), lr=0.0)
    for p in sae.parameters():
        p.grad = torch.randn(p.shape)
    across = sae.W_dec.grad - (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    training.update(sae, optimiser, BRICKEN_2023)
    torch.testing.assert_close(sae.W_dec.grad, across.detach())
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("recipe", [{}, {"recipe": "topk", "l1": None, "k": 4}])
@pytest.mark.parametrize(
    "frozen, kept", [("decoder", "W_dec"), ("encoder", "W_enc_T"), ("soft_decoder", "")]
)
def test_what_is_frozen_stays_random(tmp_path, frozen, kept, recipe):
    changes = recipe | {"frozen": frozen, "lr": 0.02}
    hook, sae, summary = fit(tmp_path, **changes)
    assert summary["resampling"] == []
    settings = SAESettings(d_sae=64, dead_window=5000, **recipe | {"batch": 100})
    start = training.prepare(hook, ROWS, settings, 0, None).model
    cosine = {
        name: torch.cosine_similarity(getattr(sae, name), getattr(start, name)).min().item()
        for name in ("W_dec", "W_enc_T")
    }
    for name, found in cosine.items():
        assert found > 1 - 1e-5 if name == kept else found < 0.9
    if frozen == "soft_decoder":
        assert cosine["W_dec"] == pytest.approx(SOFT_FROZEN, abs=1e-3)


def test_rates():
    assert [training.rate(i, 100, 0.1, 0.2) for i in (0, 4, 9, 10, 50, 80)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1, 1]
    )
    assert (
        training.rate(99, 100, 0.1, 0.2) == pytest.approx(0.05)
        and training.rate(99, 100, 0, 0) == 1
    )


def test_resampling_happens_when_the_recipe_says():
    assert [s for s in range(1, 1001) if training.is_resampling_step(BRICKEN_2023, s, 1000)] == [
        200,
        400,
        600,
    ]
    assert [s for s in range(1, 3301) if training.is_resampling_step(WARD_2024, s, 3300)] == [
        1000,
        2000,
        3000,
    ]


def test_the_rate_rises_again_after_each_resampling():
    again = replace(BRICKEN_2023.resampling, lr_warmup=0.05)
    recipe = replace(BRICKEN_2023, resampling=again)
    shares = [rate_after_resampling(recipe, step, 100) for step in range(100)]
    rises = {at + i: (i + 1) / 5 for at in (20, 40, 60) for i in range(5)}
    assert shares == pytest.approx([rises.get(step, 1.0) for step in range(100)])
    assert training.scheduled(recipe, 41, 100)[0] == pytest.approx(0.4 * recipe.lr)
    assert {rate_after_resampling(BRICKEN_2023, step, 100) for step in range(100)} == {1.0}
    often = replace(WARD_2024, resampling=replace(WARD_2024.resampling, lr_warmup=0.01))
    assert rate_after_resampling(often, 0, 3300) == 1.0
    assert rate_after_resampling(often, 1000, 3300) == pytest.approx(1 / 33)


def test_what_came_later_leaves_the_fingerprints_of_older_trainings():
    sae = SAESettings(recipe="bricken_2023")
    known = training_fingerprint(sae)["resampling"]
    assert known.keys() == {"at", "every", "fresh_sample", "encoder_scale", "centred"}
    kept = replace(BRICKEN_2023.resampling, moments="kept")
    with sweep.also_known({"kept": replace(BRICKEN_2023, resampling=kept)}):
        changed = training_fingerprint(SAESettings(recipe="kept"))["resampling"]
    assert changed == known | {"moments": "kept"}


def test_initialisation_of_the_recipes():
    mean = torch.arange(8.0)
    sae = training.initialise(BRICKEN_2023, mean, 32, 0)
    torch.testing.assert_close(sae.W_enc, 0.1 * sae.W_dec.T)
    assert torch.equal(sae.b_dec, mean)
    ward = training.initialise(WARD_2024, mean, 32, 0)
    assert (
        ward.b_dec.abs().max() <= 32**-0.5
        and ward.W_enc.abs().max() <= 8**-0.5
        and ward.W_dec.norm(dim=1).std() > 0.01
    )


def test_scale_gives_mean_squared_norm_d_in(tmp_path):
    hook = SyntheticHook()
    mean, scale = training.statistics(hook, ROWS, BRICKEN_2023)
    acts = hook.activations(torch.from_numpy(ROWS[np.linspace(0, 399, 256).astype(int)])).reshape(
        -1, D_IN
    )
    assert ((acts * scale) ** 2).sum(1).mean().item() == pytest.approx(D_IN, rel=1e-4)
    torch.testing.assert_close(mean, acts.mean(0))
    assert training.statistics(hook, ROWS, WARD_2024)[1] == 1.0


def test_folding_the_scale_keeps_features_and_rescales_the_reconstruction():
    sae = training.initialise(BRICKEN_2023, torch.randn(8), 32, 0)
    x = torch.randn(10, 8)
    f, back = sae.encode(3 * x), sae(3 * x) / 3
    sae.fold_scale(3.0)
    torch.testing.assert_close(sae.encode(x), f)
    torch.testing.assert_close(sae(x), back)


def test_training_finds_the_true_directions(tmp_path):
    hook, sae, summary = fit(tmp_path, resampling=False, activations=200_000, lr=3e-3, l1=1.0)
    assert hook.recovered(sae) > 0.9
    curve = summary["curve"]
    assert curve[-1]["squared_error"] < 0.3 * curve[0]["squared_error"]


def test_features_die_and_resampling_brings_them_back(tmp_path):
    harsh = dict(
        lr=0.003, l1=6.0, activations=100_000
    )  # a penalty under which features die in numbers
    hook, without, summary = fit(tmp_path / "without", resampling=False, **harsh)
    _, with_, resampled = fit(tmp_path / "with", **harsh)
    assert summary["final_silent"] > 0.2 and summary["resampling"] == []
    assert sum(e["resampled"] for e in resampled["resampling"]) > 10
    assert resampled["final_silent"] < summary["final_silent"] - 0.1
    assert [e["step"] for e in resampled["resampling"]] == [200, 400, 600]
    for event in resampled["resampling"]:
        before, after = event["l0"]
        assert (after > before > 0) if event["resampled"] else after == before
        assert all(error > 0 for error in event["squared_error"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [150, 250])
def test_interrupted_training_ends_with_the_same_weights_bit_for_bit(tmp_path, monkeypatch, stop):
    changes = dict(activations=40_000, checkpoint_every=50, dead_window=2000, l1=4.0, lr=0.02)
    _, whole, summary = fit(tmp_path / "whole", **changes)
    save = checkpoints.save_checkpoint

    def save_then_die(folder, step, *rest):
        save(folder, step, *rest)
        if step == stop:
            raise Killed

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        fit(tmp_path / "broken", **changes)
    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    _, again, resumed = fit(tmp_path / "broken", **changes)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert resumed["resampling"] == summary["resampling"] and resumed["curve"] == summary["curve"]


def test_a_slow_training_writes_checkpoints_by_the_clock(tmp_path, monkeypatch):
    """However few its steps are: a pod that is lost takes ten minutes with it and no more."""
    written, save = [], checkpoints.save_checkpoint
    monkeypatch.setattr(
        checkpoints,
        "save_checkpoint",
        lambda folder, step, *rest: (written.append(step), save(folder, step, *rest)),
    )
    changes = {
        "batch": 128,
        "activations": 40 * 128,
        "checkpoint_every": 10**6,
        "resampling": False,
    }
    _, whole, _ = fit(tmp_path / "whole", **changes)
    assert written == []
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    _, again, _ = fit(tmp_path / "often", **changes)
    assert written == list(range(1, 40))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def planted_at_width(d_in: int) -> ActivationTable:
    """The same 32 features in any number of dimensions, orthogonal, of sizes that are
    exponentially distributed: λ decides which of them are too small.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(d_in, 32, generator=generator)).Q.T
    active = torch.rand(1024, 32, generator=generator) < 4 / 32
    return ActivationTable(
        active * torch.empty(1024, 32).exponential_(generator=generator) @ directions
    )


def l0_and_error(d_in: int, tuned_at: int | None, **chosen) -> np.ndarray:
    """L0 and FVU of what is trained on the planted features."""
    hook, text = planted_at_width(d_in), np.random.default_rng(0).integers(0, 1024, (128, 32))
    settings = SAESettings(**chosen, tuned_at=tuned_at)
    sae, _ = training.fit(hook, text, settings, 0)
    measured = evaluation.density_and_error(hook, {"": sae}, text)[0][""]
    return np.array([measured["l0_mean"], measured["fvu"]])


@pytest.mark.parametrize("recipe", ["bricken_2023", "april_2024", "jumprelu"])
def test_lambda_and_rate_are_carried_over_to_other_widths(recipe):
    """Chosen at 512 dimensions, they give the same L0 and the same error at 128 and at 2048; at
    128 they do not as they stand.
    """
    chosen = {"recipe": recipe, "compare": (), "d_sae": 48, "batch": 128, "l1": 6.0, "lr": 4e-3}
    chosen |= {"activations": 300 * 128, "resampling": False, "buffer_rows": 128}
    expected = pytest.approx(l0_and_error(512, 512, **chosen), rel=0.2, abs=2e-3)
    for d_in in (128, 2048):
        assert l0_and_error(d_in, 512, **chosen) == expected, f"{d_in} dimensions"
    assert l0_and_error(128, None, **chosen) != expected


def test_a_recipe_in_its_own_units_is_not_carried_over():
    with pytest.raises(SettingsError, match="sae.tuned_at: recipe ward_2024"):
        at_width(WARD_2024, 512, 2048)
    assert at_width(WARD_2024, None, 2048) is WARD_2024


GROUND_TRUTH = {
    "april_2024": {"l1": 1.0},
    "topk": {"k": 2},
    "batchtopk": {"k": 2},
    "jumprelu": {"l1": 1.0},
    "tied": {"l1": 2.0},
}


@pytest.mark.parametrize("recipe", GROUND_TRUTH)
def test_every_recipe_finds_the_true_directions(tmp_path, recipe):
    hook, sae, summary = fit(
        tmp_path,
        recipe=recipe,
        **{"activations": 200_000, "lr": 3e-3, "l1": None, "resampling": False}
        | GROUND_TRUTH[recipe],
    )
    assert hook.recovered(sae) > (0.75 if recipe == "tied" else 0.9)
    assert sae.architecture == {
        "topk": "topk",
        "batchtopk": "jumprelu",
        "jumprelu": "jumprelu",
    }.get(recipe, "standard")
    f = sae.encode(hook.table[:2000])
    if "topk" in recipe:
        assert (f > 0).sum(1).float().mean().item() == pytest.approx(2, abs=0.3)
    if recipe == "tied":
        scale = summary["scale"]
        torch.testing.assert_close(sae.W_enc_T / scale, sae.W_dec * scale)


def test_training_stops_early_and_keeps_the_best_weights(tmp_path):
    held_out = np.random.default_rng(1).integers(0, VOCABULARY, (64, 32))
    changes = {
        "d_sae": 64,
        "batch": 100,
        "l1": 0.4,
        "buffer_rows": 50,
        "activations": 200_000,
        "resampling": False,
        "log_every": 20,
    }
    settings = SAESettings(
        **changes, patience=2, check_every=25, lr=0.05
    )  # a rate at which training soon only wanders
    hook = SyntheticHook()
    sae, summary = training.fit(
        hook, ROWS, settings, 0, CheckpointFolder(tmp_path), heldout=held_out
    )
    scores = [check["score"] for check in summary["checks"]]
    assert (
        len(scores) == scores.index(min(scores)) + 3
        and summary["activations"] == summary["checks"][-1]["step"] * 100 < 200_000
    )
    x = hook.table[held_out.reshape(-1)]
    fvu = ((x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
    assert fvu == pytest.approx(min(summary["checks"], key=lambda c: c["score"])["fvu"], rel=1e-3)


@pytest.mark.parametrize("recipe", ["batchtopk", "jumprelu", "tied"])
def test_interrupted_training_of_other_recipes_ends_the_same(tmp_path, monkeypatch, recipe):
    changes = dict(
        recipe=recipe,
        activations=30_000,
        checkpoint_every=50,
        dead_window=2000,
        **GROUND_TRUTH[recipe] | ({} if "l1" in GROUND_TRUTH[recipe] else {"l1": None}),
    )
    _, whole, _ = fit(tmp_path / "whole", **changes)
    save = checkpoints.save_checkpoint

    def save_then_die(folder, step, *rest):
        save(folder, step, *rest)
        if step == 150:
            raise Killed

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        fit(tmp_path / "broken", **changes)
    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    _, again, _ = fit(tmp_path / "broken", **changes)
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items()
    )


def test_an_exploding_loss_stops_training_with_the_step_and_a_cause(tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+.*sae.lr"):
        fit(tmp_path, lr=10.0)


def test_a_finished_autoencoder_is_not_trained_again(small_run, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("trained again"))
    folder = small_run.path("autoencoder")
    sae = small_run.get("autoencoder")
    assert sae.d_sae == small_run.settings.sae.d_sae and folder.name == "bricken_2023"


def test_unknown_recipes_list_those_there_are():
    with pytest.raises(SettingsError, match=", ".join(RECIPES)):
        resolve(SAESettings(recipe="nonsense"))


def test_settings_override_the_recipe_but_not_those_it_is_compared_with():
    found = variants(load("laptop", ["sae.l1=9", "sae.widths=[64]"]))
    assert list(found) == [
        "bricken_2023",
        "bricken_2023-no_resampling",
        "ward_2024",
        "bricken_2023-d_sae_64",
    ]
    assert resolve(found["bricken_2023"]).l1 == 9 and resolve(found["ward_2024"]).l1 == WARD_2024.l1
    assert (
        resolve(found["bricken_2023-no_resampling"]).resampling is None
        and found["bricken_2023-d_sae_64"].d_sae == 64
    )


def test_resampling_that_finds_nothing_dead_changes_nothing(tmp_path):
    _, with_, summary = fit(tmp_path / "with", lr=1e-3)
    _, without, _ = fit(tmp_path / "without", lr=1e-3, resampling=False)
    assert [e["dead"] for e in summary["resampling"]] == [0, 0, 0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(with_.state_dict().values(), without.state_dict().values(), strict=True)
    )


def test_impossible_numbers_of_active_features_are_refused():
    assert resolve(SAESettings(recipe="topk", k=7)).k == 7
    with pytest.raises(
        SettingsError, match="sae.k: recipe bricken_2023 does not.*: topk, batchtopk, matryoshka$"
    ):
        resolve(SAESettings(k=7))
    with pytest.raises(SettingsError, match="sae.k: 16 .*sae.d_sae=8"):
        resolve(SAESettings(recipe="topk", d_sae=8))


def test_a_window_that_training_cannot_outlast_is_refused():
    with pytest.raises(SettingsError, match="sae.dead_window.*60%"):
        resolve(SAESettings(activations=800_000, dead_window=500_000))
    assert (
        resolve(SAESettings(activations=800_000, dead_window=500_000, resampling=False)).resampling
        is None
    )


@pytest.mark.parametrize("changes", [dict(lr=10.0), dict(recipe="april_2024", lr=10.0, l1=0.01)])
def test_a_loss_that_explodes_or_is_no_number_ends_training_with_its_causes(tmp_path, changes):
    with pytest.raises(
        TrainingError,
        match=r"the loss is .* at step \d+ .*likely causes: sae.lr .*there is no checkpoint yet",
    ):
        fit(tmp_path, checkpoint_every=10**6, **changes)
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize("factor", [1e9, float("nan")])
def test_the_checkpoint_before_a_loss_exploded_is_named_and_whole(tmp_path, monkeypatch, factor):
    calls, gradients = [], training.gradients

    def at_25_something_happens(*arguments):
        calls.append(1)
        measured = gradients(*arguments)
        return (
            measured._replace(squared_error=measured.squared_error * factor)
            if len(calls) > 25
            else measured
        )

    monkeypatch.setattr(training, "gradients", at_25_something_happens)
    with pytest.raises(
        TrainingError, match=rf"at step 30 .*the last good checkpoint is step 20 in {tmp_path}"
    ):
        fit(tmp_path, checkpoint_every=10)
    assert checkpoints.steps(tmp_path) == [10, 20] and all(
        t.isfinite().all() for t in load_file(tmp_path / "step-00000020.safetensors").values()
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_dense_steps_in_bfloat16_train_every_recipe(tmp_path, monkeypatch, recipe):
    """As a GPU makes them: no step takes the sparse path."""
    monkeypatch.setattr(sparse_step, "DENSE_ABOVE", 0.0)
    own = {"k": 8} if RECIPES[recipe].k else {"l1": 0.5 if recipe != "ward_2024" else None}
    _, sae, summary = fit(
        tmp_path,
        recipe=recipe,
        precision="bfloat16",
        activations=20_000,
        resampling=False,
        lr=None,
        **{"l1": None} | own,
    )
    assert all(t.isfinite().all() for t in sae.state_dict().values())
    assert summary["curve"][-1]["squared_error"] < summary["curve"][0]["squared_error"]


def test_a_buffer_smaller_than_a_batch_is_refused(tmp_path):
    with pytest.raises(
        SettingsError,
        match=r"sae.buffer_rows: 1 rows of 32 positions are fewer activations than one batch of"
        " 100.*at least 4 rows",
    ):
        fit(tmp_path, buffer_rows=1)


def test_the_end_of_training_is_looked_at_too(tmp_path):
    held_out = np.random.default_rng(1).integers(0, VOCABULARY, (64, 32))
    settings = SAESettings(
        d_sae=64,
        batch=100,
        l1=0.4,
        buffer_rows=50,
        activations=9000,
        resampling=False,
        patience=3,
        check_every=50,
        lr=3e-3,
    )
    _, summary = training.fit(
        SyntheticHook(), ROWS, settings, 0, CheckpointFolder(tmp_path), heldout=held_out
    )
    assert [check["step"] for check in summary["checks"]] == [50, 90]
    assert resolve(SAESettings(recipe="tied", patience=0)).patience == 0


@pytest.mark.parametrize("changed", ["device", "precision", "threads", "torch"])
def test_a_checkpoint_goes_on_only_under_the_same_circumstances(tmp_path, changed):
    here = checkpoints.environment_fingerprint(torch.device("cpu"), torch.float32)
    checkpoints.save_checkpoint(tmp_path, 1, {}, {}, here)
    assert checkpoints.load_checkpoint(tmp_path, here)[0] == 1
    with pytest.raises(ArtefactError, match=f"{changed}: .* in the folder, 'other' now"):
        checkpoints.load_checkpoint(tmp_path, here | {changed: "other"})


def test_on_a_gpu_a_checkpoint_does_not_depend_on_the_threads_of_the_cpu():
    on_gpu = checkpoints.environment_fingerprint(torch.device("cuda:0"), torch.bfloat16)
    assert on_gpu["threads"] is None and on_gpu["device"] == "cuda"


def test_resampling_at_the_very_end_would_leave_untrained_features():
    assert not is_resampling_step(WARD_2024, 2000, 2000) and is_resampling_step(
        WARD_2024, 1000, 2000
    )


def test_an_autoencoder_that_the_run_does_not_have_is_refused_with_those_it_has(small_run):
    with pytest.raises(SettingsError, match="no autoencoder 'nonsense'; it has: bricken_2023"):
        small_run.path("autoencoder", "nonsense")
    with pytest.raises(SettingsError, match="no autoencoder 'nonsense'"):
        small_run.path("features", "nonsense")


def test_what_weights_are_made_from_includes_what_the_recipe_says(monkeypatch):
    sae = SAESettings(recipe="bricken_2023")
    made_from, name = stages.training_fingerprint(sae), sweep.point_name(sae)
    assert made_from == stages.training_fingerprint(
        sae.model_copy(
            update={"lr": RECIPES["bricken_2023"].lr, "checkpoint_gb": 1.0, "widths": (64,)}
        )
    )
    monkeypatch.setitem(RECIPES, "bricken_2023", replace(RECIPES["bricken_2023"], lr=1e-5))
    assert stages.training_fingerprint(sae) != made_from and sweep.point_name(sae) != name


@pytest.mark.parametrize("recipe", ["bricken_2023", "ward_2024", "april_2024"])
def test_weights_can_be_tied_in_every_relu_recipe(tmp_path, recipe):
    _, sae, summary = fit(
        tmp_path, recipe=recipe, tied=True, activations=20_000, lr=None, l1=None, resampling=False
    )
    torch.testing.assert_close(sae.W_enc_T / summary["scale"], sae.W_dec * summary["scale"])
    assert summary["recipe"]["tied"] and not RECIPES[recipe].tied


@pytest.mark.parametrize("name", ["l1", "l1_warmup"])
@pytest.mark.parametrize("recipe", ["topk", "batchtopk"])
def test_a_penalty_is_refused_where_a_recipe_has_none(recipe, name):
    with pytest.raises(SettingsError, match=f"sae.{name}: recipe {recipe} .*: bricken_2023, ward"):
        resolve(SAESettings(recipe=recipe, **{name: 0.5}))


def test_ties_are_refused_where_a_recipe_is_no_relu():
    with pytest.raises(
        SettingsError,
        match="sae.tied: recipe topk does not .*: bricken_2023, ward_2024, april_2024, tied$",
    ):
        resolve(SAESettings(recipe="topk", tied=True))


def test_schedules_are_settings(tmp_path):
    sae = SAESettings(
        recipe="ward_2024",
        lr_warmup=0.2,
        lr_decay=0.1,
        l1_warmup=0.3,
        resample_at=(0.25, 0.5),
        dead_window=1000,
    )
    recipe = resolve(sae)
    assert (recipe.lr_warmup, recipe.lr_decay, recipe.l1_warmup) == (0.2, 0.1, 0.3)
    assert [step for step in range(200) if is_resampling_step(recipe, step, 200)] == [50, 100]
    assert (
        recipe.resampling.fresh_sample == WARD_2024.resampling.fresh_sample
    )  # the rest of its resampling stays
    assert resolve(sae.model_copy(update={"recipe": "april_2024"})).resampling.at == (
        0.25,
        0.5,
    )  # which has none of its own
    assert resolve(of_recipe(sae, "april_2024")) == RECIPES["april_2024"]
    _, _, summary = fit(tmp_path, activations=20_000, dead_window=1000, resample_at=(0.25, 0.5))
    assert [event["step"] for event in summary["resampling"]] == [50, 100]
    with pytest.raises(SettingsError, match="sae.resample_at"):
        load("smoke", ["sae.resample_at=[2]"])


def test_an_independent_start_has_the_same_features_and_another_encoder():
    mean = torch.arange(8.0)
    tied = training.initialise(BRICKEN_2023, mean, 4000, 0)
    recipe = resolve(SAESettings(init="independent"))
    sae = training.initialise(recipe, mean, 4000, 0)
    assert torch.equal(sae.W_dec, tied.W_dec) and torch.equal(sae.b_dec, mean)
    assert not sae.b_enc.any()
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc_T, sae.W_dec)
    assert cosine.mean().abs() < 0.05 and cosine.abs().max() < 1
    assert sae.W_enc_T.abs().max() <= 8**-0.5  # uniform, of variance 1 / (3 d_in)
    assert sae.W_enc_T.var().item() == pytest.approx(1 / 24, rel=0.02)
    with pytest.raises(SettingsError, match="sae.init: recipe tied does not use it"):
        resolve(SAESettings(recipe="tied", init="independent"))


def test_the_auxiliary_loss_brings_back_features_that_are_never_among_the_largest(tmp_path):
    """Half of the features start with an encoder so small that they are never chosen, and the
    other half cannot serve all true directions.
    """
    dead = {}

    def half_small(*given):
        sae = initialise(*given)
        with torch.no_grad():
            sae.W_enc_T[::2] *= 0.01
        return sae

    for aux in (0.0, RECIPES["topk"].aux):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "initialise", half_small)
            patch.setitem(RECIPES, "topk", replace(RECIPES["topk"], aux=aux))
            changes = dict(recipe="topk", k=3, l1=None, d_sae=40, lr=3e-3, dead_window=2000)
            dead[aux] = fit(tmp_path / str(aux), **changes)[2]["final_silent"]
    assert dead[0.0] > 0.4 and dead[RECIPES["topk"].aux] < 0.2, dead


def test_a_resampled_feature_counts_as_silent_until_it_fires(tmp_path, monkeypatch):
    """So the share of silent features does not fall by being counted anew."""
    monkeypatch.setattr(training.resampling, "resample", lambda *_: 0)  # points them nowhere
    _, _, summary = fit(tmp_path, lr=0.003, l1=6.0, activations=100_000)
    silent = {point["step"]: point["silent"] for point in summary["curve"]}
    assert silent[600] > 0.1 and silent[620] >= silent[600] - 0.02
    quarters = [point["silent_quarter"] for point in summary["curve"]]
    assert all(q >= s for q, s in zip(quarters, silent.values(), strict=True))


@pytest.mark.parametrize("what", ["seed", "settings", "activations"])
def test_a_checkpoint_of_another_training_is_refused(tmp_path, what):
    settings = SAESettings(
        d_sae=32, activations=5000, batch=100, buffer_rows=50, checkpoint_every=20, resampling=False
    )
    table = SyntheticHook()
    training.fit(table, ROWS, settings, 0, CheckpointFolder(tmp_path))
    if what == "activations":
        table = ActivationTable(table.table * 2)
    settings = settings.model_copy(update={"lr": 0.02} if what == "settings" else {})
    with pytest.raises(ArtefactError, match="training"):
        training.fit(table, ROWS, settings, int(what == "seed"), CheckpointFolder(tmp_path))


def test_activations_that_are_all_zero_are_refused():
    table = ActivationTable(torch.zeros(500, 4))
    settings = SAESettings(d_sae=8, activations=1000, batch=100, resampling=False)
    with pytest.raises(TrainingError, match="all activations are zero"):
        training.fit(table, table.rows(), settings, 0)
