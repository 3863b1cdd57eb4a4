"""`make check-toy`: every toy experiment at full size, cached, its outcomes gated; never on one
seed.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from sae_lib.errors import SettingsError
from sae_lib.progress import tqdm
from sae_lib.toy import autoencoder as toy_autoencoder
from sae_lib.toy import gates as toy_gates
from sae_lib.toy.experiments import EXPERIMENTS, PRESETS, Result, run
from sae_lib.toy.models import one_thread
from suite import headless
from suite.runs import open_run

RUNS: dict[str, Callable[[str], dict]] = {
    "autoencoder": toy_autoencoder.autoencoder,
    "recipes": toy_autoencoder.recipes,
} | {name: partial(run, name) for name in EXPERIMENTS if name != "pentagons"}
MADE_BY = ("models", "experiments", "autoencoder")  # the modules that decide what a result is
SOURCES = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in MADE_BY)
log = logging.getLogger(__name__)


def result(name: str, preset: str, folder: Path | None = None) -> Result | dict:
    """One experiment's result, or its variants' results by name; from `folder` when the same
    source made it.
    """
    if name not in RUNS:
        raise SettingsError(f"toy experiment {name!r} does not exist; there are: {', '.join(RUNS)}")
    if preset not in PRESETS:
        raise SettingsError(f"toy.preset: {preset!r} is unknown; there are: {', '.join(PRESETS)}")
    key = hashlib.sha256(SOURCES).hexdigest()
    path = folder / f"{name}.{preset}.pt" if folder else None
    made = _saved(path, key) if path else None
    if made is None:
        start = time.perf_counter()
        with one_thread():
            made = RUNS[name](preset)
        if name in EXPERIMENTS:
            made = {variant: vars(result) for variant, result in made.items()}
        if path:
            _save(path, {"key": key, "seconds": time.perf_counter() - start, "result": made})
    if name not in EXPERIMENTS:
        return made
    results = {variant: Result(**values) for variant, values in made.items()}
    return results.get("", results)


def _saved(path: Path, key: str) -> dict | None:
    """A cached result made by this source; None where there is none, or one cut short."""
    try:
        saved = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return saved["result"] if saved["key"] == key else None


def _save(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def check_toy(folder: Path, preset: str = "full") -> bool:
    """Run every experiment, write `gates.json` and `gates.md`, draw the figures of notebook 01;
    whether all gates passed.

    An interrupted run continues with the experiments that are missing. Gates are made for the full
    preset.
    Each experiment runs on one thread, so as many run at once as torch has threads.
    """
    folder, start = Path(folder), time.perf_counter()
    opened = open_run("laptop", str(folder), overrides := [f"toy.preset={preset}"])
    get = partial(result, preset=preset, folder=opened.folder / "toy")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(torch.get_num_threads(), spawn) as pool:
        runs = [pool.submit(get, name) for name in RUNS]  # the first two take longest
        for done in tqdm(as_completed(runs), desc="toy experiments", total=len(runs)):
            done.result()
    rows = toy_gates.all_gates(get)
    summary = {
        "preset": preset,
        "passed": sum(row["passed"] for row in rows),
        "gates": rows,
        "recipes": [{"recipe": name, **row} for name, row in get("recipes").items()],
    }
    (folder / "gates.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    (folder / "gates.md").write_text(gates_table(rows))
    headless.run_notebooks(opened, overrides, "01", {}, log.info)
    taken = time.perf_counter() - start
    log.info("toy check: %d of %d gates passed in %.0f s", summary["passed"], len(rows), taken)
    return all(row["passed"] for row in rows)


def gates_table(rows: list[dict]) -> str:
    """The gates as a Markdown table."""
    lines = ["| experiment | what | measured | expected | |", "|---|---|---|---|---|"]
    for row in rows:
        values = row["measured"] if isinstance(row["measured"], list) else [row["measured"]]
        what, expected = (row[key].replace("|", "∣") for key in ("what", "expected"))
        measured, verdict = (
            ", ".join(f"{v:.4g}" for v in values),
            "pass" if row["passed"] else "FAIL",
        )
        lines.append(f"| {row['experiment']} | {what} | {measured} | {expected} | {verdict} |")
    return "\n".join(lines) + "\n"


# The last full check that the repository keeps.
PUBLISHED = Path(__file__).parents[2] / "report" / "toy"
PUBLISHED_FIGURES = {
    "toy_weights_and_norms_large": "Eighty features in twenty dimensions.",
    "toy_varied_density": "One feature of another density among equals.",
    "toy_learning_dynamics": "Features appear one after another and settle at half a dimension each.",
    "toy_adversarial": "Loss added by an attack: it grows with features per dimension on the same inputs for all models, but not on inputs of each model's own density.",
    "toy_privileged_basis": "A ReLU on the hidden layer gives it a privileged basis.",
    "toy_absolute_value": "Three absolute values through six neurons.",
}


def publish(folder: Path, to: Path = PUBLISHED) -> Path:
    """Keep a full check in the repository: its gates, and the figures that the report shows."""
    (to / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copy2(folder / "gates.json", to / "gates.json")
    for name in PUBLISHED_FIGURES:
        shutil.copy2(folder / "figures" / f"{name}.png", to / "figures" / f"{name}.png")
    return to


def published_summary() -> dict:
    """The gates of the published check; empty where there is none."""
    path = PUBLISHED / "gates.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def copy_published_figures(folder: Path) -> dict[str, str]:
    """Put the published check's figures into `folder`, as `full_<name>.png`; returns their
    captions by name.
    """
    captions = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in PUBLISHED_FIGURES.items():
        if (picture := PUBLISHED / "figures" / f"{name}.png").is_file():
            shutil.copy2(picture, folder / f"full_{name}.png")
            captions[f"full_{name}"] = caption
    return captions
