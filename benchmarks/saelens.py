"""SAELens as a contender: its trainer waits in a process of its own environment, and is asked
for a round when its turn comes.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from sae_lib.sae.autoencoder import SparseAutoencoder

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-saelens/bin/python"


class SAELensStep:
    """Calling it runs one timed round there, and returns activations per second."""

    def __init__(self, sae: SparseAutoencoder, x: torch.Tensor, l1: float):
        folder = Path(tempfile.mkdtemp())
        np.save(folder / "x.npy", x.numpy())
        sae.save(folder, {})
        arguments = [sae.d_in, sae.d_sae, len(x), l1, folder / "x.npy", folder]
        self.process = subprocess.Popen(
            [PYTHON, ROOT / "benchmarks/saelens_worker.py", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise RuntimeError(f"SAELens' worker ended with status {self.process.wait()}")

    def __call__(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def available() -> bool:
    return PYTHON.exists()
