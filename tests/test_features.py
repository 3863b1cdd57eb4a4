"""The feature table: every column against a dense computation on a trained run, and known
answers on constructed cases.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sae_lib.features import clamping, firing, weights
from sae_lib.features import feature_table as features
from sae_lib.features import statistics as feature_statistics
from sae_lib.features.statistics import TopExamples, random_keys
from sae_lib.model import activations
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Neurons, activations_of
from sae_lib.sae.directions import random_directions
from sae_lib.settings import FeatureSettings
from suite import stages
from tests.test_training import SyntheticHook


class Tokenizer:
    """As much of a tokeniser as the table asks for."""

    pad_token_id, eos_token_id, bos_token_id = None, 5, None

    def batch_decode(self, ids):
        return [f"t{i[0]}" for i in ids]


SETTINGS = FeatureSettings(top_k=5, context=4, after=2, samples=3)
ROWS = np.random.default_rng(1).choice(
    4096, (300, 32), p=np.arange(4096)[::-1] ** 3.0 / (np.arange(4096) ** 3.0).sum()
)  # some tokens are frequent


def build(dictionary, hook=None, rows=ROWS, tokenizer=None, seed=0, **changes):
    frame, examples = features.build(
        hook or SyntheticHook(),
        dictionary,
        rows,
        tokenizer or Tokenizer(),
        SETTINGS.model_copy(update=changes),
        seed,
    )
    return frame, examples.to_pandas()


# --- against a dense computation ---


@pytest.fixture(scope="module")
def folder(small_run):
    return small_run.path("features")


@pytest.fixture(scope="module")
def table(folder):
    return features.load_features(folder)


@pytest.fixture(scope="module")
def dense(small_run, hook):
    """(rows, activations of neurons, of features, marked positions), all at once."""
    rows = stages.heldout_rows(small_run, small_run.settings.evaluation.tokens)
    x = activations.harvest(hook, rows)
    norm = x.norm(dim=1).reshape(rows.shape)
    marked = norm > 10 * norm[:, 1:].median()
    marked[:, 0] = True
    return rows, x, small_run.get("autoencoder").encode(x), marked.flatten()


def test_counts_and_maxima_are_those_of_all_activations(table, dense):
    frame, (_, _, f, marked) = table[0], dense
    n, alive = (f > 0).sum(0), (f > 0).any(0).numpy()
    assert np.array_equal(frame["feature"], np.arange(f.shape[1])) and alive.sum() > 200
    assert np.array_equal(frame["n_active"], n)
    assert np.allclose(frame["density"], (f > 0).double().mean(0), atol=0, rtol=1e-6)
    assert np.allclose(frame["maximum_all"], f.max(0).values, rtol=1e-4)
    assert np.allclose(frame["maximum"], f[~marked].max(0).values, rtol=1e-4, atol=1e-6)
    assert np.allclose(frame["mean_active"][alive], (f.sum(0) / n)[alive], rtol=1e-4)
    assert np.allclose(frame["marked_share"], (f[marked] > 0).sum(0) / n.clamp_min(1), rtol=1e-4)
    assert (frame["marked_share"] > 0).any() and not (
        frame["maximum"] == frame["maximum_all"]
    ).all()


def test_histograms_and_tenths_divide_the_range(table, dense):
    frame, f = table[0], dense[2]
    for i in frame["feature"][frame["n_active"] > 0][::7]:
        values = f[:, i][f[:, i] > 0].numpy()
        expected = np.histogram(values, 40, (0, values.max()))[0]
        assert np.abs(frame["histogram"][i] - expected).sum() <= 2 and sum(
            frame["histogram"][i]
        ) == len(values)  # a value on an edge may fall either way
        assert frame["tenths"][i] == pytest.approx(
            np.array(frame["histogram"][i]).reshape(10, 4).sum(1) / len(values)
        )


def test_tokens_under_and_before_are_those_of_a_dense_table(table, dense):
    frame, (rows, _, f, marked) = table[0], dense
    ids, seen = rows.reshape(-1).astype(np.int64), ~marked.numpy()
    before = np.roll(ids, 1)
    vocab = ids.max() + 1
    occurrences = np.bincount(ids[seen], minlength=vocab)
    for i in np.flatnonzero(frame["n_active"] > 0)[::7]:
        means = (
            np.bincount(ids[seen], f[seen, i], vocab)
            / np.maximum(occurrences, 1)
            * (occurrences >= 5)
        )
        counts = np.bincount(before[seen], f[seen, i] > 0, vocab)
        for tokens, values, expected in (
            ("top_tokens", "top_token_means", means),
            ("before_tokens", "before_counts", counts),
        ):
            k = min(10, (expected > 0).sum())
            assert len(frame[tokens][i]) == k and np.allclose(
                frame[values][i], np.sort(expected)[::-1][:k], rtol=1e-4
            )
            assert np.allclose(expected[frame[tokens][i]], frame[values][i], rtol=1e-4)
        assert np.array_equal(frame["top_token_counts"][i], occurrences[frame["top_tokens"][i]])


def test_neighbours_by_weight_and_neurons_by_weight_and_correlation(small_run, table, dense):
    frame, (_, x, f, marked) = table[0], dense
    unit = torch.nn.functional.normalize(small_run.get("autoencoder").W_dec, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-1)
    with np.errstate(invalid="ignore"):  # dead features
        correlation = torch.from_numpy(
            np.corrcoef(f[~marked].T, x[~marked].T)[: len(unit), len(unit) :]
        )
    for i in np.flatnonzero(frame["n_active"] > 20)[::7]:
        near, neurons = frame["near_features"][i].copy(), frame["aligned_neurons"][i].copy()
        assert np.allclose(
            frame["near_cosines"][i], cosines[i].topk(10).values, atol=1e-5
        ) and np.allclose(cosines[i, near], frame["near_cosines"][i], atol=1e-5)
        assert np.array_equal(neurons, unit[i].abs().topk(5).indices) and np.allclose(
            frame["aligned_values"][i], unit[i, neurons], atol=1e-6
        )
        assert np.allclose(frame["correlated_values"][i], correlation[i].topk(5).values, atol=1e-4)
        assert np.allclose(
            correlation[i, frame["correlated_neurons"][i]], frame["correlated_values"][i], atol=1e-4
        )


def test_top_examples_are_the_true_top_without_marked_positions(table, dense):
    (frame, examples), (_, _, f, marked) = table, dense
    assert examples[["feature", "tenth", "rank"]].apply(tuple, axis=1).is_monotonic_increasing
    top = examples[examples["tenth"] == -1]
    assert not top["marked"].any()
    allowed = f * ~marked[:, None]
    for i, part in top.groupby("feature"):
        expected = allowed[:, i].topk(10).values
        assert len(part) == (expected > 0).sum() and np.array_equal(
            part["rank"], np.arange(len(part))
        )
        assert part["activation"].to_numpy() == pytest.approx(
            expected[expected > 0].numpy(), rel=1e-4
        )
    first = top[top["rank"] == 0].set_index("feature")
    assert np.array_equal(frame["feature"][frame["top_token"].notna()], first.index)


def test_samples_lie_in_their_tenth_and_fill_it(table, dense):
    (frame, examples), (rows, _, f, marked) = table, dense
    samples = examples[examples["tenth"] >= 0]
    token = samples["row"] * rows.shape[1] + samples["position"]
    assert np.allclose(
        samples["activation"],
        f[token.to_numpy(), samples["feature"].to_numpy()],
        rtol=1e-3,
        atol=1e-5,
    )
    share = samples["activation"] / frame["maximum_all"].to_numpy()[samples["feature"]] * 10
    assert (share > samples["tenth"] - 1e-4).all() and (share <= samples["tenth"] + 1 + 1e-4).all()
    assert np.array_equal(samples["marked"], marked[token.to_numpy()]) and samples["marked"].any()
    assert not samples.duplicated(["feature", "row", "position"]).any()
    counts = np.stack(frame["histogram"]).reshape(-1, 10, 4).sum(2)
    drawn = np.zeros_like(counts)
    np.add.at(drawn, (samples["feature"], samples["tenth"]), 1)
    assert np.array_equal(drawn, np.minimum(counts, 3))


def test_examples_hold_their_text_and_activations(table, dense, small_run):
    (rows, _, f, _), examples, s = dense, table[1], small_run.settings.features
    f = f.reshape(*rows.shape, -1)
    for e in examples.sample(200, random_state=0).itertuples():
        window = slice(max(0, e.position - s.context), e.position + s.after + 1)
        assert (
            np.array_equal(e.token_ids, rows[e.row, window])
            and e.token_ids[e.focus] == e.token_id == rows[e.row, e.position]
        )
        assert e.activations == pytest.approx(
            f[e.row, window, e.feature].numpy(), rel=1e-3, abs=1e-4
        )
        assert e.activations[e.focus] == np.float32(e.activation)


def whole_row(run, name, feature, row):
    """(token ids, activations) of the whole row that an example of the table `name` is in."""
    ids = stages.heldout_rows(run, run.settings.evaluation.tokens)[row].astype(np.int64)
    dictionary, tokens = run.get("dictionary", name), torch.from_numpy(ids)
    x = stages.hook(run).activations(tokens[None])[0].float()
    return ids, activations_of(dictionary, x, torch.tensor([feature]))[:, 0].numpy()


def test_a_whole_row_holds_its_examples(small_run, table, dense):
    e = table[1].iloc[-1]
    ids, acts = whole_row(small_run, "", int(e["feature"]), int(e["row"]))
    assert np.array_equal(ids, dense[0][e["row"]])
    assert acts == pytest.approx(
        dense[2].reshape(*dense[0].shape, -1)[e["row"], :, e["feature"]].numpy(), rel=1e-3, abs=1e-5
    )
    assert acts[e["position"]] == pytest.approx(e["activation"], rel=1e-3)


def test_ablation_takes_out_the_feature_and_nothing_else(small_run, hook, table):
    sae, e = small_run.get("autoencoder"), table[1].iloc[0]
    feature = int(e["feature"])
    ids, acts = whole_row(small_run, "", feature, int(e["row"]))
    ids = torch.from_numpy(ids)
    effect = clamping.ablation_effect(hook, sae, ids, feature)
    assert effect.shape == ids.shape and effect[0] == 0

    def loss(push):
        with hook.replaced(lambda x: x + push):
            return torch.nn.functional.cross_entropy(
                hook.model(ids[None]).logits[0, :-1], ids[1:], reduction="none"
            )

    push = -torch.from_numpy(acts)[:, None] * sae.W_dec[feature]
    assert torch.allclose(effect[1:], loss(push) - loss(0 * push), atol=1e-5)
    silent = (
        torch.from_numpy(acts[:-1]) == 0
    )  # the model has one layer: what is done at a position acts on its own prediction alone
    assert effect[1:][silent].abs().max() < 1e-5 < effect[1:][~silent].abs().max()


def test_the_table_is_made_once(small_run, folder, monkeypatch):
    monkeypatch.setattr(features, "build", lambda *_: pytest.fail("made again"))
    assert small_run.path("features") == folder


# --- the baselines, through the same code ---


def test_random_directions_are_as_rarely_active_as_the_features(small_run, table):
    baseline, _ = small_run.get("features", "random")
    wanted, found = table[0]["density"], baseline["density"]
    assert (
        len(baseline) == len(wanted) and np.abs(found - wanted).max() < 0.02
    )  # thresholds come from the same text: only rounding is between them
    directions = small_run.get("dictionary", "random")
    assert torch.allclose(directions.W_dec.norm(dim=1), torch.ones(len(wanted)))


def test_principal_directions_have_the_densities_from_the_densest_down(small_run, table):
    baseline, examples = small_run.get("features", "principal")
    wanted = np.quantile(table[0]["density"][table[0]["density"] > 0], np.linspace(1, 0, 2 * 64))
    reached = wanted < 0.3  # a direction is active where its z is above zero, at most
    assert (
        np.allclose(baseline["density"][reached], wanted[reached], atol=0.02)
        and reached.sum() > 100
        and (baseline["density"] < wanted + 0.02).all()
    )
    directions = small_run.get("dictionary", "principal")
    e = examples.iloc[0]
    ids, acts = whole_row(small_run, "principal", int(e["feature"]), int(e["row"]))
    assert (
        acts[e["position"]] == pytest.approx(e["activation"], rel=1e-3) and directions.d_sae == 128
    )


def test_neurons_are_nearest_to_none_and_aligned_with_themselves(small_run, hook):
    frame, _ = small_run.get("features", "neurons")
    assert [list(a) for a in frame["aligned_neurons"]] == [[i] for i in range(64)] and all(
        len(n) == 0 for n in frame["near_features"]
    )
    alive = frame["n_active"] > 0
    assert [c[0] for c in frame["correlated_neurons"][alive]] == list(frame["feature"][alive])
    assert all(v[0] == pytest.approx(1, abs=1e-4) for v in frame["correlated_values"][alive])
    effect = clamping.ablation_effect(
        hook, Neurons(64), torch.arange(300, 330), int(frame["density"].argmax())
    )
    assert effect.abs().max() > 0


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_every_architecture_passes(architecture):
    sae = SparseAutoencoder(16, 24, architecture, k=3).requires_grad_(False)
    for parameter in sae.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        )
    if architecture == "jumprelu":
        sae.threshold.abs_()
    frame, examples = build(sae)
    f = sae.encode(activations.harvest(SyntheticHook(), ROWS))
    assert np.array_equal(frame["n_active"], (f > 0).sum(0))
    for e in examples.sample(50, random_state=0).itertuples():
        assert e.activations == pytest.approx(
            f.view(*ROWS.shape, -1)[
                e.row, max(0, e.position - 4) : e.position + 3, e.feature
            ].numpy(),
            abs=1e-4,
        )


# --- how the text is cut, what is marked, what is drawn ---


def directions(n=40, share=0.05):
    x = activations.harvest(SyntheticHook(), ROWS)
    return random_directions(x, n, 1).at_density(x, torch.full((n,), share))


def test_the_table_does_not_depend_on_how_the_text_is_cut(monkeypatch):
    whole, whole_examples = build(Neurons(16))
    for at_once in (1, 7):
        monkeypatch.setattr(firing, "VALUES_AT_ONCE", at_once * 16 * 32)
        monkeypatch.setattr(firing, "ROWS_AT_ONCE", at_once)
        frame, examples = build(Neurons(16))
        for column in frame:
            for a, b in zip(frame[column], whole[column], strict=True):
                assert (
                    np.allclose(a, b, rtol=1e-5, atol=1e-6) if not isinstance(a, str) else a == b
                ), column
        for column in ("feature", "tenth", "rank", "row", "position", "activation"):
            assert np.array_equal(examples[column], whole_examples[column]), column


def test_another_seed_draws_other_samples_and_the_same_top():
    a, b = (build(directions(), seed=seed)[1] for seed in (0, 1))
    top = [e[e["tenth"] == -1] for e in (a, b)]
    assert np.array_equal(top[0]["position"], top[1]["position"])
    assert not np.array_equal(a["position"], b["position"])


def test_every_activation_of_a_tenth_is_drawn_equally_often():
    x = activations.harvest(SyntheticHook(), ROWS)
    dictionary = Neurons(16)
    cell = int((x[:, 0] > 0).sum())
    tenth = np.ceil(10 * x[:, 0].double().numpy() / x[:, 0].max().item()) - 1
    members = np.flatnonzero((x[:, 0] > 0).numpy() & (tenth == 4))
    assert 20 < len(members) < cell
    drawn = []
    for seed in range(400):
        sample = build(dictionary, seed=seed) if seed < 3 else None
        sampler = feature_statistics.TopExamples(1, 3, np.int64)
        number = members.astype(np.int64)
        sampler.update(
            np.zeros_like(number),
            number,
            random_keys(number, np.zeros_like(number), seed),
            np.ones(len(number), np.float32),
        )
        if sample:  # the table's own draw is this one
            e = sample[1][(sample[1]["feature"] == 0) & (sample[1]["tenth"] == 4)]
            assert list(e["row"] * 32 + e["position"]) == list(sampler.best["token"][0])
        drawn.extend(sampler.best["token"][0])
    counts = np.bincount(np.searchsorted(members, drawn), minlength=len(members))
    assert len(drawn) == 1200 and stats.chisquare(counts).pvalue > 1e-3
    thirds = np.array_split(counts, 3)
    assert max(t.mean() for t in thirds) < 1.2 * min(
        t.mean() for t in thirds
    )  # early and late in the text alike


class Sink(SyntheticHook):
    """Token 4095 is an attention sink: its activations are a hundred times as long as the
    others.
    """

    def __init__(self):
        super().__init__()
        self.table[4095] = 100 * self.table.norm(dim=1).median() / 4  # in all 16 neurons alike


def test_sinks_first_tokens_and_padding_are_marked_and_not_on_top():
    rows = np.where(np.random.default_rng(2).random(ROWS.shape) < 0.01, 4095, ROWS)
    rows[:5, 20:] = 77
    padded = Tokenizer()
    padded.pad_token_id = 77
    frame, examples = build(Neurons(16), Sink(), rows, padded)
    marked = (rows == 4095) | (rows == 77)
    marked[:, 0] = True
    assert np.array_equal(examples["marked"], marked[examples["row"], examples["position"]])
    x = activations.harvest(Sink(), rows).numpy()
    keep = ~marked.reshape(-1)
    assert frame["maximum_all"].to_numpy() == pytest.approx(x.max(0)) and frame[
        "maximum"
    ].to_numpy() == pytest.approx(x[keep].max(0))
    assert frame["marked_share"].to_numpy() == pytest.approx((x[~keep] > 0).sum(0) / (x > 0).sum(0))
    assert not any({4095, 77} & set(t) for t in frame["top_tokens"])
    correlation = np.corrcoef(x[keep].clip(0).T, x[keep].T)[
        :16, 16:
    ]  # a neuron is active above zero, and correlated whole
    assert [list(c) for c in frame["correlated_neurons"]] == (-correlation).argsort(1)[
        :, :5
    ].tolist()
    kept, _ = build(Neurons(16), Sink(), rows, padded, keep_marked=True)
    assert np.array_equal(kept["maximum"], kept["maximum_all"]) and all(
        t[0] == 4095 for t in kept["top_tokens"]
    )
    assert np.array_equal(kept["marked_share"], frame["marked_share"])


def test_a_tokeniser_that_pads_with_its_separator_has_no_padding():
    tokenizer = Tokenizer()
    tokenizer.pad_token_id = tokenizer.eos_token_id
    _, examples = build(
        Neurons(16), rows=np.where(np.arange(32) % 4 == 3, 5, ROWS), tokenizer=tokenizer
    )
    assert (examples.loc[examples["marked"], "position"] == 0).all() and (
        examples["position"] % 4 == 3
    ).any()


# --- the parts ---


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=60),
    st.integers(1, 5),
    st.integers(1, 60),
)
def test_top_examples_are_the_true_top_however_they_stream_in(entries, k, at_once):
    top = TopExamples(4, k)
    for i in range(0, len(entries), at_once):
        cell, key = np.array(entries[i : i + at_once]).T
        top.update(
            cell, np.arange(i, i + len(cell)), key.astype(np.float32), -key.astype(np.float32)
        )
    for cell in range(4):
        mine = [
            (-key, i) for i, (c, key) in enumerate(entries) if c == cell
        ]  # of equal keys the earlier one first
        expected = [(-key, i) for key, i in sorted(mine)[:k]] + [(0, -1)] * (k - len(mine))
        found = top.best[cell]
        assert list(zip(found["key"].tolist(), found["token"].tolist(), strict=True)) == expected
        assert np.array_equal(found["value"], -found["key"])


def test_too_many_tokens_are_forgotten_smallest_first(monkeypatch):
    """Of a stream with more pairs than are kept, the largest of each feature survive as long as
    they were large from the start.
    """
    sae_rows, dictionary = np.sort(ROWS, axis=None).reshape(ROWS.shape), Neurons(16)
    exact, _ = build(dictionary)
    monkeypatch.setattr(feature_statistics, "PAIRS", 16 * 400)
    monkeypatch.setattr(feature_statistics, "PAIRS_PER_FEATURE", 1)
    kept: list[int] = []
    largest = feature_statistics.TokenSums._largest
    monkeypatch.setattr(
        feature_statistics.TokenSums,
        "_largest",
        lambda self, k: kept.append(sum(p.nnz for p in self.parts)) or largest(self, k),
    )
    frame, _ = build(dictionary)
    assert len(kept) > 4 and max(kept) < 16 * 400 + 64 * 32 * 16  # memory: the bound and one chunk
    shares = [
        b.sum() / a.sum()
        for a, b in zip(exact["before_counts"], frame["before_counts"], strict=True)
    ]
    assert 0.8 < min(shares) < 1 and max(shares) <= 1
    # sorted text: a token's occurrences lie together, so that nothing is dropped that comes back
    monkeypatch.undo()
    exact, _ = build(dictionary, rows=sae_rows)
    monkeypatch.setattr(feature_statistics, "PAIRS", 16 * 400)
    monkeypatch.setattr(feature_statistics, "PAIRS_PER_FEATURE", 1)
    frame, _ = build(dictionary, rows=sae_rows)
    for a, b in zip(exact["top_token_means"], frame["top_token_means"], strict=True):
        assert np.allclose(a, b, rtol=1e-5)


def test_logit_effects_are_what_a_push_along_the_feature_does(hook):
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(1, 64), dim=1)
    (up, values), (down, _) = weights.logit_effects(hook, direction, 5)
    tokens = torch.tensor([[300, 301, 302]])
    # so far along the feature that the final norm sees it alone; both signs, so that biases cancel
    with torch.no_grad():
        with hook.replaced(lambda x: x + 1e5 * direction):
            forward = hook.model(tokens).logits[0, -1]
        with hook.replaced(lambda x: x - 1e5 * direction):
            backward = hook.model(tokens).logits[0, -1]
    pushed = (forward - backward) / 2
    assert (
        pushed.topk(5).indices.tolist() == up[0].tolist()
        and pushed.topk(5, largest=False).indices.tolist() == down[0].tolist()
    )
    size = (pushed - pushed.mean())[up[0]] / values[0]
    torch.testing.assert_close(
        size, size[:1].expand(5), rtol=1e-3, atol=0
    )  # the same up to the norm's scale
