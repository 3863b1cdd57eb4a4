"""What figures say in their titles, computed from what they draw, and tables in words."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from suite import (
    clamping_views,
    deviations_views,
    plain_figures,
    rule_figures,
    sanity_views,
    study_figures,
)
from suite.plain_tables import NO_BREAK, readable

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 900  # of a study's figure, in pixels


def kept(which: str) -> dict:
    """A study that the repository keeps."""
    return json.loads((ROOT / "report" / "studies" / f"{which}.json").read_text())


def title(fig) -> str:
    return fig.layout.title.text


def kept_figures() -> dict:
    kept_studies = {w: None for w in study_figures.STUDIES}
    kept_studies |= {
        path.stem: kept(path.stem) for path in (ROOT / "report/studies").glob("*.json")
    }
    figures = study_figures.study_figures(kept_studies)
    views = {"sanity": sanity_views.figure, "deviations": deviations_views.figure}
    views["full_budget"] = deviations_views.full_figure
    return figures | {w: view(kept_studies[w]) for w, view in views.items() if kept_studies[w]}


def test_titles_of_the_kept_studies_fit_their_figures():
    found = kept_figures()
    assert len(found) >= 6
    for name, fig in found.items():
        picture = plain_figures.Picture(fig, WIDTH, 450).picture
        right = picture._suptitle.get_window_extent().x1
        assert 100 < right < WIDTH, f"{name}: {title(fig)}"


DIFFERENCES = [
    dict(start=start, measure=measure, mean=0.0, interval=[-0.1, 0.1], l0=[16.0, 16.0], apart=1.0)
    for start in study_figures.STARTS
    for measure in study_figures.DECIDING
]


def test_the_title_on_resampling_says_what_is_shown():
    say = study_figures.resampling_title
    assert "is not shown to change" in say(DIFFERENCES)
    first, *others = DIFFERENCES
    worse = first | {"mean": 0.2, "interval": [0.1, 0.3]}
    assert say([worse, *others]) == "Resampling raises dead features (small tied start)"
    both = [d | {"mean": 0.2, "interval": [0.1, 0.3]} for d in DIFFERENCES]
    assert say(both) == (
        "Resampling raises dead features (both starts), raises loss recovered (both starts)"
    )
    other_l0 = [d | {"l0": [16.0, 20.0], "apart": 1.25} for d in both]
    assert say(other_l0) == "Resampling raises dead features (both starts)", "loss is not compared"
    better = worse | {"mean": -0.2, "interval": [-0.3, -0.1]}
    assert "lowers" in say([better, *others])
    assert "is not shown" in say([d | {"interval": [None, None]} for d in DIFFERENCES])


def test_the_title_on_recipes_names_the_best_whoever_it_is():
    study = kept("recipes")
    names = [p["contender"] for p in study["points"]]
    for best in (names[0], names[-1]):
        for point in study["points"]:
            point["recovered_mean"] = 0.99 if point["contender"] == best else 0.5
        assert f", {best} recovers most: 99.0 %" in title(study_figures.recipes_figure(study))


def test_the_title_on_widths_turns_with_the_widths():
    study = kept("widths")
    for point in study["points"]:
        point["recovered_mean"] = 1 - 1 / (point["d_sae"] + point["seed"])
    assert title(study_figures.widths_figure(study)).endswith("recovers more")
    for point in study["points"]:
        point["recovered_mean"] = 1 / point["d_sae"]
    assert title(study_figures.widths_figure(study)).endswith("is not shown to recover more")


def test_the_title_on_deviations_does_not_count_the_null():
    study = kept("deviations")
    for point in study["points"]:
        moved = 0.5 * ("norm" in point["contender"]) + 0.25 * ("seeds" in point["contender"])
        point |= {"recovered_mean": moved + 0.001 * point["seed"], "l0_mean": 16.0}
    assert "1 of 7 in the original, 1 of 7 in the method" in title(deviations_views.figure(study))


def test_the_title_on_sanity_counts_measures_on_which_it_leads():
    study = kept("sanity")
    for point in study["points"]:
        ours = point["contender"] == study["subject"]
        point |= {measure: 0.9 * ours + 0.001 * point["seed"] for measure in sanity_views.MEASURES}
    assert "on 4 of 4" in title(sanity_views.figure(study))
    for point in study["points"]:
        point["probing"] = 0.5
    assert "on 3 of 4" in title(sanity_views.figure(study))


@pytest.mark.parametrize(
    ("neurons", "said"), [(0.9, "predict neurons better"), (0.7, "predict features better")]
)
def test_the_title_on_rules_names_who_leads(neurons, said):
    values = {"feature": 0.8, "neuron": 0.1, "neuron_matched": neurons, "random": 0.6}
    scores = pd.DataFrame(
        {"kind": kind, "auroc": value, "information": value}
        for kind, value in values.items()
        for _ in range(3)
    )
    assert said in title(rule_figures.against_neurons(scores))
    by_kind = title(rule_figures.by_kind(scores))
    assert f"features 80.0 %, neurons {100 * neurons:.1f} %, random 60.0 %" in by_kind


def test_the_verdicts_of_rules_are_those_of_information():
    def found(ends: tuple[float, float]) -> dict:
        return {"difference": sum(ends) / 2, "interval": list(ends)}

    differences = {
        "feature - neuron_matched": {
            "information_median": found((-0.04, 0.02)),
            "auroc_median": found((-0.07, -0.03)),
        },
        "feature - random": {
            "information_median": found((0.05, 0.1)),
            "auroc_median": found((-0.01, 0.02)),
        },
    }
    matches = {kind: {"factor": 1.1, "matched": True} for kind in ("neuron_matched", "random")}
    ruled = {"differences": differences, "density_match": matches}
    said = rule_figures.compared(ruled)
    assert "neurons of the same density −1.00 (−4.00 to +2.00; level);" in said
    assert "random directions +7.50 (+5.00 to +10.0; features are ahead)." in said
    assert "features are behind neurons of the same density (−0.0500, " in said
    assert "level with random directions (+0.00500" in said
    said = rule_figures.brief(ruled)
    assert said.startswith("features are level with neurons of the same density (−1.00 points, ")
    assert "), ahead of random directions (" in said and said.endswith("; by AUROC behind, level.")
    matches["random"] = {"factor": 1.87, "matched": False}
    assert "not to be compared with random directions" in rule_figures.brief(ruled)
    assert "their densities differ by a factor of 1.87: no verdict" in rule_figures.compared(ruled)


def test_titles_on_clamping_count_features():
    ranks = pd.DataFrame({"p": [0.05, 0.05, 0.1, 1.0]})
    said = "50.0 % of the features beat all 19 random directions; by chance it would be 5 %"
    assert title(clamping_views.ranks_figure(ranks)) == said
    rows = []
    for direction, kl in (("feature", 2.0), ("random directions", 1.0), ("other features", 1.5)):
        measured = {f"{c}{end}": kl for c in ("kl", "change") for end in ("", "_least", "_most")}
        rows += [{"direction": direction, "value": value} | measured for value in (5.0, 20.0)]
    ahead = pd.DataFrame(rows)
    behind = ahead.assign(kl_most=ahead["kl_most"].where(ahead["direction"] == "feature", 9.0))
    fig = clamping_views.sweep_figure({"a": ahead, "b": behind}, [5.0, 5.0])
    assert title(fig) == "By KL, 1 of 2 features beat every control at 4 × maximum"


def test_a_table_is_written_in_words():
    table = pd.DataFrame(
        {
            "contender": ["bricken_2023-d_sae_512", "topk-no_resampling"],
            "recovered_mean": [0.97654, 1.0],
            "recovered_mean_interval": [(0.9, 0.95), (0.5, 0.6)],
            "kl": [0.0123456, np.nan],
            "alive": [4096.0, 3999.5],
            "lambda": [0.00051234, 0.0],
            "k": [0.0, 0.0],
            "feature": [3869, 12],
            "fires": [np.True_, False],
        }
    )
    shown = readable(table)
    assert shown.columns.name == "contender"
    assert shown.index.tolist() == ["bricken_2023, 512 features", "topk, no resampling"]
    assert shown.iloc[0].to_dict() == {
        "loss recovered (mean ablation)": f"97.7{NO_BREAK}%",
        "95 % interval": "90.0 % to 95.0 %",
        "KL, nats": "0.0123",
        "alive": "4,096",
        "λ": "0.000512",
        "feature": "3869",
        "fires": "yes",
    }
    assert shown.iloc[1].tolist()[2:] == ["–", "4,000", "–", "12", "no"]
