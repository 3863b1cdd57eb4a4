"""BOS where a model expects it, and activations that are not of text: attention sinks, special
tokens, first positions.
"""

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from sae_lib.features import clamping, evaluation
from sae_lib.model.activations import (
    ActivationBuffer,
    ActivationTable,
    HookPoint,
    harvest_kept,
    leave_out,
)
from sae_lib.model.left_out import of_kept
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Neurons
from sae_lib.sae.initialise import statistics
from sae_lib.sae.recipes import BRICKEN_2023
from sae_lib.settings import CorpusSettings, SAESettings, TokenizerSettings
from sae_lib.text import tokens as tokens_module
from sae_lib.text.corpus import documents
from sae_lib.text.tokenizer import bos_id, separators, special_ids, train_tokenizer
from suite import stages

BOS, SINK = 1, 2  # a special token, and an ordinary one that is 300 times as long
TEXT = ["a cat sat on a mat. " * 30, "one more document, of other words. " * 20]


def planted_rows(sinks: int) -> np.ndarray:
    """Rows of ordinary tokens, `sinks` of them replaced by tokens that are sinks."""
    rows = np.random.default_rng(0).integers(3, 500, (256, 32))
    places = np.random.default_rng(1).choice(rows.size, sinks, replace=False)
    rows.reshape(-1)[places] = SINK
    return rows


def planted_hook(rows: np.ndarray | None = None) -> ActivationTable:
    """A table whose sink is 300 times as long as the others; left out as found on `rows`."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    on = torch.rand(500, 24, generator=generator) < 0.1
    table = (on * torch.rand(500, 24, generator=generator)) @ directions
    table[SINK] = 300 * table.norm(dim=1).median() * directions[0]
    hook = ActivationTable(table)
    if rows is not None:
        leave_out(hook, rows, [BOS], 10.0)
    return hook


SETTINGS = SAESettings(
    compare=(),
    d_sae=32,
    batch=64,
    activations=600 * 64,
    l1=1.0,
    lr=3e-3,
    resampling=False,
    buffer_rows=64,
)


@pytest.fixture
def llama():
    """A random Llama of two layers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24}
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def test_planted_outliers_leave_the_scale_unchanged():
    rows = planted_rows(20)
    mean, scale = statistics(planted_hook(), planted_rows(0), BRICKEN_2023)
    _, spoiled = statistics(planted_hook(), rows, BRICKEN_2023)
    _, kept = statistics(planted_hook(rows), rows, BRICKEN_2023)
    assert spoiled < scale / 5, "one token in 400 spoils the scale"
    assert kept == pytest.approx(scale, rel=0.02)


def test_planted_outliers_leave_what_a_lambda_gives_unchanged():
    rows, found = planted_rows(20), {}
    for name, text, hook in (
        ("without", planted_rows(0), planted_hook()),
        ("left out", rows, planted_hook(rows)),
        ("spoiled", rows, planted_hook()),
    ):
        sae, summary = training.fit(hook, text, SETTINGS, 0)
        measured, _ = evaluation.density_and_error(planted_hook(), {"": sae}, planted_rows(0))
        found[name] = measured[""] | {"scale": summary["scale"]}
    for measure in ("l0_mean", "fvu", "scale"):
        assert found["left out"][measure] == pytest.approx(found["without"][measure], rel=0.1)
    assert found["spoiled"]["fvu"] > 2 * found["without"]["fvu"]


def test_nothing_left_out_reaches_the_training():
    rows = planted_rows(400)
    rows[:, 5] = BOS
    hook = planted_hook(rows)
    buffer = iter(ActivationBuffer(hook, rows, 64, 64, 0))
    for _ in range(100):
        x = next(buffer)
        assert (x.norm(dim=1) < hook.left_out.max_norm).all()
        assert not (x == hook.table[BOS]).all(1).any()


def test_an_order_without_what_is_left_out_begins_again_at_its_end():
    kept = torch.tensor([True, False, True, True, False])
    assert of_kept(torch.tensor([4, 3, 2, 1, 0]), kept).tolist() == [3, 2, 0, 3, 2]
    whole = torch.tensor([4, 3, 2, 1, 0])
    assert of_kept(whole, torch.ones(5, dtype=torch.bool)).tolist() == whole.tolist()


def test_what_is_left_out_is_counted():
    rows = planted_rows(0)
    rows[:, 0], rows[:, 7], rows[:64, 9] = 3, BOS, SINK
    hook = planted_hook()
    norms = leave_out(hook, rows, [BOS], 10.0)
    shares = {"special": 1 / 32, "long": 1 / 128, "first": 1 / 32}
    assert hook.left_out.shares == pytest.approx(shares) and len(norms) == rows.size
    assert len(harvest_kept(hook, rows)) == rows.size - 256 - 256 - 64


def test_measures_leave_them_out():
    rows = planted_rows(50)
    hook, sae = planted_hook(rows), SparseAutoencoder(16, 8)
    measured, mean = evaluation.density_and_error(hook, {"neurons": Neurons(16), "zero": sae}, rows)
    acts = harvest_kept(hook, rows)
    assert measured["zero"]["tokens"] == len(acts)
    assert measured["zero"]["left_out"] == rows.size - len(acts)
    torch.testing.assert_close(mean, acts.mean(0))
    expected = acts.pow(2).sum() / (acts - acts.mean(0)).pow(2).sum()
    assert measured["zero"]["fvu"] == pytest.approx(expected.item(), rel=1e-4)
    assert measured["neurons"]["l0_mean"] == pytest.approx((acts > 0).sum(1).float().mean().item())


def test_an_ablation_leaves_them_as_they_are(llama):
    hook = HookPoint(llama, "blocks.1.mlp.hook_post", BOS)
    rows = np.random.default_rng(0).integers(3, 50, (4, 12))
    rows[:, 6] = BOS
    dictionaries, mean = {"zero": SparseAutoencoder(24, 8)}, torch.zeros(24)
    everything = evaluation.loss_recovered(hook, dictionaries, rows, mean)["zero"]
    leave_out(hook, rows, [BOS], 100.0)
    some = evaluation.loss_recovered(hook, dictionaries, rows, mean)["zero"]
    ids = torch.from_numpy(rows)
    left = torch.zeros(4, 12, 24)
    left[:, 6] = hook.activations(ids)[:, 6]
    with hook.replaced(lambda x: left):
        logits = hook.logits(ids)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    assert some["ce_zero"] == some["ce_spliced"] == pytest.approx(expected)
    assert some["ce_clean"] == everything["ce_clean"] and some["ce_zero"] != everything["ce_zero"]


def test_bos_goes_before_every_row_and_is_nowhere_in_what_comes_out(llama):
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 50, (3, 10)))
    with_bos = torch.nn.functional.pad(ids, (1, 0), value=BOS)
    hook, plain = (HookPoint(llama, "blocks.1.mlp.hook_post", bos) for bos in (BOS, None))
    assert torch.equal(hook.activations(ids), plain.activations(with_bos)[:, 1:])
    assert torch.equal(hook.logits(ids), llama(input_ids=with_bos).logits[:, 1:])
    seen = []
    with hook.replaced(lambda x: seen.append(x.shape) or torch.zeros_like(x)):
        changed = hook.logits(ids)
    assert seen == [(3, 10, 24)]

    def but_the_first(x):
        return torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1)

    with plain.replaced(but_the_first):
        torch.testing.assert_close(changed, llama(input_ids=with_bos).logits[:, 1:])


def test_losses_and_clamps_with_bos_are_those_of_the_model_with_bos(llama):
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 50, (3, 10)))
    with_bos = torch.nn.functional.pad(ids, (1, 0), value=BOS)
    hook = HookPoint(llama, "blocks.1.mlp.hook_post", BOS)
    losses = clamping.next_token_losses(hook, ids, torch.ones(3, 9, dtype=torch.bool))
    logits = llama(input_ids=with_bos).logits[:, 1:-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(losses.flatten(), expected)
    clean = clamping.HeldoutPositions(hook, ids.numpy(), 5).clean
    at = clamping.HeldoutPositions(hook, ids.numpy(), 5).positions
    expected = llama(input_ids=with_bos).logits[:, at + 1].flatten(0, 1).log_softmax(-1)
    torch.testing.assert_close(clean, expected)


@pytest.fixture
def llama_tokenizer():
    """One that puts <s> before every text, as Llama's do."""
    tokenizer = train_tokenizer(TEXT, 300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    backend = tokenizer.backend_tokenizer
    pair = ("<s>", tokenizer.bos_token_id)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[pair])
    return tokenizer


def test_documents_end_with_bos_where_the_model_expects_it(
    llama_tokenizer, tmp_path, monkeypatch, text_folder
):
    plain = train_tokenizer(TEXT, 300)
    assert bos_id(plain) is None and separators(plain) == [plain.eos_token_id]
    between = [llama_tokenizer.eos_token_id, llama_tokenizer.bos_token_id]
    assert bos_id(llama_tokenizer) == between[1] and separators(llama_tokenizer) == between
    assert set(between) <= set(special_ids(llama_tokenizer))
    monkeypatch.setattr(tokens_module, "load_tokenizer", lambda source: llama_tokenizer)
    corpus = CorpusSettings(source=f"files:{text_folder}", train_tokens=4000, heldout_tokens=2000)
    stream = documents(corpus, 0)
    tokens_module.write_tokens(stream, corpus, TokenizerSettings(source="x"), tmp_path)
    made = tokens_module.open_tokens(tmp_path)
    table = made.table["train"]
    for _, document in table.iloc[:-1].iterrows():
        end = document["first_token"] + document["tokens"]
        assert made.train[end - 2 : end].tolist() == between
        where = made.locate("train", end - 1)
        assert where.start == where.end == document["characters"]


def test_the_settings_leave_nothing_out_unless_they_say_so():
    assert SAESettings().outlier_norm is None and planted_hook().left_out is None
    given = stages.training_fingerprint(SAESettings())
    assert "outlier_norm" not in given and "tuned_at" not in given
    assert stages.training_fingerprint(SAESettings(outlier_norm=10.0))["outlier_norm"] == 10
