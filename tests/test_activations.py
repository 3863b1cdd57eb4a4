"""Hook points against TransformerLens, the shuffled buffer, single tokens, generation."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from sae_lib.errors import CorpusError, ModelError, SettingsError
from sae_lib.features.clamping import ClampTarget
from sae_lib.model import activations, generation, language_model
from sae_lib.model.activations import ActivationBuffer, ActivationTable, HookPoint
from sae_lib.settings import LanguageModelSettings
from sae_lib.text.tokenizer import exact_encoder, token_ids
from sae_lib.text.tokens import load_tokenizer
from suite import prompts, stages
from suite.browser.kernel import Model
from tests.conftest import SHARED


def bridge_of(model, folder, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TransformerBridge.boot_transformers(
        str(folder),
        device="cpu",
        hf_model=language_model.open_model(str(folder)),
        tokenizer=tokenizer,
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_hooks_are_those_of_transformer_lens(architecture, small_run, tmp_path):
    tokenizer = small_run.get("tokens").tokenizer
    s = LanguageModelSettings(
        architecture=architecture, n_layer=2, d_model=16, n_heads=2, d_mlp=24, context=12
    )
    torch.manual_seed(0)
    model = language_model.build(s, len(tokenizer), tokenizer.eos_token_id).eval()
    bridge = bridge_of(model, tmp_path, tokenizer)
    tokens = torch.randint(len(tokenizer), (2, 12))
    for name in activations.HOOKS[architecture]:
        hook_name = f"blocks.1.{name}"
        _, cache = bridge.run_with_cache(tokens, names_filter=hook_name)
        torch.testing.assert_close(
            HookPoint(model, hook_name).activations(tokens), cache[hook_name], rtol=1e-4, atol=1e-5
        )


@pytest.mark.skipif(
    not (SHARED / "models/stories260K").exists(), reason="the development model is not here"
)
def test_a_trained_llama_folder_goes_through_the_same_path():
    folder = str(SHARED / "models/stories260K")
    model, tokenizer = language_model.open_model(folder).eval(), load_tokenizer(folder)
    hook = HookPoint(model, "blocks.4.mlp.hook_post")
    bridge = TransformerBridge.boot_transformers(
        folder, device="cpu", hf_model=language_model.open_model(folder), tokenizer=tokenizer
    )
    tokens = torch.tensor(
        [
            tokenizer("Once upon a time there was a little girl", add_special_tokens=False)[
                "input_ids"
            ]
        ]
    )
    _, cache = bridge.run_with_cache(tokens, names_filter=hook.name)
    torch.testing.assert_close(hook.activations(tokens), cache[hook.name], rtol=1e-3, atol=1e-4)


def test_the_forward_pass_stops_at_the_hook(hook):
    calls = []
    handle = hook.model.get_output_embeddings().register_forward_hook(
        lambda *_: calls.append("head")
    )
    down = hook.module.register_forward_hook(lambda *_: calls.append("down projection"))
    hook.activations(torch.zeros(1, 4, dtype=torch.int64))
    handle.remove(), down.remove()
    assert calls == []


def test_replacing_by_the_same_changes_nothing_and_by_zero_something(hook):
    tokens = torch.arange(12)[None] + 300
    clean = hook.model(tokens).logits
    with hook.replaced(lambda x: x.clone()):
        same = hook.model(tokens).logits
    with hook.replaced(torch.zeros_like):
        other = hook.model(tokens).logits
    assert torch.equal(clean, same) and not torch.allclose(clean, other)
    assert torch.equal(hook.model(tokens).logits, clean), "the hook must be gone afterwards"


def test_an_unknown_hook_name_lists_near_ones(hook):
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.hook_pots.*blocks\.0\.mlp\.hook_post"):
        HookPoint(hook.model, "blocks.0.mlp.hook_pots")
    with pytest.raises(ModelError, match="1 layer"):
        HookPoint(hook.model, "blocks.1.mlp.hook_post")


def batches(hook, rows, start, n, batch=50):
    return [
        b.clone()
        for b in itertools.islice(iter(ActivationBuffer(hook, rows, batch, 8, 0, start)), n)
    ]


def test_the_buffer_hands_out_all_positions_once_per_chunk(small_run, hook):
    rows = small_run.get("tokens").rows("train", 25)[:8]
    out = torch.cat(batches(hook, rows, 0, 4))
    everything = activations.harvest(hook, rows)
    assert out.shape == everything.shape
    order = lambda x: x[np.lexsort(x.numpy().T)]  # noqa: E731
    torch.testing.assert_close(order(out), order(everything))
    assert not torch.allclose(out, everything), "the positions must be shuffled"


def test_the_buffer_goes_on_where_it_stopped(small_run, hook):
    rows = small_run.get("tokens").rows("train", 25)[:40]
    whole = batches(hook, rows, 0, 30)
    for start in (3, 4, 21):
        for a, b in zip(whole[start:], batches(hook, rows, start, 30 - start), strict=True):
            assert torch.equal(a, b)


def test_too_few_tokens_for_a_batch(small_run, hook):
    with pytest.raises(CorpusError, match="sae.batch"):
        ActivationBuffer(hook, small_run.get("tokens").rows("train", 10)[:3], 31, 8, 0)


def test_the_activations_of_a_token(small_run, hook):
    tokenizer = small_run.get("tokens").tokenizer
    text = "import json\n\ndef load(path):\n    return json"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    everything = hook.activations(torch.tensor([ids]))[0]
    shown, vector = generation.of_token(hook, tokenizer, text, 3)
    assert shown == tokenizer.decode([ids[3]]) and torch.equal(vector, everything[3])
    by_name = generation.of_token(hook, tokenizer, text, shown)
    assert by_name[0].strip() == shown.strip()
    with pytest.raises(ModelError, match="nothere"):
        generation.of_token(hook, tokenizer, text, "nothere")


def test_a_special_token_in_a_text_is_ordinary_text_everywhere(small_run, hook, monkeypatch):
    """Where a person's text becomes tokens: single tokens, generation, clamping, the browser's
    own text.
    """
    tokenizer, text = small_run.get("tokens").tokenizer, "a <|endoftext|> b"
    expected = exact_encoder(tokenizer).encode(text, add_special_tokens=False).ids
    assert tokenizer.eos_token_id not in expected == token_ids(tokenizer, text)
    for i, token in enumerate(expected):
        assert generation.of_token(hook, tokenizer, text, i)[0] == tokenizer.decode([token])
    ids, _, length = prompts.generate(hook, tokenizer, text, 1, 1.0, 0)
    assert ids[:length].tolist() == expected
    target = ClampTarget(hook, small_run.get("autoencoder"), tokenizer)
    assert target.encode(text)[0].tolist() == expected
    assert Model(small_run, "").encoded(text) == (expected, 0)
    with pytest.raises(SettingsError, match="lone surrogate at character 1"):
        generation.of_token(hook, tokenizer, "a\ud800", 0)


def test_generation_comes_with_its_activations(small_run, hook):
    tokenizer = small_run.get("tokens").tokenizer
    ids, acts, prompt = prompts.generate(hook, tokenizer, "def f(", 8, 0.8, seed=1)
    assert tokenizer.decode(ids[:prompt]) == "def f(" and len(ids) == prompt + 8 == len(acts)
    torch.testing.assert_close(acts, hook.activations(ids[None])[0])
    again, _, _ = prompts.generate(hook, tokenizer, "def f(", 8, 0.8, seed=1)
    assert torch.equal(ids, again)
    with pytest.raises(ModelError, match="context"):
        prompts.generate(hook, tokenizer, "x = 1\n" * 200, 8, 0.8, seed=1)


def test_the_prompt_corpus_is_aligned(small_run):
    from suite import prompts

    folder = small_run.path("prompts")
    texts, tokens, acts = prompts.load_prompt_corpus(folder)
    hook = stages.hook(small_run)
    assert len(tokens) == len(acts) == texts["tokens"].sum()
    part = tokens[tokens["prompt"] == 1]
    expected = hook.activations(torch.tensor([part["token_id"].tolist()]))[0]
    torch.testing.assert_close(torch.from_numpy(np.array(acts[part.index])), expected)
    summary = prompts.summary(folder)
    assert summary["prompt"]["tokens"] + summary["generated"]["tokens"] == len(tokens)
    assert texts["text"][1].startswith(small_run.settings.prompts.prompts[1])


def test_dropout_in_training_mode_is_refused(small_run):
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).train()
    with pytest.raises(ModelError, match=r"call model.eval\(\)"):
        HookPoint(model, "blocks.0.mlp.hook_post")
    HookPoint(model.eval(), "blocks.0.mlp.hook_post")


def test_a_table_gives_all_of_its_activations_as_rows():
    table = ActivationTable(torch.arange(14.0).reshape(7, 2))
    assert table.rows(3).tolist() == [[0, 1, 2], [3, 4, 5]] and table.rows().shape == (1, 7)
    with pytest.raises(ModelError, match="NaN"):
        ActivationTable(torch.tensor([[1.0, float("nan")]]))
