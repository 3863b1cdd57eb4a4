"""Evaluation and feature table: known answers on constructed cases, and oracles on a trained
run.
"""

import numpy as np
import pytest
import torch

from sae_lib.features import evaluation
from sae_lib.sae.dictionaries import Neurons, reconstruction
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

    result = evaluation.firing(Hook(), {"it": Halved(2)}, np.array([[0, 1], [2, 3]]))[0]["it"]
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
    plain = evaluation.firing(hook, {"it": dictionary}, ROWS)[0]["it"]["fvu"]
    hook.shift, dictionary.mean = 10.0, hook.table.mean(0) + 10.0
    assert (
        evaluation.firing(hook, {"it": dictionary}, ROWS)[0]["it"]["fvu"]
        == pytest.approx(plain, rel=1e-3)
        == pytest.approx(0.01, rel=0.02)
    )


def test_sparse_decoding_is_decoding():
    sae = random_sae(16, 64, 0, bias=-4.0)
    x = torch.randn(50, 16)
    torch.testing.assert_close(reconstruction(sae, x), sae(x))


def test_neurons_recover_everything_and_zero_recovers_nothing(small_run, hook):
    rows = stages.heldout_rows(small_run, 1024)
    mean = evaluation.firing(hook, {"it": Neurons(64)}, rows)[1]
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
