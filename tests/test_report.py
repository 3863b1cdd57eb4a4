"""The report: every number from the results, nothing undefined, hostile text inert, missing parts
said, publishing bounded.
"""

import base64
import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typst
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.toy_gates import publish as publish_toy_check
from sae_lib import formats as f
from sae_lib import settings
from sae_lib.errors import ArtefactError
from suite import drawing, project, stages, study_figures, toy_check
from suite.markup import block, code, plain, prose
from suite.report import check, content, pages, publish, publish_report, render, write_report
from suite.report.machine import commit, cpu_model, machine
from suite.runs import Run


def table(header: list[str], row: list[str]) -> str:
    """A Markdown table of one row; cells are Markdown already."""
    lines = (header, ["---"] * len(header), row)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = (
    "<script>alert(1)</script> | `a` ``b`` [x](javascript:alert(1)) ![i](http://evil/x.png) "
    "<img src=x onerror=alert(1)> **b** {{ 7*7 }} \\"
)


def evaluated(recovered: float, density: list[float], **other) -> dict:
    return {
        "tokens": 39936,
        "l0_mean": 17.4321,
        "l0_median": 15.0,
        "fvu": 0.19437,
        "mse": 0.0123456,
        "dead_share": 0.0214,
        "alive": 201,
        "density_median": 0.00213,
        "density": density,
        "ce_clean": 3.7531,
        "ce_spliced": 3.8812,
        "ce_zero": 5.5663,
        "ce_mean": 6.3112,
        "kl": 0.13371,
        "loss_tokens": 4032,
        "recovered_zero": recovered,
        "recovered_mean": recovered + 0.02,
    } | other


def baselines() -> dict:
    """What stands beside the main autoencoder at its L0."""
    names = {
        "bricken_2023": 0.9412,
        "neurons, others at zero": 0.3123,
        "principal components": 0.71,
    }
    beside = {
        name: {
            "l0_mean": 17.91,
            "fvu": 0.4912,
            "recovered_zero": value,
            "recovered_mean": value + 0.02,
            "recovered_zero_interval": [value - 0.01, value + 0.011],
            "recovered_mean_interval": [value, value + 0.031],
            "ce_spliced": 4.1923,
            "behind": {"difference": 0.94 - value, "interval": [0.93 - value, 0.95 - value]},
        }
        for name, value in names.items()
    }
    return {"baselines": beside, "ngrams": {"unigram": 6.7123, "bigram": 5.4123}}


def trained(name: str, events: list[dict], l1: float, mse: str) -> dict:
    recipe = {
        "name": name,
        "source": f"source of {name}",
        "differences": [f"a difference of {name}"],
        "batch": 100,
        "lr": 1e-3,
        "l1": l1,
        "mse": mse,
        "scale_activations": mse == "sum",
    }
    curve = [
        {"step": 300, "squared_error": 1.0, "l1": 2.0, "l0": 17.0, "silent": 0.01},
        {"step": 600, "squared_error": 1.0, "l1": 2.0, "l0": 17.0, "silent": 0.01},
    ]
    return {
        "curve": curve,
        "resampling": events,
        "seconds": 83.4,
        "activations": 60000,
        "activations_per_second": 719.4,
        "scale": 1.5,
        "final_silent": 0.0137,
        "recipe": recipe,
    }


def text_of(documents: int) -> dict:
    kinds = {
        "py": {"documents": documents - 4, "tokens": 220471},
        "text": {"documents": 4, "tokens": 79529},
    }
    frequent = [
        {"id": 14, "token": ".", "count": 8376, "share": 0.02792},
        {"id": 199, "token": "\n", "count": 7000, "share": 0.0233333},
    ]
    quantiles = {"0.0": 107.0, "0.5": 1950.0, "1.0": 11073.0}
    return {
        "documents": documents,
        "tokens": 300000,
        "characters": 711229,
        "kinds": kinds,
        "length_quantiles": quantiles,
        "vocabulary_used": 905,
        "most_frequent": frequent,
        "distributions": {"hypothesis": 13439, "tornado": 11073},
    }


def entry(number: int, token: str = "import", around: str = "some code ") -> dict:
    example = {"before": around, "token": token, "after": around, "activation": 4.321}
    logits = [{"token": token, "value": 0.456}]
    return {
        "feature": number,
        "density": 0.00345,
        "n_active": 345,
        "maximum": 5.43,
        "top_tokens": [{"token": token, "count": 7}],
        "n_examples": 10,
        "raised": logits,
        "lowered": logits,
        "examples": [example] * 3,
    }


def clamped(number: int, token: str = "import") -> dict:
    nulls = {
        name: {"kl": [0.0374, 0.0251, 0.0464], "change": [-0.00095, -0.00246, 0.00116]}
        for name in ("random directions", "other features")
    }
    movers = [{"token": token, "before": 0.0115, "after": 0.02625}]
    return {
        "feature": number,
        "chosen": "drawn",
        "value": 8.495,
        "kl": 0.16617,
        "nulls": nulls,
        "raised": [token] * 10,
        "probability_before": 0.00991,
        "probability_after": 0.02278,
        "beyond_nulls": True,
        "movers": movers,
    }


def closely(number: int, token: str = "import", rule: str = "`·[` after `al.` (84 %)") -> dict:
    """An entry with all that is known of it."""
    score = (
        {"rule": rule, "n_conditions": 2, "balanced_accuracy": 0.8765, "auroc": 0.9123}
        if rule
        else {"rule": ""}
    )
    low = {"before": token, "token": token, "after": "<b>|</b>", "activation": 0.1357}
    return entry(number, token) | {
        "score": score,
        "tenths": [{"from": 0.0, "to": 0.5, "share": 0.7531, "examples": [low]}],
        "marked_share": 0.0,
    }


def ruled() -> dict:
    """`results/interpretability.json` in the shape of its summary."""
    scored = lambda value: (  # noqa: E731
        {"n": 128, "density_median": 0.00245, "conditions_mean": 3.46}
        | {  # noqa: E731
            f"{m}_{a}{i}": [value - 0.01, value + 0.01] if i else value
            for m in ("auroc", "balanced_accuracy", "information")
            for a in ("median", "mean")
            for i in ("", "_interval")
        }
    )
    by_information = {"difference": -0.0321, "interval": [-0.0412, -0.0173]}
    by_auroc = {"difference": -0.0123, "interval": [-0.0456, 0.0234]}
    apart = {"information_median": by_information, "auroc_median": by_auroc}
    return {
        "tokens": [20032, 19968],
        "documents": [12, 13],
        "split_by": "source",
        "kinds": {
            kind: {"units": 256, "left_out": n}
            for kind, n in (("feature", 7), ("untrained_matched", 9))
        },
        "density_match": {
            "neuron_matched": {
                "quartiles": [0.0011, 0.0021, 0.0042],
                "features": [0.0012, 0.0022, 0.0041],
                "factor": 1.0909,
                "matched": True,
            }
        },
        "scores": {
            "feature": scored(0.8521),
            "neuron_matched": scored(0.8843),
            "shuffled": scored(0.5),
        },
        "differences": {"feature - neuron_matched": apart},
    }


def studied() -> dict:
    """The studies, by the name of their results file."""
    about = {
        "corpus": "some|text.jsonl",
        "activations": 128000,
        "heldout_tokens": 4096,
        "lm_tokens": 90000,
        "l0": 16.0,
        "seeds": 2,
        "choosing": 0.25,
    }
    point = lambda name, seed, value, **more: (  # noqa: E731
        {
            "contender": name,
            "recipe": "topk",
            "l0": 16.0,
            "lambda": 1.83,
            "k": 0,
            "lr": 0.004,
            "seed": seed,
            "d_sae": 128,
            "precision": "float32",
            "seconds": 9.0,  # noqa: E731
            "activations": 127000,
            "activations_per_second": 14000.0,
            "l0_mean": 16.13,
            "recovered_zero": value,
            "recovered_mean": value + 0.01,
            "fvu": 0.1234,
            "dead_share": 0.0,
            "alive": 99,
        }
        | more
    )
    names = {
        "bricken_2023": 0.95,
        "ward_2024, as given": 0.35,
        "ward_2024, retuned": 0.81,
        "bricken_2023, bfloat16": 0.9501,
    }
    agreement = {"pairs": [0.71, 0.73], "mean": 0.7219, "null": 0.2071}
    agreement |= {"data": 0.3071, "matched": 0.6519, "matched_data": 0.2571}
    differences = study_figures.resampling_differences(
        [
            point("", s, 0.9, start=start, resampling=on)
            for start in study_figures.STARTS
            for on in (False, True)
            for s in (0, 1)
        ]
    )
    disturbed = {"resampled": 7, "l0": [12.3, 16.7], "squared_error": [70.3, 81.9]}
    split = {
        "narrow": 64,
        "wide": 128,
        "parts_share": 0.41,
        "null_share": 0.013,
        "split_share": 0.31,
        "kept_share": 0.37,
        "lost_share": 0.32,
        "mean_parts": 1.2,
        "examples": [{"feature": 3, "token": "im|port", "parts": [" a", "b`"], "n_parts": 2}],
    }
    return {
        "study_recipes": {
            "points": [point(n, s, v + s / 1000) for n, v in names.items() for s in (0, 1)],
            "tuning": [point("", 0, 0.9, lr=0.0035, recipe="bricken_2023")],
            "mmcs": {n: agreement for n in names},
            "about": about,
        },
        "study_widths": {
            "points": [point("", s, 0.9, d_sae=w) for w in (64, 128) for s in (0, 1)],
            "mmcs": {"64": agreement, "128": agreement},
            "splitting": [split],
            "about": about,
        },
        "study_resampling": {
            "points": [
                point("", s, 0.9, start=start, resampling=on, resampled=7, disturbed=disturbed)
                for start in study_figures.STARTS
                for on in (False, True)
                for s in (0, 1)
            ],
            "curves": [
                {"start": start, "resampling": on, "seed": s, "activations": 9, "silent": 0.1}
                for start in study_figures.STARTS
                for on in (False, True)
                for s in (0, 1)
            ],
            "window": 750,
            "variants": [
                point("", s, 0.9, resampled=7, how=how) for how in study_figures.HOW for s in (0, 1)
            ],
            "how": [{"how": how, "mean": 0.1, "interval": [0, 0.2]} for how in study_figures.HOW],
            "differences": differences,
            "about": about,
        },
        "study_classical": {
            "points": [point("", 0, 0.9, score=0.21, d_sae=width) for width in (128, 256)],
            "best": [point("", s, 0.9) for s in (0, 1)],
            "mmcs": agreement,
            "d_in": 64,
            "about": about,
        },
        "study_saelens": {
            "tuning": [
                point(name, 0, 0.97 + i / 1000, best=best, lr=0.001 * (i + 1))
                for name in ("SAELens topk", "topk")
                for i, best in enumerate((False, True))
            ],
            "points": [
                point(name, seed, 0.981, seconds=seconds + seed)
                for name, seconds in (("SAELens topk", 40.0), ("topk", 4.0))
                for seed in (0, 1)
            ],
            "threads": 2,
            "quality": 0.98,
            "about": about,
        },
        "study_transcoder": {
            "points": [
                point(name, s, 0.9, graphs={"larger": 0.875, "spearman": 0.93})
                for name in ("transcoder", "skip_transcoder")
                for s in (0, 1)
            ],
            "about": about | {"d_sae": 128, "prompts": 37, "edges": 5},
        },
        "study_absorption": {
            "points": [
                point(
                    name,
                    s,
                    0.9,
                    f1=0.61,
                    pairs=93,
                    rate=0.187 + s / 100,
                    null=0.05,
                    excess=0.137 + s / 100,
                    examples=[{"parent": "a | part", "child": "<b>|", "rate": 0.7654}],
                )
                for name in ("topk", "matryoshka")
                for s in (0, 1)
            ],
            "about": about | {"pairs": 217, "carried": 0.5, "min_recall": 0.5},
        },
        "study_universality": universality_of(about),
    }


def universality_of(about: dict) -> dict:
    """`results/study_universality.json` of two language models."""
    columns = ("raw", "residual", "raw_share", "residual_share")
    compared = {name: dict.fromkeys(columns, 0.4321) for name in study_figures.COMPARED}
    link = {"spearman": 0.2, "density_held": 0.1, "most": 0.3123, "least": 0.2345}
    links = dict.fromkeys(study_figures.QUALITIES, link)
    study = {"points": [{"seed": m, "compared": compared, "links": links} for m in (0, 1)]}
    study |= {"about": about | {"tokens": 4093, "autoencoders": 2, "universal": 0.5}}
    names = ("neurons", "random", "same", "others")
    study |= {"carriers": dict(zip(names, (37.1, 171.2, 0.19, 0.07), strict=True))}
    return study


def sanity_of() -> dict:
    """`results/study_sanity.json` of two seeds."""
    values = {"trained": 0.9123, "frozen decoder": 0.8234, "random directions": 0.6345}
    points = [
        {"contender": name, "seed": seed, "l0": 16.13, "dead_share": 0.1}
        | dict.fromkeys(("recovered", "information", "probing", "clamping"), value + seed / 100)
        for name, value in values.items()
        for seed in (0, 1)
    ]
    about = {"corpus": "some|text.jsonl", "activations": 128000, "d_sae": 128, "k": 16}
    about |= {"seeds": 2, "tasks": 33, "units": 200, "clamped": 40}
    about |= {"probe_features": 5, "soft_frozen": 0.8}
    return {"points": points, "subject": "trained", "about": about}


def clamping_of(token: str = "import") -> dict:
    ablation = {
        "feature": 101,
        "rows": 82,
        "n_active": 116,
        "active": 0.4717,
        "low": 0.2699,
        "high": 0.7051,
        "hurt": 0.5603,
        "null": 0.0736,
        "null_least": 0.0389,
        "null_most": 0.1012,
        "n_silent": 116,
        "silent": 0.0,
        "silent_most": 0.0,
    }
    last = {
        "features": [clamped(7)],
        "kl_zero": 0.00696,
        "ablation": [],
        "hook_name": "blocks.3.mlp.hook_post",
        "places": 256,
    }
    return {
        "features": [clamped(101), clamped(102, token)],
        "places": 257,
        "draws": 5,
        "seed": 0,
        "figure": "clamping_sweep",
        "kl_zero": 1.571,
        "ranks": {
            "features": 97,
            "draws": 19,
            "expected": 0.05,
            "share": 0.4123,
            "interval": [0.3184, 0.5131],
            "verdict": "more than by chance",
            "median_p": 0.1,
            "median_p_interval": [0.05, 0.2],
        },
        "ablation": [ablation],
        "error": {"alone": 0.07729, "dropped": {}},
        "generations": [{"feature": 101, "prompt": token, "without": token, "with": token}],
        "last_mlp": last,
    }


def circuits_of(token: str = "def") -> dict:
    """What notebook 08 finds; `token` is the text of every token."""
    middle = {"median": 0.765, "interval": [0.71, 0.81]}
    way = {"auroc": middle, "spearman": middle, "explained": 0.345, "interval": [0.31, 0.38]}
    weights = {"n": 99, "fires": way, "follows": way}
    card = {"feature": 7, "rank": 3.0, "followed": 0.456, "base": 0.0123, "lift": 37.1}
    card |= {"fires_on": [token] * 3, "raises": [token] * 10, "fires_on_share": 0.678}
    parts = dict(own=0.61, previous=0.05, repeats=0.02, positions=0.07, others=0.25)
    kinds = ("token", "position", "bigram", "induction-like", "wider context", "none")
    return {
        "firings": {
            "n": 10_000,
            "error": 3.5e-7,
            "without_push": 0.073,
            "together": parts,
            "median": parts,
            "threshold": 1.77,
        },
        "kinds": {
            "n": 1024,
            "share": {kind: 0.17 for kind in kinds},
            "definitions": {kind: f"what {kind} is" for kind in kinds[:-1]},
            "repeats": 0.0098,
            "repeats_null": 0.00098,
        },
        "replaced": {
            "n": 391,
            "spearman": 0.77,
            "interval": [0.72, 0.82],
            "shuffled": 0.021,
            "change": {"actual_top": -0.853, "actual_other": -0.0011},
            "ends": {"actual_top": 0.467, "actual_other": 0.07},
        },
        "weights": {kind: weights for kind in ("feature", "neuron", "random", "shuffled")},
        "explained_at": 0.8,
        "ablation": {"n": 64, "spearman": middle, "shuffled": middle},
        "ranked": 3459,
        "cards": {"selected": [card], "drawn": [card]},
    }


def gallery_of(token: str = "def") -> dict:
    """What notebook 08 shows of features; `token` is the text of every token."""
    kinds = ("token", "context", "continuation", "none found", "too rare")
    share = {"share": 0.3217, "interval": [0.2917, 0.3517], "of_often": 0.4417}
    found = {"n": 1024, "often": 743} | dict.fromkeys(kinds, share)
    shown = entry(7, token)
    tenth = {"from": 0.1, "to": 0.2, "share": 0.1517, "examples": shown["examples"][:1]}
    card = {"feature": 7, "rank": 3.0, "followed": 0.4567, "base": 0.0123, "lift": 37.1}
    card |= {"fires_on": [token] * 3, "raises": [token] * 10, "fires_on_share": 0.678}
    card |= {"own": 0.6123, "previous": 0.0512, "others": 0.2512, "lower_share": 0.2345}
    card |= {"kinds": ["token", "continuation"], "information": 0.3512, "rule": token}
    card |= {"examples": shown["examples"][:2], "low": [tenth]}
    rare = card | {"feature": 8, "rank": None, "kinds": ["too rare"]}
    rare |= dict.fromkeys(("followed", "base", "lift", "own", "previous", "others"))
    rare |= dict.fromkeys(("information", "lower_share", "fires_on_share"))
    source = {"part": f"own token `{token}`", "adds": 3.1, "share": 0.8123}
    neuron = closely(4, token) | {"value": 0.7912, "explained": 0.7412, "writers": 37}
    neuron["carriers"] = [{"feature": 9, "adds": 0.4123}]
    return {
        "autoencoder": "f00d",
        "tokens": 98304,
        "definitions": {kind: f"what {kind} is" for kind in kinds},
        "kinds": {
            "features": copy.deepcopy(found),
            "random directions": copy.deepcopy(found),
        },
        "cards": {
            "token": [card],
            "context": [],
            "drawn": [copy.deepcopy(card) | {"feature": 9}, rare],
        },
        "token": {
            "text": token,
            "token": token,
            "active": 17,
            "features": [shown | {"value": 3.2123, "sources": [source]}],
            "neuron": neuron,
        },
    }


def results() -> dict:
    """Every results file of a small run, in the shape that the notebooks save."""
    part = {
        "texts": 4,
        "tokens": 33,
        "length_median": 8.0,
        "length_max": 11,
        "active_share": 0.20076,
        "most_frequent": {" ": 2, "|": 2, "def": 1},
    }
    main, off = (
        evaluated(0.9412, [0.002] * 256) | baselines(),
        evaluated(0.9311, [0.002] * 256, dead_share=0.0712),
    )
    events = [
        {"step": 120, "dead": 31, "resampled": 31},
        {"step": 240, "dead": 12, "resampled": 11},
    ]
    columns = [
        "recovered_zero",
        "recovered_mean",
        "kl",
        "fvu",
        "l0_mean",
        "l0_median",
        "dead_share",
        "alive",
        "tokens",
    ]
    return {
        "run": {
            "seconds": {"01_toy_superposition": 61.7, "02_activations": 331.2},
            "machine": {
                "date": "2025-01-31",
                "cpu": "A Fine CPU @ 2 GHz",
                "cores": 2,
                "memory_bytes": 25_000_000_000,
                "gpu": None,
                "torch_threads": 2,
                "system": "Linux x86_64",
                "python": "3.11.9",
                "versions": {"torch": "2.13.0+cpu", "absent": None},
                "commit": "0123456789ab",
            },
        },
        "evaluation": {
            "made_from": "abc",
            "bricken_2023": main,
            "bricken_2023-no_resampling": off,
            "ward_2024": evaluated(0.3512, [0.01] * 256, l0_mean=10.2, density_median=0.00871),
            "bricken_2023-d_sae_64": evaluated(0.8312, [0.05] * 64, fvu=0.3312, l0_mean=12.3),
            "neurons": evaluated(1.0, [0.3] * 64, density_median=0.3172, l0_mean=20.31, fvu=0.0),
        },
        "training": {
            "summaries": {
                "bricken_2023": trained("bricken_2023", events, 3.5, "sum"),
                "bricken_2023-no_resampling": trained("bricken_2023", [], 3.5, "sum"),
                "ward_2024": trained("ward_2024", events[:1], 0.003, "mean"),
                "bricken_2023-d_sae_64": trained("bricken_2023", events[:1], 3.5, "sum"),
            },
            "main": "bricken_2023",
            "narrow": "bricken_2023-d_sae_64",
            "d_in": 64,
            "d_sae": 256,
        },
        "activations": {
            "text": {
                "source": "installation",
                "vocabulary": 1024,
                "train": text_of(114),
                "heldout": text_of(16),
                "what": "Text of this Python installation: mostly code.",
            },
            "prompts": {"prompt": part, "generated": part},
            "generated": [
                {
                    "prompt": 0,
                    "text": "def f(\n  x",
                    "continuation": "x",
                    "prompt_tokens": 2,
                    "tokens": 5,
                }
            ],
            "language_model": {
                "curve": [
                    {
                        "step": 20,
                        "tokens": 40960,
                        "train": 6.18,
                        "heldout": 6.0932,
                        "density_median": 1.0,
                    }
                ],
                "seconds": 33.6,
                "tokens": 149504,
                "tokens_per_second": 4443.13,
                "parameters": 76192,
                "epochs": 0.4983,
                "precision": "bfloat16",
                "density_median": 0.19,
                "density_quartiles": [8.19, 20.2, 31.9],
            },
            "token": {
                "text": "def load(path):\n    return 1\n",
                "token": " return",
                "active": 10,
                "neurons": 64,
                "top": [[50, 47], [0.1701037, 0.1667099]],
            },
            "bridge_difference": 1.19e-07,
        },
        "toy": {
            "preset": "smoke",
            "cases": [{"Case": "1 important = dense", "Models": "72", "All five": "7 of 72"}],
            "observations": [
                {
                    "The talk says": "no case represents all five",
                    "Measured": "models that represent | at most four",
                    "Share": "304 of 432, 70.4 %",
                    "At 90 %": "does not hold",
                }
            ],
            "mechanism": "Of the represented features 13 of 279 stand alone in case 1.",
            "autoencoder": "All five found by 1 of 16.",
            "introduction": "At p = 1 it keeps 2.",
            "geometry": "Half.",
            "phases": "Two.",
            "neurons": "|x| is solved by 7 of 8.",
            "full": {
                "preset": "full",
                "passed": 1,
                "gates": [
                    {
                        "experiment": "introduction",
                        "what": "p = 1 | loss",
                        "measured": [0.0365, 0.0371],
                        "expected": "0.036585 ± 1 %",
                        "passed": True,
                    }
                ],
                "observations": [{"The talk says": "at full size", "Share": "71.7 %"}],
                "cases": [{"Case": "1", "All five": "11.3 %"}],
                "mechanism": "Of the represented features 247 of 1750 stand alone in case 1.",
            },
        },
        "features": {
            "recipe": "bricken_2023",
            "gallery": [entry(i) for i in range(101, 108)],
            "gallery_neurons": [entry(3), entry(4)],
            "seed": 0,
            "gallery_at_least": 100,
            "judged": 201,
            "n_features": 256,
            "n_neurons": 64,
            "density_median": {"features": 0.002, "neurons": 0.3},
            "dead_share": {"features": 0.02, "neurons": 0.0},
            "figure": "density",
            "closely": [closely(i) for i in range(101, 105)] + [closely(105, rule="")],
            "browser_bytes": 17_500_000,
            "misleading": closely(107)
            | {
                "top_share": 0.95,
                "lower_share": 0.0721,
                "lower_examples": 9,
                "clean_top": 321,
                "unclean_lower": 123,
            },
        },
        "interpretability": ruled(),
        "clusters": {
            "features": 201,
            "clusters": 12,
            "named": 11,
            "shared_value": 0.4567,
            "shared_value_by_chance": 0.1665,
            "shared_value_by_chance_most": 0.1777,
            "largest": [],
        },
        "circuits": circuits_of(),
        "gallery": gallery_of(),
        "why": {
            "feature": 12,
            "text": "def",
            "position": 3,
            "token": "def",
            "activation": 4.3,
            "deep": {"hook_name": "blocks.3.mlp.hook_post", "n": 500, "error": 6.5e-7, "own": 0.91},
        },
        "explanations": {
            "model": "a|model",
            "recipe": "bricken_2023",
            "features": 4,
            "stopped": None,
            "n": 80,
            "unparsed": 7,
            "kinds": {
                "feature": {"units": 4, "unexplained": 0, "n": 40, "unparsed": 3}
                | {
                    k: {"mean": 0.7654, "low": 0.6, "high": 0.9, "units": 4}
                    for k in ("detection", "fuzzing", "rating")
                }
            },
        },
        "last_mlp": {
            "model": "a small Llama trained here on the run's corpus",
            "trained_here": True,
            "layers": 4,
            "d_in": 64,
            "d_sae": 128,
            "hook_name": "blocks.3.mlp.hook_post",
            "positive_share": 0.4712,
            "left_out": {"long": 0.0, "special": 0.0, "first": 0.01},
            "kept": 16,
            "carried": [
                {
                    "hook": f"blocks.{i}.{hook}",
                    "width": 64.0,
                    "positive": 0.4712,
                    "kurtosis": 3.14,
                    "zero": 0.4371 + i,
                    "mean": 0.5282,
                    "strongest": 0.6543,
                }
                for i, hook in [*((i, "mlp.hook_post") for i in range(4)), (3, "hook_mlp_out")]
            ],
            "evaluation": {
                n: {c: e[c] for c in columns}
                for n, e in (("bricken_2023", main), ("neurons", evaluated(1.0, [])))
            },
            "training": {
                "seconds": 23.4,
                "activations": 30000,
                "activations_per_second": 1282.1,
                "resampling": [],
            },
            "gallery": [entry(i) for i in (7, 8, 9)],
            "bridge_difference": 2.4e-07,
            "language_model": {
                "tokens": 60000,
                "seconds": 31.2,
                "parameters": 90000,
                "heldout": 5.9134,
            },
        },
        "clamping": clamping_of(),
        "study_sanity": sanity_of(),
        **studied(),
    }


FIGURES = (
    "language_model_loss",
    "neuron_density",
    "token_activations",
    "training_l0",
    "training_silent",
    "density",
    "density_recipes",
    "clamping_sweep",
    "clamping_ranks",
    "last_mlp_activations",
    "last_mlp_carried",
    "toy_introduction",
)


def make(folder, values: dict, figures=FIGURES, overrides=("corpus.train_tokens=300001",)) -> Run:
    run = stages.open_run("smoke", folder, overrides)
    for name, data in values.items():
        run.save_results(name, data)
    (folder / "figures").mkdir(exist_ok=True)
    for name in figures:
        (folder / "figures" / f"{name}.png").write_bytes(PNG)
    return run


@pytest.fixture(autouse=True)
def no_published_check(monkeypatch, tmp_path_factory):
    """Reports of made-up results, without the toy check and studies that the checkout keeps."""
    folder = tmp_path_factory.mktemp("checkout")
    monkeypatch.setattr(project, "published", lambda what: folder / "report" / what)
    return folder


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run", results())


def rendered(tmp_path, values, **how) -> str:
    return render.markdown(make(tmp_path, values, **how))


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}")[1].split("\n## ")[0]


def pictures_of(text: str) -> list[str]:
    """The links to files of the run: all but those to the network."""
    return [link for link in publish.links(text) if not link.startswith("https://")]


def tables_of(text: str) -> list[list[list[str]]]:
    """Every Markdown table as rows of cells; `\\|` stays inside its cell."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            found = found if inside else [*found, []]
            found[-1].append(cells)
        inside = line.startswith("|")
    return found


def test_each_cell_of_the_main_table_is_its_json_value_formatted(tmp_path):
    values = results()
    text = rendered(tmp_path, values)
    short, grid = (t for t in tables_of(text) if "ours, as published" in " ".join(t[0]))
    columns = {"ward_2024": 2, "bricken_2023": 3, "neurons": 4}
    rows = {re.sub("[ᵃᵇᶜᵈᵉᶠᵍʰ]$", "", row[0]): row for row in grid[2:]}
    expected = {
        "Loss recovered, zero ablation": ("recovered_zero", lambda x: f"{100 * x:.1f} %"),
        "Loss recovered, mean ablation": ("recovered_mean", lambda x: f"{100 * x:.1f} %"),
        "L0, mean": ("l0_mean", lambda x: f"{x:.1f}"),
        "L0, median": ("l0_median", lambda x: f"{x:.0f}"),
        "FVU": ("fvu", lambda x: f"{x:.3f}"),
        "MSE per dimension": ("mse", lambda x: f"{x:.4f}"),
        "KL, nats/token": ("kl", lambda x: f"{x:.3f}"),
        "Cross-entropy, clean, nats/token": ("ce_clean", lambda x: f"{x:.3f}"),
        "Cross-entropy, spliced": ("ce_spliced", lambda x: f"{x:.3f}"),
        "Cross-entropy, zero-ablated": ("ce_zero", lambda x: f"{x:.3f}"),
        "Cross-entropy, mean-ablated": ("ce_mean", lambda x: f"{x:.3f}"),
        "Dead share": ("dead_share", lambda x: f"{100 * x:.2f} %"),
        "Alive": ("alive", str),
        "Median density": (
            "density_median",
            lambda x: f"{100 * x:.1f} %" if x > 0.1 else f"{100 * x:.3f} %",
        ),
    }
    for label, (key, shown) in expected.items():
        for name, column in columns.items():
            value = values["evaluation"][name][key]
            assert rows[label][column] == (
                {1.0: "100 %", 0.0: "0"}[value] if value in (0.0, 1.0) else shown(value)
            ), (label, name)
    assert rows["Training activations"][2:] == ["60,000", "60,000", "–"]
    assert rows["Features (neurons)"][1:] == ["4,096", "256", "256", "64"]
    assert len(short) < len(grid)
    for label, *cells in short[2:]:  # the short table may shorten a label, never a value
        assert cells in [row[1:] for name, row in rows.items() if name.startswith(label)], label


def test_a_resampling_just_before_the_end_is_told(tmp_path):
    values = results()
    assert "in the middle of a change" not in rendered(tmp_path / "early", values)
    summary = values["training"]["summaries"]["ward_2024"]
    long_before = {"step": 300, "dead": 9, "resampled": 9}
    for i, quiet in enumerate(([], [long_before], [long_before | {"step": 500, "resampled": 0}])):
        summary["resampling"] = quiet
        assert "in the middle of a change" not in rendered(tmp_path / str(i), values)
    summary["resampling"], summary["curve"][1]["l0"] = (
        [{"step": 500, "dead": 9, "resampled": 9}],
        29,
    )
    text = rendered(tmp_path / "late", values)
    assert "It resampled 9 features at step 500 of 600; from there its L0 on" in text
    assert "from 17.0 to 29.0, its squared error from 1.00 to 1.00: its column shows" in text
    assert "shortly after a resampling" in section(text, "Abstract")


def test_the_originals_full_budget_is_told_where_it_was_run(tmp_path):
    values = results()
    assert "the original's budget, Stheno-8B" in section(rendered(tmp_path / "no", values), "Abst")
    record = values["study_recipes"]["points"][0] | {"activations": 2_000_000}
    dead = [{"activations": 1000 * n, "dead": d} for n, d in ((9, 0.07), (90, 0.73), (1900, 0.31))]
    values["study_full_budget"] = {
        "record": record | {"recovered_zero": 0.7531},
        "dead": dead,
        "curve": [],
        "about": values["study_recipes"]["about"],
    }
    text = rendered(tmp_path / "full", values)
    assert "recovers 75.3 % (zero) at L0 16.1; it reported 74.0 %" in section(text, "Abstract")
    said = section(text, "3 ")
    assert "73.0 % at most" in said and "a median of 31.0 %" in said
    assert "1 of 1 tests lie there" in said and "the original's course comes out" in said
    values["study_full_budget"]["dead"][-1]["dead"] = 0.93
    said = section(rendered(tmp_path / "other", values), "3 ")
    assert "0 of 1 tests lie there" in said and "course does not come out" in said
    assert "it recovers 75.3 % (zero; 74.0 % there)" in said


def leaves(value, path=()):
    """(path, number) of every number in nested results, booleans and long lists left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and len(value) < 20:
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


QUOTED = [  # numbers in prose and in every table: a change of the result must change the report
    ("run", "seconds", "02_activations"),
    ("run", "machine", "memory_bytes"),
    ("run", "machine", "cores"),
    ("activations", "text", "train", "documents"),
    ("activations", "text", "train", "most_frequent", 1, "share"),
    ("activations", "text", "heldout", "tokens"),
    ("activations", "prompts", "generated", "active_share"),
    ("activations", "language_model", "tokens_per_second"),
    ("activations", "language_model", "curve", 0, "heldout"),
    ("activations", "language_model", "density_quartiles", 2),
    ("activations", "token", "active"),
    ("activations", "token", "top", 1, 1),
    ("activations", "bridge_difference"),
    ("evaluation", "bricken_2023", "tokens"),
    ("evaluation", "bricken_2023-d_sae_64", "fvu"),
    ("evaluation", "bricken_2023-no_resampling", "dead_share"),
    ("training", "summaries", "ward_2024", "resampling", 0, "resampled"),
    ("training", "summaries", "bricken_2023", "final_silent"),
    ("training", "summaries", "ward_2024", "recipe", "l1"),
    ("toy", "full", "gates", 0, "measured", 1),
    ("features", "judged"),
    ("features", "closely", 0, "density"),
    ("last_mlp", "positive_share"),
    ("last_mlp", "carried", 3, "zero"),
    ("last_mlp", "carried", 4, "strongest"),
    ("last_mlp", "language_model", "heldout"),
    ("last_mlp", "evaluation", "neurons", "fvu"),
    ("clamping", "features", 0, "kl"),
    ("clamping", "features", 1, "nulls", "other features", "change", 2),
    ("clamping", "ablation", 0, "low"),
    ("clamping", "kl_zero"),
    ("clamping", "error", "alone"),
    ("features", "closely", 0, "score", "auroc"),
    ("features", "closely", 1, "tenths", 0, "share"),
    ("features", "misleading", "lower_share"),
    ("interpretability", "scores", "neuron_matched", "auroc_median"),
    ("interpretability", "density_match", "neuron_matched", "factor"),
    ("interpretability", "kinds", "untrained_matched", "units"),
    ("interpretability", "scores", "neuron_matched", "information_median_interval", 1),
    (
        "interpretability",
        "differences",
        "feature - neuron_matched",
        "information_median",
        "difference",
    ),
    ("clusters", "shared_value"),
    ("circuits", "firings", "together", "own"),
    ("circuits", "kinds", "share", "bigram"),
    ("circuits", "replaced", "spearman"),
    ("circuits", "replaced", "change", "actual_other"),
    ("circuits", "weights", "neuron", "follows", "explained"),
    ("circuits", "ablation", "shuffled", "median"),
    ("gallery", "cards", "drawn", 0, "followed"),
    ("gallery", "kinds", "features", "token", "share"),
    ("gallery", "kinds", "random directions", "context", "of_often"),
    ("gallery", "token", "features", 0, "sources", 0, "share"),
    ("gallery", "token", "neuron", "writers"),
    ("gallery", "cards", "token", 0, "low", 0, "share"),
    ("why", "deep", "error"),
    ("explanations", "kinds", "feature", "unparsed"),
    ("study_recipes", "points", 0, "recovered_mean"),
    ("study_recipes", "mmcs", "bricken_2023", "mean"),
    ("study_widths", "points", 3, "fvu"),
    ("study_recipes", "mmcs", "bricken_2023", "matched_data"),
    ("study_recipes", "points", 0, "alive"),
    ("study_resampling", "points", 0, "dead_share"),
    ("study_resampling", "points", 3, "resampled"),
    ("evaluation", "bricken_2023", "baselines", "principal components", "recovered_mean"),
    ("evaluation", "bricken_2023", "baselines", "principal components", "behind", "difference"),
    ("evaluation", "bricken_2023", "ngrams", "bigram"),
    ("study_recipes", "tuning", 0, "lr"),
    ("study_widths", "splitting", 0, "null_share"),
    ("study_classical", "best", 1, "l0_mean"),
    ("study_saelens", "tuning", 1, "recovered_mean"),
    ("study_saelens", "points", 0, "seconds"),
    ("study_sanity", "points", 0, "probing"),
    ("study_sanity", "points", 2, "recovered"),
    ("clamping", "features", 0, "movers", 0, "after"),
    ("clamping", "ranks", "share"),
    ("clamping", "last_mlp", "kl_zero"),
]


def test_without_equal_densities_there_is_no_verdict(run):
    values = run.load_results("interpretability")
    try:
        assert "; features are behind)" in render.markdown(run)
        values["density_match"]["neuron_matched"] |= {"factor": 1.87, "matched": False}
        run.save_results("interpretability", values)
        text = render.markdown(run)
        assert "their densities differ by a factor of 1.87" in text
        assert "; features are behind)" not in text
    finally:
        run.save_results("interpretability", ruled())


def test_a_changed_result_changes_the_report(run):
    before = render.markdown(run)
    for name, *path in QUOTED:
        values = results()[name]
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = inner[path[-1]] * 2 + 1
        run.save_results(name, values)
        assert render.markdown(run) != before, (name, *path)
        run.save_results(name, results()[name])
    assert render.markdown(run) == before


def test_numbers_in_the_template_are_no_results():
    """Digits in the template's prose: names, definitions and section numbers only."""
    folder = Path(render.__file__).parent
    source = "\n".join((folder / f"{n}.md.j2").read_text() for n in ("template", "appendices"))
    prose = re.sub(r"(?s)\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|`[^`]*`", "", source)
    names = r"[Ss]ection [\d.]+|Stheno-8B|L[01]\b|TransformerLens \d|bfloat16"
    prose = re.sub(rf"(?m)^#+ [\d.]+|^\d+\. |{names}", "", prose)
    assert re.findall(r"\d+", prose) == []
    for name in ("background", "problems"):
        prose = (folder / f"{name}.md.j2").read_text()
        assert "%" not in re.sub(r"(?s)\{\{.*?\}\}|\{%.*?%\}", "", prose)


def test_tables_are_well_formed_and_nothing_is_undefined(run):
    text = render.markdown(run)
    found = tables_of(text)
    assert len(found) == 44
    for rows in found:
        assert len({len(row) for row in rows}) == 1, rows
        assert all(re.fullmatch("-+:?", cell) for cell in rows[1])
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|\{\{|\{%", text)
    assert "\n\n\n" not in text


def test_links_resolve_and_every_figure_and_table_is_traced(run):
    text = render.markdown(run)
    pictures = pictures_of(text)
    assert len(pictures) == len(FIGURES)
    assert all((run.folder / link).is_file() for link in pictures)
    appendix = section(text, "Appendix H")
    for kind in ("Table", "Figure"):
        used = re.findall(rf"(?:\*\*|!\[){kind} (\d+)\.", text)
        assert used == [str(i + 1) for i in range(len(used))]
        assert re.findall(rf"(?m)^\| {kind}\s(\d+)", appendix) == used
    for name in set(re.findall(r"`(\w+)\.json`", appendix)):
        assert (run.results_folder / f"{name}.json").is_file()


def test_a_figure_without_its_file_is_left_out(run):
    (run.folder / "figures" / "density.png").unlink()
    assert "figures/density.png" not in render.markdown(run)


def test_the_published_toy_check_is_shown_with_its_figures(
    run, tmp_path, no_published_check, monkeypatch
):
    monkeypatch.setattr(project, "find", lambda: no_published_check)
    done = tmp_path / "check"
    (done / "figures").mkdir(parents=True)
    (done / "gates.json").write_text('{"preset": "full", "passed": 1, "gates": []}')
    for name in toy_check.PUBLISHED_FIGURES:
        (done / "figures" / f"{name}.png").write_bytes(
            (run.folder / "figures" / "density.png").read_bytes()
        )
    publish_toy_check(done)
    assert toy_check.published_summary()["passed"] == 1
    text = render.markdown(run)
    for name, caption in toy_check.PUBLISHED_FIGURES.items():
        assert (
            f"(figures/full_{name}.png)" in text
            and caption in text
            and (run.folder / "figures" / f"full_{name}.png").is_file()
        )


@pytest.mark.parametrize(
    "name",
    [
        "toy",
        "activations",
        "training",
        "features",
        "last_mlp",
        "clamping",
        "circuits",
        "gallery",
        "run",
    ],
)
def test_a_missing_result_is_said_in_its_section(run, name):
    (run.results_folder / f"{name}.json").unlink()
    text = render.markdown(run)
    title = {
        "toy": "9 ",
        "activations": "2 ",
        "training": "7 ",
        "features": "4 ",
        "last_mlp": "10 ",
        "clamping": "6 ",
        "circuits": "6 ",
        "gallery": "4 ",
        "run": "2 ",
    }[name]
    assert ("has not run" if name != "run" else "was not recorded") in section(text, title)
    if name not in ("run", "gallery"):
        assert f"- {content.NOTEBOOK_OF[name]} did not run" in section(text, "11 ")


def test_only_the_evaluation_is_needed_and_its_absence_names_the_notebook(tmp_path):
    only = {"evaluation": results()["evaluation"]}
    assert "94.1 %" in rendered(tmp_path / "a", only, figures=())
    with pytest.raises(ArtefactError, match="evaluation.json is missing.*notebook 03_sae_training"):
        rendered(tmp_path / "b", {k: v for k, v in results().items() if k != "evaluation"})


@pytest.mark.parametrize("name", ["positive_share", "layers", "gallery"])
def test_results_of_another_version_are_an_error_that_names_the_value(tmp_path, name):
    values = results()
    del values["last_mlp"][name]
    with pytest.raises(ArtefactError, match=name):
        rendered(tmp_path, values)


def test_a_value_that_is_not_defined_is_said(tmp_path):
    values = results()
    values["evaluation"]["ward_2024"]["recovered_mean"] = float("nan")
    row = next(
        r
        for t in tables_of(rendered(tmp_path, values))
        for r in t
        if r[0].startswith("Loss recovered, mean")
    )
    assert row[2] == "not defined"


def test_text_that_is_not_of_an_installation_has_no_distributions(tmp_path):
    values = results()
    values["activations"]["text"]["source"] = "files"
    for split in ("train", "heldout"):
        del values["activations"]["text"][split]["distributions"]
    text = section(rendered(tmp_path, values), "2 ")
    assert "Whole documents are held out" in text and "distributions" not in text


def test_a_stand_in_is_named_and_a_real_model_is_not_disowned(tmp_path):
    assert "**Stheno-8B itself was not run.**" in section(
        rendered(tmp_path / "a", results()), "10 "
    )
    values = results()
    values["last_mlp"] |= {
        "trained_here": False,
        "model": "Sao10K/L3-8B-Stheno-v3.2",
        "language_model": None,
        "bridge_difference": None,
    }
    text = rendered(tmp_path / "b", values)
    assert "was not run" not in section(text, "10 ") + section(text, "11 ")


@pytest.mark.parametrize(
    ("narrow", "wide", "says"),
    [
        ((0.3, 20), (0.2, 10), "explains more with fewer"),
        ((0.3, 5), (0.2, 10), "but also with more"),
        ((0.1, 20), (0.2, 10), "cannot be ranked"),
        ((0.1, 5), (0.2, 10), "does not support"),
    ],
)
def test_the_answer_on_width_follows_the_numbers(tmp_path, narrow, wide, says):
    values = results()
    for name, (fvu, l0) in (("bricken_2023-d_sae_64", narrow), ("bricken_2023", wide)):
        values["evaluation"][name] |= {"fvu": fvu, "l0_mean": float(l0)}
    assert says in section(rendered(tmp_path, values), "1 ")


class Page(HTMLParser):
    """Tags, and the attributes that could load or run something."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.shown, self.rows = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        self.rows = (
            [*self.rows, 0]
            if tag == "tr"
            else self.rows[:-1] + [self.rows[-1] + 1]
            if tag in ("td", "th")
            else self.rows
        )

    def handle_data(self, data):
        self.shown.append(data)


ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "nav",
    "main",
    "div",
    "ul",
    "ol",
    "li",
    "a",
    "h1",
    "h2",
    "h3",
    "p",
    "code",
    "pre",
    "em",
    "strong",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "img",
}


def check_page(text: str) -> Page:
    page = Page(text)
    assert set(page.tags) <= ALLOWED
    assert not [a for a in page.attributes if a[1].startswith("on")]
    for tag, key, value in page.attributes:
        if key == "src":
            assert tag == "img" and value.startswith("data:image/png;base64,")
        if key == "href":
            assert re.match("#|figures/|https?://", value)
    return page


def test_the_page_is_self_contained(run):
    page = check_page(pages.html(render.markdown(run), run.folder))
    assert page.tags.count("img") == len(FIGURES)
    assert page.tags.count("table") == 44
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in [
        v for _, k, v in page.attributes if k == "content"
    ]


@pytest.mark.parametrize(
    "bad",
    [
        HOSTILE,
        "</code></pre></body><script>alert(1)</script>",
        "```\n<script>alert(1)</script>\n```\n# heading",
        "\n\n| a | b |\n| --- | --- |\n",
        "[r]: javascript:alert(1)",
        "1. <!-- x",
    ],
)
def test_text_of_the_corpus_is_inert(tmp_path, bad):
    clean = pages.html(render.markdown(run := make(tmp_path / "clean", results())), run.folder)
    values = results()
    visible = bad.replace("\n", "⏎")
    values["features"]["closely"] = [closely(101, visible, visible)] + values["features"][
        "closely"
    ][1:]
    values["features"]["misleading"] |= closely(107, visible, visible)
    values["study_widths"]["splitting"][0]["examples"][0] |= {"token": bad, "parts": [bad, " a"]}
    values["explanations"]["model"] = bad
    a = values["activations"]
    a["text"]["what"] = a["token"]["text"] = a["token"]["token"] = a["generated"][0]["text"] = bad
    for split in ("train", "heldout"):
        a["text"][split]["kinds"] = {
            bad: {"documents": 1, "tokens": 79529},
            "py": {"documents": 1, "tokens": 220471},
        }
        a["text"][split]["distributions"] = {bad: 13439, "x": 1}
    a["text"]["train"]["most_frequent"][0]["token"] = bad
    a["prompts"]["prompt"]["most_frequent"] = {bad: 3}
    values["last_mlp"]["model"], values["clamping"] = bad, clamping_of(bad)
    values["circuits"] = circuits_of(bad)
    values["toy"]["introduction"] = values["toy"]["observations"][0]["Share"] = values["run"][
        "machine"
    ]["cpu"] = bad
    text = render.markdown(run := make(tmp_path / "bad", values))
    page = check_page(pages.html(text, run.folder))
    expected = Page(clean)
    assert page.rows == expected.rows, "a table lost its shape"
    for tag in ("table", "h1", "h2", "h3", "img", "a", "pre", "em"):
        assert page.tags.count(tag) == expected.tags.count(tag), tag
    assert all(len({len(row) for row in rows}) == 1 for rows in tables_of(text))
    if "<script" in bad:
        assert "<script>alert(1)" in "".join(page.shown).replace("\u2068", "")


@pytest.mark.parametrize(
    "bad",
    [
        "a <script>alert(1)</script> b",
        "<script>alert(1)</script>",
        "<div onclick='x()'>\n\ntext\n\n</div>",
        "[x](javascript:alert(1))",
        "<javascript:alert(1)>",
        "![x](../secret.png)",
        "![x](http://evil/x.png)",
    ],
)
def test_the_page_is_inert_even_where_markdown_is_not(tmp_path, bad):
    """Should escaping ever miss something, the page still shows it instead of obeying."""
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "run").mkdir()
    page = Page(pages.html(f"# t\n\n{bad}\n", tmp_path / "run"))
    assert set(page.tags) <= ALLOWED and not [
        a for a in page.attributes if a[1].startswith("on") or a[1] == "href"
    ]
    assert [v for _, k, v in page.attributes if k == "src"] in ([], ["data:,"])


@given(st.text(alphabet="`*_[]()<>|&~#+-.! \\\n1ab$:/", max_size=30))
def test_plain_text_shows_itself(text):
    import markdown

    shown = plain(text)
    html = markdown.markdown(
        f"x {shown} y\n\n{table(['a', 'b'], [shown, 'c'])}", extensions=["tables", "sane_lists"]
    )
    paragraph, grid = html.split("<table>")
    page = Page(paragraph)
    assert page.tags == ["p"]
    assert " ".join("".join(page.shown).split()) == " ".join(
        f"x {' '.join(text.split())} y".split()
    )
    assert Page(grid).rows == [2, 2]
    assert " ".join("".join(Page(grid).shown).split()) == " ".join(
        f"a b {' '.join(text.split())} c".split()
    )


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (f.percent(0.93456), "93.5 %"),
        (f.percent(0.002134), "0.213 %"),
        (f.percent(0), "0 %"),
        (f.percent(1.0), "100 %"),
        (f.percent(0.99999), "> 99.9 %"),
        (f.percent(0.09996), "10.0 %"),
        (f.percent(None), "not defined"),
        (f.count(None), "not defined"),
        (f.number(17.4321), "17.4"),
        (f.number(0.0999951), "0.100"),
        (f.number(24512.3), "24,512"),
        (f.number(-0.0213), "-0.0213"),
        (f.count(1020000), "1,020,000"),
        (f.nats(3.75349), "3.753"),
        (f.duration(3.21), "3.2 s"),
        (f.duration(312), "5 min 12 s"),
        (f.duration(39240), "10 h 54 min"),
        (f.small(1.19e-7), "1.2 × 10⁻⁷"),
        (f.exact(0.003), "0.003"),
        (f.exact(89600000), "89,600,000"),
        (f.millions(3_000_000), "3.00 million"),
        (f.millions(76192), "76,192"),
        (f.gib(2**34), "16.0 GiB"),
        (f.short(0.0130001), "0.013"),
        (f.short(1.0), "1"),
        (f.short(1234.5), "1234"),
        (f.about(47), "50 s"),
        (f.about(7000), "1.9 h"),
        (f.signed(-0.0213), "−0.0213"),
        (f.interval(0.61234, None), "0.612 to not defined"),
        (f.interval(-0.5, 0.25, f.signed), "−0.500 to +0.250"),
    ],
)
def test_formats(made, shown):
    assert made == shown


def test_the_command_makes_the_same_settings_again(tmp_path):
    given_ = [
        "sae.d_sae=512",
        "corpus=files:a b.txt",
        "sae.compare=[]",
        "lm.lr=1e-4",
        "corpus.max_kind_bytes={py: 5}",
        "last_mlp.sae.d_sae=99",
        "seed=3",
    ]
    run = stages.open_run("smoke", tmp_path / "run", given_)
    assert settings.load("smoke", content.overrides(run.settings)) == run.settings
    assert content.overrides(settings.load("smoke")) == []
    assert "--set 'corpus.source=files:a b.txt'" in content.command(run)


def test_the_original_is_quoted_from_its_file_with_sources(tmp_path, monkeypatch):
    assert all(fact["source"] and fact["what"] for fact in content.ORIGINAL["facts"].values())
    changed = copy.deepcopy(content.ORIGINAL)
    changed["facts"]["recovered_zero"]["value"] = 0.123
    monkeypatch.setattr(content, "ORIGINAL", changed)
    text = rendered(tmp_path, results())
    assert (
        "74.0 %" not in text
        and "12.3 %" in section(text, "3 ")
        and "12.3 %" in section(text, "Abstract")
    )


def shown(pdf: bytes, tmp_path) -> str:
    """The text of a PDF, if poppler is there to read it."""
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext")
    (tmp_path / "a.pdf").write_bytes(pdf)
    done = subprocess.run(["pdftotext", "-raw", tmp_path / "a.pdf", "-"], capture_output=True)
    return done.stdout.decode()


def test_the_paper_has_every_figure_and_needs_no_browser(run, monkeypatch):
    monkeypatch.setenv(drawing.STATE, "there is none")
    write_report(run)
    pdf = (run.folder / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Subtype/Image") >= 4  # one, ten times over, and the studies' three


@pytest.mark.parametrize(
    "bad",
    [
        '#panic("run") #read("/etc/passwd") $x$ \\ // /* @a <b> = c `#sys` ]#panic()[ "#panic()"',
        "</p></report><!-- &nope; <![CDATA[ ]]>",
        "a\x00\x0c\x1b\ufffe\U0001f600 λ → ≤ − Кириллица 漢字",
    ],
)
def test_text_is_data_to_the_typesetter(tmp_path, bad):
    text = f"# {plain(bad)}\n\n{plain(bad)}\n\n{code(bad)}\n\n{block(bad)}\n"
    pdf = pages.pdf(text + table([plain(bad), "x"], [code(bad), plain(bad)]), tmp_path)
    seen = re.sub(r"[\s\u200b]", "", shown(pdf, tmp_path))
    for word in re.findall(r"[^\W_]{3,}", bad):
        assert seen.count(word) >= 5 * bad.count(word), word


def test_the_typesetter_reads_no_file_but_figures(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "run" / "figures").mkdir(parents=True)
    for path in ("../secret.png", "figures/../../secret.png", "/etc/passwd", "http://e/x.png"):
        assert b"/Subtype/Image" not in pages.pdf(f"![x]({path})", tmp_path / "run")


def test_a_damaged_picture_costs_the_paper_alone(run, caplog):
    (run.folder / "figures" / "density.png").write_bytes(b"not a picture")
    (run.folder / "report.pdf").write_bytes(b"%PDF of an earlier report")
    assert write_report(run) == run.folder / "report.md"
    assert "no report.pdf: " in caplog.text and not (run.folder / "report.pdf").exists()


def test_a_paper_whose_tags_fail_is_made_without_them(tmp_path, monkeypatch):
    compile, asked = typst.compile, []

    def fails_with_tags(*args, pdf_tags=True, **given):
        asked.append(pdf_tags)
        if pdf_tags:
            raise typst.TypstError("internal error: parent group")
        return compile(*args, pdf_tags=False, **given)

    monkeypatch.setattr(typst, "compile", fails_with_tags)
    assert pages.pdf("# Title\n", tmp_path).startswith(b"%PDF") and asked == [True, False]


def test_publishing_copies_the_report_with_links_that_resolve(run, tmp_path):
    root = tmp_path / "repository"
    (root / "report" / "figures").mkdir(parents=True)
    (root / "report" / "figures" / "old.png").write_bytes(b"of an earlier run")
    (root / "report" / "toy").mkdir()
    (root / "report" / "toy" / "gates.json").write_text("{}")
    path = publish_report(run, root)
    text = path.read_text()
    pictures = pictures_of(text)
    assert len(pictures) == len(FIGURES) + 6 and all(
        (root / link).is_file() for link in pictures
    )  # and the studies’ six
    name = "results/evaluation.json"
    assert (root / "report" / name).read_bytes() == (run.folder / name).read_bytes()
    assert (
        not (root / "report" / "figures" / "old.png").exists()
        and (root / "report" / "toy" / "gates.json").exists()
    )
    assert text.replace("](report/figures/", "](figures/") == (run.folder / "report.md").read_text()
    assert (root / "report.pdf").is_file()
    (run.folder / "report.pdf").unlink()
    publish.publish(run, root)
    assert not (root / "report.pdf").exists()  # rather than one of another text


@pytest.mark.parametrize("harm", ["large", "broken", "path", "setting"])
def test_publishing_refuses_and_changes_nothing(run, tmp_path, harm):
    root = tmp_path / "repository"
    root.mkdir()
    (root / "report.md").write_text("the old one")
    write_report(run)
    if harm == "large":
        run.save_results("more", {"text": "x" * publish.LARGEST})
    if harm == "broken":
        (run.folder / "figures" / "density.png").unlink()
    if harm == "path":
        (run.folder / "report.md").write_text(f"see {run.folder.resolve()}/results")
    if harm == "setting":
        run = make(tmp_path / "other", results(), overrides=["corpus=files:/data/text.jsonl"])
        write_report(run)
    message = {
        "large": "MB",
        "broken": "broken link, figures/density.png",
        "path": "path of this machine",
        "setting": "path of this machine, /data/text.jsonl",
    }[harm]
    with pytest.raises(ArtefactError, match=message):
        publish.publish(run, root)
    assert [p.name for p in root.rglob("*")] == ["report.md"] and (
        root / "report.md"
    ).read_text() == "the old one"


def test_paths_in_the_text_of_the_corpus_are_no_obstacle(tmp_path, monkeypatch):
    values = results()
    monkeypatch.setattr(publish.Path, "home", lambda: publish.Path("/"))
    values["features"]["gallery"][0] = entry(5, "env", "#!/usr/bin/ / ")
    assert publish_report(make(tmp_path / "run", values), tmp_path / "repository").is_file()


def test_the_machine_is_recorded_as_plain_data():
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert set(results()["run"]["machine"]) | {"date"} == set(found)
    assert (
        found["cores"] >= 1 and found["memory_bytes"] > 2**28 and found["cpu"] == cpu_model() != ""
    )
    assert found["versions"]["Jinja2"] and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_no_commit_outside_of_git(tmp_path):
    assert commit(tmp_path) is None


@pytest.fixture(scope="module")
def published_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "published", lambda what: folder / "nothing" / what)
        publish_report(make(folder / "run", results()), folder / "repository")
    return folder / "repository"


@pytest.fixture
def published(published_once, tmp_path):
    return shutil.copytree(published_once, tmp_path / "repository")


def test_the_committed_report_follows_from_its_results(published):
    lines = (published / "report.md").read_text().splitlines()
    assert check.check(published) == len(lines)


def test_a_tampered_number_is_found_and_its_source_named(published):
    path = published / "report.md"
    text = path.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| FVU |"))
    number = row.split("|")[3].strip()
    path.write_text(text.replace(row, row.replace(number, "0.123")))
    message = rf"says 0\.123 where report/results/evaluation\.json.* says {re.escape(number)}"
    with pytest.raises(ArtefactError, match=message):
        check.check(published)


def test_a_tampered_result_is_found(published):
    path = published / "report" / "results" / "evaluation.json"
    path.write_text(path.read_text().replace("0.19437", "0.09437"))
    with pytest.raises(ArtefactError, match="damaged or was edited"):
        check.check(published)


def test_a_sentence_that_no_result_says_is_found(published):
    path = published / "report.md"
    path.write_text(path.read_text() + "\nIt works.\n")
    with pytest.raises(ArtefactError, match="is not what this version's template makes"):
        check.check(published)


@pytest.mark.parametrize("name", ["report.md", "report/settings.yaml"])
def test_nothing_published_is_said_in_a_line(published, name):
    (published / name).unlink()
    with pytest.raises(ArtefactError, match=rf"{name} cannot be read.*--publish"):
        check.check(published)


def test_readings_are_shown_for_the_very_weights_alone(run, monkeypatch):
    names = {"by": "a | reader", "features": {7: ["<b>zyx", "It *begins*."]}, "unnamed": []}
    monkeypatch.setattr(content, "NAMES", {"f00d": names})
    text = render.markdown(run)
    assert "&lt;b&gt;zyx" in text and "It \\*begins\\*." in text and "a \\| reader" in text
    assert "0 of the 2 drawn got a name, and 1 of the 1 selected." in text
    monkeypatch.setattr(content, "NAMES", {"beef": names})
    assert "zyx" not in render.markdown(run)


def test_a_larger_run_is_a_column_and_has_the_gallery(tmp_path):
    values = results()
    of, features = values["evaluation"]["bricken_2023"], copy.deepcopy(values["gallery"])
    features |= {"autoencoder": "beef", "kinds": copy.deepcopy(features["kinds"])}
    features["kinds"]["features"]["token"]["of_often"] = 0.2468
    for cards in features["cards"].values():
        for card in cards:
            card["feature"] += 4000
    about = {"recipe": "bricken_2023", "d_sae": 4097, "text": "`of | mine.jsonl`", "threads": 1}
    about |= {"vocabulary": 8192, "lm_tokens": 4.1e7, "parameters": 1.7e6, "heldout": 3.9876}
    about |= {"overrides": ["sae.l1=1.6"], "cpu": "a processor", "lm_seconds": 1234.0}
    about |= {"commit": "c0ffee", "date": "2026-11-22"}
    training = {"activations": 20_480_000, "seconds": 2345.0, "activations_per_second": 8733.0}
    values["study_larger"] = features | {
        "about": about,
        "evaluation": of | {"recovered_mean": 0.98765},
        "neurons": values["evaluation"]["neurons"],
        "training": training,
    }
    text = rendered(tmp_path, values)
    short, grid = (t for t in tables_of(text) if "ours, as published" in " ".join(t[0]))
    for rows in (short, grid):
        assert rows[0][4] == "larger run (`bricken_2023`)" and rows[2][4] == "4,097"
        mean = next(row for row in rows if row[0].startswith("Loss recovered, mean"))
        assert mean[4] == "98.8 %"
    assert "20.5 million activations" in section(text, "2 ")
    assert "study larger --profile smoke --run runs/larger --set sae.l1=1.6" in text
    assert "24.7 %" in section(text, "4 ") and "| 4007 |" in section(text, "4 ")
    assert "| 7 |" not in section(text, "4 ") and "| 7 |" in section(text, "Appendix E")


@pytest.mark.parametrize(("neurons", "apart"), [(18, "no difference is shown"), (7, "more often")])
def test_the_blind_test_is_told_as_it_came_out(tmp_path, neurons, apart):
    def kind(right: int) -> dict:
        of = {"right": right, "expected": 0.5, "p": 0.0}
        return {"drawn": 20, "named": 20, "range": of, "strong": of, "weak": of | {"right": 11}}

    values = results()
    kinds = {"features": kind(19), "neurons": kind(neurons)}
    values["study_blind"] = {"by": "two | readers", "seed": 0, "units": 20, "kinds": kinds}
    text = section(rendered(tmp_path, values), "4 ")
    assert f"19 features and {neurons} neurons were recognised" in text
    assert "two \\| readers" in text and "it was 11 and 11;" in text
    assert f"points: {'' if neurons > 9 else 'features are recognised '}{apart}" in text


def test_two_texts_stand_side_by_side():
    assert content.side_by_side("\na bcd ef\n  g", "x", 5) == "a bcd | x\nef    |\n  g   |"


def test_a_question_names_a_figure_that_comes_later(run):
    text = render.markdown(run)
    number = re.search(r"(?m)^\*Figure (\d+)\. The rank of each feature", text)[1]
    assert f"(figure {number})" in section(text, "13 ")


def test_four_cards_are_shown():
    numbers = {"token": (1, 2, 3), "context": (4, 5, 6), "drawn": (7, 8, 9)}
    cards = {name: [{"feature": n} for n in of] for name, of in numbers.items()}
    chosen = content.cards_of({"cards": cards})
    assert [card["feature"] for card in chosen] == [1, 4, 5, 7]


def test_names_in_our_own_sentences_stay_code_and_keep_the_blanks_around_them():
    text = "those of `topk`, with *more*; `sae.init` decides (`b_dec`)"
    assert prose(text) == "those of `topk`, with \\*more\\*; `sae.init` decides (`b_dec`)"
