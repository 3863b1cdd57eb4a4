"""Toy models: closed forms, feature distributions, gradients, bad settings, gates, and every
experiment at its smallest.
"""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import toy_gates
from sae_lib.errors import SettingsError
from sae_lib.toy import autoencoder as toy_autoencoder
from sae_lib.toy import experiments as toy_experiments
from sae_lib.toy import metrics
from sae_lib.toy import models as toy
from suite import toy_figures
from suite import toy_results as results_module


def circle(n: int) -> torch.Tensor:
    turns = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    return torch.stack([turns.cos(), turns.sin()])


def antiprism() -> torch.Tensor:
    """Eight vectors: a square above and one turned by 45° below, at the height (tight frame, z² =
    1/3 of the norm) where D is 3/8.
    """
    corners = [
        (z, turn + k * math.pi / 2) for z, turn in ((1, 0), (-1, math.pi / 4)) for k in range(4)
    ]
    return torch.tensor(
        [[math.cos(a), math.sin(a), z / math.sqrt(2)] for z, a in corners], dtype=torch.float64
    ).T


POLYTOPES = {
    "digon": (torch.tensor([[1.0, -1.0]], dtype=torch.float64), 1 / 2),
    "triangle": (circle(3), 2 / 3),
    "pentagon": (circle(5), 2 / 5),
    "tetrahedron": (
        torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64).T,
        3 / 4,
    ),
    "antiprism": (antiprism(), 3 / 8),
}


@pytest.mark.parametrize("name", POLYTOPES)
def test_polytopes_have_their_dimensionality(name):
    W, expected = POLYTOPES[name]
    D = metrics.dimensionality(W / W.norm(dim=0))
    assert torch.allclose(D, torch.full_like(D, expected), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 6), n=st.integers(1, 12), rank=st.integers(1, 6), seed=st.integers(0, 10**6)
)
def test_dimensionalities_sum_to_at_most_the_rank(m, n, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    rank = min(m, n, rank)
    W = torch.randn(m, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, n, generator=generator, dtype=torch.float64
    )
    D = metrics.dimensionality(W)
    assert D.sum() <= rank + 1e-9
    assert (D >= 0).all() and (D <= 1 + 1e-9).all()


def test_dense_loss_is_the_variance_of_what_is_left_out():
    importance = [0.9**i for i in range(5)]
    model = toy.ToyModel(toy.ToyConfig(5, 2, importance=importance))
    with torch.no_grad():
        model.W.zero_()
        model.W[0, 0, 0] = model.W[0, 1, 1] = 1
        model.b[0, 2:] = 0.5  # the mean, the best guess for a feature that is not represented
    closed = sum(importance[2:]) / 12 / 5
    assert closed == pytest.approx(0.036585, abs=1e-6)
    assert toy.test_loss(model, toy.Features(5, 1.0), repeats=40).item() == pytest.approx(
        closed, rel=0.01
    )


def test_metrics_on_a_pair_and_a_lone_feature():
    W = torch.tensor([[1.0, -0.8, 0.0, 0.1], [0.0, 0.0, 0.7, 0.0]])
    assert metrics.represented(W).tolist() == [True, True, True, False]
    assert metrics.alone(W).tolist() == [False, False, True, False]
    assert metrics.interference(W)[:3].tolist() == pytest.approx([0.65, 1.01, 0.0], abs=1e-6)
    assert metrics.dimensions_per_feature(W).item() == pytest.approx(2 / (1 + 0.64 + 0.49 + 0.01))
    assert metrics.dimensionality(torch.zeros(2, 3)).tolist() == [0, 0, 0]


def test_monosemantic_neurons():
    W = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.9, 0.0], [0.01, 0.0, 0.0]])
    assert metrics.monosemantic(W).tolist() == [True, False, False]


def sample(**kwargs) -> torch.Tensor:
    features = toy.Features(**kwargs)
    return features.sample(4, 20000, torch.Generator().manual_seed(0))


def test_each_feature_has_its_own_probability():
    p = [0.02, 0.1, 0.5, 1.0]
    x = sample(n_features=4, probability=p)
    assert torch.allclose((x > 0).float().mean((0, 2)), torch.tensor(p), atol=0.01)
    for i in range(4):
        active = x[:, i][x[:, i] > 0]
        assert active.mean() == pytest.approx(0.5, abs=0.02) and active.var() == pytest.approx(
            1 / 12, abs=0.01
        )
    assert abs(torch.corrcoef((x[:, 1:3] > 0).float().transpose(0, 1).flatten(1))[0, 1]) < 0.02, (
        "independent features must not come together"
    )


def test_instances_have_their_own_probability_and_samples():
    x = sample(
        n_features=2, probability=torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.4, 0.4], [0.8, 0.8]])
    )
    assert torch.allclose(
        (x > 0).float().mean((1, 2)), torch.tensor([0.1, 0.2, 0.4, 0.8]), atol=0.015
    )
    shared = toy.Features(2, 0.3).sample(4, 50, torch.Generator().manual_seed(0), streams=2)
    assert torch.equal(shared[0], shared[2]) and torch.equal(shared[1], shared[3])
    assert not torch.equal(shared[0], shared[1])
    own = toy.Features(2, 0.3).sample(3, 50, torch.Generator().manual_seed(0))
    assert not torch.equal(own[0], own[2])


def test_correlated_sets_are_active_together():
    x = sample(n_features=6, probability=0.2, sets="correlated", set_size=3)
    active = (x > 0).unflatten(1, (2, 3))
    assert torch.equal(active.all(2), active.any(2))
    assert active.float().mean() == pytest.approx(0.2, abs=0.01)
    assert (active[:, 0, 0] & active[:, 1, 0]).float().mean() == pytest.approx(0.04, abs=0.005), (
        "the sets must be independent"
    )


def test_anticorrelated_features_never_meet():
    x = sample(n_features=4, probability=0.3, sets="anticorrelated", set_size=2)
    active = (x > 0).unflatten(1, (2, 2))
    assert int(active.sum(2).max()) == 1
    assert torch.allclose(active.float().mean((0, 3)), torch.tensor(0.3), atol=0.01)


@pytest.mark.parametrize(
    ("values", "allowed", "mean"),
    [
        ("binary", {1.0}, 1),
        ("discrete", {1.0, 2.0, 3.0}, 2),
        ("upper_half", None, 0.75),
        ("signed", None, 0),
    ],
)
def test_values_of_active_features(values, allowed, mean):
    x = sample(n_features=3, probability=0.25, values=values)
    active = x[x != 0]
    assert (x != 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert active.mean() == pytest.approx(mean, abs=0.02)
    if allowed:
        assert set(active.unique().tolist()) == allowed
    else:
        assert active.max() <= 1 and active.min() >= (0.5 if values == "upper_half" else -1)


def test_gradient_against_finite_differences_and_instances_do_not_mix():
    torch.manual_seed(0)
    model = toy.ToyModel(toy.ToyConfig(4, 2, 3, importance=[1.0, 0.5, 0.25, 0.125])).double()
    x = toy.Features(4, 0.5).sample(3, 16).double()
    losses = model.loss(x, x)
    losses.sum().backward()
    for instance, i, j in itertools.product(range(3), range(2), range(4)):
        shifted = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                model.W[instance, i, j] += step
                shifted.append(model.loss(x, x).detach())
                model.W[instance, i, j] -= step
        difference = (shifted[0] - shifted[1]) / 2e-6
        assert difference[instance].item() == pytest.approx(
            model.W.grad[instance, i, j].item(), abs=1e-6
        )
        assert difference.abs().sum() == difference[instance].abs(), (
            "one instance's weight moved another's loss"
        )


def test_loss_is_the_weighted_squared_error_of_the_written_formula():
    model = toy.ToyModel(toy.ToyConfig(3, 2, importance=[1.0, 2.0, 3.0]), seed=4)
    x = toy.Features(3, 0.5).sample(1, 7, torch.Generator().manual_seed(1))
    W, b = model.W[0], model.b[0, :, 0]
    expected = (
        sum(
            model.importance[0, i] * (x[0, i, s] - torch.relu(W.T @ W @ x[0, :, s] + b)[i]) ** 2
            for i in range(3)
            for s in range(7)
        )
        / 21
    )
    assert model.loss(x, x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batched_model_trains_like_a_single_one():
    """Two instances in one model and the first of them alone, on the same samples, end with the
    same weights.
    """

    class Same(toy.Features):
        def sample(self, n_instances, batch, generator=None, streams=None):
            return super().sample(n_instances, batch, generator, streams=1)

    both = toy.ToyModel(toy.ToyConfig(4, 2, 2, importance=[0.7**i for i in range(4)]), seed=1)
    alone = toy.ToyModel(toy.ToyConfig(4, 2, 1, importance=[0.7**i for i in range(4)]))
    with torch.no_grad():
        alone.W.copy_(both.W[:1])
    for model in (both, alone):
        toy.train(model, Same(4, 0.3), toy.Size(30, 64, 1e-2), seed=3)
    assert torch.allclose(both.W[0], alone.W[0], atol=1e-5)


def test_training_finds_the_two_most_important_dense_features():
    model = toy.ToyModel(toy.ToyConfig(5, 2, 8, importance=[0.9**i for i in range(5)]))
    toy.train(model, toy.Features(5, 1.0), toy.Size(500, 256, 2e-2, seeds=8))
    losses = toy.test_loss(model, toy.Features(5, 1.0))
    best = model.W[losses.argmin()].detach()
    assert metrics.represented(best).tolist() == [True, True, False, False, False]
    assert losses.min().item() == pytest.approx(0.036585, rel=0.03)


def test_dropout_acts_in_training_alone():
    model = toy.ToyModel(toy.ToyConfig(6, 4, dropout=0.5))
    x = toy.Features(6, 1.0).sample(1, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_dropout_is_drawn_from_the_seed():
    trained = []
    for _ in range(2):
        model = toy.ToyModel(toy.ToyConfig(6, 4, dropout=0.5))
        toy.train(model, toy.Features(6, 0.5), toy.Size(20, 16, 1e-2))
        trained.append(model.W.detach().clone())
        torch.rand(1)  # other work between them
    assert torch.equal(*trained)


def test_untied_model_computes_what_its_weights_say():
    model = toy.ToyModel(toy.ToyConfig(1, 2, n_outputs=1, hidden="relu"))
    with torch.no_grad():
        model.W.copy_(torch.tensor([[[1.0], [-1.0]]]))
        model.W_out.copy_(torch.tensor([[[1.0, 1.0]]]))
    x = torch.linspace(-1, 1, 11).view(1, 1, -1)
    assert torch.allclose(model(x), x.abs())
    assert model.loss(x, x.abs()).item() < 1e-12


BAD = {
    "a probability of 0": lambda: toy.Features(3, 0.0),
    "a probability above 1": lambda: toy.Features(3, [0.1, 1.5, 0.2]),
    "a probability that is no number": lambda: toy.Features(3, float("nan")),
    "two probabilities for three features": lambda: toy.Features(3, [0.1, 0.2]),
    "no features": lambda: toy.Features(0),
    "unknown values": lambda: toy.Features(3, values="gaussian"),
    "unknown sets": lambda: toy.Features(3, sets="nested"),
    "sets that do not divide": lambda: toy.Features(5, sets="correlated", set_size=2),
    "unequal probabilities in a set": lambda: toy.Features(
        2, [0.1, 0.2], sets="correlated", set_size=2
    ),
    "exclusive features too likely": lambda: toy.Features(
        4, 0.6, sets="anticorrelated", set_size=2
    ),
    "no hidden unit": lambda: toy.ToyConfig(3, 0),
    "no instance": lambda: toy.ToyConfig(3, 1, 0),
    "an importance of 0": lambda: toy.ToyConfig(3, 1, importance=[1.0, 0.0, 1.0]),
    "a negative importance": lambda: toy.ToyConfig(3, 1, importance=-1.0),
    "four importances for three features": lambda: toy.ToyConfig(3, 1, importance=[1.0] * 4),
    "importances for two of three instances": lambda: toy.ToyConfig(
        3, 1, 3, importance=[[1.0] * 3] * 2
    ),
    "an unknown activation": lambda: toy.ToyConfig(3, 1, hidden="tanh"),
    "certain dropout": lambda: toy.ToyConfig(3, 1, dropout=1.0),
    "probabilities for two of three instances": lambda: toy.Features(2, [[0.1, 0.1]] * 2).sample(
        3, 4
    ),
    "a target of another shape": lambda: toy.ToyModel(toy.ToyConfig(3, 1)).loss(
        torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)
    ),
    "no steps": lambda: toy.Size(0),
    "an unknown preset": lambda: results_module.result("introduction", "huge"),
    "an unknown experiment": lambda: results_module.result("no_such", "smoke"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_settings_are_named(what):
    with pytest.raises(SettingsError, match="toy"):
        BAD[what]()


def test_wilson_interval():
    assert metrics.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert metrics.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert metrics.wilson(0, 0) == (0, 1)


def test_gaps_of_a_pentagon_sum_to_a_circle():
    gaps = metrics.angles(circle(5).float())
    assert gaps.tolist() == pytest.approx([72] * 5, abs=1e-3)


def test_case_probabilities_follow_their_case():
    first, second, fifth = (
        toy_experiments.case_probabilities(toy_experiments.CASES[i], 0.01, 0.5, 4)
        for i in (0, 1, 4)
    )
    assert (first.diff(dim=1) < 0).all() and (second.diff(dim=1) > 0).all()
    assert first[0, 0].item() == pytest.approx(0.5) and second[0, 0].item() == pytest.approx(0.01)
    assert (fifth >= 0.01).all() and (fifth <= 0.5).all() and len(fifth.unique(dim=0)) == 4, (
        "with random densities every seed draws its own"
    )


def test_rotated_weights_keep_their_geometry_and_lose_their_alignment():
    W = torch.eye(5).expand(50, 5, 5)
    turned = metrics.randomly_rotated(W)
    assert torch.allclose(turned.mT @ turned, W, atol=1e-5)
    assert not torch.allclose(turned[0], turned[1]), "every instance has its own rotation"
    assert metrics.alignment(W).tolist() == [1] * 50
    assert metrics.alignment(turned).mean() < 0.8


def test_cosines_within_sets_and_across():
    W = torch.tensor([[1.0, 0.0, -2.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    within, across = metrics.set_cosines(W, 2)
    assert within.tolist() == [0, 0]
    assert across.tolist() == [-1, 0, 0, 1]


def test_the_last_features_phase():
    ignored = [[1.0, 0.1]]
    antipodal = [[1.0, -1.0]]
    dedicated = [[0.1, 1.0]]
    assert metrics.phase(torch.tensor([ignored, antipodal, dedicated])).tolist() == [0, 1, 2]


def test_the_absolute_value_needs_a_positive_and_a_negative_neuron_for_each_feature():
    W = torch.tensor([[2.0, 0], [-0.5, 0], [0, 1], [0, -1]])
    out = torch.tensor([[0.5, 2, 0, 0], [0, 0, 1, 1]])
    assert metrics.solves_absolute_value(W, out)
    assert not metrics.solves_absolute_value(W.abs(), out), "no neuron sees a negative value"
    assert not metrics.solves_absolute_value(W, 1.1 * out), "the output would be a tenth too large"
    assert not metrics.solves_absolute_value(W[:3], out[:, :3]), "a neuron is missing"


def test_participation_counts_equal_inputs():
    weight = torch.tensor([[1.0, 1, 1, 0], [2.0, 0, 0, 0]])
    assert metrics.participation(weight).tolist() == [3, 1]


def test_targets_of_pairs_and_sums():
    x = torch.arange(-5.0, 15).view(1, 20, 1)
    assert toy_experiments.pair_max(x)[0, :, 0].tolist() == list(range(-4, 15, 2))
    assert toy_experiments.pair_min(x)[0, :, 0].tolist() == list(range(-5, 14, 2))
    assert toy_experiments.sums_of_ten(x)[0, :, 0].tolist() == [25, 95]


def test_largest_names_the_class_or_none():
    x = torch.tensor([[[0.2, 0.0, 0.9], [0.5, 0.0, 0.1]]])
    assert toy_experiments.largest(x).tolist() == [[1, 2, 0]]


def test_resampling_revives_dead_latents_alone_and_clears_their_moments():
    sae = toy_autoencoder.ToyAutoencoder(2, 3, torch.tensor([False, False]))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    h = torch.randn(2, 2, 200, generator=torch.Generator().manual_seed(0))
    ((sae.decode(sae.encode(h)) - h).square().sum() + sae.b_enc.sum()).backward()
    optimizer.step()
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    dead = torch.tensor([[True, False, False], [False, False, False]])
    toy_autoencoder.resample(sae, dead, h, optimizer, torch.Generator().manual_seed(1))
    assert torch.equal(sae.W_dec[:, :, 1:], before["W_dec"][:, :, 1:]) and torch.equal(
        sae.W_dec[1], before["W_dec"][1]
    )
    assert (
        sae.W_dec[0, :, 0].norm().item() == pytest.approx(1, abs=1e-5) and sae.b_enc[0, 0, 0] == 0
    )
    live = before["W_enc"][0, 1:].norm(dim=1).mean()
    assert sae.W_enc[0, 0].norm().item() == pytest.approx(0.2 * live.item(), rel=1e-4)
    moments = optimizer.state[sae.W_enc]["exp_avg"]
    assert moments[0, 0].abs().sum() == 0 and moments[0, 1:].abs().sum() > 0


def test_recovery_needs_the_direction_itself():
    W = circle(5).float()[None]
    assert toy_autoencoder.recovery(W.flip(2), W).tolist()[0] == pytest.approx([1] * 5, abs=1e-5)
    assert toy_autoencoder.recovery(-W, W).max() < 0.95, (
        "the opposite of a direction is not that direction"
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return folder, {
        name: results_module.result(name, "smoke", folder) for name in results_module.RUNS
    }


@pytest.mark.parametrize("name", toy_experiments.EXPERIMENTS)
def test_every_experiment_keeps_weights_and_losses_of_every_setting_and_seed(smoke, name):
    row = toy_experiments.EXPERIMENTS[name]
    found = smoke[1].get(name) or toy_experiments.run(name, "smoke")
    for variant, r in (found if isinstance(found, dict) else {"": found}).items():
        e = row.variant(variant) if variant else row
        seeds = toy_experiments.SMOKE.seeds
        assert r.W.shape == (len(r.p), seeds, e.d_hidden, e.n_features)
        assert r.losses.shape == (len(r.p), seeds) and r.losses.isfinite().all()
        assert (r.W_out is None) == ("n_outputs" not in e.model)
        assert torch.equal(r.best_W[0], r.W[0, r.losses[0].argmin()])


def test_a_variant_changes_its_row():
    row = toy_experiments.EXPERIMENTS["correlated_sets"]
    ten = row.variant("2x10")
    assert (ten.n_features, ten.features["set_size"], ten.full) == (20, 10, row.full)
    sums = toy_experiments.EXPERIMENTS["many_hidden"].variant("sums")
    assert sums.model == {"hidden": "relu", "n_outputs": 6}, "arguments of the model are added"


def test_slow_training_keeps_snapshots_of_four_times_the_steps(smoke):
    r = smoke[1]["learning_dynamics"]
    steps = r.measured["step"]
    assert steps.tolist() == list(range(4 * toy_experiments.SMOKE.steps))
    assert r.measured["W_by_step"].shape == (len(steps), 4, 10, 100)
    assert r.measured["loss_by_step"].shape == (len(steps), 4)


def test_results_are_cached_by_their_source(smoke, monkeypatch):
    folder, results = smoke
    monkeypatch.setitem(results_module.RUNS, "recipes", lambda preset: {"ran": "again"})
    assert results_module.result("recipes", "smoke", folder) == results["recipes"]
    path = folder / "recipes.smoke.pt"
    path.write_bytes(path.read_bytes()[:100])
    assert results_module.result("recipes", "smoke", folder) == {"ran": "again"}
    monkeypatch.setitem(results_module.RUNS, "recipes", lambda preset: {"ran": "a third time"})
    assert results_module.result("recipes", "smoke", folder) == {"ran": "again"}
    monkeypatch.setattr(results_module, "SOURCES", b"changed")
    assert results_module.result("recipes", "smoke", folder) == {"ran": "a third time"}


def test_a_cached_result_equals_the_one_made(smoke):
    folder, results = smoke
    made, again = results["adversarial"], results_module.result("adversarial", "smoke", folder)
    assert torch.equal(made.W, again.W) and made.W_out is again.W_out is None
    assert torch.equal(made.measured["same_inputs"], again.measured["same_inputs"])


def test_experiments_run_on_one_thread(monkeypatch):
    """Small products on several threads wait for each other: beside other work, minutes for
    seconds.
    """
    monkeypatch.setitem(
        results_module.RUNS, "recipes", lambda preset: {"threads": torch.get_num_threads()}
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert results_module.result("recipes", "smoke") == {"threads": 1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def pentagon_weights(cells: int, shape: list[list[float]]) -> torch.Tensor:
    """Ten seeds of every cell with these five columns."""
    return torch.tensor(shape).expand(cells, 10, 2, 5).clone()


def test_the_talks_claims_count_what_they_say():
    cells = toy_experiments.case_cells(1)
    square = [[1.0, -1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0, 0.0]]
    W = pentagon_weights(len(cells), square)

    def claims() -> list[str]:
        rows = toy_figures.talk_claims(W, cells)
        return [f"{row['Share'].split(',')[0]}: {row['At 90 %']}" for row in rows]

    assert claims() == ["60 of 60: holds", "40 of 40: holds", "40 of 40: holds"]
    W[4, :3, :, 1] = 0  # equal importance: in three of ten models one feature stands alone
    assert claims()[1:] == ["40 of 40: holds", "34 of 37: open"]
    W[4, :, :, 1] = 0
    assert claims()[2] == "20 of 30: does not hold"
    W[0, 0] = circle(5).float()
    assert claims()[0] == "59 of 60: holds"
    first, *_, fifth, _ = toy_figures.talk_cases(W, cells)
    counts = ["Three or fewer", "Four"]
    assert [first[c] for c in counts] == ["0", "9"] and first["All five"].startswith("1 of 10")
    assert [fifth[c] for c in counts] == ["10", "0"]
    assert fifth["In superposition"].startswith("20 of 30, 66.7 % (48.8 to")
    assert "apart: no difference is shown" in toy_figures.talk_mechanism(W, cells)
    W[0, :, :, 1] = 0
    assert "apart: a difference is seen" in toy_figures.talk_mechanism(W, cells)


def test_the_interval_of_a_difference_of_shares():
    # the example of Newcombe 1998, method 10
    assert metrics.shares_apart(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert metrics.shares_apart(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)


def test_gates_fail_on_untrained_models(smoke):
    rows = toy_gates.all_gates(smoke[1].__getitem__)
    assert len(rows) == 38 and sum(row["passed"] for row in rows) < 20
    json.dumps(rows, allow_nan=False)
    assert toy_gates.gates_table(rows).count("\n") == len(rows) + 2


def test_the_introductions_gates_pass_on_pentagons_alone():
    dense = torch.eye(2, 5)[None, None]
    pentagon = 1.15 * circle(5).float()[None, None]
    result = toy_experiments.Result(
        torch.tensor([1.0, 0.02]),
        torch.tensor([[0.036585], [4e-4]]),
        torch.cat([dense, pentagon]),
        None,
        {},
    )
    assert all(row["passed"] for row in toy_gates.introduction(result))
    result.W[1, 0, :, 4] = 0
    failed = [row["what"] for row in toy_gates.introduction(result) if not row["passed"]]
    assert len(failed) == 4 and all("p ≤ 0.035" in what for what in failed)


def test_the_librarys_recipes_train_on_the_toy_model(smoke):
    found = smoke[1]["recipes"]
    assert set(found) == {
        f"{name}, {w} resampling"
        for name in ("bricken_2023", "ward_2024")
        for w in ("with", "without")
    }
    for row in found.values():
        assert row["all five found"].endswith(" of 1") and row["dead latents"].endswith(" of 5")
        assert float(row["output / input norm"]) > 0 and row["directions found"].endswith("%")


def test_figures_of_every_kind(smoke):
    r = smoke[1]
    panels = {"norms": {"best": r["introduction"].losses}}
    assert len(toy_figures.curves(r["introduction"].p, panels, "t").data) == 1
    fig = toy_figures.polygons(r["introduction"].best_W, ["a", "b"], "t", 2)
    assert sum(trace.mode == "lines+markers" for trace in fig.data) == 10
