"""`make check-toy`: every toy experiment at full size, cached, its outcomes gated; never on one seed."""

import json
import logging
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from sae_lib.progress import tqdm
from sae_lib.toy import gates as toy_gates
from sae_lib.toy.results import RUNS, result
from suite import headless
from suite.stages import open_run

log = logging.getLogger(__name__)


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
PUBLISHED = Path(__file__).parents[1] / "report" / "toy"
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
