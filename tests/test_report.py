"""The report: every number from the results, nothing undefined, hostile text inert, missing parts said, publishing bounded."""

import base64
import copy
import json
import logging
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lib import settings
from sae_lib.errors import ArtefactError
from sae_lib.report import content, pages, publish, publish_report, render, write_report
from sae_lib.report import formats as f
from sae_lib.report.machine import commit, cpu_model, machine
from sae_lib.report.markup import plain, table
from sae_lib.runs import Run, open_run

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
HOSTILE = "<script>alert(1)</script> | `a` ``b`` [x](javascript:alert(1)) ![i](http://evil/x.png) <img src=x onerror=alert(1)> **b** {{ 7*7 }} \\"


def evaluated(recovered: float, density: list[float], **other) -> dict:
    return {
        "tokens": 39936, "l0_mean": 17.4321, "l0_median": 15.0, "fvu": 0.19437, "mse": 0.0123456, "dead_share": 0.0214, "alive": 201, "density_median": 0.00213,
        "density": density, "ce_clean": 3.7531, "ce_spliced": 3.8812, "ce_zero": 5.5663, "ce_mean": 6.3112, "kl": 0.13371, "loss_tokens": 4032,
        "recovered_zero": recovered, "recovered_mean": recovered + 0.02,
    } | other  # fmt: skip


def trained(name: str, events: list[dict], l1: float, mse: str) -> dict:
    recipe = {"name": name, "source": f"source of {name}", "differences": [f"a difference of {name}"], "batch": 100, "lr": 1e-3, "l1": l1, "mse": mse, "scale_activations": mse == "sum"}
    curve = [{"step": 300, "squared_error": 1.0, "l1": 2.0, "l0": 17.0, "silent": 0.01}, {"step": 600, "squared_error": 1.0, "l1": 2.0, "l0": 17.0, "silent": 0.01}]
    return {"curve": curve, "resampling": events, "seconds": 83.4, "activations": 60000, "activations_per_second": 719.4, "scale": 1.5, "final_silent": 0.0137, "recipe": recipe}


def text_of(documents: int) -> dict:
    kinds = {"py": {"documents": documents - 4, "tokens": 220471}, "text": {"documents": 4, "tokens": 79529}}
    frequent = [{"id": 14, "token": ".", "count": 8376, "share": 0.02792}, {"id": 199, "token": "\n", "count": 7000, "share": 0.0233333}]
    quantiles = {"0.0": 107.0, "0.5": 1950.0, "1.0": 11073.0}
    return {"documents": documents, "tokens": 300000, "characters": 711229, "kinds": kinds, "length_quantiles": quantiles, "vocabulary_used": 905, "most_frequent": frequent,
            "distributions": {"hypothesis": 13439, "tornado": 11073}}  # fmt: skip


def entry(number: int, token: str = "import", around: str = "some code ") -> dict:
    example = {"before": around, "token": token, "after": around, "activation": 4.321}
    logits = [{"token": token, "value": 0.456}]
    return {"feature": number, "density": 0.00345, "n_active": 345, "maximum": 5.43, "top_tokens": [{"token": token, "count": 7}], "n_examples": 10, "raised": logits, "lowered": logits, "examples": [example] * 3}


def results() -> dict:
    """Every results file of a small run, in the shape that the notebooks save."""
    part = {"texts": 4, "tokens": 33, "length_median": 8.0, "length_max": 11, "active_share": 0.20076, "most_frequent": {" ": 2, "|": 2, "def": 1}}
    main, off = evaluated(0.9412, [0.002] * 256), evaluated(0.9311, [0.002] * 256, dead_share=0.0712)
    events = [{"step": 120, "dead": 31, "resampled": 31}, {"step": 240, "dead": 12, "resampled": 11}]
    columns = ["recovered_zero", "recovered_mean", "kl", "fvu", "l0_mean", "l0_median", "dead_share", "alive", "tokens"]
    return {
        "run": {"seconds": {"01_toy_superposition": 61.7, "02_activations": 331.2},
                "machine": {"date": "2025-01-31", "cpu": "A Fine CPU @ 2 GHz", "cores": 2, "memory_bytes": 25_000_000_000, "gpu": None, "torch_threads": 2, "system": "Linux x86_64", "python": "3.11.9",
                            "versions": {"torch": "2.13.0+cpu", "absent": None}, "commit": "0123456789ab"}},
        "evaluation": {"made_from": "abc", "bricken_2023": main, "bricken_2023-no_resampling": off, "ward_2024": evaluated(0.3512, [0.01] * 256, l0_mean=10.2, density_median=0.00871),
                       "bricken_2023-d_sae_64": evaluated(0.8312, [0.05] * 64, fvu=0.3312, l0_mean=12.3), "neurons": evaluated(1.0, [0.3] * 64, density_median=0.3172, l0_mean=20.31, fvu=0.0)},
        "training": {"summaries": {"bricken_2023": trained("bricken_2023", events, 3.5, "sum"), "bricken_2023-no_resampling": trained("bricken_2023", [], 3.5, "sum"),
                                   "ward_2024": trained("ward_2024", events[:1], 0.003, "mean"), "bricken_2023-d_sae_64": trained("bricken_2023", events[:1], 3.5, "sum")},
                     "main": "bricken_2023", "narrow": "bricken_2023-d_sae_64", "d_in": 64, "d_sae": 256},
        "activations": {
            "text": {"source": "installation", "vocabulary": 1024, "train": text_of(114), "heldout": text_of(16), "what": "Text of this Python installation: mostly code."},
            "prompts": {"prompt": part, "generated": part}, "generated": [{"prompt": 0, "text": "def f(\n  x", "continuation": "x", "prompt_tokens": 2, "tokens": 5}],
            "language_model": {"curve": [{"step": 20, "tokens": 40960, "train": 6.18, "heldout": 6.0932, "density_median": 1.0}], "seconds": 33.6, "tokens": 149504, "tokens_per_second": 4443.13, "parameters": 76192,
                               "epochs": 0.4983, "precision": "bfloat16", "density_median": 0.19, "density_quartiles": [8.19, 20.2, 31.9]},
            "token": {"text": "def load(path):\n    return 1\n", "token": " return", "active": 10, "neurons": 64, "top": [[50, 47], [0.1701037, 0.1667099]]}, "bridge_difference": 1.19e-07},
        "toy": {"preset": "smoke", "observations": [{"the talk says": "no case represents all five", "measured": "share | of seeds", "holds": "p 0.1–0.2: 97 %", "does not hold": "nowhere"}],
                "autoencoder": "All five found by 1 of 16.", "introduction": "At p = 1 it keeps 2.", "geometry": "Half.", "phases": "Two.", "neurons": "|x| is solved by 7 of 8.",
                "full": {"preset": "full", "passed": 1, "gates": [{"experiment": "introduction", "what": "p = 1 | loss", "measured": [0.0365, 0.0371], "expected": "0.036585 ± 1 %", "passed": True}]}},
        "features": {"recipe": "bricken_2023", "gallery": [entry(i) for i in range(101, 108)], "gallery_neurons": [entry(3), entry(4)], "seed": 0, "gallery_at_least": 100, "judged": 201, "n_features": 256, "n_neurons": 64,
                     "density_median": {"features": 0.002, "neurons": 0.3}, "dead_share": {"features": 0.02, "neurons": 0.0}, "figure": "density"},
        "last_mlp": {"model": "a small Llama trained here on the run's corpus", "trained_here": True, "layers": 4, "d_in": 64, "d_sae": 128, "hook_name": "blocks.3.mlp.hook_post", "positive_share": 0.4712,
                     "evaluation": {n: {c: e[c] for c in columns} for n, e in (("bricken_2023", main), ("neurons", evaluated(1.0, [])))},
                     "training": {"seconds": 23.4, "activations": 30000, "activations_per_second": 1282.1, "resampling": []}, "gallery": [entry(i) for i in (7, 8, 9)], "bridge_difference": 2.4e-07,
                     "language_model": {"tokens": 60000, "seconds": 31.2, "parameters": 90000, "heldout": 5.9134}},
    }  # fmt: skip


FIGURES = ("language_model_loss", "neuron_density", "token_activations", "training_l0", "training_silent", "density", "last_mlp_activations", "toy_introduction")


def make(folder, values: dict, figures=FIGURES, overrides=("corpus.train_tokens=300001",)) -> Run:
    run = open_run("smoke", folder, overrides)
    for name, data in values.items():
        run.save_results(name, data)
    (folder / "figures").mkdir(exist_ok=True)
    for name in figures:
        (folder / "figures" / f"{name}.png").write_bytes(PNG)
    return run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "find_chromium", lambda: None)
    return make(tmp_path / "run", results())


def rendered(tmp_path, values, **how) -> str:
    return render.markdown(make(tmp_path, values, **how))


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}")[1].split("\n## ")[0]


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
