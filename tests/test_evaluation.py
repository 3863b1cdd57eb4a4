"""Evaluation and feature table: known answers on constructed cases, and oracles on a trained
run.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from sae_lib.features import baselines, evaluation
from sae_lib.features.agreement import matched_correlation, mmcs
from sae_lib.sae.dictionaries import Directions, Neurons, active, reconstruction
from sae_lib.sae.directions import keep_largest
from suite import stages
from tests.test_sparse_step import random_sae
from tests.test_training import ROWS, SyntheticHook


def test_firing_on_a_case_with_known_answers():
    class Hook(SyntheticHook):
        def activations(self, tokens):
            return torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 4.0], [1.0, 1.0]])[tokens]

    class Halved(Neurons):
        def decode(self, feature_acts):
            return feature_acts / 2

    result = evaluation.density_and_error(Hook(), {"it": Halved(2)}, np.array([[0, 1], [2, 3]]))[0][
        "it"
    ]
    assert result["l0_mean"] == pytest.approx(1.0) and result["density"].tolist() == [0.5, 0.5]
    error, mean = (9 + 16 + 2) / 4, np.array([1.0, 1.25])
    total = sum(((np.array(x) - mean) ** 2).sum() for x in ([3, 0], [0, 0], [0, 4], [1, 1]))
    assert result["fvu"] == pytest.approx(error / total) and result["mse"] == pytest.approx(
        error / 8
    )
    assert result["dead_share"] == 0 and result["alive"] == 0


def test_fvu_does_not_depend_on_a_constant_added_to_the_data():
    class Shifted(SyntheticHook):
        shift = 0.0

        def activations(self, tokens):
            return self.table[tokens] + self.shift

    class Smoothed(Neurons):
        mean = 0.0

        def decode(self, feature_acts):
            return self.mean + 0.9 * (feature_acts - self.mean)

    hook, dictionary = Shifted(), Smoothed(16)
    dictionary.mean = hook.table.mean(0)
    plain = evaluation.density_and_error(hook, {"it": dictionary}, ROWS)[0]["it"]["fvu"]
    hook.shift, dictionary.mean = 10.0, hook.table.mean(0) + 10.0
    assert (
        evaluation.density_and_error(hook, {"it": dictionary}, ROWS)[0]["it"]["fvu"]
        == pytest.approx(plain, rel=1e-3)
        == pytest.approx(0.01, rel=0.02)
    )


def test_sparse_decoding_is_decoding():
    sae = random_sae(16, 64, 0, bias=-4.0)
    x = torch.randn(50, 16)
    torch.testing.assert_close(reconstruction(sae, x), sae(x))


def test_neurons_recover_everything_and_zero_recovers_nothing(small_run, hook):
    rows = stages.heldout_rows(small_run, 1024)
    mean = evaluation.density_and_error(hook, {"it": Neurons(64)}, rows)[1]
    whole = evaluation.loss_recovered(hook, {"it": Neurons(64)}, rows, mean)["it"]
    assert whole["recovered_zero"] == whole["recovered_mean"] == 1.0 and whole[
        "kl"
    ] == pytest.approx(0, abs=1e-6)

    class Nothing(Neurons):
        def decode(self, feature_acts):
            return torch.zeros_like(feature_acts)

    nothing = evaluation.loss_recovered(hook, {"it": Nothing(64)}, rows, mean)["it"]
    assert (
        nothing["recovered_zero"] == pytest.approx(0.0, abs=1e-9)
        and nothing["ce_spliced"] == nothing["ce_zero"] > nothing["ce_clean"]
    )


def test_the_clean_loss_is_the_models_own(small_run, hook):
    rows = stages.heldout_rows(small_run, 1024)
    tokens = torch.from_numpy(rows.astype("int64"))
    expected = hook.model(input_ids=tokens, labels=tokens).loss.item()
    result = evaluation.loss_recovered(hook, {"it": Neurons(64)}, rows, torch.zeros(64))["it"]
    assert result["ce_clean"] == pytest.approx(expected, rel=1e-4)


def test_evaluation_reads_heldout_rows_spread_over_the_split(small_run):
    rows, all_rows = (
        stages.heldout_rows(small_run, 640),
        small_run.get("tokens").rows("heldout", 64),
    )
    assert (
        rows.shape == (10, 64)
        and np.array_equal(rows[0], all_rows[0])
        and np.array_equal(rows[-1], all_rows[-1])
    )


def test_the_stage_measures_every_variant_and_reuses_its_results(small_run, monkeypatch):
    results = small_run.results("evaluation")
    assert list(results) == ["bricken_2023", "neurons"]
    assert results["neurons"]["fvu"] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("measured again"))
    assert small_run.results("evaluation") == results


def both(basis: torch.Tensor) -> torch.Tensor:
    return torch.cat([basis, -basis])


def test_the_strongest_coordinates_are_kept_and_the_others_held_at_the_centre():
    x = torch.tensor([[5.0, 0.0, -3.0], [0.5, 3.0, 1.0]])
    at_zero = keep_largest(Directions(both(torch.eye(3)), torch.zeros(3)), 2, x)
    assert reconstruction(at_zero, x).tolist() == [[5, 0, -3], [0, 3, 1]]
    around = Directions(both(torch.eye(3)), torch.tensor([0.0, 3.0, 1.0]))
    assert reconstruction(keep_largest(around, 1, x), x).tolist() == [[5, 3, 1], [0.5, 3, 1]]
    diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    close = torch.tensor([[-2.0, -2.0]]) + 1e-3
    rotated = keep_largest(Directions(both(diagonal), torch.zeros(2)), 1, close)
    torch.testing.assert_close(reconstruction(rotated, close), close)
    assert torch.bincount(active(at_zero, x).row).tolist() == [2, 2], "both senses count"


def test_baselines_at_equal_l0_have_that_many_coordinates_and_components_explain_most():
    hook, chosen = SyntheticHook(), ROWS[:40]
    found = baselines.at_equal_l0(hook, ROWS, 3.2)
    fired = evaluation.density_and_error(hook, found, chosen)[0]
    assert [b.k for b in found.values()] == [4, 4, 4]
    zero, mean, principal = fired.values()
    assert principal["l0_mean"] == pytest.approx(4, abs=0.05)
    assert principal["fvu"] < mean["fvu"] < zero["fvu"] < 1


def test_ngram_losses_are_those_counted_by_hand():
    train = np.array([[0, 1, 0, 1], [0, 2, 2, 2]])
    rows = np.array([[0, 1, 2]])
    found = baselines.ngram_losses(train, rows)
    # one added to each of 3, 2 and 3 occurrences
    unigram = np.array([4, 3, 4]) / 11
    assert found["unigram"] == pytest.approx(-np.log(unigram[[1, 2]]).mean())
    # 0 is followed by 1, 1, 2 (n 3, T 2); 1 by 0 (n 1, T 1), never by 2
    bigram = [(2 + 2 * unigram[1]) / 5, (0 + 1 * unigram[2]) / 2]
    assert found["bigram"] == pytest.approx(-np.log(bigram).mean())
    unseen = baselines.ngram_losses(train, np.array([[3, 1]]))  # 3 has no followers
    assert unseen["bigram"] == unseen["unigram"] == pytest.approx(-math.log(3 / 12))


def test_bigrams_are_probabilities():
    train = np.random.default_rng(0).integers(0, 5, (20, 30))
    for token in range(5):
        rows = np.array([[token, after] for after in range(5)])
        each = [baselines.ngram_losses(train, row[None])["bigram"] for row in rows]
        assert np.exp(-np.array(each)).sum() == pytest.approx(1)


class Halved(Neurons):
    def decode(self, feature_acts):
        return feature_acts / 2


def test_intervals_are_those_of_documents(small_run, hook):
    """The interval holds the value; with all rows in two equal documents it has no width; the
    leader is not behind itself.
    """
    rows, dictionaries = (
        stages.heldout_rows(small_run, 1024),
        {"it": Halved(64), "all": Neurons(64)},
    )
    mean = evaluation.density_and_error(hook, {"it": Neurons(64)}, rows)[1]
    found = evaluation.loss_recovered(hook, dictionaries, rows, mean, None, "all")
    for measure in ("recovered_zero", "recovered_mean"):
        low, high = found["it"][f"{measure}_interval"]
        assert low < found["it"][measure] < high
        assert found["all"][f"{measure}_interval"] == (1, 1)
    behind = found["it"]["behind"]
    assert behind["difference"] == pytest.approx(1 - found["it"]["recovered_mean"])
    assert behind["interval"][0] < behind["difference"] < behind["interval"][1]
    assert found["all"]["behind"] == {"difference": 0, "interval": (0, 0)}
    twice = np.concatenate([rows, rows])
    documents = np.repeat([0, 1], len(rows))[:, None] * np.ones_like(twice)
    same = evaluation.loss_recovered(hook, dictionaries, twice, mean, documents)["it"]
    low, high = same["recovered_mean_interval"]
    assert low == pytest.approx(high) == pytest.approx(same["recovered_mean"], rel=1e-4)


def test_one_to_one_matching_counts_a_partner_once():
    e = torch.eye(3)
    shuffled = 2 * e[[2, 0, 1]]
    assert matched_correlation(e, shuffled) == pytest.approx(1)
    twice = e[[0, 0]]
    assert mmcs(twice, e) == pytest.approx(1)
    assert matched_correlation(twice, e) == pytest.approx(0.5)
    assert matched_correlation(e, -e) == pytest.approx(0), "signed"
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    best = max(cosines[range(5), p].mean().item() for p in itertools.permutations(range(5)))
    assert matched_correlation(a, b) == pytest.approx(best, abs=1e-6)


def test_the_stage_measures_baselines_at_the_l0_of_the_runs_own_autoencoder(small_run):
    results = small_run.results("evaluation")
    main = results["bricken_2023"]
    beside = main["baselines"]
    assert list(beside)[0] == "bricken_2023" and len(beside) == 4
    k = math.ceil(main["l0_mean"])
    for name, b in list(beside.items())[1:]:
        assert 0.5 * k < b["l0_mean"] <= k, name
        assert b["behind"]["difference"] == pytest.approx(
            beside["bricken_2023"]["recovered_mean"] - b["recovered_mean"], abs=1e-5
        )
    assert main["ce_clean"] < main["ngrams"]["unigram"]
    assert main["ngrams"]["bigram"] < main["ngrams"]["unigram"]
    assert "baselines" not in results["neurons"]


def test_documents_of_heldout_rows_are_those_that_locate_finds(small_run):
    tokens, documents = small_run.get("tokens"), stages.heldout_documents(small_run)
    for index in (0, 1, 777, 5000, documents.size - 1):
        assert documents.flat[index] == tokens.locate("heldout", index).document


def test_settings_are_chosen_and_reported_on_different_documents(small_run):
    rows = small_run.get("tokens").rows("heldout", 64)
    documents = dict(zip(map(bytes, rows), stages.heldout_documents(small_run), strict=True))
    parts = stages.heldout_parts(small_run)
    of = [set(np.concatenate([documents[bytes(row)] for row in part])) for part in parts]
    assert not of[0] & of[1] and all(of)
    assert 0.1 < len(parts[0]) / len(rows) < 0.6 and len(parts[1]) > len(rows) / 3
