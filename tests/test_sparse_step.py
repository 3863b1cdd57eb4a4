"""Which features are active, and the sparse gradient, against the dense product and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine import active_pairs, sparse_step
from sae_lib.sae.objective import Objective, auxiliary_loss, loss


def random_sae(d_in, d_sae, seed, bias=-1.0):
    g = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(d_in, d_sae)
    with torch.no_grad():
        for p in sae.parameters():
            p.normal_(generator=g)
        sae.b_enc += bias
    return sae


def some_dead(sae, objective):
    """Every third feature, where the objective has an auxiliary loss for them."""
    return torch.arange(0, sae.d_sae, 3) if objective.aux else None


def auxiliary(sae, x, residual, dead):
    """AuxK as the paper writes it, on all features at once."""
    alive = torch.ones(sae.d_sae, dtype=torch.bool).index_fill(0, dead, False)
    z = sae.pre_activations(x).masked_fill(alive, -torch.inf)
    kept = z.topk(min(max(1, sae.d_in // 2), len(dead)))
    f = torch.zeros_like(z).scatter(1, kept.indices, kept.values.relu())
    return (residual - f @ sae.W_dec).pow(2).sum(1).mean()


def autograd(sae, x, objective):
    """The gradient of a plain implementation."""
    sae.zero_grad(set_to_none=True)
    total, measured = loss(sae, x, objective)
    if objective.aux:
        residual, dead = (x - sae(x)).detach(), some_dead(sae, objective)
        total = total + objective.mse * objective.aux * auxiliary(sae, x, residual, dead)
    total.backward()
    return {k: p.grad.clone() for k, p in sae.named_parameters() if p.grad is not None}, measured


def assert_same_gradients(sae, expected, tolerance=1e-5):
    for name, parameter in ((k, p) for k, p in sae.named_parameters() if k in expected):
        scale = expected[name].norm().clamp_min(1e-2)  # a sum can cancel to nearly nothing
        difference = (parameter.grad - expected[name]).norm() / scale
        assert difference < tolerance, f"{name}: relative difference {difference:.1e}"


def test_the_loss_is_that_of_the_papers():
    sae = random_sae(6, 12, 0)
    x = torch.randn(5, 6)
    f = sae.encode(x)
    squared, l1 = (x - sae.decode(f)).pow(2).sum(1).mean(), f.sum(1).mean()
    assert loss(sae, x, Objective(0.5, 3.0))[0].item() == pytest.approx(
        (0.5 * squared + 3 * l1).item(), rel=1e-5
    )
    weighted = (f * sae.W_dec.norm(dim=1)).sum(1).mean()
    assert loss(sae, x, Objective(1.0, 3.0, "l1_norm"))[0].item() == pytest.approx(
        (squared + 3 * weighted).item(), rel=1e-5
    )


def test_the_threshold_moves_by_the_rectangle_around_it():
    """One feature, three activations: far below, just above, far above; only the middle one
    pushes on the threshold.
    """
    sae = SparseAutoencoder(1, 1, "jumprelu")
    with torch.no_grad():
        sae.W_enc_T[:], sae.W_dec[:], sae.threshold[:] = 1.0, 2.0, 1.0
    x = torch.tensor([[0.2], [1.1], [3.0]])
    sparse_step.gradients(sae, x, Objective(1.0, 0.7, "l0", bandwidth=0.4))
    into_f = 2 * (2 * 1.1 - 1.1) * 2  # of the squared error of the middle one
    assert sae.threshold.grad.item() == pytest.approx(-(1.1 * into_f + 0.7) / 0.4 / 3, rel=1e-5)


def some_sae(kind, d_in, d_sae, seed):
    sae = SparseAutoencoder(d_in, d_sae, kind, min(3, d_sae) if "topk" in kind else 0)
    sae.load_state_dict(random_sae(d_in, d_sae, seed).state_dict(), strict=False)
    if kind == "jumprelu":
        sae.threshold.data.uniform_(0.2, 1.0, generator=torch.Generator().manual_seed(seed))
    return sae


OBJECTIVES = {
    "standard": Objective(1.0, 0.7),
    "norm": Objective(0.125, 2.0, "l1_norm"),
    "topk": Objective(1.0, penalty="none", aux=0.7),
    "batchtopk": Objective(1.0, penalty="none", aux=0.7),
    "jumprelu": Objective(1.0, 0.5, "l0", bandwidth=0.6),
}


@pytest.mark.parametrize("screened", [True, False])
@pytest.mark.parametrize("kind", OBJECTIVES)
@given(
    d_in=st.integers(1, 24), d_sae=st.integers(1, 48), n=st.integers(1, 80), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_gradients_are_those_of_autograd(kind, screened, d_in, d_sae, n, seed):
    sae = some_sae("standard" if kind == "norm" else kind, d_in, d_sae, seed)
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed + 1))
    expected, loss_measured = autograd(sae, x, OBJECTIVES[kind])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_step, "DENSE_ABOVE", 2.0)
        patch.setattr(active_pairs, "MAX_CANDIDATE_SHARE", 2.0)
        patch.setattr(active_pairs, "fast_bfloat16", lambda: screened)
        dead = some_dead(sae, OBJECTIVES[kind])
        measured = sparse_step.gradients(sae, x, OBJECTIVES[kind], dead=dead)
    assert_same_gradients(sae, expected, 1e-4)
    for name, value in loss_measured._asdict().items():
        if name != "smallest" or measured.fired.any():
            torch.testing.assert_close(
                getattr(measured, name).float(), value.float(), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_gradients_agree_to_the_last_digits_at_a_usual_size(kind):
    sae, x = (
        some_sae("standard" if kind == "norm" else kind, 128, 512, 0),
        torch.randn(256, 128, generator=torch.Generator().manual_seed(1)),
    )
    with torch.no_grad():
        sae.b_enc -= 20  # about 4 % of the features are active
    expected, _ = autograd(sae, x, OBJECTIVES[kind])
    sparse_step.gradients(sae, x, OBJECTIVES[kind], dead=some_dead(sae, OBJECTIVES[kind]))
    assert_same_gradients(sae, expected, 2e-6)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_dense_step_is_the_same(kind):
    sae, x = some_sae("standard" if kind == "norm" else kind, 16, 32, 0), torch.randn(20, 16)
    expected, _ = autograd(sae, x, OBJECTIVES[kind])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_step, "DENSE_ABOVE", -1.0)
        sparse_step.gradients(sae, x, OBJECTIVES[kind], dead=some_dead(sae, OBJECTIVES[kind]))
    assert_same_gradients(sae, expected)


def test_the_auxiliary_loss_of_a_case_with_a_known_answer():
    """Two dead features, of which d_in / 2 = 1 is kept: feature 1 reads 3 where feature 0 reads 2,
    so that of the residual (4, 1) it leaves (1, 1); the living feature 2 has no part in it.
    """
    sae = SparseAutoencoder(2, 3, "topk", 1)
    with torch.no_grad():
        sae.W_enc_T[:] = torch.tensor([[2.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
        sae.W_dec[:] = torch.tensor([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
    x, residual = torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 1.0]])
    dead = torch.tensor([0, 1])
    found = auxiliary_loss(sae, x, residual, dead)
    assert found.item() == 2
    found.backward()
    assert sae.W_dec.grad.tolist() == [[0, 0], [-6, -6], [0, 0]]  # −2 · 3 · (1, 1)
    assert sae.W_enc_T.grad.tolist() == [[0, 0], [-2, 0], [0, 0]]  # −2 · (1, 1)·(1, 0) · x


def test_the_dead_have_a_gradient_only_where_the_objective_has_an_auxiliary_loss():
    sae, x = some_sae("topk", 16, 32, 0), torch.randn(20, 16)
    dead = torch.arange(32)
    without, _ = autograd(sae, x, Objective(1.0, penalty="none"))
    sparse_step.gradients(sae, x, Objective(1.0, penalty="none"), dead=dead)
    assert_same_gradients(sae, without)
    sparse_step.gradients(sae, x, OBJECTIVES["topk"], dead=dead[:0])
    assert_same_gradients(sae, without)


@pytest.mark.parametrize("screened", [True, False])
@given(
    d_in=st.integers(1, 70),
    d_sae=st.integers(1, 48),
    n=st.integers(1, 20),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_screened_product_finds_what_the_dense_one_finds(screened, d_in, d_sae, n, seed, size):
    """With candidates from a bfloat16 product nothing is missed, and nothing but rounding at
    zero may differ.
    """
    sae = random_sae(d_in, d_sae, seed)
    x = size * torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active_pairs, "fast_bfloat16", lambda: screened)
        patch.setattr(active_pairs, "MAX_CANDIDATE_SHARE", 2.0)
        pairs = active_pairs.active_pairs(sae, x)
    dense = sae.encode(x)
    found = torch.zeros_like(dense).index_put((pairs.row, pairs.column), pairs.value)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5 * (1 + size * d_in**0.5))
    assert (pairs.value > 0).all() and (pairs.row.diff() >= 0).all()


def test_candidates_miss_nothing_even_when_every_rounding_goes_the_wrong_way():
    """Both factors are rounded down where they add and up where they subtract: the true value is
    just above zero, the rough one far below.
    """
    low, high = 1 + 0.99 * 2**-8, 1 + 1.01 * 2**-8  # bfloat16 makes 1 and 1 + 2⁻⁷ of them
    x = torch.tensor([[low] * 32 + [high] * 32])
    sae = SparseAutoencoder(64, 1)
    with torch.no_grad():
        sae.W_enc_T[:] = x * torch.tensor([1.0] * 32 + [-1.0] * 32)
        sae.b_enc[:] = 1e-4 - x @ sae.W_enc[:, 0]
    rough = x.bfloat16().float() @ sae.W_enc.bfloat16().float() + sae.b_enc
    assert rough.item() < -0.45 and sae.encode(x).item() > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active_pairs, "fast_bfloat16", lambda: True)
        patch.setattr(active_pairs, "MAX_CANDIDATE_SHARE", 2.0)
        assert active_pairs.active_pairs(sae, x).column.tolist() == [0]


def test_no_active_feature_leaves_only_the_decoder_bias_to_learn():
    sae = random_sae(8, 16, 0, bias=-1e4)
    x = torch.randn(5, 8)
    expected, _ = autograd(sae, x, Objective(1.0, 0.5))
    sparse_step.gradients(sae, x, Objective(1.0, 0.5))
    assert expected["b_dec"].abs().sum() > 0 and sae.W_enc_T.grad.abs().sum() == 0
    torch.testing.assert_close(sae.b_dec.grad, expected["b_dec"])


def test_bfloat16_encoder_is_close_but_not_the_same():
    sae = random_sae(64, 256, 0, bias=-10.0)
    x = torch.randn(128, 64)
    expected, _ = autograd(sae, x, Objective(1.0, 0.1))
    sparse_step.gradients(sae, x, Objective(1.0, 0.1), torch.bfloat16)
    difference = (sae.W_dec.grad - expected["W_dec"]).norm() / expected["W_dec"].norm()
    assert 1e-6 < difference < 0.05
