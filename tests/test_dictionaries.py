"""What stands beside an autoencoder: directions, their thresholds, and the activations of chosen
features.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_lib.features.firing import firing
from sae_lib.model.activations import ActivationTable
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Directions, Neurons, Selected, activations_of, active
from sae_lib.sae.directions import coordinate_directions, principal_directions, random_directions


@pytest.fixture
def x():
    return (
        torch.randn(4000, 12, generator=torch.Generator().manual_seed(0))
        * torch.linspace(3, 0.1, 12)
        + 1.5
    )


def test_thresholds_give_the_density_asked_for(x):
    wanted = torch.tensor([0.001, 0.01, 0.1, 0.3, 0.0])
    directions = random_directions(x, 5, seed=3).at_density(x, wanted)
    density = (directions.encode(x) > 0).float().mean(0)
    assert torch.allclose(density, wanted, atol=1.5 / len(x))


def test_densities_may_lie_on_another_device_than_the_directions():
    """On a simulated GPU: tensors without data, of which torch checks the devices as CUDA would."""
    with FakeTensorMode():
        x, centre = torch.zeros(400, 12, device="cuda"), torch.zeros(12, device="cuda")
        directions = Directions(torch.zeros(5, 12, device="cuda"), centre)
        with pytest.raises(RuntimeError, match="device"):
            x[:5, 0] + torch.full((5,), 0.1)
        matched = directions.at_density(x, torch.full((5,), 0.1))
        assert matched.threshold.shape == (5,)
        assert {matched.threshold.device, matched.encode(x).device} == {x.device}


def test_neurons_as_directions_count_what_is_above_zero(x):
    assert torch.equal(coordinate_directions(12).encode(x), x.relu())


def test_principal_directions_come_in_both_senses_largest_first(x):
    directions = principal_directions(x)
    spread = ((x - x.mean(0)) @ directions.W_dec.T).var(0)
    assert torch.allclose(directions.W_dec[0::2], -directions.W_dec[1::2])
    assert (spread[0::2].diff() <= 1e-4).all() and spread[0] == pytest.approx(9, rel=0.1)


def test_firing_says_where_each_feature_is_above_zero_over_all_batches(x):
    hook, rows = ActivationTable(x), np.arange(4000).reshape(400, 10)  # 64 rows in a batch
    directions = random_directions(x, 30, 1).at_density(x, torch.full((30,), 0.05))
    none = Selected(directions, torch.zeros(0, dtype=torch.int64))
    found, acts = firing(hook, {"": directions, "none": none}, rows), directions.encode(x)
    assert found["none"] == [] and len(found[""]) == 30
    for feature, fires in enumerate(found[""]):
        assert fires.token.tolist() == acts[:, feature].nonzero()[:, 0].tolist()
        assert fires.value.tolist() == acts[fires.token, feature].tolist()


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "neurons", "directions"])
def test_chosen_features_are_columns_of_the_whole(x, architecture):
    if architecture == "neurons":
        dictionary = Neurons(12)
    elif architecture == "directions":
        dictionary = random_directions(x, 30, 1).at_density(x, torch.full((30,), 0.05))
    else:
        dictionary = SparseAutoencoder(12, 30, architecture, k=3).requires_grad_(False)
        for parameter in dictionary.parameters():
            parameter.copy_(
                torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2)) - 0.3
            )
    chosen = torch.tensor([4, 0, 11])
    assert torch.allclose(
        activations_of(dictionary, x, chosen), dictionary.encode(x)[:, chosen], atol=1e-5
    )


def test_active_pairs_of_directions_are_those_of_encode(x):
    directions = random_directions(x, 30, 1).at_density(x, torch.full((30,), 0.05))
    pairs, dense = active(directions, x), directions.encode(x)
    assert torch.equal(torch.stack([pairs.row, pairs.column], 1), (dense > 0).nonzero())
    assert torch.equal(pairs.value, dense[dense > 0])
