"""On a GPU: the step at the original's size and the full scale that follows from it, the share of the matrix rate at Stheno's width, and training from tokens."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.sae_step import autoencoder_with_l0, dense_step
from benchmarks.timing import rates, ratio
from sae_lib.checkpoints import CheckpointFolder
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint
from sae_lib.sae import training
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.objective import loss
from sae_lib.sae.recipes import BRICKEN_2023
from sae_lib.settings import load

FULL = 89_600_000  # activations: the original's 100 000 steps of 896
STEPS = 50  # per timed call
WIDE = (14_336, 57_344, 4096)  # Stheno's MLP, four times as many features, batch
PRODUCTS = 5  # dense ones of a step: encoder, decoder, and three gradients


def waited(function, device: torch.device, steps: int = STEPS):
    """Calls it `steps` times and waits for the device."""

    def call() -> None:
        for _ in range(steps):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def steps_at(batch: int, d_in: int, d_sae: int, device: torch.device) -> dict:
    """Functions that make one training step each, by name."""
    x = torch.randn(
        batch, d_in, device=device, generator=torch.Generator(device).manual_seed(0)
    ).relu()
    objective = BRICKEN_2023.objective(d_in)

    def fresh(**options) -> tuple:
        sae = autoencoder_with_l0(20, x.cpu()[:1024], d_sae).to(device)
        return sae, torch.optim.Adam(sae.parameters(), lr=0.0, fused=True, **options)

    def ours(sae, optimiser) -> None:
        gradients(sae, x, objective, torch.bfloat16)
        training.update(sae, optimiser, BRICKEN_2023)

    plain, own = fresh(), fresh()
    found = {
        "plain dense step, float32": lambda: dense_step(*plain, x, BRICKEN_2023),
        "ours, bfloat16": lambda: ours(*own),
    }
    if device.type == "cuda":
        (sae, optimiser), compiled = fresh(), torch.compile(loss)

        def with_compiled_loss() -> None:
            sae.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                total, _ = compiled(sae, x, objective)
            total.backward()
            training.update(sae, optimiser, BRICKEN_2023)

        captured = fresh(capturable=True)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(3):
                ours(*captured)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ours(*captured)
        found |= {"ours, loss compiled": with_compiled_loss, "ours, as a CUDA graph": graph.replay}
    return found


def run(
    device: str = "cuda",
    batches: tuple[int, ...] = (896, 8192),
    wide: tuple[int, int, int] = WIDE,
    activations: int = FULL,
    matrix: int = 8192,
) -> dict:
    on, s, cases = torch.device(device), load("laptop"), {}
    for batch in batches:
        measured = rates(
            {name: waited(step, on) for name, step in steps_at(batch, 512, 4096, on).items()},
            batch * STEPS,
            repeats=1,
        )
        cases[f"512 -> 4096, batch {batch}"] = {
            "rates": measured,
            "ratios": {n: ratio(measured, n, "plain dense step, float32") for n in measured},
            "seconds for the full scale": {n: FULL / m["median"] for n, m in measured.items()},
        }

    d_in, d_sae, batch = wide
    a, b = (torch.randn(matrix, matrix, device=on, dtype=torch.bfloat16) for _ in range(2))
    products = rates(
        {"bfloat16 product": waited(lambda: a @ b, on)}, 2 * matrix**3 * STEPS, repeats=1
    )["bfloat16 product"]["median"]
    step = steps_at(batch, d_in, d_sae, on)["ours, bfloat16"]
    measured = rates({"ours, bfloat16": waited(step, on, 5)}, batch * 5, rounds=5, repeats=1)
    flop = PRODUCTS * 2 * d_in * d_sae * measured["ours, bfloat16"]["median"]
    cases[f"{d_in} -> {d_sae}, batch {batch}"] = {
        "rates": measured,
        "ratios": {"ours, bfloat16": 1.0},
        "FLOP/s": flop,
        "matrix FLOP/s": products,
        "share of the matrix rate": flop / products,
    }

    torch.manual_seed(0)
    model = (
        language_model.build(s.lm, s.tokenizer.vocab_size, 0).eval().requires_grad_(False).to(on)
    )
    rows = np.random.default_rng(0).integers(0, s.tokenizer.vocab_size, (65_536, s.lm.context))
    sae = s.sae.model_copy(
        update={
            "activations": activations,
            "precision": "bfloat16",
            "batch": batches[-1],
            "buffer_rows": min(8192, len(rows)),
            "resampling": False,
            "checkpoint_every": 10**9,
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        store = CheckpointFolder(Path(scratch))
        _, summary = training.fit(HookPoint(model, s.sae.hook_name), rows, sae, 0, store)
        seconds = time.perf_counter() - began
    found = {
        "median": summary["activations_per_second"],
        "seconds": seconds,
        "activations": summary["activations"],
    }
    cases[f"from tokens, batch {batches[-1]}"] = {
        "rates": {"ours, bfloat16": found},
        "ratios": {"ours, bfloat16": 1.0},
    }
    return {
        "what": torch.cuda.get_device_name(on)
        if on.type == "cuda"
        else "a tiny trial without a GPU",
        "unit": "activations/s",
        "cases": cases,
    }
