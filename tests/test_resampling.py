"""Resampling: known answers for what is drawn, what is reset, and that nothing else moves."""

import torch

from sae_lib.sae.recipes import Resampling
from sae_lib.sae.resampling import resample, sampling_probabilities
from tests.test_sparse_step import random_sae


def trained(d_in=8, d_sae=12, seed=0):
    sae = random_sae(d_in, d_sae, seed, bias=0.0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)
    for _ in range(3):
        optimiser.zero_grad()
        sae(torch.randn(32, d_in)).pow(2).sum().backward()
        optimiser.step()
    return sae, optimiser


def test_probabilities_are_the_squared_loss():
    torch.testing.assert_close(
        sampling_probabilities(torch.tensor([0.0, 1.0, 3.0])),
        torch.tensor([0.0, 0.1, 0.9], dtype=torch.float64),
    )


def test_probabilities_of_a_perfect_autoencoder_are_uniform():
    torch.testing.assert_close(
        sampling_probabilities(torch.zeros(4)), torch.full((4,), 0.25, dtype=torch.float64)
    )


def test_draws_follow_the_squared_loss():
    sae, optimiser = trained()
    with torch.no_grad():
        for p in sae.parameters():
            p.zero_()  # x̂ = 0: the loss of an input is its squared norm
    x = torch.eye(8)[:2] * torch.tensor(
        [[1.0], [3.0**0.25]]
    )  # losses 1 and √3, squared 1 and 3: one draw in four is the first
    dead = torch.zeros(12, dtype=torch.bool)
    dead[0] = True
    first = 0
    for seed in range(2000):
        resample(sae, optimiser, dead, x, Resampling(), torch.Generator().manual_seed(seed))
        first += sae.W_dec[0, 0].item() > 0.5
        with torch.no_grad():
            sae.W_dec.zero_(), sae.W_enc.zero_()
    assert 0.22 < first / 2000 < 0.28


def test_resampled_features_get_their_slices_and_nothing_else_moves():
    sae, optimiser = trained()
    before = {k: v.clone() for k, v in sae.state_dict().items()}
    moments = {
        k: {m: optimiser.state[p][m].clone() for m in ("exp_avg", "exp_avg_sq")}
        for k, p in sae.named_parameters()
    }
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[2, 7]] = True
    x = torch.randn(64, 8)
    assert resample(sae, optimiser, dead, x, Resampling(), torch.Generator().manual_seed(0)) == 2

    after, alive = sae.state_dict(), ~dead
    assert torch.equal(after["b_dec"], before["b_dec"])
    assert torch.equal(after["W_dec"][alive], before["W_dec"][alive])
    assert torch.equal(after["W_enc_T"][alive], before["W_enc_T"][alive])
    assert torch.equal(after["b_enc"][alive], before["b_enc"][alive])
    torch.testing.assert_close(after["W_dec"][dead].norm(dim=1), torch.ones(2))
    norm = 0.2 * before["W_enc_T"][alive].norm(dim=1).mean()
    torch.testing.assert_close(after["W_enc_T"][dead].norm(dim=1), norm.expand(2))
    torch.testing.assert_close(after["W_enc_T"][dead] / norm, after["W_dec"][dead])
    assert (after["b_enc"][dead] == 0).all()
    for name, parameter in sae.named_parameters():
        for m, old in moments[name].items():
            new = optimiser.state[parameter][m]
            if name == "b_dec":
                assert torch.equal(new, old)
                continue
            assert (new[dead] == 0).all() and old[dead].abs().sum() > 0
            assert torch.equal(new[alive], old[alive])


def test_a_resampled_feature_fires_on_the_input_it_was_drawn_from():
    sae, optimiser = trained(seed=3)
    dead = torch.zeros(12, dtype=torch.bool)
    dead[:5] = True
    x = torch.randn(64, 8)
    resample(sae, optimiser, dead, x, Resampling(), torch.Generator().manual_seed(1))
    directions = (x - sae.b_dec) / (x - sae.b_dec).norm(dim=1, keepdim=True)
    drawn = (sae.W_dec[:5] @ directions.T).argmax(1)
    assert len(set(drawn.tolist())) == 5, "each dead feature gets an input of its own"
    assert (sae.encode(x[drawn])[torch.arange(5), torch.arange(5)] > 0).all()


def test_no_more_features_are_resampled_than_there_are_inputs():
    sae, optimiser = trained()
    before = sae.W_dec.clone()
    dead = torch.ones(12, dtype=torch.bool)
    assert (
        resample(
            sae, optimiser, dead, torch.randn(4, 8), Resampling(), torch.Generator().manual_seed(0)
        )
        == 4
    )
    assert torch.equal(sae.W_dec[4:], before[4:])


def test_adams_moments_stay_where_that_is_wanted():
    sae, optimiser = trained()
    state = optimiser.state[sae.W_dec]
    before = state["exp_avg"].clone()
    dead = torch.arange(12) < 5
    x, generator = torch.randn(64, 8), torch.Generator().manual_seed(0)
    assert resample(sae, optimiser, dead, x, Resampling(moments="kept"), generator) == 5
    assert torch.equal(state["exp_avg"], before) and before[dead].abs().sum() > 0
