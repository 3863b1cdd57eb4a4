"""Clusters: planted groups are found and named, correlation is numpy's, chance gives chance, and
text stays text.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.metrics import adjusted_rand_score

from sae_lib.interpretability import clusters
from suite.rule_figures import cluster_map
from suite.stages import STAGES


@pytest.fixture(scope="module")
def planted():
    """60 features in 4 groups: each group has a direction, tokens on which it fires together,
    and a value in its rules.
    """
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 15)
    directions = torch.from_numpy(np.eye(16)[group] + rng.normal(0, 0.15, (60, 16))).float()
    together = np.eye(4)[rng.integers(0, 4, 2000)][:, group] * (rng.random((2000, 60)) < 0.5)
    values = [[f"after `{g}`", *([f"`{i}`"] if i % 2 else ["digits"])] for i, g in enumerate(group)]
    return group, directions, scipy.sparse.csr_array(together.astype(np.float32)), values


def test_correlation_is_that_of_numpy(planted):
    fires = planted[2]
    np.testing.assert_allclose(
        clusters.correlation(fires), np.corrcoef(fires.toarray().T), atol=1e-5
    )
    never = scipy.sparse.csr_array(np.zeros((5, 2), dtype=np.float32))
    assert (clusters.correlation(never) == 0).all()


def test_similarity_is_the_mean_of_both_from_0_to_1():
    W_dec = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    together = np.array(
        [[1, 0.5, -0.2, 0], [0.5, 1, 0, 0], [-0.2, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32
    )
    found = clusters.similarity(W_dec, together)
    assert (
        found[0].tolist() == pytest.approx([1.0, 0.75, 0.0, 0.5**1.5]) and (found == found.T).all()
    )


def test_planted_groups_are_found_named_and_apart_on_the_map(planted):
    group, W_dec, fires, values = planted
    table = clusters.group(clusters.similarity(W_dec, clusters.correlation(fires)), values, 4, 0)
    assert adjusted_rand_score(group, table["cluster"]) == 1
    assert all(
        name.startswith(f"after `{g}`") for g, name in zip(group, table["name"], strict=True)
    )
    place = table[["x", "y"]].to_numpy()
    inside = np.mean(
        [
            np.linalg.norm(place[group == g] - place[group == g].mean(0), axis=1).mean()
            for g in range(4)
        ]
    )
    assert inside < 0.3 * np.linalg.norm(place - place.mean(0), axis=1).mean()


def test_clusters_are_numbered_by_size_and_few_features_do_not_fail():
    similar = np.eye(9, dtype=np.float32)
    similar[:6, :6] = 0.9
    similar[6:, 6:] = 0.9
    np.fill_diagonal(similar, 1)
    table = clusters.group(similar, [[] for _ in range(9)], 2, 0)
    assert table["cluster"].tolist() == [0] * 6 + [1] * 3 and set(table["name"]) == {
        clusters.UNNAMED
    }
    assert len(clusters.group(np.eye(3, dtype=np.float32), [[]] * 3, 2, 0)) == 3


def test_a_name_needs_a_share_of_the_members_and_the_rarest_comes_first():
    cluster = np.array([0] * 10 + [1] * 10)
    values = [
        ["everywhere", *(["here"] if i < 6 else []), *(["once"] if i == 0 else [])]
        for i in range(10)
    ] + [["everywhere"]] * 10
    assert clusters.cluster_names(cluster, values) == ["here", clusters.UNNAMED]


def test_random_groups_share_no_more_than_chance(planted):
    group, _, _, values = planted
    table = pd.DataFrame({"feature": np.arange(60), "cluster": group, "name": "n"})
    found = clusters.summary(table, values, 0)
    assert (
        found["shared_value"] == 1
        and found["shared_value_by_chance_most"] < 0.8
        and found["clusters"] == 4
        and found["largest"][0]["size"] == 15
    )
    assert (
        clusters.summary(
            table.assign(cluster=np.random.default_rng(1).permutation(group)), values, 0
        )["shared_value"]
        <= found["shared_value_by_chance_most"] + 0.05
    )


def test_text_on_the_map_is_no_markup():
    table = pd.DataFrame(
        {
            "feature": [1, 2],
            "cluster": 0,
            "name": "`<b>`",
            "x": [0.0, 1.0],
            "y": 0.0,
            "rule": "<script>alert(1)</script> & more",
        }
    )
    fig = cluster_map(table, clusters.UNNAMED)
    shown = [*fig.data[0].text, *(a.text for a in fig.layout.annotations)]
    assert (
        len(fig.layout.annotations) == 1
        and not any("<script" in t or "<b>" in t for t in shown)
        and "&lt;script&gt;" in shown[0]
    )


def test_a_runs_clusters_hold_its_scored_features(small_run, monkeypatch):
    from suite.runs import Run

    settings = small_run.settings.interpretability.model_copy(
        update={"tokens": 8192, "untrained": False, "clusters": 8, "units": 4}
    )
    run = Run(
        small_run.settings.model_copy(update={"interpretability": settings}),
        small_run.folder.with_name("clusters"),
        STAGES,
    )
    monkeypatch.setattr("suite.runs.Run.figure", lambda *args, **kwargs: None)
    table = run.get("clusters")
    scored = run.get("scores").query("kind == 'feature'")
    assert (
        table["feature"].tolist() == scored["unit"].tolist()
        and table["cluster"].max() + 1 <= 8
        and np.isfinite(table[["x", "y"]]).all().all()
    )
    results = run.results("clusters")
    assert results["features"] == len(table) and results["clusters"] == table["cluster"].nunique()
