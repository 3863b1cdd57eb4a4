"""SAELens' trainers, each at its best learning rate, against ours: seconds, harvest included, until
98 % of the loss is recovered (mean ablation) at L0 16.

    python -m benchmarks.saelens_best runs/laptop

Every contender gets the grid of rates, widened until the best one is inside, and three seeds at the
run's own number of activations; the one that recovers most there, of SAELens' and of ours, then
also trains on the other budgets. All see the same activations in the same order. What is measured
is kept in the run folder, so that the command goes on where it was stopped: hours on one core.
Needs `make .venv-saelens/.installed`, or the environment that SAELENS_PYTHON names, and 4 bytes ×
d_in × activations of disk. Makes `results/study_saelens_best.json`.
"""

import argparse
import itertools
import json
import math
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.saelens import PYTHON, ROOT
from sae_lib.errors import TrainingError
from sae_lib.files import digest
from sae_lib.model.activations import ActivationBuffer, HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.initialise import statistics
from sae_lib.sae.recipes import BRICKEN_2023, RECIPES, of_recipe
from sae_lib.settings import SAESettings, validate
from suite import stages, studies, study_figures, sweep
from suite.runs import Run, read_yaml
from suite.stages import STAGES

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
PENALTIES = {"standard": ("l1_coefficient", 5.0), "jumprelu": ("l0_coefficient", 1.0)}
LEVELS = (8, 4, 2, 1)  # of a matryoshka: the width over these
OURS = ("bricken_2023", "april_2024", "topk", "batchtopk", "jumprelu")
RATES = (1e-3, 2e-3, 4e-3)
BUDGETS = (0.25, 0.5, 1.0, 2.0)  # times the run's own activations
BATCH = BRICKEN_2023.batch


class Ours:
    """A recipe of ours, trained as the study of recipes trains it."""

    def __init__(self, run: Run, hook: HookPoint, recipe: str):
        self.run, self.hook, self.lr = run, hook, RECIPES[recipe].lr
        self.given = sweep.changed(of_recipe(run.settings.sae, recipe), precision="float32")

    def at_its_best_rate(self) -> SAESettings:
        return sweep.at_its_best_rate(self.run, self.hook, self.given, self.lr, sweep.RATES)[0]

    def of_seeds(self, best: SAESettings, activations: int) -> list[dict]:
        """Records of all seeds at the rate of `best` and the L0 of all."""
        settings = sweep.changed(best, activations=activations)
        settings, _ = sweep.at_l0(self.run, self.hook, settings, sweep.L0)
        return studies.of_seeds(self.run, self.hook, settings)


class Stored:
    """The activations of a run, in one file, from which SAELens' trainers read."""

    def __init__(self, run: Run, hook: HookPoint, most: int):
        self.run, self.hook, self.most = run, hook, most // BATCH * BATCH
        self.file = run.folder / ".saelens" / f"activations-{self.most}.npy"

    def harvested(self) -> tuple[float, float]:
        """Writes the file where it is not there: (seconds per activation, scale)."""
        known = self.file.with_suffix(".json")
        if known.exists():
            return tuple(json.loads(known.read_text()))
        s = self.run.settings
        rows = self.run.get("tokens").rows("train", s.lm.context)
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


class Theirs:
    """One of SAELens' trainers, in SAELens' own environment."""

    def __init__(self, stored: Stored, architecture: str):
        self.run, self.stored, d_sae = stored.run, stored, stored.run.settings.sae.d_sae
        self.given = {"architecture": architecture, "d_sae": d_sae, "batch": BATCH}
        own = self.run.settings.sae.activations // BATCH * BATCH
        self.given |= {"seed": sweep.SEEDS[0], "activations": own}
        name, first = PENALTIES.get(architecture, ("k", int(sweep.L0)))
        self.given["values"], self.searched = {name: first}, name if name != "k" else None
        if architecture.startswith("matryoshka"):
            self.given["values"]["matryoshka_widths"] = [d_sae // level for level in LEVELS]

    def at_l0(self, wanted: dict, tolerance: float) -> tuple[dict, dict]:
        """(what was trained, its record), with a coefficient for the L0 of all."""
        if not self.searched:
            return wanted, self.measured(wanted)

        def trained(value: float) -> tuple[dict, dict]:
            candidate = wanted | {"values": {self.searched: value}}
            return candidate, self.measured(candidate)

        first = math.log(wanted["values"][self.searched])
        return sweep.towards_l0(trained, first, sweep.L0, tolerance, 4)

    def at_its_best_rate(self) -> dict:
        start = self.given

        def trained(lr: float) -> list[tuple[dict, dict]]:
            nonlocal start
            pair = self.at_l0(start | {"lr": sweep.rounded(lr)}, 0.15)
            start = pair[0]
            return [pair]

        best = sweep.comparable_and_recovered
        found = sweep.until_the_best_is_inside(RATES, trained, best)
        return max(found, key=lambda pair: best(pair[1]))[0]

    def of_seeds(self, best: dict, activations: int) -> list[dict]:
        at, _ = self.at_l0(best | {"activations": activations}, 0.05)
        return [self.measured(at | {"seed": seed}) for seed in sweep.SEEDS]

    def measured(self, wanted: dict) -> dict:
        """Trains and evaluates, where that has not been done."""
        made_from = stages.model_fingerprint(self.run) | {"saelens": wanted}
        made_from |= stages.section(self.run, "evaluation")
        where = f"saelens/{wanted['architecture']}-{digest(made_from)[:8]}"
        return self.run.kept_results(where, made_from, partial(self._measured, wanted))

    def _measured(self, wanted: dict) -> dict:
        harvest, scale = self.stored.harvested()
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "wanted.json", Path(folder) / "out"
            given.write_text(json.dumps(wanted))
            trainer = ROOT / "benchmarks/saelens_trainer.py"
            command = [PYTHON, trainer, given, self.stored.file, out]
            subprocess.run([str(part) for part in command], check=True)
            sae, took = SparseAutoencoder.load(out), json.loads((out / "seconds.json").read_text())
        sae.fold_scale(scale)
        if not all(weights.isfinite().all() for weights in sae.state_dict().values()):
            what = f"{wanted['architecture']}: not finite at {wanted['lr']}"
            raise TrainingError(f"SAELens {what}")
        measured, few = sweep.evaluated(self.run, self.stored.hook, sae)
        record = {key: wanted[key] for key in ("lr", "seed", "d_sae", "activations")}
        record |= {"lambda": wanted["values"].get(self.searched, 0.0)}
        record |= {"k": wanted["values"].get("k", 0)}
        record |= {"seconds": took["seconds"] + harvest * wanted["activations"]}
        record |= {key: measured[key] for key in study_figures.MEASURES}
        return record | {"choosing": {key: few[key] for key in study_figures.MEASURES}}


def compared(
    contenders: dict[str, Ours | Theirs], own: int, budgets: tuple[float, ...]
) -> list[dict]:
    """Every contender at its best rate with all seeds, on `own` activations; the best of each
    side (SAELens' have it as the name's first word) on all `budgets` times as many.
    """
    best, found = {}, []

    def trained(name: str, activations: int) -> None:
        records = contenders[name].of_seeds(best[name], activations // BATCH * BATCH)
        found.extend({"contender": name} | record for record in records)

    for name, contender in contenders.items():
        best[name] = contender.at_its_best_rate()
        trained(name, own)
    means = study_figures.over_seeds(pd.DataFrame(found), ["contender"])
    means = means.set_index("contender")["recovered_mean"]
    theirs = means.index.str.startswith("SAELens")
    for side, budget in itertools.product((means[theirs], means[~theirs]), budgets):
        if len(side) and budget != 1:
            trained(side.idxmax(), int(budget * own))
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
    hook = stages.hook(run)
    stored = Stored(run, hook, int(max(1, *given.budgets) * own))
    contenders = {f"SAELens {name}": Theirs(stored, name) for name in given.architectures}
    contenders |= {name: Ours(run, hook, name) for name in given.ours}
    found = compared(contenders, own, tuple(given.budgets))
    about = {"threads": torch.get_num_threads(), "quality": study_figures.QUALITY}
    sweep.save_study(run, "saelens_best", {"points": found} | about)
    print(study_figures.saelens_best_rows(run.load_results("study_saelens_best")).to_string())


if __name__ == "__main__":
    main()
