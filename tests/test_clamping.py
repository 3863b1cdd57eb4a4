"""Clamping: known answers, equal random numbers, and a null of the same norm."""

import pytest
import torch

from sae_lib import clamping, training
from sae_lib.clamping import Clamp
from sae_lib.dictionaries import activations_of
from sae_lib.errors import ModelError, SettingsError
from sae_lib.tokens import open_tokens

PROMPT = "def __init__(self, name):\n    return "


@pytest.fixture(scope="module")
def sae(small_run):
    return training.load_autoencoder(small_run)


@pytest.fixture(scope="module")
def tokenizer(small_run):
    return open_tokens(small_run).tokenizer


@pytest.fixture(scope="module")
def tokens(small_run, hook):
    return torch.from_numpy(open_tokens(small_run).rows("heldout", 32)[:3].astype("int64")).to(hook.device)


@pytest.fixture(scope="module")
def strong(hook, sae, tokens) -> list[int]:
    """The features most active on `tokens`."""
    return sae.encode(hook.activations(tokens)).amax((0, 1)).argsort(descending=True).tolist()


def logits(hook, tokens):
    with torch.no_grad():
        return hook.model(input_ids=tokens, use_cache=False).logits


def test_ablating_equals_zeroing_the_features_activation_column(hook, sae, tokens, strong):
    f = sae.encode(hook.activations(tokens))
    without = f.clone()
    without[..., strong[0]] = 0
    with clamping.clamped(hook, sae, [Clamp(strong[0], "ablate")]), hook.capture() as seen:
        logits(hook, tokens)
    expected = hook.activations(tokens) - sae.decode(f) + sae.decode(without)
    assert (f[..., strong[0]] > 0).any()
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    with clamping.clamped(hook, sae, [Clamp(strong[0], "ablate")], keep_error=False), hook.capture() as seen:
        logits(hook, tokens)
    torch.testing.assert_close(seen[0], sae.decode(without), atol=1e-5, rtol=1e-5)


def test_scale_one_and_pinning_to_its_own_value_change_nothing_bit_for_bit(hook, sae, tokens, strong):
    clean = logits(hook, tokens)
    with clamping.clamped(hook, sae, [Clamp(i, "scale", 1.0) for i in strong[:3]]):
        assert torch.equal(logits(hook, tokens), clean)
    own = activations_of(sae, hook.activations(tokens[:1])[0], torch.tensor([strong[0]]))[:, 0]
    place = own.argmax().item()
    with clamping.clamped(hook, sae, [Clamp(strong[0], "pin", own[place].item(), (place,))]):
        assert torch.equal(logits(hook, tokens[:1]), clean[:1])
    with clamping.clamped(hook, sae, [Clamp(strong[0], "pin", own[place].item())]):
        assert not torch.equal(logits(hook, tokens[:1]), clean[:1])


def test_a_pinned_feature_has_the_value_at_the_chosen_positions_only(hook, sae, tokens, strong):
    x = hook.activations(tokens)
    moved = clamping.clamp_activations(x, sae, [Clamp(strong[0], "pin", 3.0, (2, -1)), Clamp(strong[1], "scale", 2.0)])
    direct = x.clone()
    f = sae.encode(x)
    for position in range(x.shape[1]):
        direct[:, position] += f[:, position, strong[1], None] * sae.W_dec[strong[1]]
        if position in (2, x.shape[1] - 1):
            direct[:, position] += (3.0 - f[:, position, strong[0], None]) * sae.W_dec[strong[0]]
    torch.testing.assert_close(moved, direct, atol=1e-5, rtol=1e-5)


def test_dropping_the_error_without_a_clamp_splices_the_reconstruction(hook, sae, tokens):
    with hook.replaced(lambda x: sae.decode(sae.encode(x))):
        spliced = logits(hook, tokens)
    with clamping.clamped(hook, sae, [], keep_error=False):
        torch.testing.assert_close(logits(hook, tokens), spliced)
    with clamping.clamped(hook, sae, []):
        assert torch.equal(logits(hook, tokens), logits(hook, tokens))


def test_kl_and_movers_against_a_direct_computation(hook, sae, tokenizer, strong):
    clamps = [Clamp(strong[0], "pin", 8.0)]
    found = clamping.next_tokens(hook, tokenizer, sae, PROMPT, clamps, k=5)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    p = logits(hook, ids)[0, -1].softmax(-1)
    with hook.replaced(lambda x: x + (8.0 - sae.encode(x)[..., strong[0], None]) * sae.W_dec[strong[0]]):
        q = logits(hook, ids)[0, -1].softmax(-1)
    assert found.kl == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-3) and found.kl > 1e-3
    torch.testing.assert_close(found.before, p, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.after, q, atol=1e-6, rtol=1e-4)
    table = found.table
    assert set(p.topk(5).indices.tolist()) == set(table.query("rank_before < 5").token_id)
    assert set(q.topk(5).indices.tolist()) == set(table.query("rank_after < 5").token_id)
    assert table.token_id[0] == (q - p).abs().argmax() and table.change[0] == pytest.approx((q - p)[table.token_id[0]].item(), rel=1e-3)


def test_kl_is_zero_exactly_when_nothing_changes(hook, sae, tokenizer, strong):
    assert clamping.next_tokens(hook, tokenizer, sae, PROMPT, [Clamp(strong[0], "scale", 1.0)]).kl == 0
    assert clamping.next_tokens(hook, tokenizer, sae, PROMPT, [Clamp(strong[0], "pin", 0.5)]).kl > 0


def test_the_same_seed_without_a_change_gives_the_same_text(hook, sae, tokenizer, strong):
    plain, same, length = clamping.side_by_side(hook, tokenizer, sae, PROMPT, [Clamp(strong[0], "scale", 1.0)], 12, 0.8, seed=3)
    assert torch.equal(plain, same) and length == len(tokenizer(PROMPT)["input_ids"]) and length < len(plain) <= length + 12
    again, other, _ = clamping.side_by_side(hook, tokenizer, sae, PROMPT, [Clamp(strong[0], "pin", 30.0)], 12, 0.8, seed=3)
    assert torch.equal(plain, again) and not torch.equal(plain, other) and torch.equal(plain[:length], other[:length])
    assert not torch.equal(plain, clamping.side_by_side(hook, tokenizer, sae, PROMPT, [], 12, 0.8, seed=4)[0])


def test_sampling_follows_the_distribution(hook, tokenizer, sae):
    """2000 first tokens against the model's own probabilities, at two temperatures; at temperature 0 always the most probable."""
    ids = clamping.encode(hook, tokenizer, PROMPT)
    for temperature in (1.0, 0.5):
        p = (logits(hook, ids)[0, -1] / temperature).softmax(-1)
        top = p.argmax()
        drawn = [clamping._continue(hook, ids, None, 1, temperature, seed)[-1] for seed in range(1000)]
        share = sum(t == top for t in drawn) / 1000
        assert abs(share - p[top]) < 4 * (p[top] * (1 - p[top]) / 1000) ** 0.5
    assert clamping._continue(hook, ids, None, 1, 0.0, 9)[-1] == logits(hook, ids)[0, -1].argmax()


BAD = [
    (SettingsError, "feature 256 does not exist: .* 0 to 255", dict(clamps=[Clamp(256)])),
    (SettingsError, "feature -1 ", dict(clamps=[Clamp(-1)])),
    (SettingsError, "twice", dict(clamps=[Clamp(3), Clamp(3, "ablate")])),
    (SettingsError, "finite", dict(clamps=[Clamp(3, "pin", float("nan"))])),
    (SettingsError, "position 99", dict(clamps=[Clamp(3, positions=(99,))])),
    (SettingsError, "empty", dict(prompt="")),
    (ModelError, "context is 64", dict(prompt="word " * 200)),
]


@pytest.mark.parametrize("error, said, bad", BAD)
def test_what_cannot_be_clamped_is_named(hook, sae, tokenizer, error, said, bad):
    given = dict(prompt=PROMPT, clamps=[Clamp(3)]) | bad
    with pytest.raises(error, match=said):
        clamping.next_tokens(hook, tokenizer, sae, **given)
    with pytest.raises(error, match=said):
        clamping.side_by_side(hook, tokenizer, sae, **given, new_tokens=3, temperature=0.8, seed=0)
