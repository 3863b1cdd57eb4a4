"""Why features fire and what they do: exact splits, planted answers, scores against other
implementations, and the command line.
"""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from scipy.sparse import csc_array
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from sae_lib.errors import ModelError, SettingsError
from sae_lib.features import attribution, circuits, firing
from sae_lib.features.attribution import PARTS, Block
from sae_lib.features.circuits import Counts
from sae_lib.formats import signed
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from suite import __main__
from suite import circuits as found_circuits
from suite import why as why_module

SMALL = dict(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4)


def shaken(model):
    """With random weights everywhere, so that no bias or norm is trivial."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 * noise + (parameter.data.mean() > 0.5)
    return model.eval().requires_grad_(False)


def gpt2(layers: int, activation: str = "relu"):
    config = SMALL | dict(num_hidden_layers=layers, n_inner=32, activation_function=activation)
    config = transformers.GPT2Config(**config, max_position_embeddings=16)
    return shaken(transformers.GPT2LMHeadModel(config))


def llama(layers: int):
    config = SMALL | dict(num_hidden_layers=layers, num_key_value_heads=2, intermediate_size=32)
    return shaken(transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)))


def random_sae(d_in: int, d_sae: int = 20) -> SparseAutoencoder:
    torch.manual_seed(2)
    sae = SparseAutoencoder(d_in, d_sae).requires_grad_(False)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape)
    return sae


ROWS = np.random.default_rng(0).integers(40, size=(6, 12))
PLACES = torch.from_numpy(np.stack(np.indices((6, 12, 20)).reshape(3, -1)))


@pytest.mark.parametrize(
    "model", [gpt2(1), gpt2(2), gpt2(1, "gelu_new"), llama(1), llama(2)], ids="12g12"
)
def test_the_parts_add_up_in_every_kind_of_block(model):
    layer = model.config.num_hidden_layers - 1
    hook, sae = HookPoint(model, f"blocks.{layer}.mlp.hook_post"), random_sae(32)
    block = Block(hook, sae)
    split = block.split(block.forward(ROWS), *PLACES)
    assert split.error.max() < 1e-5
    direct = sae.pre_activations(hook.activations(torch.from_numpy(ROWS)))
    torch.testing.assert_close(split.total, direct[*PLACES], atol=1e-3, rtol=1e-4)
    carried = split.neurons.sum(1) + (sae.b_enc - sae.W_enc_T @ sae.b_dec)[PLACES[2]]
    torch.testing.assert_close(carried, direct[*PLACES], atol=1e-3, rtol=1e-4)
    later = torch.arange(12) > PLACES[1][:, None]
    assert split.sources.abs().sum((1, 2))[later].max() == 0, "a token cannot see what follows"
    rotary = layer or not hasattr(model, "transformer")
    assert (split.own[:, attribution.POSITION].abs().max() == 0) == bool(rotary)


@pytest.mark.parametrize("part", ["value_bias", "scale", "gate", "position", "norm"])
def test_a_wrong_part_is_noticed(part):
    block = Block(HookPoint(gpt2(1), "blocks.0.mlp.hook_post"), random_sae(32))
    if part == "value_bias":
        block.value_bias = block.value_bias * 1.01
    if part == "norm":
        block.norm2.weight *= 1.01
    held = block.forward(ROWS)
    if part in ("scale", "gate"):
        getattr(held, part)[0, 3] *= 1.01
    if part == "position":
        held.streams[attribution.POSITION, :, 5] = 0
    assert block.split(held, *PLACES).error.max() > 1e-5


def test_a_models_own_kind_of_attention_is_back_after_a_pass():
    model = gpt2(1)
    usual = model.config._attn_implementation
    Block(HookPoint(model, "blocks.0.mlp.hook_post"), random_sae(32)).forward(ROWS)
    assert model.config._attn_implementation == usual != "eager"


def planted() -> Block:
    """Head 0 looks at the token before and copies which it is; neuron and feature j read that."""
    config = transformers.GPT2Config(
        vocab_size=4,
        n_positions=6,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_inner=4,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    base, block = model.transformer, model.transformer.h[0]
    for module in (base.wte, base.wpe, block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc):
        module.weight.zero_()
    tokens, positions, copied = range(4), range(4, 10), range(10, 14)
    base.wte.weight[:, tokens] = torch.eye(4)
    base.wpe.weight[:, positions] = torch.eye(6)
    W = block.attn.c_attn.weight  # queries, keys and values of two heads of 8
    for p in range(6):
        W[positions[p], p] = 30.0
        if p < 5:
            W[positions[p], 16 + p + 1] = 30.0
    for token, out in zip(tokens, copied, strict=True):
        W[token, 32 + token] = 5.0
        block.attn.c_proj.weight[token, out] = 1.0
        block.mlp.c_fc.weight[out, token] = 1.0
    sae = SparseAutoencoder(4, 4).requires_grad_(False)
    sae.W_enc_T.copy_(torch.eye(4))
    return Block(HookPoint(model, "blocks.0.mlp.hook_post"), sae)


def planted_places(block: Block):
    rows = np.random.default_rng(3).integers(4, size=(200, 6))
    table = firing.firing_tables(block.hook, {"": block.sae}, rows)[""]
    places = attribution.draw_places(table, 6, 0, 500)
    return rows, places[places["position"] > 0]


def test_a_planted_bigram_head_is_found():
    block = planted()
    rows, places = planted_places(block)
    before = rows[places["row"], places["position"] - 1]
    assert len(places) > 100 and (places["feature"] == before).all()
    split = block.split(block.forward(rows), *attribution.place_numbers(places))
    by_head = split.sources.sum(1)
    assert by_head[:, 1].abs().max() == 0
    assert (by_head[:, 0].argmax(1).numpy() == places["position"]).sum() == 0
    assert (by_head[:, 0].argmax(1).numpy() == places["position"] - 1).all()
    paths = attribution.path_table(block, rows, places)
    assert (paths["previous"] > 0.9 * paths[PARTS].sum(axis=1)).all()
    kinds = attribution.feature_kinds(paths)
    assert kinds["kind"].tolist() == ["bigram"] * 4


def test_replacing_the_planted_source_ends_the_firing_and_another_does_not():
    block = planted()
    rows, places = planted_places(block)
    moved = attribution.replaced_sources(block, rows, places)
    assert len(moved) == (places["position"] > 1).sum()
    one = attribution.replaced_sources(block, rows, places[places["position"] > 1][:1])
    assert one.shape == (1, 5) and one["actual_top"][0] < 0
    assert np.allclose(moved["predicted_other"], 0, atol=1e-3)
    assert np.allclose(moved["actual_other"], 0, atol=1e-3)
    assert (moved["actual_top"] <= -0.9 * moved["activation"]).all()
    assert (moved["predicted_top"] <= -0.9 * moved["activation"]).all()


def test_places_are_drawn_evenly_or_from_each_feature():
    table = csc_array(np.array([[1.0, 0, 2], [0, 0, 3], [4, 0, 0], [5, 0, 6]]))
    every = attribution.draw_places(table, 2, 0, 99)
    assert every.to_numpy().tolist() == [
        [0, 0, 0],
        [0, 0, 2],
        [0, 1, 2],
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 2],
    ]
    assert len(attribution.draw_places(table, 2, 0, 4)) == 4
    each = attribution.draw_places(table, 2, 0, 2, [2, 0, 1])
    assert each["feature"].value_counts().to_dict() == {0: 2, 2: 2}


def test_kinds_of_features_by_their_shares():
    rows = [
        ("token", 9.5, 0, 0.5, 0, 0),
        ("bigram", 5, 4.5, 0, 0, 0.5),
        ("position", 4, 0, 0, 6, 0),
        ("induction-like", 6, 0, 3, 0, 1),
        ("wider context", 5, 0, 1, 0, 4),
        ("none", 1, 0, 0, 0, -2),
    ]
    paths = pd.DataFrame([row[1:] for row in rows for _ in range(2)], columns=PARTS)
    paths = paths.assign(feature=np.repeat(range(6), 2), repeats_null=0.0, biases=-1, activation=1)
    kinds = attribution.feature_kinds(paths)
    assert kinds["kind"].tolist() == [row[0] for row in rows]
    assert kinds["own"][0] == 0.95 and np.isnan(kinds["own"][5])


def test_agreement_against_other_implementations():
    rng = np.random.default_rng(4)
    ids, vocab = rng.integers(8, size=300), 8
    f = np.maximum(rng.standard_normal((300, 3)) + (ids == 2)[:, None], 0)
    f[:, 2] = 0
    predicted = rng.standard_normal((vocab, 3))
    found = circuits.agreement(predicted, circuits.count_by_token(csc_array(f), ids, vocab))
    means = pd.DataFrame(f).groupby(ids).mean().to_numpy()
    for unit in range(2):
        auroc = roc_auc_score(f[:, unit] > 0, predicted[ids, unit])
        assert found["auroc"][unit] == pytest.approx(auroc)
        expected = spearmanr(predicted[:, unit], means[:, unit]).statistic
        assert found["spearman"][unit] == pytest.approx(expected)
    assert np.isnan(found["auroc"][2]) and np.isnan(found["spearman"][2])


def test_nobody_is_its_own_shuffled_partner():
    for n in (2, 3, 100):
        other = circuits.others(n, 0)
        assert (other != np.arange(n)).all() and sorted(other) == list(range(n))


def test_a_card_with_a_known_answer():
    own = Counts(np.array([4, 4, 2]), np.array([[3.0], [0], [1]]), np.zeros((3, 1)))
    after = Counts(np.array([2, 2, 6]), np.array([[2.0], [1], [1]]), np.zeros((3, 1)))
    effects = np.array([[5.0], [-1], [0]])
    card = circuits.cards({"fires": (effects, own), "follows": (effects, after)}, raised=1).loc[0]
    assert card["raises"] == [0] and card["fires_on"] == [0, 2, 1] and card["fires_on_share"] == 1
    assert card["followed"] == 0.5 and card["base"] == 0.2 and card["lift"] == 2.5


def test_where_nothing_but_the_token_matters_the_weights_predict_the_activation():
    model = gpt2(1)
    model.transformer.h[0].attn.c_proj.weight.zero_()
    model.transformer.wpe.weight[1:] = model.transformer.wpe.weight[0]
    hook, sae = HookPoint(model, "blocks.0.mlp.hook_post"), random_sae(32)
    predicted = circuits.predicted_firing(Block(hook, sae), torch.arange(20))
    direct = sae.pre_activations(hook.activations(torch.from_numpy(ROWS)))
    assert np.allclose(predicted[ROWS], direct, atol=1e-3)


def test_small_ablations_and_clamps_do_what_the_direct_effects_say():
    hook, sae = HookPoint(gpt2(1), "blocks.0.mlp.hook_post"), random_sae(32)
    sae.W_dec *= 1e-3
    table = firing.firing_tables(hook, {"": sae}, ROWS)[""]
    places = attribution.draw_places(table, 12, 0, 4, range(20))
    for some, several in ((places, True), (places.drop_duplicates("feature"), False)):
        found = circuits.measured_agreement(hook, sae, ROWS, some, 0)
        assert found["feature"].tolist() == sorted(set(places["feature"]))
        assert found["ablated"].median() > 0.8 and abs(found["ablated_shuffled"].median()) < 0.3
        if several:  # of one place, the largest value is the one that is there
            assert found["clamped"].median() > 0.8 and abs(found["clamped_shuffled"].median()) < 0.3


@pytest.fixture(scope="module")
def results(small_run):
    return small_run.results("circuits")


def test_the_stage_writes_results(small_run, results):
    tables = small_run.get("circuits")
    assert results["firings"]["error"] < 1e-5
    assert results["kinds"]["n"] == len(tables["kinds"])
    assert sum(results["kinds"]["share"].values()) == pytest.approx(1)
    assert sum(results["firings"]["together"].values()) == pytest.approx(1, abs=1e-4)
    cards = results["cards"]["selected"]
    assert [card["rank"] for card in cards] == list(range(1, len(cards) + 1))
    scores = [card["score"] for card in cards]
    assert scores == sorted(scores, reverse=True)
    assert all(len(card["raises"]) == circuits.RAISED for card in cards)
    assert set(results["weights"]) == {"feature", "neuron", "random", "shuffled"}


def test_the_comparison_is_said_each_way():
    def of(share: float) -> dict:
        part = {"explained": share, "interval": [share - 0.05, share + 0.05]}
        return {"fires": part, "follows": part}

    said = found_circuits.compared({"feature": of(0.5), "neuron": of(0.7), "random": of(0.2)})
    assert "50.0 % of the features, 70.0 % of the neurons (more) and 20.0 % of the" in said
    assert "random directions (fewer)" in said
    near = found_circuits.compared({kind: of(0.5) for kind in ("feature", "neuron", "random")})
    assert near.count("(not clearly different)") == 4


TEXT = "def __init__(self, name):\n    return name"


def test_why_explains_the_strongest_place_or_a_given_one(small_run, hook):
    sae, tokenizer = small_run.get("autoencoder"), small_run.get("tokens").tokenizer
    ids = torch.tensor([tokenizer.encode(TEXT)])
    z = sae.pre_activations(hook.activations(ids)[0])
    feature = z.amax(0).argmax().item()
    found = why_module.firing(small_run, feature, TEXT)
    assert found.position == z[:, feature].argmax() and found.fires
    parts = found.parts.set_index("part")["adds"]
    push, biases, total = parts[why_module.SUMS]
    assert total == pytest.approx(z[found.position, feature].item(), rel=1e-4)
    assert parts.drop(why_module.SUMS).sum() == pytest.approx(push, rel=1e-4)
    shares = found.parts["share"].dropna()
    assert shares.iloc[-1] == 1 and shares[:-1].sum() == pytest.approx(1, abs=1e-4)
    assert biases == pytest.approx(total - push, abs=1e-5)
    assert why_module.firing(small_run, feature, TEXT, -1).position == ids.shape[1] - 1
    printed = why_module.why(small_run, feature, TEXT, 0)
    assert "token 0, `def`" in printed and "biases" in printed and "neuron " in printed
    fig = why_module.figure(found, feature)
    assert len(fig.data[0].x) == len(found.parts) - 1
    most = parts.drop(why_module.SUMS).max()
    assert fig.layout.title.text.endswith(f"({signed(most)})")


def test_why_refuses_what_it_cannot_explain(small_run, capsys, monkeypatch):
    with pytest.raises(SettingsError, match="the text has 1 token.*from 0 to 0"):
        why_module.firing(small_run, 0, "a", 7)
    with pytest.raises(SettingsError, match="feature 999999 does not exist"):
        why_module.firing(small_run, 999999, TEXT)
    with pytest.raises(ModelError, match="the model's context is"):
        why_module.firing(small_run, 0, "word and word " * 200)
    resid = HookPoint(small_run.get("language_model"), "blocks.0.hook_resid_post")
    with pytest.raises(ModelError, match="mlp.hook_post"):
        Block(resid, small_run.get("autoencoder"))
    arguments = ["why", "--profile", "smoke", "--run", str(small_run.folder / "nothing"), "a"]
    monkeypatch.setattr(sys, "argv", ["suite", *arguments, "--feature", "x"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
