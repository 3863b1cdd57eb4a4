"""SAELens' trainers, each at its best learning rate, against ours: seconds, harvest included, until
98 % of the loss is recovered (mean ablation) at L0 16.

    python -m benchmarks.saelens_best runs/laptop

Every contender gets the grid of rates, widened until the best one is inside, and three seeds at the
run's own number of activations; the best of SAELens' and the best of ours then also train on the
other budgets. All see the same activations in the same order. What is measured is kept in the run
folder, so that the command goes on where it was stopped: hours on one core. Needs `.venv-saelens`
(`make .venv-saelens/.installed`, or the environment that SAELENS_PYTHON names) and 4 bytes × d_in ×
activations of disk. Makes `results/study_saelens_best.json`.
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.saelens import PYTHON, ROOT
from sae_lib.errors import TrainingError
from sae_lib.files import digest
from sae_lib.model.activations import ActivationBuffer
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.initialise import statistics
from sae_lib.sae.recipes import BRICKEN_2023, RECIPES, of_recipe
from sae_lib.settings import validate
from suite import stages, study_figures, sweep
from suite.runs import Run, read_yaml
from suite.stages import STAGES

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
PENALTIES = {"standard": ("l1_coefficient", 5.0), "jumprelu": ("l0_coefficient", 1.0)}
LEVELS = (8, 4, 2, 1)  # of a matryoshka: the width over these
OURS = ("bricken_2023", "april_2024", "topk", "batchtopk", "jumprelu")
RATES = (1e-3, 2e-3, 4e-3)
BUDGETS = (0.25, 0.5, 1.0, 2.0)  # times the run's own activations
BATCH = BRICKEN_2023.batch
Point = Callable[[float, int, int], tuple[object, dict]]  # rate, seed, activations → record


class Theirs:
    """SAELens' trainers on the activations of a run, which lie in one file."""

    def __init__(self, run: Run, most: int):
        self.run, self.hook, self.most = run, stages.hook(run), most // BATCH * BATCH
        self.file = run.folder / ".saelens" / f"activations-{self.most}.npy"

    def harvested(self) -> tuple[float, float]:
        """Writes the file where it is not there: (seconds per activation, scale)."""
        known = self.file.with_suffix(".json")
        if known.exists():
            return tuple(json.loads(known.read_text()))
        s, rows = (
            self.run.settings,
            self.run.get("tokens").rows("train", self.run.settings.lm.context),
        )
        mean, scale = statistics(self.hook, rows, BRICKEN_2023)
        self.file.parent.mkdir(exist_ok=True)
        shape, began = (self.most, len(mean)), time.perf_counter()
        x = np.lib.format.open_memmap(self.file, "w+", np.float32, shape)
        buffer = ActivationBuffer(self.hook, rows, BATCH, s.sae.buffer_rows, s.seed)
        for at, part in zip(range(0, self.most, BATCH), buffer, strict=False):
            x[at : at + BATCH] = part * scale
        x.flush()
        seconds = (time.perf_counter() - began) / self.most
        known.write_text(json.dumps((seconds, scale)))
        return seconds, scale

    def point(self, architecture: str, lr: float, seed: int, activations: int) -> tuple[str, dict]:
        """A record at the L0 of all: its coefficient is searched for with the first seed."""
        fixed = {"architecture": architecture, "d_sae": self.run.settings.sae.d_sae, "lr": lr}
        fixed |= {"batch": BATCH, "activations": activations // BATCH * BATCH}
        if architecture not in PENALTIES:
            values = {"k": int(sweep.L0)}
            if architecture.startswith("matryoshka"):
                values["matryoshka_widths"] = [fixed["d_sae"] // level for level in LEVELS]
            return architecture, self.measured(fixed | {"seed": seed, "values": values}, 0.0)
        name, first = PENALTIES[architecture]

        def trained(value: float, seed: int = sweep.SEEDS[0]) -> tuple[float, dict]:
            values = {name: value}
            return value, self.measured(fixed | {"seed": seed, "values": values}, value)

        best, record = sweep.towards_l0(trained, math.log(first), sweep.L0, 0.05, 4)
        return architecture, record if seed == sweep.SEEDS[0] else trained(best, seed)[1]

    def measured(self, wanted: dict, coefficient: float) -> dict:
        """Trains and evaluates, where that has not been done."""
        made_from = stages.model_fingerprint(self.run) | {"saelens": wanted}
        made_from |= stages.section(self.run, "evaluation")
        where = f"saelens/{wanted['architecture']}-{digest(made_from)[:8]}"
        return self.run.kept_results(where, made_from, partial(self._measured, wanted, coefficient))

    def _measured(self, wanted: dict, coefficient: float) -> dict:
        harvest, scale = self.harvested()
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "wanted.json", Path(folder) / "out"
            given.write_text(json.dumps(wanted))
            trainer = ROOT / "benchmarks/saelens_trainer.py"
            command = [PYTHON, trainer, given, self.file, out]
            subprocess.run([str(part) for part in command], check=True)
            sae, took = SparseAutoencoder.load(out), json.loads((out / "seconds.json").read_text())
        sae.fold_scale(scale)
        if not all(weights.isfinite().all() for weights in sae.state_dict().values()):
            raise TrainingError(f"SAELens {wanted['architecture']}: not finite at {wanted['lr']}")
        measured, few = sweep.evaluated(self.run, self.hook, sae)
        record = {key: wanted[key] for key in ("lr", "seed", "d_sae", "activations")}
        record |= {"lambda": coefficient, "k": wanted["values"].get("k", 0)}
        record |= {"seconds": took["seconds"] + harvest * wanted["activations"]}
        record |= {key: measured[key] for key in study_figures.MEASURES}
        return record | {"choosing": {key: few[key] for key in study_figures.MEASURES}}


def ours(run: Run, recipe: str, lr: float, seed: int, activations: int) -> tuple[str, dict]:
    """The same of a recipe of ours, whose training harvests on its way."""
    given = of_recipe(run.settings.sae, recipe)
    given = sweep.changed(given, precision="float32", lr=lr, activations=activations)
    settings, _ = sweep.at_l0(run, stages.hook(run), given, sweep.L0)
    record = sweep.measure(run, stages.hook(run), sweep.changed(settings, seed=seed))
    return recipe, sweep.plain_record(record)


def compared(run: Run, points: dict[str, Point], budgets: tuple[float, ...]) -> list[dict]:
    """Every contender at its best rate and with all seeds at the run's own number of activations;
    the best of each side (the name's first word) at all `budgets`.
    """
    own, found, rates = run.settings.sae.activations, [], {}

    def seeds(name: str, activations: int) -> list[dict]:
        records = [points[name](rates[name], seed, activations)[1] for seed in sweep.SEEDS]
        return [{"contender": name} | record for record in records]

    for name, point in points.items():
        grid = RATES if name.startswith("SAELens") else [RECIPES[name].lr * r for r in sweep.RATES]
        tried = sweep.until_the_best_is_inside(
            [sweep.rounded(lr) for lr in grid],
            lambda lr, point=point: [point(lr, sweep.SEEDS[0], own)],
            sweep.comparable_and_recovered,
        )
        best = max((record for _, record in tried), key=sweep.comparable_and_recovered)
        rates[name] = best["lr"]
        found += seeds(name, own)
    for theirs in (True, False):
        side = [p for p in found if p["contender"].startswith("SAELens") == theirs]
        means = study_figures.over_seeds(pd.DataFrame(side), ["contender"])
        name = means.loc[means["recovered_mean"].idxmax(), "contender"]
        for budget in budgets:
            if budget != 1:
                found += seeds(name, int(budget * own))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--budgets", nargs="*", type=float, default=BUDGETS)
    parser.add_argument("--architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--ours", nargs="*", default=OURS)
    given = parser.parse_args()
    run = Run(validate(read_yaml(given.run / "settings.yaml")), given.run, STAGES)
    run.path("language_model")
    own = run.settings.sae.activations
    theirs = Theirs(run, int(max(1, *given.budgets) * own))
    points = {f"SAELens {name}": partial(theirs.point, name) for name in given.architectures}
    points |= {name: partial(ours, run, name) for name in given.ours}
    found = compared(run, points, tuple(given.budgets))
    about = {"threads": torch.get_num_threads(), "quality": study_figures.QUALITY}
    sweep.save_study(run, "saelens_best", {"points": found} | about)
    print(study_figures.saelens_best_rows(run.load_results("study_saelens_best")).to_string())


if __name__ == "__main__":
    main()
