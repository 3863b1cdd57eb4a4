"""The autoencoder's folder: what SAELens reads, read back equal, and refused when something is
off.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lib.errors import ArtefactError, SettingsError
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.export import to_dictionary_learning
from sae_lib.sae.saelens import load_any
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


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk"])
def test_other_architectures_round_trip(tmp_path, architecture):
    sae = SparseAutoencoder(5, 7, architecture, k=2 if "topk" in architecture else 0)
    sae.load_state_dict(random_sae(5, 7, 0, bias=0.0).state_dict(), strict=False)
    if architecture != "topk":
        sae.threshold.data.uniform_(0.1, 1.0)
    sae.for_inference()
    sae.save(tmp_path, {})
    x, again = torch.randn(11, 5), SparseAutoencoder.load(tmp_path)
    assert torch.equal(again(x), sae(x))
    expected = {"topk": ("topk", 2), "jumprelu": ("jumprelu", 0), "batchtopk": ("jumprelu", 0)}[
        architecture
    ]
    assert (again.architecture, again.k) == expected and json.loads(
        (tmp_path / "cfg.json").read_text()
    ).get("k", 0) == expected[1]


def test_the_architectures_are_the_papers():
    """One feature per dimension, so that the features are the activations themselves."""
    z = torch.tensor([[3.0, -1.0, 2.0, 0.5], [0.1, 0.2, -2.0, -3.0]])
    made = {}
    for architecture, k in (("standard", 0), ("topk", 1), ("batchtopk", 1), ("jumprelu", 0)):
        sae = SparseAutoencoder(4, 4, architecture, k)
        with torch.no_grad():
            sae.W_enc_T[:] = torch.eye(4)
            if architecture == "jumprelu":
                sae.threshold[:] = torch.tensor([0.0, 0.0, 2.0, 0.4])
        made[architecture] = sae.encode(z).tolist()
    flat = {name: [[round(v, 4) for v in row] for row in rows] for name, rows in made.items()}
    assert flat["standard"] == [[3, 0, 2, 0.5], [0.1, 0.2, 0, 0]]
    assert flat["topk"] == [[3, 0, 0, 0], [0, 0.2, 0, 0]]
    assert flat["batchtopk"] == [[3, 0, 2, 0], [0, 0, 0, 0]], (
        "two activations, k = 1: the two largest of all"
    )
    assert flat["jumprelu"] == [[3, 0, 0, 0.5], [0.1, 0.2, 0, 0]], "strictly above the threshold"


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_dictionary_learnings_format_computes_the_same(tmp_path, architecture):
    """Its three classes, as their published formulas have them, on the exported tensors."""
    sae = SparseAutoencoder(5, 7, architecture, k=2 if "topk" in architecture else 0)
    sae.load_state_dict(random_sae(5, 7, 0, bias=0.0).state_dict(), strict=False)
    if architecture == "batchtopk":
        sae.threshold.data.fill_(0.3)
    sae.for_inference()
    to_dictionary_learning(sae, tmp_path)
    t, config = (
        torch.load(tmp_path / "ae.pt", weights_only=True),
        json.loads((tmp_path / "config.json").read_text())["trainer"],
    )
    x = torch.randn(11, 5)
    bias = t["bias"] if architecture == "standard" else t["b_dec"]
    f = torch.nn.functional.linear(x - bias, t["encoder.weight"], t["encoder.bias"]).relu()
    if architecture == "topk":
        f = torch.zeros_like(f).scatter(1, f.topk(int(t["k"])).indices, f.topk(int(t["k"])).values)
    elif architecture == "batchtopk":
        f = f * (f > t["threshold"])
    torch.testing.assert_close(torch.nn.functional.linear(f, t["decoder.weight"]) + bias, sae(x))
    assert (
        config["dict_class"]
        == {"standard": "AutoEncoder", "topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE"}[
            architecture
        ]
    )


def test_thresholds_that_differ_cannot_be_exported(tmp_path):
    sae = SparseAutoencoder(5, 7, "jumprelu")
    sae.threshold.data.uniform_(0, 1)
    with pytest.raises(SettingsError, match="one threshold"):
        to_dictionary_learning(sae, tmp_path)
    assert not list(tmp_path.iterdir())


def test_layout_is_saelens_own(tmp_path):
    random_sae(5, 7, 0).save(tmp_path, {"hook_name": "h"})
    tensors, config = (
        load_file(tmp_path / "sae_weights.safetensors"),
        json.loads((tmp_path / "cfg.json").read_text()),
    )
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "W_enc": (5, 7),
        "b_enc": (7,),
        "W_dec": (7, 5),
        "b_dec": (5,),
    }
    assert (config["architecture"], config["d_in"], config["d_sae"], config["dtype"]) == (
        "standard",
        5,
        7,
        "float32",
    )
    assert (
        config["metadata"]["sae_lens_version"] >= "6.0.0" and config["metadata"]["hook_name"] == "h"
    )


@pytest.mark.parametrize(
    "damage",
    ["shape", "extra", "missing", "architecture", "truncated", "json", "normalised", "reshaped"],
)
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
    elif damage == "reshaped":
        config.write_text(json.dumps(data | {"reshape_activations": "hook_z"}))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        config.write_text("{")
    with pytest.raises(ArtefactError, match=str(tmp_path)):
        SparseAutoencoder.load(tmp_path)


def test_a_folder_whose_encoder_does_not_subtract_b_dec_computes_the_same(tmp_path):
    sae, x = random_sae(5, 7, 0), torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    sae.save(tmp_path, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    with torch.no_grad():
        expected = (x @ sae.W_enc + sae.b_enc).relu()
    assert (expected > 0).any() and sae.b_dec.abs().max() > 0
    torch.testing.assert_close(SparseAutoencoder.load(tmp_path).encode(x), expected)


@pytest.mark.parametrize("architecture, k", [("relu", 0), ("TopK", 4), ("topk", 0)])
def test_an_unknown_architecture_is_refused(architecture, k):
    with pytest.raises(SettingsError, match="expected one of standard, topk, batchtopk, jumprelu"):
        SparseAutoencoder(4, 8, architecture, k)


def test_batchtopk_is_saved_as_what_it_is_for_inference(tmp_path):
    sae = SparseAutoencoder(4, 8, "batchtopk", 2)
    with pytest.raises(SettingsError, match="for_inference"):
        sae.save(tmp_path)
    sae.for_inference()
    sae.save(str(tmp_path))
    assert SparseAutoencoder.load(str(tmp_path)).architecture == "jumprelu"


@pytest.mark.parametrize("width", [1, 3])
def test_activations_of_another_width_are_refused(width):
    with pytest.raises(ValueError, match=rf"has {width} numbers; this autoencoder reads 4"):
        SparseAutoencoder(4, 8).encode(torch.zeros(2, width))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    sae = random_sae(5, 7, 0)
    sae.b_enc.data[3] = float("nan")
    sae.save(tmp_path, {})
    with pytest.raises(ArtefactError, match="b_enc holds NaN or infinity"):
        SparseAutoencoder.load(tmp_path)


def test_another_activation_function_than_relu_is_refused(tmp_path):
    random_sae(5, 7, 0).save(tmp_path, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"activation_fn_str": "topk"}))
    with pytest.raises(ArtefactError, match="activation_fn is 'topk'"):
        load_any(tmp_path)
