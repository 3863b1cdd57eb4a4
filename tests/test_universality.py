"""Universality: correlations with known answers, and the study at a tiny size."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csc_array

from sae_lib.errors import SettingsError
from sae_lib.features.agreement import best_correlations, carriers
from suite import sanity, stages, study_figures, universality
from suite.runs import Run
from suite.stages import STAGES


def residual(f: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What a regression on the token leaves, by the definition."""
    left = f.copy()
    for token in np.unique(ids):
        left[ids == token] -= f[ids == token].mean(0)
    return left


def test_best_correlations_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 1, 2, 5, 9], size=800)
    own, others = rng.random((2, 800, 7)) * (rng.random((2, 800, 7)) < 0.3)
    others[:, 3] = own[:, 2] + 0.2 * others[:, 3]
    own[:, 5] = ids == 1  # nothing of it is left without the token
    own[:, 6] = 0
    found = best_correlations(csc_array(own), csc_array(others), ids)
    given = (own, others), (residual(own, ids), residual(others, ids))
    for best, (a, b) in zip(found, given, strict=True):
        for i in range(5):
            expected = max(np.corrcoef(a[:, i], b[:, j])[0, 1] for j in range(7))
            assert best[i] == pytest.approx(expected, abs=1e-4)
    assert found[0][2] > 0.9 and np.isnan(found[0][6]) and np.isnan(found[1][[5, 6]]).all()


def test_two_features_of_one_token_agree_only_by_the_token():
    rng = np.random.default_rng(1)
    ids = rng.integers(20, size=4000)
    pair = [csc_array((ids == 3)[:, None] * (1 + rng.random((4000, 1)))) for _ in range(2)]
    raw, left = best_correlations(*pair, ids)
    assert raw[0] > 0.9 and abs(left[0]) < 0.2


def test_features_over_neurons_with_a_known_answer():
    W_dec = torch.tensor([[3.0, 1, 1, 0, 0, 0], [3, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, -2]])
    found = carriers(W_dec, 0)
    assert found["neurons"] == pytest.approx(121 / 83)
    assert found["same"] == found["others"] == 0
    alike = carriers(torch.tensor([[3.0, 1, 0], [3, 1, 0], [0, 0, 1]]), 0)
    assert alike["same"] == pytest.approx(1) and alike["others"] == pytest.approx(1 / 3)
    assert carriers(torch.randn(50, 300), 1)["neurons"] == pytest.approx(100, abs=10)


def test_links_hold_the_density():
    rng = np.random.default_rng(2)
    density, own = rng.random((2, 500))
    units = {"universality": own + density, "density": density}
    units |= {"information": density + 0.05 * rng.random(500), "ablation": own**3 + density}
    found = universality.links(pd.DataFrame(units))
    assert found["information"]["spearman"] > 0.5 > 0.1 > found["information"]["density_held"]
    strong = found["ablation"]
    assert strong["density_held"] > 0.9 and strong["most"] > 1 > 0.5 > strong["least"]


def test_the_sentences_say_either():
    def study(models: float, rho: float) -> dict:
        points = []
        for seed in (0, 1, 2):
            wiggle, compared = 0.01 * seed, {}
            for name in study_figures.COMPARED:
                value = (models if name == "models" else 0.3) + (name == "fresh") * wiggle
                compared[name] = dict.fromkeys(("raw", "residual"), value)
                compared[name] |= {"raw_share": value / 2, "residual_share": value / 4}
            link = {"spearman": rho, "density_held": rho + wiggle, "most": 0.4, "least": 0.2}
            links = dict.fromkeys(study_figures.QUALITIES, link)
            points.append({"seed": seed, "compared": compared, "links": links})
        return {"points": points, "about": {"universal": 0.5}}

    above, better, stronger = study_figures.universality_sentences(study(0.6, 0.5))
    assert above.endswith("(30.0 %; untrained ones 15.5 %) more than every null.")
    assert "have more of it" in better and "rule" in better and "ablating" in stronger
    no, worse, _ = study_figures.universality_sentences(study(0.3, -0.5))
    assert "every null but neurons" in no and "less of it" in worse
    assert "no relation" in study_figures.universality_sentences(study(0.3, 0.0))[1]
    rows = study_figures.universality_rows(study(0.6, 0.5))
    assert rows["Best correlation, raw"][1] == "0.60 (0.60 to 0.60)" and len(rows) == 6


def test_the_study_compares_models_and_goes_on(small_run, monkeypatch):
    smaller = small_run.settings.interpretability.model_copy(update={"tokens": 4096})
    sae = small_run.settings.sae.model_copy(update={"activations": 8192})
    settings = small_run.settings.model_copy(update={"interpretability": smaller, "sae": sae})
    run = Run(settings, small_run.folder.with_name("universal"), STAGES)
    values = {"MODELS": (0, 1), "ABLATED_TOKENS": 2048, "ABLATED_ROWS": 4, "ALIVE": 40}
    for name, value in values.items():
        monkeypatch.setattr(universality, name, value)
    monkeypatch.setattr(sanity, "UNITS", 12)
    study = universality.study(run)
    assert [point["seed"] for point in study["points"]] == [0, 1]
    assert 1 <= study["carriers"]["neurons"] <= settings.lm.d_mlp
    for point in study["points"]:
        of = pd.DataFrame(point["compared"]).T
        assert set(of.index) == set(study_figures.COMPARED)
        assert of["raw"]["ceiling"] > of["raw"]["shuffled"]
        assert of["raw"]["models"] > of["raw"]["shuffled"]
        assert point["links"]["ablation"]["units"] > 5
    hooks = universality.Universality(run).hook
    own, other = (hooks("", m).model.state_dict() for m in (0, 1))
    assert any((own[name] != other[name]).any() for name in own)
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(universality, "best_correlations", lambda *_: pytest.fail("measured again"))
    assert universality.study(run)["points"] == study["points"]
    lm = settings.lm.model_copy(update={"source": "somewhere"})
    with pytest.raises(SettingsError, match="expected `train`"):
        universality.study(Run(settings.model_copy(update={"lm": lm}), run.folder, STAGES))
