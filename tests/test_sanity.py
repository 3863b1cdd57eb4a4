"""Sanity baselines: probes and verdicts with known answers, contenders that are what they are
called, and a whole study at a tiny size.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from sae_lib.errors import SettingsError
from sae_lib.interpretability import probing
from sae_lib.interpretability.token_attributes import NONE, Attribute
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Directions
from sae_lib.sae.directions import keep_largest, principal_directions, thresholded
from suite import __main__, sanity, sanity_views, stages
from suite.runs import Run
from suite.stages import STAGES

N = 2000


def test_probes_of_constructed_features():
    rng = np.random.default_rng(0)
    a, b, noise = (rng.random((3, 2, N)) < 0.1) & (np.arange(N) % 3 > 0)
    halves = []
    for half in (0, 1):
        # a feature is b in the learning half and everything but b in the other
        turned = b[0] if half == 0 else ~b[1]
        units = [2 * a[half], turned, ~noise[half], np.zeros(N)]
        units += [rng.random(N) < 0.05 for _ in range(4)]
        halves.append(scipy.sparse.csc_array(np.stack(units, axis=1).astype(np.float32)))
    rare = rng.random((2, N)) < 0.3
    found = probing.probe(
        halves, {"a": tuple(a), "b": tuple(b), "not": tuple(noise), "r": tuple(rare)}, 0
    )
    assert found["a"] == pytest.approx(1, abs=1e-3)
    assert found["not"] == pytest.approx(1, abs=1e-3)  # silence tells as much as firing
    assert found["b"] < 0.01  # scored on the half that it was not fitted on
    assert found["r"] == pytest.approx(0.5, abs=0.05)


def test_features_are_chosen_by_standardised_differences_of_means():
    rng = np.random.default_rng(1)
    dense = rng.random((300, 6)) * (rng.random((300, 6)) < 0.3)
    dense[:, 4] = 0
    labels = (rng.random((300, 3)) < 0.4).astype(np.float32)
    found = probing.mean_differences(scipy.sparse.csc_array(dense), labels)
    for feature in (0, 1, 2, 3, 5):
        for task in range(3):
            f, has = dense[:, feature], labels[:, task] > 0
            expected = abs(f[has].mean() - f[~has].mean()) / f.std()
            assert found[feature, task] == pytest.approx(expected, rel=1e-4)
    assert (found[4] == 0).all()


def test_tasks_are_exact_labels_that_both_halves_have():
    attributes = [
        Attribute("depth", "{}", False, ["outside", "one", "two", "three"].__getitem__),
        Attribute("previous", "after {}", False, lambda t: "`self`" if t == 99 else f"`{t}`"),
    ]
    depth = np.arange(1000) % 2
    depth[0] = 2  # too rare
    previous = np.where(np.arange(1000) < 900, np.arange(1000) % 20, 99)
    previous[5] = NONE
    kinds = np.where(np.arange(1000) < 300, "py", "rst")
    halves = (np.stack([depth, previous], 1), np.stack([depth, previous[::-1]], 1))
    found = probing.tasks(halves, (kinds, kinds), attributes)
    assert {"depth: outside", "depth: one", "document: py", "document: rst"} < set(found)
    assert {"depth: two", "depth: three"}.isdisjoint(found)
    after = [label for label in found if label.startswith("previous")]
    assert "previous: `self`" in after and len(after) == probing.PREVIOUS
    assert found["document: py"][0].sum() == 300 and (found["depth: one"][1] == (depth == 1)).all()
    no_py = probing.tasks(halves, (kinds, np.full(1000, "rst")), attributes)
    assert "document: py" not in no_py and "document: rst" not in no_py


def test_the_largest_along_orthogonal_directions_are_kept_as_they_are():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 3
    sae = keep_largest(principal_directions(x), 6, x)
    torch.testing.assert_close(sae(x), x, atol=1e-3, rtol=1e-3)  # one of two senses of each
    two = keep_largest(principal_directions(x), 2, x)
    centred = x - x.mean(0)
    z = centred @ torch.linalg.eigh(torch.cov(x.T)).eigenvectors
    left = z.abs().sort(dim=1).values[:, :-2].pow(2).sum()
    assert (two(x) - x).pow(2).sum().item() == pytest.approx(left.item(), rel=1e-3)
    # the same direction twice would be written twice
    twice = Directions(torch.eye(6)[[0, 0]], torch.zeros(6))
    assert keep_largest(twice, 2, x.abs()).W_dec[0, 0].item() == pytest.approx(0.5)


def test_thresholded_directions_are_the_same_features():
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) + 2
    directions = principal_directions(x).at_density(x, torch.linspace(0.01, 0.5, 12))
    torch.testing.assert_close(thresholded(directions).encode(x), directions.encode(x))


def points(**changes) -> dict:
    """A study whose subject is ahead on all but probing, where one baseline is as good."""
    seeds = {"trained": [0.90, 0.91, 0.92], "weak": [0.80, 0.82, 0.84], "equal": [0.7, 0.7, 0.7]}
    rows = []
    for name, values in seeds.items():
        for seed, value in enumerate(values):
            measures = dict.fromkeys(sanity_views.MEASURES, value)
            measures["probing"] = 0.91 + 0.01 * (seed != 1) if name == "equal" else value
            measures["recovered"] = None if name == "equal" else value
            rows.append({"contender": name, "seed": seed, "l0": 16.0} | measures)
    about = {"seeds": 3, "k": 16, "corpus": "x|y", "activations": 1000, "d_sae": 64}
    about |= {"tasks": 33, "units": 200, "clamped": 40}
    return {"points": rows, "subject": "trained", "about": about} | changes


def test_intervals_and_verdicts_of_known_points():
    rows = sanity_views.comparisons(points()).set_index(["measure", "contender"])
    weak = rows.loc["information", "weak"]
    # differences 0.10, 0.09, 0.08: t(2) at 97.5 % is 4.3027
    assert weak["difference"] == pytest.approx(0.09)
    assert (weak["low"], weak["high"]) == pytest.approx((0.06516, 0.11484), abs=1e-4)
    assert np.isnan(rows.loc["recovered", "equal"]["mean"])
    found = sanity_views.strongest(points())
    assert {m: best["ahead"] for m, best in found.items()} == {
        "recovered": True,
        "information": True,
        "probing": False,
        "clamping": True,
    }
    assert found["probing"]["contender"] == "equal" and found["recovered"]["contender"] == "weak"
    said = sanity_views.against(points(), "information", "weak")
    assert said.endswith("is 0.910, of weak 0.820: ahead (+0.0900, +0.0652 to +0.115).")
    assert "neither ahead" in sanity_views.against(points(), "probing", "equal")
    assert sanity_views.against(points(), "recovered", "equal") == "", "it was not measured"
    text = sanity_views.sentence(points())
    assert "above zero, on 3 of 4 measures (loss recovered" in text
    assert "sparse probing (AUROC): equal 0.917, a difference of −0.007" in text


def test_a_baseline_that_lacks_a_measure_in_one_seed_is_not_compared_on_it():
    study = points()
    for point in study["points"]:
        if point["contender"] == "equal":
            point["recovered"] = 0.5
        elif point["contender"] == "weak" and point["seed"] == 0:
            point["recovered"] = None
    row = sanity_views.comparisons(study).query("measure == 'recovered' and contender == 'weak'")
    assert row[["mean", "difference", "low"]].isna().all(axis=None)
    assert sanity_views.strongest(study)["recovered"]["contender"] == "equal"
    assert "nan" not in sanity_views.sentence(study)


def test_one_seed_has_no_interval_and_no_lead():
    study = points()
    study["points"] = [p for p in study["points"] if p["seed"] == 0]
    study["about"]["seeds"] = 1
    assert not any(best["ahead"] for best in sanity_views.strongest(study).values())
    assert "over 1 seed above zero, on 0 of 4 measures." in sanity_views.sentence(study)


def test_two_objects_that_do_not_vary_have_no_interval():
    """As `--sae FOLDER` beside the strongest neurons: three seeds measure one and the same."""
    study = points()
    for point in study["points"]:
        point["recovered"] = {study["subject"]: 0.9, "weak": 0.8}.get(point["contender"])
    row = sanity_views.comparisons(study).query("measure == 'recovered' and contender == 'weak'")
    assert row["difference"].item() == pytest.approx(0.1) and row[["low", "high"]].isna().all(
        axis=None
    )
    assert not sanity_views.strongest(study)["recovered"]["ahead"]


def test_the_table_and_the_figure_show_every_contender():
    table = sanity_views.rows(points())
    assert [row["Contender"] for row in table] == ["trained", "weak", "equal"]
    assert "(+6.5 to +11.5)" in table[1]["information (explained by rules)"]
    assert table[2]["loss recovered (mean ablation)"] == "–"
    shown = {y for trace in sanity_views.figure(points()).data for y in trace.y}
    assert shown == {"trained", "weak", "equal"}


@pytest.fixture(scope="module")
def sane(small_run):
    """A study of one seed on the small run."""
    smaller = small_run.settings.interpretability.model_copy(update={"tokens": 4096})
    settings = small_run.settings.model_copy(update={"interpretability": smaller})
    run = Run(settings, small_run.folder.with_name("sane"), STAGES)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SEEDS", (0,)), ("L0", 8), ("UNITS", 20), ("CLAMPED", 3)):
            patch.setattr(sanity, name, value)
        yield run, sanity.study(run)


def test_every_contender_is_measured_at_one_l0(sane):
    run, study = sane
    found = pd.DataFrame(study["points"]).set_index("contender")
    assert list(found.index) == [*sanity.TRAINED, *sanity.DIRECTIONS]
    assert found["l0"].between(5, 8.01).all() and study["subject"] == "trained"
    assert study["about"]["tasks"] >= 30
    measured = found.loc[["trained", "neurons, the strongest", "random directions"]]
    assert measured["probing"].between(0.5, 1).all()
    assert found["recovered"]["trained"] > found["recovered"]["random directions"]


def test_contenders_are_what_they_are_called(sane):
    run, _ = sane
    given = sanity.Sanity(run)
    trained, fresh, kept = (given.hook(m, 0).model for m in ("", "fresh", "embeddings"))
    own, others, copied = (dict(m.named_parameters()) for m in (trained, fresh, kept))
    for name in own:
        embedding = any(part in name for part in ("wte", "wpe", "lm_head"))
        assert torch.equal(own[name], copied[name]) or not embedding, name
        if own[name].std() > 0 and "ln" not in name and "bias" not in name:
            assert not torch.equal(own[name], others[name])
            assert torch.equal(copied[name], others[name]) != embedding, name
    folders = {p.name for p in (run.folder / "sanity").iterdir() if p.is_dir() and p.name[0] != "."}
    assert folders == {f"{name.replace(' ', '_')}-8-0" for name in sanity.TRAINED}
    frozen = SparseAutoencoder.load(run.folder / "sanity" / "frozen_decoder-8-0").W_dec
    free = SparseAutoencoder.load(run.folder / "sanity" / "trained-8-0").W_dec
    start = torch.randn(frozen.shape, generator=torch.Generator().manual_seed(0))
    assert torch.cosine_similarity(frozen, start).min() > 0.999
    assert torch.cosine_similarity(free, start).min() < 0.99


def test_a_finished_study_is_not_measured_again_and_takes_any_folder(sane, monkeypatch, tmp_path):
    run, study = sane
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
    assert sanity.study(run)["points"] == study["points"]
    folder = run.folder / "sanity" / "trained-8-0"
    given = sanity.study(run, folder)
    assert given["subject"] == folder.name and len(given["points"]) == len(study["points"]) + 1
    mine, same = given["points"][0], study["points"][0]
    for measure in ("recovered", "information", "probing", "clamping"):
        assert mine[measure] == pytest.approx(same[measure], rel=1e-5)
    SparseAutoencoder(3, 4).save(tmp_path / "other", {})
    with pytest.raises(SettingsError, match="3 dimensions; expected those of"):
        sanity.study(run, tmp_path / "other")
    sanity.study(run)


def test_the_command_prints_the_verdict(sane, monkeypatch, capsys):
    run, _ = sane
    monkeypatch.setattr(__main__, "_open", lambda *_: run)
    __main__.sanity(profile="smoke")
    said = capsys.readouterr().out
    assert "on 0 of 4 measures" in said and "study_sanity.json" in said
