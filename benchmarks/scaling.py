"""Cost per activation at 1, 4 and 16 times the features, and the memory that a step takes at its
peak.
"""

import json
import subprocess
import sys

import torch

from benchmarks import memory
from benchmarks.sae_step import BATCH, D_IN, autoencoder_with_l0, our_step
from benchmarks.timing import rates

WIDTHS = (4096, 16_384, 65_536)


def one(d_sae: int) -> dict:
    from suite.runs import keep_freed_memory

    keep_freed_memory()
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)).relu()
    sae = autoencoder_with_l0(20, x, d_sae)
    before = memory.start()
    measured = rates({"ours, float32, exact": our_step(sae, x)}, BATCH, rounds=5)[
        "ours, float32, exact"
    ]
    return measured | {
        "peak_bytes": memory.peak(),
        "bytes_before_training": before,
        "parameter_bytes": 4 * sum(p.numel() for p in sae.parameters()),
    }


def run() -> dict:
    """Each width in a process of its own, so that each has its own peak."""
    code = (
        "import json, sys; from benchmarks.scaling import one; "
        "print(json.dumps(one(int(sys.argv[1]))))"
    )
    cases = {}
    for width in WIDTHS:
        found = json.loads(
            subprocess.run(
                [sys.executable, "-c", code, str(width)], capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        )
        cases[f"{width} features"] = found
    first = cases[f"{WIDTHS[0]} features"]["median"]
    return {
        "what": f"autoencoder step at other widths, L0 20, batch {BATCH}",
        "unit": "activations/s",
        "rates": cases,
        "ratios": {name: found["median"] / first for name, found in cases.items()},
    }
