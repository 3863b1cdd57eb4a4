"""Kinds of features with planted answers, and the gallery of a small run."""

import json

import numpy as np
import pandas as pd
import pytest

from sae_lib.features import firing
from sae_lib.files import plain, read_record
from suite import circuits, gallery, larger, stages
from suite.report.content import cards_of
from tests.test_circuits import planted


def kinds_of(block, rows) -> pd.DataFrame:
    fired = firing.firing_tables(block.hook, {"": block.sae}, rows)[""]
    return gallery.table_of_kinds(block, fired, rows, np.arange(4), 0)


ROWS = np.random.default_rng(3).integers(4, size=(200, 6))


def test_a_feature_of_the_token_before_depends_on_context(monkeypatch):
    monkeypatch.setattr(gallery, "MANY", 4)  # the planted vocabulary
    block = planted()
    block.sae.b_enc[3] = -1000.0  # never fires
    found = kinds_of(block, ROWS)
    assert found["context"].tolist() == [True, True, True, False]
    assert not found["token"].any() and found["too rare"].tolist() == [False, False, False, True]
    assert found.loc[3, "n"] == 0 and np.isnan(found.loc[3, "own"])
    monkeypatch.setattr(gallery, "MANY", 5)
    none = kinds_of(block, ROWS)
    assert (none["none found"] == ~none["continuation"] & ~none["too rare"]).all()


def test_a_feature_of_its_own_token_is_a_token_detector():
    block = planted()
    model = block.hook.model.transformer.h[0]
    model.attn.c_proj.weight.zero_()
    for token in range(4):  # neurons read the token's own embedding
        model.mlp.c_fc.weight[token, token] = 1.0
    found = kinds_of(gallery.Block(block.hook, block.sae), ROWS)
    assert found["token"].all() and (found["n_tokens"] == 1).all() and not found["context"].any()


def test_shares_count_the_rare_and_those_that_fire():
    table = pd.DataFrame({kind: [False] * 4 for kind in gallery.KINDS})
    table.loc[:1, "token"], table.loc[3, "too rare"] = True, True
    found = gallery._shares(table)
    assert found["often"] == 3 and found["token"]["share"] == 0.5
    assert found["token"]["of_often"] == pytest.approx(2 / 3)
    low, high = found["token"]["interval"]
    assert low < 0.5 < high


def test_agreement_of_strong_and_weak_examples():
    tenth = [-1, -1, -1, 0, 2, 3]
    examples = pd.DataFrame({"feature": 5, "tenth": tenth, "token_id": [7, 7, 8, 7, 9, 7]})
    found = gallery.agreement(examples).loc[5]
    assert found["top_share"] == pytest.approx(2 / 3) and found["lower_share"] == 0.5


@pytest.fixture(scope="module")
def summary(small_run):
    return gallery.summary(small_run)


def test_the_gallery_of_a_run_is_plain_data_about_its_weights(small_run, summary):
    data = json.loads(json.dumps(plain(summary)))
    files = read_record(small_run.path("autoencoder"))["files"]
    assert data["autoencoder"] == files["sae_weights.safetensors"][1]
    assert data["kinds"]["features"]["n"] == small_run.settings.sae.d_sae
    for found in data["kinds"].values():
        assert found["too rare"]["share"] == pytest.approx(1 - found["often"] / found["n"])
    for cards in data["cards"].values():
        for card in cards:
            assert card["kinds"] and set(card["kinds"]) <= set(gallery.KINDS)
            assert len(card["examples"]) <= 2 and len(card["low"]) <= 2
    for kind in ("token", "context"):
        ranks = [card["rank"] for card in data["cards"][kind]]
        assert ranks == sorted(ranks)
        assert all(kind in card["kinds"] for card in data["cards"][kind])


def test_a_larger_run_keeps_its_measures_and_no_text_but_that_of_its_cards(small_run, summary):
    found = larger.study(small_run, lambda run: summary)
    evaluation, recipe = small_run.results("evaluation"), small_run.settings.sae.recipe
    assert found["evaluation"]["recovered_mean"] == evaluation[recipe]["recovered_mean"]
    assert found["neurons"]["density_median"] == evaluation["neurons"]["density_median"]
    assert "density" not in found["evaluation"]
    assert found["about"]["lm_tokens"] == small_run.summary("language_model")["tokens"]
    shown = {card["feature"] for card in cards_of(summary)}
    for of, cards in found["cards"].items():
        assert [card["feature"] for card in cards] == [c["feature"] for c in summary["cards"][of]]
        assert all(("examples" in card) == (card["feature"] in shown) for card in cards)
    for name in ("gallery", "study_larger"):  # the run is other tests' too
        (small_run.results_folder / f"{name}.json").unlink()


def test_the_token_is_followed_to_its_sources(small_run, summary):
    one, sae = summary["token"], small_run.get("autoencoder")
    _, x = gallery_token(small_run)
    f = sae.encode(x[None])
    assert one["active"] == int((f > 0).sum())
    j = one["neuron"]["feature"]
    assert one["neuron"]["value"] == pytest.approx(x[j].item(), abs=1e-4)
    assert one["neuron"]["explained"] == pytest.approx(sae.decode(f)[0, j].item(), abs=1e-4)
    for feature in one["features"]:
        assert feature["value"] == pytest.approx(f[0, feature["feature"]].item(), abs=1e-3)
        assert feature["sources"]


def gallery_token(run):
    from sae_lib.model.generation import of_token
    from sae_lib.text.tokenizer import token_ids

    tokenizer = run.get("tokens").tokenizer
    words = [tokenizer.decode([i]).strip() for i in token_ids(tokenizer, gallery.TEXT)]
    wanted = gallery.TOKEN if gallery.TOKEN in words else len(words) // 2
    return of_token(stages.hook(run), tokenizer, gallery.TEXT, wanted)


def test_how_many_random_directions_write_a_neuron():
    x = np.random.default_rng(0).standard_normal((200_000, 64))
    share = (np.abs(x[:, 0]) >= circuits.HEAVY * np.linalg.norm(x, axis=1)).mean()
    assert circuits.writers_by_chance(64, 1) == pytest.approx(share, rel=0.01)
