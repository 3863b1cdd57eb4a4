"""The autoencoder's folder: what SAELens reads, read back equal, and refused when something is off."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.errors import ArtefactError
from tests.test_sparse_step import random_sae


def test_forward_is_the_formula():
    sae = random_sae(5, 7, 0)
    x = torch.randn(3, 5)
    f = torch.clamp((x - sae.b_dec) @ sae.W_enc + sae.b_enc, min=0)
    torch.testing.assert_close(sae(x), f @ sae.W_dec + sae.b_dec)


def test_round_trip_reconstructs_equally(tmp_path):
    sae = random_sae(5, 7, 0)
    sae.save(tmp_path, {"hook_name": "blocks.0.mlp.hook_post"})
    x = torch.randn(11, 5)
    assert torch.equal(SparseAutoencoder.load(tmp_path)(x), sae(x))


def test_layout_is_saelens_own(tmp_path):
    random_sae(5, 7, 0).save(tmp_path, {"hook_name": "h"})
    tensors, config = load_file(tmp_path / "sae_weights.safetensors"), json.loads((tmp_path / "cfg.json").read_text())
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {"W_enc": (5, 7), "b_enc": (7,), "W_dec": (7, 5), "b_dec": (5,)}
    assert (config["architecture"], config["d_in"], config["d_sae"], config["dtype"]) == ("standard", 5, 7, "float32")
    assert config["metadata"]["sae_lens_version"] >= "6.0.0" and config["metadata"]["hook_name"] == "h"


@pytest.mark.parametrize("damage", ["shape", "extra", "missing", "architecture", "truncated", "json", "normalised"])
def test_what_cannot_be_read_is_refused(tmp_path, damage):
    random_sae(5, 7, 0).save(tmp_path, {})
    weights, config = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    tensors, data = load_file(weights), json.loads(config.read_text())
    if damage == "shape":
        save_file(tensors | {"W_enc": tensors["W_enc"].T.contiguous()}, weights)
    elif damage == "extra":
        save_file(tensors | {"threshold": torch.zeros(7)}, weights)
    elif damage == "missing":
        weights.unlink()
    elif damage == "architecture":
        config.write_text(json.dumps(data | {"architecture": "gated"}))
    elif damage == "normalised":
        config.write_text(json.dumps(data | {"normalize_activations": "layer_norm"}))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        config.write_text("{")
    with pytest.raises(ArtefactError, match=str(tmp_path)):
        SparseAutoencoder.load(tmp_path)
