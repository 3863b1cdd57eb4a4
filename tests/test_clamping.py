"""Clamping: known answers, equal random numbers, nulls of the same norm, and the command line."""

import sys

import pandas as pd
import pytest
import torch

from sae_lib.errors import ModelError, SettingsError
from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp, ClampTarget, NextTokens
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Directions, activations_of
from sae_lib.settings import LanguageModelSettings
from sae_lib.text.display import Vocabulary
from suite import __main__, clamping_views, stages

PROMPT = "def __init__(self, name):\n    return "


@pytest.fixture(scope="module")
def sae(small_run):
    return small_run.get("autoencoder")


@pytest.fixture(scope="module")
def tokenizer(small_run):
    return small_run.get("tokens").tokenizer


@pytest.fixture(scope="module")
def tokens(small_run, hook):
    return torch.from_numpy(small_run.get("tokens").rows("heldout", 32)[:3].astype("int64")).to(
        hook.device
    )


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
    seen = []
    with clamping.clamped(hook, sae, [Clamp(strong[0], "ablate")]), hook.replaced(seen.append):
        logits(hook, tokens)
    expected = hook.activations(tokens) - sae.decode(f) + sae.decode(without)
    assert (f[..., strong[0]] > 0).any()
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    with (
        clamping.clamped(hook, sae, [Clamp(strong[0], "ablate")], keep_error=False),
        hook.replaced(seen.append),
    ):
        logits(hook, tokens)
    torch.testing.assert_close(seen[1], sae.decode(without), atol=1e-5, rtol=1e-5)


def test_scale_one_and_pinning_to_its_own_value_change_nothing_bit_for_bit(
    hook, sae, tokens, strong
):
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
    moved = clamping.clamp_activations(
        x, sae, [Clamp(strong[0], "pin", 3.0, (2, -1)), Clamp(strong[1], "scale", 2.0)]
    )
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
    found = ClampTarget(hook, sae, tokenizer).next_tokens(PROMPT, clamps, k=5)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    p = logits(hook, ids)[0, -1].softmax(-1)
    with hook.replaced(
        lambda x: x + (8.0 - sae.encode(x)[..., strong[0], None]) * sae.W_dec[strong[0]]
    ):
        q = logits(hook, ids)[0, -1].softmax(-1)
    assert found.kl == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-3) and found.kl > 1e-3
    torch.testing.assert_close(found.before, p, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.after, q, atol=1e-6, rtol=1e-4)
    table = found.table
    largest = [values.topk(5).indices.tolist() for values in (p, q, (q - p).abs())]
    assert set(table.token_id) == set().union(*largest)
    assert table.token_id[0] == (q - p).abs().argmax() and table.change[0] == pytest.approx(
        (q - p)[table.token_id[0]].item(), rel=1e-3
    )


def test_kl_is_zero_exactly_when_nothing_changes(hook, sae, tokenizer, strong):
    assert (
        ClampTarget(hook, sae, tokenizer).next_tokens(PROMPT, [Clamp(strong[0], "scale", 1.0)]).kl
        == 0
    )
    assert (
        ClampTarget(hook, sae, tokenizer).next_tokens(PROMPT, [Clamp(strong[0], "pin", 0.5)]).kl > 0
    )


def test_the_same_seed_without_a_change_gives_the_same_text(hook, sae, tokenizer, strong):
    plain, same, length = ClampTarget(hook, sae, tokenizer).side_by_side(
        PROMPT, [Clamp(strong[0], "scale", 1.0)], 12, 0.8, seed=3
    )
    assert (
        torch.equal(plain, same)
        and length == len(tokenizer(PROMPT)["input_ids"])
        and length < len(plain) <= length + 12
    )
    again, other, _ = ClampTarget(hook, sae, tokenizer).side_by_side(
        PROMPT, [Clamp(strong[0], "pin", 30.0)], 12, 0.8, seed=3
    )
    assert (
        torch.equal(plain, again)
        and not torch.equal(plain, other)
        and torch.equal(plain[:length], other[:length])
    )
    assert not torch.equal(
        plain, ClampTarget(hook, sae, tokenizer).side_by_side(PROMPT, [], 12, 0.8, seed=4)[0]
    )


def test_sampling_follows_the_distribution(hook, tokenizer, sae):
    """First tokens drawn with many seeds against the model's own probabilities, at two
    temperatures; at temperature 0 the most probable.
    """
    target = ClampTarget(hook, sae, tokenizer)
    ids = target.encode(PROMPT)

    def sampled(temperature, seed):
        return target.side_by_side(PROMPT, [], 1, temperature, seed)[0][-1]

    for temperature in (1.0, 0.5):
        p = (logits(hook, ids)[0, -1] / temperature).softmax(-1)
        top = p.argmax()
        drawn = [sampled(temperature, seed) for seed in range(400)]
        share = sum(t == top for t in drawn) / 400
        assert abs(share - p[top]) < 4 * (p[top] * (1 - p[top]) / 400) ** 0.5
    assert sampled(0.0, 9) == logits(hook, ids)[0, -1].argmax()


BAD = [
    (SettingsError, "feature 256 does not exist: .* 0 to 255", dict(clamps=[Clamp(256)])),
    (SettingsError, "feature -1 ", dict(clamps=[Clamp(-1)])),
    (SettingsError, "twice", dict(clamps=[Clamp(3), Clamp(3, "ablate")])),
    (SettingsError, "found the value nan", dict(clamps=[Clamp(3, "pin", float("nan"))])),
    (SettingsError, "position 99", dict(clamps=[Clamp(3, positions=(99,))])),
    (SettingsError, "empty", dict(prompt="")),
    (ModelError, "context is 64", dict(prompt="word " * 200)),
]


@pytest.mark.parametrize("error, said, bad", BAD)
def test_what_cannot_be_clamped_is_named(hook, sae, tokenizer, error, said, bad):
    given = dict(prompt=PROMPT, clamps=[Clamp(3)]) | bad
    with pytest.raises(error, match=said):
        ClampTarget(hook, sae, tokenizer).next_tokens(**given)
    with pytest.raises(error, match=said):
        ClampTarget(hook, sae, tokenizer).side_by_side(
            **given, new_tokens=3, temperature=0.8, seed=0
        )


@pytest.fixture(params=["float32", "bfloat16"])
def llama(request, tokenizer):
    """(hook in its last MLP, autoencoder) of a small Llama in either precision, all of it
    random.
    """
    torch.manual_seed(0)
    settings = LanguageModelSettings(
        architecture="llama", n_layer=2, d_model=32, n_heads=2, d_mlp=48, context=40
    )
    model = (
        language_model.build(settings, len(tokenizer), tokenizer.eos_token_id)
        .eval()
        .to(getattr(torch, request.param))
    )
    sae = SparseAutoencoder(48, 24)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return HookPoint(model, "blocks.1.mlp.hook_post"), sae.requires_grad_(False)


def test_a_llamas_hook_in_either_precision(llama, tokenizer):
    hook, sae = llama
    ids = ClampTarget(hook, sae, tokenizer).encode("import os")
    x = hook.activations(ids)
    seen = []
    with clamping.clamped(hook, sae, [Clamp(3, "pin", 2.0)]), hook.replaced(seen.append):
        logits(hook, ids)
    expected = x.float() + (2.0 - sae.encode(x.float())[..., 3, None]) * sae.W_dec[3]
    torch.testing.assert_close(seen[0], expected.to(x.dtype))
    assert (
        ClampTarget(hook, sae, tokenizer).next_tokens("import os", [Clamp(3, "scale", 1.0)]).kl == 0
    )
    assert (
        ClampTarget(hook, sae, tokenizer)
        .next_tokens("import os", [Clamp(3, "pin", 9.0)], keep_error=False)
        .kl
        > 0
    )
    plain, same, _ = ClampTarget(hook, sae, tokenizer).side_by_side(
        "import os", [Clamp(3, "scale", 1.0)], 6, 1.0, 0
    )
    assert (
        torch.equal(plain, same)
        and ClampTarget(hook, sae, tokenizer).side_by_side("import os", [], 100, 1.0, 0)[0].shape[0]
        <= 40
    )


@pytest.fixture(scope="module")
def rows(small_run):
    return small_run.get("tokens").rows("heldout", 64)


@pytest.fixture(scope="module")
def positions(hook, rows):
    return clamping.HeldoutPositions(hook, rows[:4], per_row=8)


@pytest.fixture(scope="module")
def context(small_run, hook, sae, tokenizer, positions, strong):
    """The strongest feature has the top-logit tokens 7 and 8; the next four are the other living
    ones.
    """
    table = pd.DataFrame({"top_logits": [[7, 8]] * sae.d_sae, "n_active": 0})
    table.loc[strong[:5], "n_active"] = clamping.ALIVE
    vocabulary = Vocabulary(tokenizer)
    return clamping.ClampContext(hook, sae, tokenizer, vocabulary, table, positions)


def test_the_effect_at_positions_against_a_direct_computation(hook, sae, rows, strong):
    positions = clamping.HeldoutPositions(hook, rows[:2], per_row=2)
    effect = positions.effect(sae, [Clamp(strong[0], "pin", 6.0)])
    tokens = torch.from_numpy(rows[:2].astype("int64"))
    p = logits(hook, tokens)[:, [31, 63]].double().softmax(-1).flatten(0, 1)
    with clamping.clamped(hook, sae, [Clamp(strong[0], "pin", 6.0)]):
        q = logits(hook, tokens)[:, [31, 63]].double().softmax(-1).flatten(0, 1)
    assert len(positions) == 4 and effect.kl == pytest.approx(
        (p * (p / q).log()).sum(-1).mean().item(), rel=1e-4
    )
    torch.testing.assert_close(effect.before.double(), p.mean(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(effect.after.double(), q.mean(0), atol=1e-6, rtol=1e-4)


def test_no_change_has_no_effect_and_the_smallest_ones_are_not_negative(positions, sae, strong):
    assert positions.effect(sae, [Clamp(strong[0], "scale", 1.0)]).kl == 0
    tiny = [
        positions.effect(sae, [Clamp(strong[0], "scale", 1 + e)]).kl for e in (1e-4, 1e-3, 1e-2)
    ]
    assert 0 <= tiny[0] < tiny[1] < tiny[2] < 1e-4
    assert positions.effect_of_zero().kl > tiny[2]


def test_what_a_feature_is_held_against_has_its_norm(context, sae, strong, monkeypatch):
    feature, others, written = strong[0], strong[1:5], []
    effect = clamping.HeldoutPositions.effect

    def spy(self, dictionary, clamps, directions):
        written.append(directions)
        assert clamps == [Clamp(feature, "pin", clamps[0].value)]
        return effect(self, dictionary, clamps, directions=directions)

    monkeypatch.setattr(clamping.HeldoutPositions, "effect", spy)
    sweep = clamping.value_sweep(context, feature, [0.0, 5.0], draws=3, seed=1)
    own, drawn = [w for w in written if w is None], torch.cat([w for w in written if w is not None])
    assert len(own) == 2 and len(drawn) == 12
    torch.testing.assert_close(drawn.norm(dim=1), sae.W_dec[feature].norm().expand(12))
    cosines = torch.nn.functional.cosine_similarity(drawn[6:, None], sae.W_dec[None], dim=-1)
    assert set(cosines.argmax(1).tolist()) < set(others) and (cosines.amax(1) > 0.9999).all()
    assert (
        torch.nn.functional.cosine_similarity(drawn[:6], sae.W_dec[feature], dim=-1).abs() < 0.9
    ).all()
    assert sweep.groupby("direction").size().to_dict() == {
        "feature": 2,
        "random directions": 6,
        "other features": 6,
    }


def test_a_sweep_and_its_spread(context, positions, sae, strong):
    sweep = clamping.value_sweep(context, strong[0], [1.0, 5.0], draws=3)
    direct = positions.effect(sae, [Clamp(strong[0], "pin", 5.0)])
    own = sweep.query("direction == 'feature' and value == 5").iloc[0]
    assert own.kl == pytest.approx(direct.kl) and own.probability == pytest.approx(
        direct.after[[7, 8]].sum().item(), rel=1e-5
    )
    assert own.change == pytest.approx(
        (direct.after - direct.before)[[7, 8]].sum().item(), rel=1e-3
    )
    spread = clamping.spread(sweep).set_index(["direction", "value"])
    kl = sweep.query("direction == 'random directions' and value == 5").kl
    found = spread.loc["random directions", 5.0]
    assert (found.kl, found.kl_least, found.kl_most) == pytest.approx(
        (kl.mean(), kl.min(), kl.max())
    )
    assert clamping.value_sweep(context, strong[0], [5.0], draws=3).equals(
        sweep[sweep.value == 5].reset_index(drop=True)
    )


def test_every_direction_of_a_sweep_is_measured_on_its_own_tokens(context, sae, strong):
    sweep = clamping.value_sweep(context, strong[0], [5.0], draws=1)
    found = sweep.query("direction == 'random directions'").iloc[0]
    norm = sae.W_dec[strong[0]].norm()
    direction = clamping.random_directions(sae.W_dec, 1, 0).W_dec * norm
    effect = context.positions.effect(sae, [Clamp(strong[0], "pin", 5.0)], directions=direction)
    own = clamping.top_logits(context.hook, direction, 2)[0]
    assert set(own) != {7, 8} and found.change == pytest.approx(
        (effect.after - effect.before)[own].sum().item(), rel=1e-3
    )


@pytest.fixture(scope="module")
def constructed(hook):
    """Three directions with a known effect: 0 raises one token's logit as far as its norm can, 1
    lies in the null space of the down projection and changes nothing, 2 is the first one turned
    around.
    """
    final, weight = hook.model.base_model.ln_f, hook.module.weight
    unembedding = hook.model.get_output_embeddings().weight
    pushes = (final.weight * (unembedding - unembedding.mean(0))) @ weight.T
    top = clamping.top_logits(hook, pushes, 1)
    push = pushes[next(token for token, of in enumerate(top) if of == [token])]
    nothing = torch.linalg.svd(weight.T).Vh[-1]
    sae = SparseAutoencoder(len(push), 3).requires_grad_(False)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.stack([push, nothing, -push])))
    return sae


def test_ranks_of_constructed_directions(constructed, positions, monkeypatch):
    maxima = {feature: 3.0 for feature in range(3)}
    ranks = clamping.clamp_ranks(positions, constructed, maxima, seed=0, k=3).set_index("feature")
    assert ranks["p"][0] == 1 / 20 and ranks["rank"][0] == 1
    assert ranks["gained"][1] == pytest.approx(0, abs=1e-6)
    again = clamping.clamp_ranks(positions, constructed, {0: 3.0}, seed=0, k=3)
    assert again.iloc[0].tolist() == ranks.reset_index().iloc[0].tolist()  # its own draws
    # against 19 times the first direction
    push = Directions(constructed.W_dec[[0] * clamping.RANK_DRAWS], torch.zeros(1))
    monkeypatch.setattr(clamping, "random_directions", lambda *_: push)
    ranks = clamping.clamp_ranks(positions, constructed, maxima, seed=0, k=3).set_index("feature")
    assert ranks["p"][0] == 1 and ranks["rank"][0] == 0.5  # ties
    # what changes nothing loses against all, which are measured on tokens of their own
    assert ranks["p"][1] == 1 and ranks["rank"][1] == 0
    assert ranks["null"].tolist() == pytest.approx([ranks["gained"][0]] * 3)


def test_probability_gained_against_a_direct_computation(positions, sae, strong):
    clamps = [Clamp(strong[0], "pin", 6.0)]
    effect = positions.effect(sae, clamps)
    expected = (effect.after - effect.before)[[3, 50, 9]].sum().item()
    assert positions.gained([3, 50, 9], sae, clamps) == pytest.approx(expected, rel=1e-3)


def ranked(p: list[float]) -> dict:
    ranks = pd.DataFrame({"p": p, "gained": 0.01, "null": 0.02, "rank": 0.5})
    return clamping.rank_summary(ranks, 0)


def test_the_summary_of_ranks_has_a_verdict_each_way():
    half = ranked([0.05] * 10 + [1.0] * 10)
    assert half["share"] == 0.5 and half["verdict"] == "more than by chance"
    assert half["interval"] == pytest.approx([0.2993, 0.7007], abs=1e-4)  # Wilson's
    uniform = ranked([(i + 1) / 20 for i in range(20)] * 5)
    assert uniform["share"] == 0.05 and uniform["verdict"] == "not distinguishable from chance"
    assert uniform["median_p"] == pytest.approx(0.525)
    low, high = uniform["median_p_interval"]
    assert low < 0.525 < high
    assert ranked([0.1] * 200)["verdict"] == "fewer than by chance"
    assert "50.0 % (95 % interval 29.9 % to 70.1 %)" in clamping.ranks_sentence(half)


def test_the_drawn_features_are_alive_and_have_their_maxima(context, sae, strong):
    context.table["maximum"] = context.table.index + 0.5
    found = clamping.drawn_maxima(context, 3, seed=0)
    assert len(found) == 3 and set(found) < set(strong[:5])
    assert all(maximum == feature + 0.5 for feature, maximum in found.items())
    assert clamping.drawn_maxima(context, 3, seed=0) == found


def test_ablation_against_a_direct_computation(hook, sae, rows):
    rows, tokens = rows[:40], torch.from_numpy(rows[:40].astype("int64"))
    f = sae.encode(hook.activations(tokens))[:, :-1]
    alive, dead = f.amax((0, 1)).argmax().item(), (f.amax((0, 1)) == 0).nonzero()
    features = [alive, *dead[:1, 0].tolist()]
    found = clamping.ablation_losses(hook, sae, rows, features, at_most=len(rows)).set_index(
        "feature"
    )
    assert found.index.tolist() == [alive]

    def losses():
        return torch.nn.functional.cross_entropy(
            logits(hook, tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
        )

    clean = losses()
    with clamping.clamped(hook, sae, [Clamp(alive, "ablate")]):
        change = (losses() - clean)[f[..., alive] > 0]
    row = found.loc[alive]
    assert row.n_active == len(change) == row.n_silent or row.n_silent < row.n_active
    assert (
        row.active == pytest.approx(change.mean().item(), abs=1e-5)
        and row.low <= row.active <= row.high
    )
    assert row.hurt == pytest.approx((change > 0).float().mean().item(), abs=0.02)
    assert row.silent_most == 0  # behind the last attention, what is silent stays as it was
    assert row.null_least <= row.null <= row.null_most and row.null != row.active


def test_clear_features_come_from_the_largest_pushes():
    table = pd.DataFrame(
        {
            "n_active": [500] * 40 + [5],
            "maximum": [1.0] * 40 + [9.0],
            "top_logit_values": [[float(i), 0.0] for i in range(41)],
        }
    )
    drawn = clamping.clear_features(table, 3, seed=0)
    assert (
        len(set(drawn)) == 3
        and set(drawn) <= {36, 37, 38, 39}
        and drawn == clamping.clear_features(table, 3, seed=0)
    )
    assert (
        clamping.clear_features(table[-1:], 3, seed=0) == [40]
        and clamping.clear_features(table.assign(n_active=0), 3, seed=0) == []
    )


def test_a_features_record_holds_what_the_report_quotes(small_run):
    here = stages.clamp_context(small_run)
    feature = clamping.clear_features(here.table, 1, 0)[0]
    found = clamping.against_null(here, feature, draws=2, seed=0)
    own = clamping.value_sweep(here, feature, [here.maximum(feature)]).iloc[0]
    assert found["kl"] == pytest.approx(own.kl) and found["probability_after"] - found[
        "probability_before"
    ] == pytest.approx(own.change, rel=1e-3)
    assert set(found["nulls"]) == set(clamping.NULLS)
    assert found["beyond_nulls"] == all(
        own.change > null["change"][2] for null in found["nulls"].values()
    )
    assert all(
        least <= mean <= most
        for null in found["nulls"].values()
        for mean, least, most in null.values()
    )
    html = clamping_views.table("null", [found | {"chosen": "<script>"}]).data
    assert "&lt;script&gt;" in html and "<script>" not in html


def test_generated_text_is_data(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer("<script>alert(1)</script>\n\x1b[31m é \u202e")["input_ids"]
    html = clamping_views.side_by_side_html(
        vocabulary, {"<b>a</b>": (ids, ids[:3] + ids[:2], 1)}
    ).data
    assert "<script" not in html and "&lt;" in html and "<b>a" not in html
    text = clamping_views.visible_text(vocabulary, ids)
    assert "\x1b" not in text and "\u202e" not in text and "é" in text and text.count("\n") == 1


@pytest.fixture
def cli(monkeypatch, capsys, small_run, small_overrides):
    def call(*arguments):
        sets = [part for o in small_overrides for part in ("--set", o)]
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "suite",
                "clamp",
                "--profile",
                "smoke",
                "--run",
                str(small_run.folder),
                *sets,
                *arguments,
            ],
        )
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def test_the_command_prints_next_tokens_kl_and_both_texts(cli, hook, sae, tokenizer, strong):
    feature = strong[0]
    status, out, _ = cli("--feature", str(feature), "--value", "8", "--new-tokens", "5", PROMPT)
    found = ClampTarget(hook, sae, tokenizer).next_tokens(PROMPT, [Clamp(feature, "pin", 8.0)])
    assert status == 0 and f"feature {feature} pinned to 8 at every position" in out
    assert (
        f"KL(before ‖ after) {found.kl:.3g}"[:24] in out
        and f"{100 * found.table.before[0]:.2f} %" in out
    )
    assert "without the clamp:" in out and "with it:" in out and "seed 0" in out
    status, out, _ = cli(
        "--feature", str(feature), "--value", "1", "--how", "scale", "--new-tokens", "5", PROMPT
    )
    assert status == 0 and "KL(before ‖ after) 0 nats" in out and "no token differs" in out
    status, out, _ = cli(
        "--feature",
        str(feature),
        "--feature",
        str(strong[1]),
        "--how",
        "ablate",
        "--drop-error",
        "--new-tokens",
        "0",
        "--position",
        "-1",
        PROMPT,
    )
    assert (
        status == 0
        and f"feature {strong[1]} ablated at position -1" in out
        and "error dropped" in out
        and "with it" not in out
    )


WRONG = {
    "unknown feature": (["--feature", "256", "--value", "1", PROMPT], "0 to 255"),
    "empty prompt": (["--feature", "3", "--value", "1", ""], "the prompt has 0 characters"),
    "too long": (["--feature", "3", "--value", "1", "word " * 200], "context is 64"),
    "no value": (["--feature", "3", PROMPT], "--value"),
    "too many values": (["--feature", "3", "--value", "1", "--value", "2", PROMPT], "--value"),
    "a value to ablate": (
        ["--feature", "3", "--value", "1", "--how", "ablate", PROMPT],
        "takes no value",
    ),
    "not finite": (["--feature", "3", "--value", "inf", PROMPT], "--value"),
    "no such way": (["--feature", "3", "--value", "1", "--how", "push", PROMPT], "pin"),
    "no such position": (
        ["--feature", "3", "--value", "1", "--position", "70", PROMPT],
        "position 70",
    ),
    "no feature": (["--value", "1", PROMPT], "--feature"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_commands_errors_are_clear_and_exit_with_2(case, cli):
    arguments, named = WRONG[case]
    status, out, err = cli(*arguments)
    assert status == 2 and named in err and "Traceback" not in err and "KL" not in out


def test_the_figure_of_next_tokens_shows_both_sides(small_run):
    table = pd.DataFrame({"token_id": [3, 5], "before": [0.8, 0.1], "after": [0.3, 0.6]})
    vocabulary = Vocabulary(small_run.get("tokens").tokenizer)
    found = {"feature 1": NextTokens(0.5, torch.zeros(6), torch.zeros(6), table)}
    fig = clamping_views.next_tokens_figure(vocabulary, found)
    assert "by 0.5 to 0.5 nats" in fig.layout.title.text
    assert {t.name: list(t.x) for t in fig.data} == {"before": [0.8, 0.1], "after": [0.3, 0.6]}
