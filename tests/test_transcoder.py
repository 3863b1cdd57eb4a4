"""Transcoders: gradients, the loop, splicing, graphs that sum up, their format, and the study."""

import numpy as np
import pytest
import torch

from sae_lib.errors import ArtefactError, ModelError, SettingsError
from sae_lib.features import evaluation, logit_graph
from sae_lib.features.attribution import POSITION, Block
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine import active_pairs, sparse_step
from sae_lib.sae.objective import Objective, errors, loss
from sae_lib.sae.recipes import RECIPES
from sae_lib.sae.transcoder import MLPPair, Transcoder
from sae_lib.settings import SAESettings
from suite import __main__, stages, sweep, transcoders
from tests.test_circuits import ROWS, gpt2, llama


def random_transcoder(d_in=24, d_sae=40, architecture="standard", skip=False, k=0):
    generator = torch.Generator().manual_seed(3)
    made = Transcoder(d_in, d_sae, architecture, k, skip)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator)
    return made


def exact_transcoder(model) -> Transcoder:
    """GPT-2's own MLP as a transcoder: every neuron is a feature."""
    mlp = model.transformer.h[-1].mlp
    made = Transcoder(24, 32, "standard").requires_grad_(False)
    made.W_enc_T.copy_(mlp.c_fc.weight.T)
    made.b_enc.copy_(mlp.c_fc.bias)
    made.W_dec.copy_(mlp.c_proj.weight)
    made.b_dec.copy_(mlp.c_proj.bias)
    return made


def hook_of(model) -> HookPoint:
    layer = model.config.num_hidden_layers - 1
    return HookPoint(model, f"blocks.{layer}.mlp.hook_post")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "batchtopk", "jumprelu"])
def test_sparse_gradients_are_those_of_autograd(monkeypatch, architecture, skip):
    k = 3 if architecture == "batchtopk" else 0
    made = random_transcoder(6, 30, architecture, skip, k)
    if architecture == "jumprelu":
        made.threshold.data.abs_()
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(4))
    penalty = {"standard": "l1", "batchtopk": "none", "jumprelu": "l0"}[architecture]
    objective = Objective(1.0, 0.5, penalty, 0.6, aux=0.7 if k else 0.0)
    dead = torch.arange(0, 30, 3) if k else None
    loss(made, x, objective, dead)[0].backward()
    expected = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    assert ("W_skip" in expected) == skip
    made.zero_grad(set_to_none=True)
    monkeypatch.setattr(sparse_step, "DENSE_ABOVE", 2.0)
    monkeypatch.setattr(active_pairs, "MAX_CANDIDATE_SHARE", 2.0)
    sparse_step.gradients(made, x, objective, dead=dead)
    for name, gradient in expected.items():
        found = dict(made.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("model", [gpt2(1), gpt2(2, "gelu_new"), llama(2)], ids="12l")
def test_a_pair_is_what_goes_into_the_mlp_and_what_comes_out(model):
    pair, hook = MLPPair(hook_of(model)), hook_of(model)
    x, y = harvest(pair, ROWS).chunk(2, 1)
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[-1]
    torch.testing.assert_close(block.mlp(x), y)
    tokens = torch.from_numpy(ROWS)
    with pair.replaced(lambda both: torch.zeros_like(both)):
        without = pair.logits(tokens)
    down = HookPoint(model, hook.name)
    with down.replaced(torch.zeros_like):
        same = down.logits(tokens)
    if model.config.model_type == "llama":  # no bias behind the hook
        torch.testing.assert_close(without, same)
    assert (without - pair.logits(tokens)).abs().max() > 1e-2


def test_the_mlp_itself_as_a_transcoder_recovers_everything():
    model = gpt2(1)
    pair, exact = MLPPair(hook_of(model)), exact_transcoder(model)
    measured, mean = evaluation.density_and_error(pair, {"exact": exact}, ROWS)
    assert measured["exact"]["fvu"] < 1e-9 and mean.shape == (24,)
    losses = evaluation.loss_recovered(pair, {"exact": exact}, ROWS, mean)["exact"]
    assert losses["recovered_zero"] == pytest.approx(1, abs=1e-4)
    assert losses["recovered_mean"] == pytest.approx(1, abs=1e-4)
    assert losses["ce_zero"] != pytest.approx(losses["ce_mean"], abs=1e-3)
    exact.b_enc -= 100
    silent = evaluation.loss_recovered(pair, {"": exact}, ROWS, exact.b_dec)[""]
    assert silent["recovered_mean"] == pytest.approx(0, abs=1e-4)


def fit(skip: bool, **changes) -> tuple[MLPPair, Transcoder, dict]:
    pair = MLPPair(hook_of(gpt2(1)))
    chosen = {"recipe": "skip_transcoder" if skip else "transcoder", "d_sae": 64, "k": 6}
    chosen |= {"activations": 60_000, "batch": 100, "buffer_rows": 50, "dead_window": 5000}
    rows = np.random.default_rng(1).integers(40, size=(400, 12))
    with sweep.also_known(transcoders.OWN):
        settings = SAESettings(**chosen | changes, compare=())
        return pair, *training.fit(pair, rows, settings, 0)


@pytest.mark.parametrize("skip", [False, True])
def test_training_makes_a_transcoder_in_the_models_own_units(skip):
    pair, made, summary = fit(skip)
    assert isinstance(made, Transcoder) and made.architecture == "jumprelu"
    measured = evaluation.density_and_error(pair, {"": made}, ROWS)[0][""]
    assert measured["fvu"] < 0.3 and 4 < measured["l0_mean"] < 8
    assert len(summary["scale"]) == 48 and summary["scale"][0] != summary["scale"][-1]
    x, y = harvest(pair, ROWS).chunk(2, 1)
    of_input, of_output = (part.pow(2).mean().rsqrt().item() for part in (x, y))
    assert summary["scale"][0] == pytest.approx(of_input, rel=0.1)
    assert summary["scale"][-1] == pytest.approx(of_output, rel=0.1)
    assert (made.W_skip is not None and made.W_skip.abs().max() > 0) == skip
    unit = made.W_dec.norm(dim=1) * summary["scale"][-1]
    torch.testing.assert_close(unit, torch.ones(64))


def test_a_transcoder_is_no_recipe_of_a_run():
    assert not set(transcoders.OWN) & set(RECIPES)
    with pytest.raises(SettingsError, match="sae.recipe: 'transcoder' does not exist"):
        training.resolve(SAESettings(recipe="transcoder"))


@pytest.mark.parametrize("name", Transcoder.SAVED_AS)
def test_the_format_is_saelens_own_and_reads_back(tmp_path, name):
    made = random_transcoder(**Transcoder.SAVED_AS[name]).requires_grad_(False)
    made.save(tmp_path, {})
    config = (tmp_path / "cfg.json").read_text()
    assert f'"architecture": "{name}"' in config and '"d_out": 24' in config
    assert '"apply_b_dec_to_input": false' in config
    again, x = Transcoder.load(tmp_path), torch.randn(9, 24)
    assert torch.equal(again(x), made(x)) and torch.equal(again.b_enc, made.b_enc)
    by_hand = made.encode(x) @ made.W_dec + made.b_dec
    by_hand = by_hand if made.W_skip is None else by_hand + x @ made.W_skip.T
    torch.testing.assert_close(made(x), by_hand)
    with pytest.raises(ArtefactError, match="is not supported; expected one of standard"):
        SparseAutoencoder.load(tmp_path)


# --- attribution graphs ---


def graph_of(model, transcoder, ids=ROWS[0], tokens=(3, 7)):
    block = Block(hook_of(model), transcoder)
    return block, logit_graph.logit_graph(block, ids, *tokens)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("model", [gpt2(1), gpt2(2), llama(1), llama(2)], ids="12ab")
def test_edges_sum_to_the_difference_of_the_models_logits(model, skip):
    for ids in ROWS[:3]:
        _, graph = graph_of(model, random_transcoder(skip=skip).requires_grad_(False), ids)
        logits = model(torch.from_numpy(ids[None])).logits[0, -1]
        assert graph.total == pytest.approx((logits[3] - logits[7]).item(), abs=1e-3)
        assert graph.error < 1e-5 and len(graph.features) > 3
        assert (graph.other["skip connection"] != 0) == skip


def test_the_mlp_itself_leaves_no_error_and_its_features_are_sums_of_edges():
    model = gpt2(1)
    exact = exact_transcoder(model)
    block, graph = graph_of(model, exact)
    assert abs(graph.other[logit_graph.ERROR]) < 1e-4
    held = block.forward(ROWS[:1])
    place = torch.zeros_like(graph.features), torch.full_like(graph.features, 11), graph.features
    split = block.split(held, *place)
    elsewhere = split.own[:, POSITION] + split.sources[:, POSITION].sum((1, 2)) + split.biases
    torch.testing.assert_close(
        graph.from_tokens.sum(1) + elsewhere, graph.activations, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("part", ["decoder", "norm", "value_bias"])
def test_a_wrong_edge_is_noticed(part):
    model = gpt2(1)
    block, graph = graph_of(model, exact_transcoder(model))
    if part == "decoder":
        graph = graph._replace(onward=graph.onward * 1.01)
    elif part == "norm":
        block.final_norm.weight[0] *= 1.5
        changed = logit_graph.logit_graph(block, ROWS[0], 3, 7)
        logits = model(torch.from_numpy(ROWS[:1])).logits[0, -1]
        assert abs(changed.total - (logits[3] - logits[7]).item()) > 1e-3
        return
    else:
        block.value_bias = block.value_bias * 1.05
        graph = logit_graph.logit_graph(block, ROWS[0], 3, 7)
    assert graph.error > 1e-5


def test_removed_edges_change_the_logits_as_predicted():
    model = gpt2(1)
    exact = exact_transcoder(model)
    model.transformer.h[0].mlp.c_proj.weight.data *= 1e-3  # so little that the final norm stays
    exact.W_dec *= 1e-3
    block, graph = graph_of(model, exact)
    none = torch.zeros_like(graph.paths, dtype=torch.bool)
    assert logit_graph.change_without(block, ROWS[0], (3, 7), graph, none) == pytest.approx(
        0, abs=1e-4
    )
    for feature, removed in enumerate(torch.eye(len(none), dtype=torch.bool)):
        mask = none | (removed[:, None] & (graph.from_tokens > 0))
        stays = graph.activations[feature] > (graph.from_tokens * mask).sum(1)[feature]
        lost = (graph.from_tokens * mask).sum(1)[feature] if stays else graph.activations[feature]
        predicted = -(lost * graph.onward[feature]).item()
        changed = logit_graph.change_without(block, ROWS[0], (3, 7), graph, mask)
        assert changed == pytest.approx(predicted, abs=1e-3 + 0.1 * abs(predicted))


@pytest.mark.parametrize("model", [gpt2(1), gpt2(2), llama(2)], ids="12l")
def test_an_autoencoder_of_the_neurons_has_a_graph_too(model):
    down = hook_of(model).module
    sae = SparseAutoencoder(getattr(down, "nx", None) or down.in_features, 40)
    for parameter in sae.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(5))
    _, graph = graph_of(model, sae.requires_grad_(False))
    logits = model(torch.from_numpy(ROWS[:1])).logits[0, -1]
    assert graph.total == pytest.approx((logits[3] - logits[7]).item(), abs=1e-3)
    assert graph.error < 1e-5 and len(graph.features) > 3
    wrong = graph._replace(onward=graph.onward * 1.01)
    assert wrong.error > 1e-5


def test_a_graph_needs_the_last_mlp():
    early = Block(HookPoint(gpt2(2), "blocks.0.mlp.hook_post"), random_transcoder())
    with pytest.raises(ModelError, match="needs the model's last MLP"):
        logit_graph.logit_graph(early, ROWS[0], 0, 1)


def test_bos_stands_before_what_is_split_and_ablated():
    model = gpt2(1)
    plain, made = hook_of(model), exact_transcoder(model)
    with_bos = HookPoint(model, plain.name, bos=5)
    padded = np.pad(ROWS, ((0, 0), (1, 0)), constant_values=5)
    place = torch.tensor([[1, 2], [4, 0], [7, 9]])
    block, reference = Block(with_bos, made), Block(plain, made)
    split = block.split(block.forward(ROWS), *place)
    shifted = reference.split(reference.forward(padded), place[0], place[1] + 1, place[2])
    assert split.error.max() < 1e-5
    torch.testing.assert_close(split.total, shifted.total)
    torch.testing.assert_close(split.sources, shifted.sources[..., 1:])
    bos = shifted.sources[..., 0].sum((1, 2))
    torch.testing.assert_close(split.biases, shifted.biases + bos, atol=1e-4, rtol=1e-4)
    graph = logit_graph.logit_graph(block, ROWS[0], 3, 7)
    logits = model(torch.from_numpy(padded[:1])).logits[0, -1]
    assert graph.total == pytest.approx((logits[3] - logits[7]).item(), abs=1e-3)


# --- Matryoshka ---


def test_nested_dictionaries_reconstruct_alone():
    made = random_transcoder(6, 8)
    f, target = torch.rand(5, 8), torch.randn(5, 6)
    found = errors(made, f, target, (2, 4, 8))
    for n, error in zip((2, 4, 8), found, strict=True):
        torch.testing.assert_close(error, target - f[:, :n] @ made.W_dec[:n] - made.b_dec)
    assert RECIPES["matryoshka"].objective(6, 1.0, 64).prefixes == (4, 8, 16, 32, 64)
    assert RECIPES["matryoshka"].objective(6, 1.0, 3).prefixes == (1, 2, 3)
    assert RECIPES["batchtopk"].objective(6, 1.0, 64).prefixes == ()


# --- the study ---


@pytest.fixture(scope="module")
def studied(small_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "SEEDS", (0,))
        patch.setattr(transcoders, "PROMPTS", 6)
        before = transcoders.at_hand(small_run)
        yield before, transcoders.study(small_run)


def test_the_study_measures_both_kinds_and_goes_on(small_run, studied, monkeypatch):
    _, study = studied
    assert [point["contender"] for point in study["points"]] == ["transcoder", "skip_transcoder"]
    for point in study["points"]:
        assert point["graphs"]["error"] < 1e-5 and point["graphs"]["n"] == 6
        assert point["recovered_mean"] < 1 and 5 < point["l0_mean"] < 25
        assert sum(point["graphs"]["shares"].values()) <= 1
    monkeypatch.setattr(sweep, "SEEDS", (0,))
    monkeypatch.setattr(transcoders, "PROMPTS", 6)
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(__main__, "_open", lambda *_: small_run)
    __main__.study("transcoder", profile="smoke")
    assert small_run.load_results("study_transcoder")["points"] == study["points"]


def test_notebook_08_takes_the_studys_transcoder_where_there_is_one(small_run, studied):
    before, _ = studied
    after = transcoders.at_hand(small_run)
    assert not torch.equal(before.W_dec, after.W_dec)
    ids = small_run.get("tokens").rows("heldout", 32)[0].astype(np.int64)
    graph, tokens = transcoders.prompt_graph(small_run, after, ids)
    assert graph.error < 1e-5
    fig = transcoders.figure(graph, [f"t{i}" for i in range(32)], ("a <b>", "c$"))
    shown = [note.text for note in fig.layout.annotations]
    assert any("&lt;b&gt;" in text for text in shown) and "&lt;b&gt;" in fig.layout.title.text
    assert not any("<b>" in text or "$" in text for text in (*shown, fig.layout.title.text))
    assert shown[-3:] == ["tokens", "features", "difference of logits"]
    assert len(fig.data) > 3 and tokens[0] != tokens[1]
