"""Scores of a run: halves that share no document, densities that match, nulls at one half, a
summary that follows from the table.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from sae_lib.errors import CorpusError
from sae_lib.features.firing import firing
from sae_lib.interpretability import scores
from sae_lib.interpretability import scoring as interpretability
from sae_lib.model.activations import harvest
from sae_lib.sae.dictionaries import Neurons, Selected
from suite import rule_figures, stages
from suite.runs import Run, is_made
from suite.stages import STAGES

KINDS = set(rule_figures.KINDS)


@pytest.fixture(scope="module")
def scored(small_run):
    settings = small_run.settings.interpretability.model_copy(update={"tokens": 8192})
    run = Run(
        small_run.settings.model_copy(update={"interpretability": settings}),
        small_run.folder.with_name("scored"),
        STAGES,
    )
    return run, run.path("scores")


def test_halves_share_no_group_and_are_nearly_of_one_size():
    rng = np.random.default_rng(0)
    lengths, group = rng.pareto(1.2, 300).astype(int) * 100 + 50, rng.integers(60, size=300)
    half = interpretability.half_of_groups(group, lengths, np.random.default_rng(1))
    assert pd.Series(half).groupby(group).nunique().max() == 1
    sizes = [lengths[half == h].sum() for h in (0, 1)]
    assert set(half) == {0, 1} and abs(sizes[0] - sizes[1]) <= np.bincount(group, lengths).max()


LINES = [f"f.jsonl: line {i}" for i in range(4)]
FILES = ["x.py", "y.py", "z.txt: part 1", "z.txt: part 2"]
PACKAGES = ["a 1.0: x.py", "b 2: x.py", "a 1.0: y.md", "c 1: z"]


@pytest.mark.parametrize(
    "origins, kinds, tokens, by, groups",
    [
        (PACKAGES, "pqqq", [10, 20, 10, 20], "source", [0, 1, 0, 2]),
        (FILES, "pppp", [20, 20, 10, 10], "source", [0, 1, 2, 2]),
        (FILES, "pqrs", [20, 20, 15, 15], "kind", [0, 1, 2, 3]),  # a file of three sevenths
        (LINES, "pqrp", [10, 30, 30, 20], "kind", [0, 1, 2, 0]),
        (LINES, "pqrp", [20, 20, 20, 20], "document", [0, 1, 2, 3]),
    ],
)
def test_what_lies_in_one_half_as_a_whole(origins, kinds, tokens, by, groups):
    table = pd.DataFrame({"origin": origins, "kind": list(kinds), "tokens": tokens})
    found, group = interpretability.document_groups(table)
    assert (found, group.tolist()) == (by, groups)


def test_a_row_with_both_halves_belongs_to_neither():
    half = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0])
    assert interpretability.rows_of_half(half, 4, 0).tolist() == [
        True,
        False,
        False,
    ] and interpretability.rows_of_half(half, 4, 1).tolist() == [False, False, True]


def test_the_halves_of_a_run_lie_in_different_documents(scored):
    run, _ = scored
    parts, tokens = stages.split_heldout(run), run.get("tokens")
    rows = tokens.rows("heldout", run.settings.lm.context)
    firsts, found = tokens.table["heldout"]["first_token"].to_numpy(), []
    for part, text in zip(parts.rows, parts.texts, strict=True):
        assert text.n == part.size and part.size > 2000
        numbers = [int(np.flatnonzero((rows == row).all(1))[0]) for row in part]
        found.append(
            {
                int(d)
                for n in numbers
                for d in np.searchsorted(
                    firsts, np.arange(n * rows.shape[1], (n + 1) * rows.shape[1]), side="right"
                )
            }
        )
    assert found[0] and found[1] and not found[0] & found[1]
    again = stages.split_heldout(run)
    assert all((a == b).all() for a, b in zip(parts.rows, again.rows, strict=True))


def test_one_document_cannot_be_split(scored):
    run, _ = scored
    long = Run(
        run.settings.model_copy(
            update={"lm": run.settings.lm.model_copy(update={"context": 10_000})}
        ),
        run.folder,
        STAGES,
    )
    with pytest.raises(CorpusError, match="too few for two halves"):
        stages.split_heldout(long)


def test_firing_is_where_the_dictionary_is_active(scored, hook):
    run, _ = scored
    rows = stages.split_heldout(run).rows
    picked = torch.tensor([3, 40, 7])
    dictionaries = {"some": Selected(Neurons(64), picked), "all": Neurons(64)}
    for part in rows:
        found, dense = firing(hook, dictionaries, part), harvest(hook, part)
        assert [len(found[name]) for name in dictionaries] == [3, 64]
        for i, unit in enumerate(picked.tolist()):
            for token, value in (found["some"][i], found["all"][unit]):
                assert token.tolist() == (dense[:, unit] > 0).nonzero().squeeze(1).tolist()
                np.testing.assert_allclose(value, dense[token, unit])


def test_a_run_scores_every_kind(scored):
    run, folder = scored
    table = pd.read_parquet(folder / "scores.parquet")
    assert set(table["kind"]) == KINDS and {
        "kind",
        "unit",
        "rule",
        "n_conditions",
        "balanced_accuracy",
        "auroc",
        "density",
    } <= set(table)
    assert not table.duplicated(["kind", "unit"]).any()
    s = run.settings.interpretability
    assert (
        table["n_conditions"].max() <= s.conditions
        and table["auroc"].between(0, 1).all()
        and table["balanced_accuracy"].between(0, 1).all()
    )
    by_kind = table.groupby("kind")
    assert by_kind["auroc"].median()["feature"] > 0.6
    assert by_kind["auroc"].mean()["shuffled"] == pytest.approx(0.5, abs=0.03) and by_kind[
        "balanced_accuracy"
    ].mean()["shuffled"] == pytest.approx(0.5, abs=0.03)
    assert (table["values"].map(len) > 0).sum() > len(table) / 2


def test_densities_are_those_of_features(scored):
    run, folder = scored
    density = pd.read_parquet(folder / "scores.parquet").groupby("kind")["density"]
    for kind in ("neuron_matched", "principal_matched", "random"):
        assert density.median()[kind] == pytest.approx(density.median()["feature"], rel=0.6)
    for kind in ("neuron_strong", "random_strong"):
        assert density.median()[kind] < density.median()["feature"]
    assert density.median()["neuron"] > 1.5 * density.median()["neuron_matched"]
    assert density.median()["feature_strong"] < 0.7 * density.median()["feature"]
    table = pd.read_parquet(folder / "scores.parquet")
    of = {
        kind: table[table["kind"] == kind].set_index("unit")["density"]
        for kind in ("feature", "shuffled")
    }
    both = of["shuffled"].index.intersection(of["feature"].index)
    assert len(both) > 5 and (of["shuffled"][both] == of["feature"][both]).all()


def test_thresholds_do_not_see_the_scoring_half(scored, monkeypatch):
    run, _ = scored
    parts, seen = stages.split_heldout(run), []
    sample = interpretability.sample
    monkeypatch.setattr(
        interpretability, "sample", lambda hook, rows: seen.append(rows) or sample(hook, rows)
    )
    settings, untrained = run.settings, lambda: stages.untrained_autoencoder(run)
    units = interpretability.every_kind(
        stages.hook(run),
        run.get("autoencoder"),
        parts,
        settings.interpretability,
        settings.seed,
        untrained,
    )
    assert list(units)
    assert len(seen) == 1 and seen[0] is parts.rows[0]


def test_units_that_hardly_fire_are_left_out_and_counted(scored):
    run, folder = scored
    table, counts = (
        pd.read_parquet(folder / "scores.parquet"),
        json.loads((folder / "counts.json").read_text())["kinds"],
    )
    assert all(
        counts[kind]["units"] - counts[kind]["left_out"] == (table["kind"] == kind).sum()
        for kind in KINDS
    )
    assert counts["feature"]["units"] == 256 and counts["feature"]["left_out"] > 0
    matched = table[table["kind"] == "untrained_matched"]
    assert counts["untrained_matched"] == {"units": len(matched), "left_out": 0}
    assert len(matched) > 5 and matched["unit"].is_unique
    parts = stages.split_heldout(run)
    units = interpretability.Units(
        "feature",
        np.arange(3),
        [
            (np.arange(50), np.arange(50)),
            (np.arange(9), np.arange(50)),
            (np.arange(50), np.arange(9)),
        ],
    )
    assert interpretability.score_units(units, parts, run.settings.interpretability)[
        "unit"
    ].tolist() == [0]


def test_a_scored_run_is_not_scored_again(scored, monkeypatch):
    run, folder = scored
    monkeypatch.setattr(stages, "split_heldout", lambda run: pytest.fail("scored again"))
    assert run.path("scores") == folder
    assert list(run.results_folder.glob("interpretability.json")) and list(
        (run.folder / "figures").glob("interpretability_kinds.*")
    )


def untrained_model(run):
    return stages.untrained_hook(run).model


def test_the_untrained_model_is_another_model_with_the_same_shape(scored, hook):
    run, _ = scored
    seen = [run.summary(stage)["activations"] for stage in ("autoencoder", "untrained")]
    assert seen[0] == seen[1] > 0
    model = untrained_model(run)
    trained, random = dict(hook.model.named_parameters()), dict(model.named_parameters())
    assert {n: p.shape for n, p in trained.items()} == {
        n: p.shape for n, p in random.items()
    } and not torch.equal(trained["lm_head.weight"], random["lm_head.weight"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(random.values(), untrained_model(run).parameters(), strict=True)
    )
    assert (
        run.folder
        / "interpretability"
        / f"untrained-{run.settings.sae.recipe}"
        / "sae_weights.safetensors"
    ).exists()


def test_the_summary_follows_from_the_table():
    rng = np.random.default_rng(0)
    measured = {
        measure: np.concatenate([rng.normal(0.9, 0.02, 200), rng.normal(0.7, 0.02, 100)])
        for measure in scores.MEASURES
    }
    table = pd.DataFrame(
        {
            "kind": ["feature"] * 200 + ["neuron_matched"] * 100,
            "unit": 0,
            "rule": "r",
            "n_conditions": 2,
            "density": 0.01,
            **measured,
        }
    )
    found = scores.summary(table, 0)
    feature, difference = (
        found["scores"]["feature"],
        found["differences"]["feature - neuron_matched"]["auroc_median"],
    )
    assert feature["n"] == 200 and feature["auroc_median"] == pytest.approx(
        np.median(measured["auroc"][:200])
    )
    low, high = feature["auroc_median_interval"]
    expected = 2 * 1.96 * np.sqrt(np.pi / 2) * 0.02 / np.sqrt(200)  # of a normal's median
    assert low < feature["auroc_median"] < high and high - low == pytest.approx(expected, rel=0.3)
    assert (
        difference["difference"] == pytest.approx(0.2, abs=0.02)
        and difference["interval"][0] > 0.18
        and difference["interval"][1] < 0.22
    )
    assert found == scores.summary(table, 0)


def test_the_density_match_is_checked():
    dense = np.geomspace(1e-3, 1e-1, 101)  # its quartiles are 10^-2.5, 10^-2 and 10^-1.5
    kinds = {
        "feature": dense,
        "feature_strong": dense / 2,
        "neuron_matched": dense * 1.2,
        "untrained_matched": np.where(dense > 0.02, 1.3 * dense, dense),
        "neuron_strong": dense / 2,
        "random_strong": dense,
        "neuron": dense,
    }
    tables = [pd.DataFrame({"kind": kind, "density": d}) for kind, d in kinds.items()]
    found = scores.density_match(pd.concat(tables))
    assert {kind: round(m["factor"], 6) for kind, m in found.items()} == {
        "neuron_matched": 1.2,
        "untrained_matched": 1.3,
        "neuron_strong": 1.0,
        "random_strong": 2.0,
    }
    assert [kind for kind, m in found.items() if m["matched"]] == [
        "neuron_matched",
        "neuron_strong",
    ]
    assert found["random_strong"]["quartiles"] == pytest.approx([10**-2.5, 1e-2, 10**-1.5])
    assert found["random_strong"]["features"] == pytest.approx([10**-2.5 / 2, 5e-3, 10**-1.5 / 2])


def test_the_figures_show_each_kind(scored):
    table = pd.read_parquet(scored[1] / "scores.parquet")
    histograms = rule_figures.against_neurons(table)
    assert [t.name for t in histograms.data] == ["neurons", "features"] * 3 and all(
        len(t.x) > 0 for t in histograms.data
    )
    assert {t.name for t in rule_figures.by_kind(table).data} == set(rule_figures.KINDS.values())


def test_made_from_the_settings_that_matter(scored):
    run, folder = scored
    made_from = json.loads((folder / "made_from.json").read_text())["settings"]
    assert (
        is_made(folder, made_from)
        and made_from["interpretability"]["tokens"] == 8192
        and "clusters" not in made_from["interpretability"]
    )


def test_units_are_paired_by_density_each_at_most_once():
    found = interpretability.paired(
        np.array([0.01, 0.012, 0.5]), np.array([0.4, 0.011, 0.02, 1e-5])
    )
    assert found.tolist() == [1, 2, 0]
