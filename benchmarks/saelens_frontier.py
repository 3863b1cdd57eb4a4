"""SAELens' standard trainer on a run's activations, in the same order and number as ours, and ours
at the L0 that it reaches.

    python -m benchmarks.saelens_frontier runs/pile 1e-3:2 1e-3:3 1e-3:5
      points beside a study of recipes
    python -m benchmarks.saelens_frontier runs/pile 1e-3:3 --activations 3100000 --ours 0 1 2
      and our recipe there, with these seeds

A point is a learning rate and an L1 coefficient. Points join `results/study_saelens.json` of the
run. Needs `.venv-saelens` (`make .venv-saelens/.installed`) and 4 bytes × d_in × activations of
disk.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.saelens import PYTHON, ROOT
from sae_lib.features import evaluation
from sae_lib.model.activations import ActivationBuffer, HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.initialise import statistics
from sae_lib.sae.recipes import BRICKEN_2023, of_recipe
from sae_lib.settings import validate
from suite import stages, study_figures, sweep
from suite.runs import Run, read_yaml
from suite.stages import STAGES

NAME = "SAELens standard"
SETTING = ("contender", "lr", "lambda", "seed", "activations", "beside")
SHOWN = (
    "contender",
    "lr",
    "lambda",
    "l0_mean",
    "recovered_zero",
    "recovered_mean",
    "fvu",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("points", nargs="*", help="LEARNING_RATE:L1_COEFFICIENT")
    parser.add_argument("--activations", type=int, help="instead of the run's own number")
    parser.add_argument(
        "--ours",
        nargs="*",
        type=int,
        default=[],
        metavar="SEED",
        help="also our recipe at the L0 of every point, in float32 and bfloat16",
    )
    given = parser.parse_args()
    run = Run(validate(read_yaml(given.run / "settings.yaml")), given.run, STAGES)
    s = run.settings.sae
    s = of_recipe(s, "bricken_2023").model_copy(
        update={"activations": given.activations or s.activations, "precision": "float32"}
    )
    hook = HookPoint(run.get("language_model"), s.hook_name)
    for point in theirs(run, hook, s, given.points):
        keep(run, point)
        if given.ours:
            chosen, _ = sweep.at_l0(run, hook, s, point["l0_mean"])
            for precision in ("float32", "bfloat16"):
                for seed in given.ours:
                    record = sweep.measure(
                        run, hook, chosen.model_copy(update={"precision": precision, "seed": seed})
                    )
                    keep(
                        run,
                        {"contender": f"bricken_2023, {precision}", "beside": point["lambda"]}
                        | sweep.plain_record(record),
                    )


def theirs(run: Run, hook: HookPoint, s, points: list[str]):
    """A record per point, each when it has been trained and evaluated by the code that evaluates
    ours.
    """
    rows, batch = run.get("tokens").rows("train", run.settings.lm.context), BRICKEN_2023.batch
    mean, scale = statistics(hook, rows, BRICKEN_2023)
    n_steps = s.activations // batch
    with tempfile.TemporaryDirectory() as scratch:
        x = np.lib.format.open_memmap(
            f"{scratch}/x.npy", "w+", np.float32, (n_steps * batch, len(mean))
        )
        for step, part in zip(
            range(n_steps),
            ActivationBuffer(hook, rows, batch, s.buffer_rows, run.settings.seed),
            strict=False,
        ):
            x[step * batch : (step + 1) * batch] = part * scale
        x.flush()
        for point in points:
            lr, l1 = point.split(":")
            out = Path(scratch) / point.replace(":", "-")
            trainer = ROOT / "benchmarks/saelens_trainer.py"
            wanted = {"architecture": "standard", "d_sae": s.d_sae, "batch": batch, "seed": 0}
            wanted |= {"lr": float(lr), "values": {"l1_coefficient": float(l1)}}
            given = Path(scratch) / "wanted.json"
            given.write_text(json.dumps(wanted | {"activations": n_steps * batch}))
            command = [PYTHON, trainer, given, f"{scratch}/x.npy", out]
            subprocess.run([str(part) for part in command], check=True)
            sae = SparseAutoencoder.load(out)
            sae.fold_scale(scale)
            heldout = stages.heldout_parts(run)[1]  # where the studies report
            measured = evaluation.evaluate(hook, {NAME: sae}, heldout, run.settings.evaluation)[
                NAME
            ]
            setting = {
                "contender": NAME,
                "recipe": NAME,
                "lr": float(lr),
                "lambda": float(l1),
                "k": 0,
                "precision": "float32",
                "seed": 0,
                "d_sae": s.d_sae,
                "activations": n_steps * batch,
            }
            yield (
                setting
                | json.loads((out / "seconds.json").read_text())
                | {c: measured[c] for c in study_figures.MEASURES}
            )


def keep(run: Run, point: dict) -> None:
    """Put the point into the run's results, in the place of an earlier one with the same
    settings.
    """
    path = run.results_folder / "study_saelens.json"
    known = json.loads(path.read_text())["points"] if path.exists() else []
    others = [p for p in known if any(p.get(k) != point.get(k) for k in SETTING)]
    points = [*others, point | {"threads": torch.get_num_threads()}]
    sweep.save_study(run, "saelens", {"points": points})
    print({k: point[k] for k in SHOWN}, flush=True)


if __name__ == "__main__":
    main()
