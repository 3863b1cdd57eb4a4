"""What several hooks of a Llama carry: known answers on random weights."""

import numpy as np
import pytest
import torch

from sae_lib.features import hook_comparison
from sae_lib.features.hook_comparison import compare_hooks
from sae_lib.model.activations import HookPoint
from sae_lib.model.language_model import next_token_loss
from tests.test_circuits import llama

ROWS = np.random.default_rng(0).integers(40, size=(24, 12))
HOOKS = ("hook_pre", "hook_pre_linear", "hook_post")


@pytest.fixture(scope="module")
def compared():
    model = llama(2).eval().requires_grad_(False)
    names = [f"blocks.1.mlp.{name}" for name in HOOKS]
    return model, compare_hooks([HookPoint(model, name) for name in names], ROWS)


def test_without_its_mlp_a_model_loses_what_each_hook_carries(compared):
    model, table = compared
    tokens = torch.from_numpy(ROWS)
    down, clean = model.model.layers[1].mlp.down_proj.weight, next_token_loss(model, tokens)
    kept = down.clone()
    down.zero_()
    lost = (next_token_loss(model, tokens) - clean).item()
    down.copy_(kept)
    assert lost != 0
    assert table["zero"].tolist() == pytest.approx([lost] * len(HOOKS), abs=1e-5)


def test_the_share_above_zero_and_the_tails_are_those_of_the_values(compared):
    model, table = compared
    values = HookPoint(model, "blocks.1.mlp.hook_post").activations(torch.from_numpy(ROWS))
    values = values.flatten(0, 1)
    row = table.loc["blocks.1.mlp.hook_post"]
    assert row["width"] == values.shape[1] == 32
    assert row["positive"] == pytest.approx((values > 0).float().mean().item())
    centred = values - values.mean(0)
    moments = centred.pow(4).mean(0) / centred.pow(2).mean(0).square() - 3
    assert row["kurtosis"] == pytest.approx(moments.double().quantile(0.5).item(), rel=1e-4)


def test_products_have_longer_tails_than_their_factors(compared):
    kurtosis = compared[1]["kurtosis"]
    assert kurtosis["blocks.1.mlp.hook_post"] > kurtosis["blocks.1.mlp.hook_pre_linear"] + 0.5


def test_all_coordinates_recover_everything(monkeypatch):
    model = llama(1).eval().requires_grad_(False)
    monkeypatch.setattr(hook_comparison, "KEPT", model.config.hidden_size)
    table = compare_hooks([HookPoint(model, "blocks.0.hook_mlp_out")], ROWS)
    assert table["strongest"].item() == pytest.approx(1, abs=1e-3)
    table = compare_hooks([HookPoint(model, "blocks.0.mlp.hook_post")], ROWS)
    assert table["strongest"].item() < 0.99
