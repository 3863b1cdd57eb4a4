"""SAELens' trainers, each at its best learning rate, against ours: seconds, harvest included, until
98 % of the loss is recovered (mean ablation) at L0 16.

    python -m benchmarks.saelens_study runs/NAME

SAELens' trainers get the same grid of rates, widened until the best one is inside, on half of the
run's number of activations and one seed. The one that recovers most there, and the best of ours in
the kept study of recipes, are timed on a growing number of activations until three seeds have the
quality. All see the same activations in the same order. What is measured is kept in the run folder,
so that the command goes on where it was stopped; `--choose` stops before the timing, for several
processes with run folders of their own. Needs `make .venv-saelens/.installed`, or the environment
that SAELENS_PYTHON names, and 4 bytes × d_in × activations of disk. Makes
`results/study_saelens.json`.
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
from typing import Any

import numpy as np
import torch

from benchmarks.saelens import PYTHON, ROOT
from sae_lib.errors import TrainingError
from sae_lib.files import digest
from sae_lib.model.activations import ActivationBuffer, HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.initialise import statistics
from sae_lib.sae.recipes import BRICKEN_2023, of_recipe
from sae_lib.settings import SAESettings, validate
from suite import stages, study_figures, sweep
from suite.runs import Run, read_yaml
from suite.stages import STAGES

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
PENALTIES = {"standard": ("l1_coefficient", 5.0), "jumprelu": ("l0_coefficient", 0.5)}
LEVELS = (8, 4, 2, 1)  # of a matryoshka: the width over these
# as SAELens' guide advises for jumprelu
JUMPRELU = {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_bandwidth": 2.0}
JUMPRELU |= {"jumprelu_init_threshold": 0.1, "pre_act_loss_coefficient": 3e-6}
RATES = (2e-3, 4e-3)
CHOOSING = 0.5  # times the run's own activations, on which rates are chosen
BUDGETS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # times these, the timed trainings
AIM = 15.0  # the L0 that λ is searched for where trainings are timed: none ends far above 16
TRIES = 6  # trainings for λ
BATCH = BRICKEN_2023.batch
Chosen = tuple[Any, list[dict]]  # the best setting, and the records of all rates, its own the last


class Ours:
    """The recipe that recovers most in the kept study of recipes, at its rate there."""

    def __init__(self, run: Run, hook: HookPoint):
        self.run, self.hook = run, hook
        best = study_figures.recipes_rows(study_figures.load_study(run, "recipes")).iloc[0]
        self.name = best["contender"].partition(", ")[0]
        values = {"lr": float(best["lr"]), "l1": float(best["lambda"]) or None}
        given = of_recipe(run.settings.sae, self.name)
        self.given = sweep.changed(given, precision="float32", **values)

    def at_its_best_rate(self, activations: int) -> Chosen:
        given = sweep.changed(self.given, activations=activations)
        best, record = sweep.at_l0(self.run, self.hook, given, sweep.L0, tries=TRIES)
        return best, [sweep.plain_record(record)]

    def searched(self, best: SAESettings, activations: int) -> SAESettings:
        """At that number of activations, with a λ for the L0 of all."""
        settings = sweep.changed(best, activations=activations)
        return sweep.at_l0(self.run, self.hook, settings, AIM, tries=TRIES)[0]

    def timed(self, settings: SAESettings, seed: int) -> dict:
        """The record of a training of its own, whatever the search for λ has trained."""
        settings = sweep.changed(settings, seed=seed)
        name = f"{torch.get_num_threads()}-threads-{sweep.point_name(settings)}"
        folder = self.run.folder / ".saelens" / name
        made_from = stages.fingerprint_of(self.run, settings) | {"threads": torch.get_num_threads()}
        measured = partial(sweep.measured_in, self.run, self.hook, settings, folder)
        record = self.run.kept_results(f"saelens/{name}", made_from, measured)
        return sweep.plain_record(record)


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
        self.run, self.stored, sae = stored.run, stored, stored.run.settings.sae
        self.given = {"architecture": architecture, "d_sae": sae.d_sae, "batch": BATCH}
        self.given |= {"seed": sweep.SEEDS[0], "threads": 1}
        self.given["dead_feature_window"] = sae.dead_window // BATCH  # as long as ours
        name, first = PENALTIES.get(architecture, ("k", int(sweep.L0)))
        self.given["values"], self.searched_for = {name: first}, name if name != "k" else None
        if architecture.startswith("matryoshka"):
            self.given["values"]["matryoshka_widths"] = [sae.d_sae // level for level in LEVELS]
        if architecture == "jumprelu":
            self.given["values"] |= JUMPRELU

    def at_l0(self, wanted: dict, l0: float, tolerance: float) -> tuple[dict, dict]:
        """(what was trained, its record), with a coefficient for the L0 of all."""
        if not self.searched_for:
            return wanted, self.measured(wanted)

        def trained(value: float) -> tuple[dict, dict]:
            candidate = wanted | {"values": wanted["values"] | {self.searched_for: value}}
            return candidate, self.measured(candidate)

        first = math.log(wanted["values"][self.searched_for])
        return sweep.towards_l0(trained, first, l0, tolerance, TRIES)

    def at_its_best_rate(self, activations: int) -> Chosen:
        start = self.given | {"activations": activations}

        def trained(lr: float) -> list[tuple[dict, dict]]:
            nonlocal start
            pair = self.at_l0(start | {"lr": sweep.rounded(lr)}, sweep.L0, 0.15)
            start = pair[0]
            return [pair]

        best = sweep.comparable_and_recovered
        found = sweep.until_the_best_is_inside(RATES, trained, best)
        chosen, _ = max(found, key=lambda pair: best(pair[1]))
        chosen, record = self.at_l0(chosen, sweep.L0, 0.05)
        return chosen, [*(other for _, other in found if other != record), record]

    def searched(self, best: dict, activations: int) -> dict:
        wanted = best | {"activations": activations}
        return self.at_l0(wanted, AIM, 0.05)[0] if self.searched_for else wanted

    def timed(self, wanted: dict, seed: int) -> dict:
        return self.measured(wanted | {"seed": seed, "threads": torch.get_num_threads()})

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
        record |= {"lambda": wanted["values"].get(self.searched_for, 0.0)}
        record |= {"k": wanted["values"].get("k", 0)}
        record |= {"seconds": took["seconds"] + harvest * wanted["activations"]}
        record |= {key: measured[key] for key in study_figures.MEASURES}
        return record | {"choosing": {key: few[key] for key in study_figures.MEASURES}}


def compared(
    contenders: dict[str, Ours | Theirs],
    own: int,
    budgets: tuple[float, ...],
    tell: Callable[[str, dict], Any] = print,
) -> dict[str, list[dict]]:
    """`tuning`: every contender at every rate. `points`: the best of each side (SAELens' have it as
    the name's first word) on ascending `budgets` times `own` activations, more than the rates were
    chosen on where these do not give the quality, until all seeds have it; the other seeds train
    where the first one has it.
    """
    found, best = {"tuning": [], "points": []}, {}

    def keep(where: str, name: str, record: dict) -> None:
        found[where].append({"contender": name} | record)
        tell(name, record)

    for name, contender in contenders.items():
        best[name], records = contender.at_its_best_rate(int(CHOOSING * own) // BATCH * BATCH)
        for record in records:
            keep("tuning", name, record | {"best": record is records[-1]})
    for side in (True, False):
        of = [r for r in found["tuning"] if r["best"]]
        of = [r for r in of if r["contender"].startswith("SAELens") is side]
        if not budgets or not of:
            continue
        chosen = max(of, key=sweep.comparable_and_recovered)
        name, there = chosen["contender"], study_figures.has_quality(chosen, sweep.L0)
        for budget in sorted(b for b in budgets if there or b > CHOOSING):
            wanted = contenders[name].searched(best[name], int(budget * own) // BATCH * BATCH)
            reached = []
            for seed in sweep.SEEDS:
                record = contenders[name].timed(wanted, seed)
                keep("points", name, record)
                reached.append(study_figures.has_quality(record, sweep.L0))
                if not reached[0]:
                    break
            if all(reached):
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--choose", action="store_true", help="stop before the timing")
    parser.add_argument("--architectures", nargs="*", default=ARCHITECTURES)
    given = parser.parse_args()
    run = Run(validate(read_yaml(given.run / "settings.yaml")), given.run, STAGES)
    run.path("language_model")
    own = run.settings.sae.activations
    hook = stages.hook(run)
    stored = Stored(run, hook, int(max(BUDGETS) * own))
    contenders = {f"SAELens {name}": Theirs(stored, name) for name in given.architectures}
    ours = Ours(run, hook)
    contenders[ours.name] = ours
    found = compared(contenders, own, () if given.choose else BUDGETS, tell)
    if given.choose:
        return
    about = {"threads": torch.get_num_threads(), "quality": study_figures.QUALITY}
    sweep.save_study(run, "saelens", found | about)
    print(study_figures.saelens_sentence(run.load_results("study_saelens")))


def tell(name: str, record: dict) -> None:
    shown = ("activations", "seed", "lr", "lambda", "l0_mean", "recovered_mean", "alive", "seconds")
    print(name, {key: record[key] for key in shown}, record["choosing"], flush=True)


if __name__ == "__main__":
    main()
