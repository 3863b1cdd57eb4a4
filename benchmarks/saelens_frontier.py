"""SAELens' standard trainer on a run's activations, in the same order and number as ours: the points beside a study of recipes.

`python -m benchmarks.saelens_frontier runs/pile 1e-3:2 1e-3:3 1e-3:5`: a learning rate and an L1 coefficient each. Writes `results/study_saelens.json`
into the run's folder. Needs `.venv-saelens` (`make .venv-saelens/.installed`) and 4 bytes × d_in × activations of disk.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.saelens import PYTHON, ROOT
from sae_lib import evaluation, language_model
from sae_lib.activations import ActivationBuffer, HookPoint
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.initialise import statistics
from sae_lib.recipes import BRICKEN_2023
from sae_lib.runs import Run, read_yaml
from sae_lib.settings import validate
from sae_lib.sweep import COLUMNS
from sae_lib.tokens import open_tokens


def main(folder: Path, points: list[str]) -> None:
    run = Run(validate(read_yaml(folder / "settings.yaml")), folder)
    s, hook = run.settings.sae, HookPoint(language_model.load(run), run.settings.sae.hook_name)
    rows, batch = open_tokens(run).rows("train", run.settings.lm.context), BRICKEN_2023.batch
    mean, scale = statistics(hook, rows, BRICKEN_2023)
    n_steps, found = s.activations // batch, []
    with tempfile.TemporaryDirectory() as scratch:
        x = np.lib.format.open_memmap(f"{scratch}/x.npy", "w+", np.float32, (n_steps * batch, len(mean)))
        for step, part in zip(range(n_steps), ActivationBuffer(hook, rows, batch, s.buffer_rows, run.settings.seed), strict=False):
            x[step * batch : (step + 1) * batch] = part * scale
        x.flush()
        for point in points:
            lr, l1 = point.split(":")
            out = Path(scratch) / point.replace(":", "-")
            command = [PYTHON, ROOT / "benchmarks/saelens_trainer.py", s.d_sae, batch, lr, l1, f"{scratch}/x.npy", out]
            subprocess.run([str(part) for part in command], check=True)
            sae = SparseAutoencoder.load(out)
            sae.fold_scale(scale)
            measured = evaluation.evaluate(run, hook, {"it": sae})["it"]
            found.append({"contender": "SAELens standard", "lr": float(lr), "lambda": float(l1), "d_sae": s.d_sae, "seed": 0, "activations": n_steps * batch, "recipe": "SAELens standard"}
                         | json.loads((out / "seconds.json").read_text()) | {c: measured[c] for c in COLUMNS if c in measured})  # fmt: skip
            run.save_results("study_saelens", {"points": found, "threads": torch.get_num_threads()})
            print(point, found[-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
