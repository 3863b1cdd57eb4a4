"""The sparse gradient against autograd on the loss as written in the papers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib import sparse_step
from sae_lib.autoencoder import SparseAutoencoder


def random_sae(d_in, d_sae, seed, bias=-1.0):
    g = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(d_in, d_sae)
    with torch.no_grad():
        for p in sae.parameters():
            p.normal_(generator=g)
        sae.b_enc += bias
    return sae


def autograd(sae, x, mse_weight, l1):
    sae.zero_grad(set_to_none=True)
    f = sae.encode(x)
    loss = mse_weight * (x - sae.decode(f)).pow(2).sum(1).mean() + l1 * f.sum(1).mean()
    loss.backward()
    return {k: p.grad.clone() for k, p in sae.named_parameters()}


def assert_same_gradients(sae, expected, tolerance=1e-5):
    for name, parameter in sae.named_parameters():
        difference = (parameter.grad - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)
        assert difference < tolerance, f"{name}: relative difference {difference:.1e}"


@pytest.mark.parametrize("path", ["sparse", "dense"])
@given(d_in=st.integers(1, 24), d_sae=st.integers(1, 48), n=st.integers(1, 40), seed=st.integers(0, 99), l1=st.floats(0, 3), weight=st.sampled_from([1.0, 1 / 8]))
@settings(max_examples=40, deadline=None)
def test_gradients_are_those_of_autograd(path, d_in, d_sae, n, seed, l1, weight):
    sae = random_sae(d_in, d_sae, seed)
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed + 1))
    expected = autograd(sae, x, weight, l1)
    before, sparse_step.DENSE_ABOVE = sparse_step.DENSE_ABOVE, 2.0 if path == "sparse" else -1.0
    try:
        measured = sparse_step.gradients(sae, x, weight, l1)
    finally:
        sparse_step.DENSE_ABOVE = before
    assert_same_gradients(sae, expected)
    f = sae.encode(x)
    torch.testing.assert_close(measured.squared_error, (x - sae.decode(f)).pow(2).sum(1).mean())
    torch.testing.assert_close(measured.l1, f.sum(1).mean())
    assert measured.l0.item() == pytest.approx((f > 0).sum(1).float().mean().item())
    assert torch.equal(measured.fired, (f > 0).any(0))


def test_no_active_feature_leaves_only_the_decoder_bias_to_learn():
    sae = random_sae(8, 16, 0, bias=-1e4)
    x = torch.randn(5, 8)
    expected = autograd(sae, x, 1.0, 0.5)
    sparse_step.gradients(sae, x, 1.0, 0.5)
    assert expected["b_dec"].abs().sum() > 0 and sae.W_enc_T.grad.abs().sum() == 0
    torch.testing.assert_close(sae.b_dec.grad, expected["b_dec"])


def test_bfloat16_encoder_is_close_but_not_the_same():
    sae = random_sae(64, 256, 0, bias=-10.0)
    x = torch.randn(128, 64)
    expected = autograd(sae, x, 1.0, 0.1)
    sparse_step.gradients(sae, x, 1.0, 0.1, torch.bfloat16)
    difference = (sae.W_dec.grad - expected["W_dec"]).norm() / expected["W_dec"].norm()
    assert 1e-6 < difference < 0.05
