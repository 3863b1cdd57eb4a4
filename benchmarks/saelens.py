"""Other libraries as contenders: their trainers wait in processes of their own environments, and
are asked for a round when their turn comes.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_lib.sae.autoencoder import SparseAutoencoder

ROOT = Path(__file__).parents[1]
# SAELens, and sparsify where it was installed there too
PYTHON = Path(os.environ.get("SAELENS_PYTHON", ROOT / ".venv-saelens/bin/python"))


class Worker:
    """Calling it runs one timed round there, and returns activations per second."""

    def __init__(self, script: str, *arguments: Any):
        self.process = subprocess.Popen(
            [PYTHON, ROOT / "benchmarks" / script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise RuntimeError(f"{script} ended with status {self.process.wait()}")

    def __call__(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def saelens_step(
    sae: SparseAutoencoder, x: torch.Tensor, l1: float, device: torch.device | str = "cpu"
) -> Worker:
    """SAELens' standard trainer, from the same weights."""
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "x.npy", x.cpu().numpy())
    sae.save(folder, {})
    shape = (sae.d_in, sae.d_sae, len(x), l1)
    return Worker("saelens_worker.py", *shape, folder / "x.npy", folder, device)


def sparsify_step(d_sae: int, k: int, x: torch.Tensor, device: torch.device | str) -> Worker:
    """EleutherAI's sparsify, with its Triton kernels."""
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "x.npy", x.cpu().numpy())
    return Worker("sparsify_worker.py", x.shape[1], d_sae, k, folder / "x.npy", device)


def available(package: str = "sae_lens") -> bool:
    """Whether that package can be imported there."""
    command = [PYTHON, "-c", f"import {package}"]
    return PYTHON.exists() and subprocess.run(command, capture_output=True).returncode == 0
