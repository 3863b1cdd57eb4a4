"""The feature table: seconds and peak memory over N and 2 N tokens, of the raw neurons, and of an
autoencoder of 100 000 features.

Language model, text and the autoencoder of 4096 features are those of a `laptop` run, taken over
from a finished one in runs/ or trained first. The text is of the training split, of which there is
enough; nothing is judged here. The wide autoencoder is a random one with L0 20: what the table
costs depends on how many features are active, not on what they mean.
"""

import json
import subprocess
import sys
import time

import torch

from benchmarks import memory
from benchmarks.sae_step import autoencoder_with_l0
from suite import stages

N, WIDE, WIDE_TOKENS = 1_000_000, 100_000, 200_000
CASES = {
    "4096 features": ("sae", N),
    "4096 features, twice the tokens": ("sae", 2 * N),
    "512 neurons": ("neurons", N),
    f"{WIDE} features": ("wide", WIDE_TOKENS),
    f"{WIDE} features, twice the tokens": ("wide", 2 * WIDE_TOKENS),
}


def one(kind: str, n_tokens: int) -> dict:
    from sae_lib.features import feature_table as features
    from sae_lib.model.activations import harvest
    from suite.runs import keep_freed_memory

    run = stages.open_run("laptop", "runs/benchmark")
    hook, tokens = stages.hook(run), run.get("tokens")
    rows = tokens.rows("train", run.settings.lm.context)[: n_tokens // run.settings.lm.context]
    if kind == "wide":
        dictionary = autoencoder_with_l0(20, harvest(hook, rows[:4]).float(), WIDE).requires_grad_(
            False
        )
    else:
        dictionary = run.get("dictionary", "neurons" if kind == "neurons" else "")
    keep_freed_memory()
    before = memory.start()
    began, cpu = time.perf_counter(), time.process_time()
    frame, examples = features.build(
        hook, dictionary, rows, tokens.tokenizer, run.settings.features
    )
    seconds = time.perf_counter() - began
    return {
        "median": rows.size / seconds,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "tokens": rows.size,
        "l0": frame["density"].sum(),
        "examples": len(examples),
        "peak_bytes": memory.peak(),
        "bytes_before": before,
        "threads": torch.get_num_threads(),
    }


def run() -> dict:
    """Each case once, in a process of its own, so that each has its own peak."""
    code = (
        "import json, sys; from benchmarks.feature_table import one; "
        "print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))"
    )
    cases = {}
    for name, (kind, n) in CASES.items():
        done = subprocess.run(
            [sys.executable, "-c", code, kind, str(n)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        cases[name] = json.loads(done.stdout.splitlines()[-1])
    first = cases["4096 features"]["median"]
    return {
        "what": "feature table",
        "unit": "tokens/s",
        "rates": cases,
        "ratios": {name: found["median"] / first for name, found in cases.items()},
    }
