"""The feature table: every column against a dense computation on a trained run, and known answers on constructed cases."""

import numpy as np
import pytest
import torch

from sae_lib import activations, evaluation, features, training
from sae_lib.settings import FeatureSettings
from tests.test_training import SyntheticHook


class Tokenizer:
    """As much of a tokeniser as the table asks for."""

    pad_token_id, eos_token_id = None, 0

    def batch_decode(self, ids):
        return [f"t{i[0]}" for i in ids]


SETTINGS = FeatureSettings(top_k=5, context=4, after=2, samples=3)
ROWS = np.random.default_rng(1).choice(4096, (300, 32), p=np.arange(4096)[::-1] ** 3.0 / (np.arange(4096) ** 3.0).sum())  # some tokens are frequent


def build(dictionary, hook=None, rows=ROWS, tokenizer=None, seed=0, **changes):
    frame, examples = features.build(hook or SyntheticHook(), dictionary, rows, tokenizer or Tokenizer(), SETTINGS.model_copy(update=changes), seed)
    return frame, examples.to_pandas()


# --- against a dense computation ---


@pytest.fixture(scope="module")
def folder(small_run):
    return features.make_features(small_run)


@pytest.fixture(scope="module")
def table(folder):
    return features.load_features(folder)


@pytest.fixture(scope="module")
def dense(small_run, hook):
    """(rows, activations of neurons, of features, marked positions), all at once."""
    rows = evaluation.heldout_rows(small_run, small_run.settings.evaluation.tokens)
    x = activations.harvest(hook, rows)
    norm = x.norm(dim=1).reshape(rows.shape)
    marked = norm > 10 * norm[:, 1:].median()
    marked[:, 0] = True
    return rows, x, training.load_autoencoder(small_run).encode(x), marked.flatten()


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
    assert (frame["marked_share"] > 0).any() and not (frame["maximum"] == frame["maximum_all"]).all()


def test_histograms_and_tenths_divide_the_range(table, dense):
    frame, f = table[0], dense[2]
    for i in frame["feature"][frame["n_active"] > 0][::7]:
        values = f[:, i][f[:, i] > 0].numpy()
        expected = np.histogram(values, 40, (0, values.max()))[0]
        assert np.abs(frame["histogram"][i] - expected).sum() <= 2 and sum(frame["histogram"][i]) == len(values)  # a value on an edge may fall either way
        assert frame["tenths"][i] == pytest.approx(np.array(frame["histogram"][i]).reshape(10, 4).sum(1) / len(values))


def test_tokens_under_and_before_are_those_of_a_dense_table(table, dense):
    frame, (rows, _, f, marked) = table[0], dense
    ids, seen = rows.reshape(-1).astype(np.int64), ~marked.numpy()
    before = np.roll(ids, 1)
    vocab = ids.max() + 1
    occurrences = np.bincount(ids[seen], minlength=vocab)
    for i in np.flatnonzero(frame["n_active"] > 0)[::7]:
        means = np.bincount(ids[seen], f[seen, i], vocab) / np.maximum(occurrences, 1) * (occurrences >= 5)
        counts = np.bincount(before[seen], f[seen, i] > 0, vocab)
        for tokens, values, expected in (("top_tokens", "top_token_means", means), ("before_tokens", "before_counts", counts)):
            k = min(10, (expected > 0).sum())
            assert len(frame[tokens][i]) == k and np.allclose(frame[values][i], np.sort(expected)[::-1][:k], rtol=1e-4)
            assert np.allclose(expected[frame[tokens][i]], frame[values][i], rtol=1e-4)
        assert np.array_equal(frame["top_token_counts"][i], occurrences[frame["top_tokens"][i]])


def test_neighbours_by_weight_and_neurons_by_weight_and_correlation(small_run, table, dense):
    frame, (_, x, f, marked) = table[0], dense
    unit = torch.nn.functional.normalize(training.load_autoencoder(small_run).W_dec, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-1)
    correlation = torch.from_numpy(np.corrcoef(f[~marked].T, x[~marked].T)[: len(unit), len(unit) :])
    for i in np.flatnonzero(frame["n_active"] > 20)[::7]:
        assert np.allclose(frame["near_cosines"][i], cosines[i].topk(10).values, atol=1e-5) and np.allclose(cosines[i, frame["near_features"][i]], frame["near_cosines"][i], atol=1e-5)
        assert np.array_equal(frame["aligned_neurons"][i], unit[i].abs().topk(5).indices) and np.allclose(frame["aligned_values"][i], unit[i, frame["aligned_neurons"][i]], atol=1e-6)
        assert np.allclose(frame["correlated_values"][i], correlation[i].topk(5).values, atol=1e-4)
        assert np.allclose(correlation[i, frame["correlated_neurons"][i]], frame["correlated_values"][i], atol=1e-4)


def test_top_examples_are_the_true_top_without_marked_positions(table, dense):
    (frame, examples), (rows, _, f, marked) = table, dense
    assert examples[["feature", "tenth", "rank"]].apply(tuple, axis=1).is_monotonic_increasing
    top = examples[examples["tenth"] == -1]
    assert not top["marked"].any()
    allowed = f * ~marked[:, None]
    for i, part in top.groupby("feature"):
        expected = allowed[:, i].topk(10).values
        assert len(part) == (expected > 0).sum() and np.array_equal(part["rank"], np.arange(len(part)))
        assert part["activation"].to_numpy() == pytest.approx(expected[expected > 0].numpy(), rel=1e-4)
    first = top[top["rank"] == 0].set_index("feature")
    assert np.array_equal(frame["feature"][frame["top_token"].notna()], first.index)


def test_samples_lie_in_their_tenth_and_fill_it(table, dense):
    (frame, examples), (rows, _, f, marked) = table, dense
    samples = examples[examples["tenth"] >= 0]
    token = samples["row"] * rows.shape[1] + samples["position"]
    assert np.allclose(samples["activation"], f[token.to_numpy(), samples["feature"].to_numpy()], rtol=1e-3, atol=1e-5)
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
        assert np.array_equal(e.token_ids, rows[e.row, window]) and e.token_ids[e.focus] == e.token_id == rows[e.row, e.position]
        assert e.activations == pytest.approx(f[e.row, window, e.feature].numpy(), rel=1e-3, abs=1e-4)
        assert e.activations[e.focus] == np.float32(e.activation)
