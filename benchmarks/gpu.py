"""On a GPU: the step at the original's size and the full scale that follows from it, the share
of the matrix rate at Stheno's width, and training from tokens.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.sae_step import autoencoder_with_l0, dense_step
from benchmarks.timing import case, rates
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
OURS = "ours, bfloat16"
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
        OURS: lambda: ours(*own),
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


def at_full_scale(batch: int, on: torch.device) -> dict:
    """The 1-layer model's size: every contender, and what the original's scale would take."""
    steps = {name: waited(step, on) for name, step in steps_at(batch, 512, 4096, on).items()}
    measured = rates(steps, batch * STEPS, repeats=1)
    seconds = {name: FULL / m["median"] for name, m in measured.items()}
    return case(measured, "plain dense step, float32") | {"seconds for the full scale": seconds}


def at_width(wide: tuple[int, int, int], matrix: int, on: torch.device) -> dict:
    """Our step at an 8-billion-parameter model's width, as a share of what the device
    multiplies.
    """
    d_in, d_sae, batch = wide
    a, b = (torch.randn(matrix, matrix, device=on, dtype=torch.bfloat16) for _ in range(2))
    product = {"bfloat16 product": waited(lambda: a @ b, on)}
    most = rates(product, 2 * matrix**3 * STEPS, repeats=1)["bfloat16 product"]["median"]
    step = {OURS: waited(steps_at(batch, d_in, d_sae, on)[OURS], on, 5)}
    measured = rates(step, batch * 5, rounds=5, repeats=1)
    flop = PRODUCTS * 2 * d_in * d_sae * measured[OURS]["median"]
    shares = {"FLOP/s": flop, "matrix FLOP/s": most, "share of the matrix rate": flop / most}
    return case(measured, OURS) | shares


def from_tokens(batch: int, activations: int, on: torch.device) -> dict:
    """The whole training loop, with harvesting and a checkpoint folder."""
    s = load("laptop")
    torch.manual_seed(0)
    model = language_model.build(s.lm, s.tokenizer.vocab_size, 0).eval().requires_grad_(False)
    rows = np.random.default_rng(0).integers(0, s.tokenizer.vocab_size, (65_536, s.lm.context))
    chosen = {
        "activations": activations,
        "precision": "bfloat16",
        "batch": batch,
        "buffer_rows": min(8192, len(rows)),
        "resampling": False,
        "checkpoint_every": 10**9,
    }
    hook = HookPoint(model.to(on), s.sae.hook_name)
    with tempfile.TemporaryDirectory() as scratch:
        began, store = time.perf_counter(), CheckpointFolder(Path(scratch))
        _, summary = training.fit(hook, rows, s.sae.model_copy(update=chosen), 0, store)
        seconds = time.perf_counter() - began
    rate = {"median": summary["activations_per_second"], "seconds": seconds}
    return case({OURS: rate | {"activations": summary["activations"]}}, OURS)


def run(
    device: str = "cuda",
    batches: tuple[int, ...] = (896, 8192),
    wide: tuple[int, int, int] = WIDE,
    activations: int = FULL,
    matrix: int = 8192,
) -> dict:
    on = torch.device(device)
    cases = {f"512 -> 4096, batch {batch}": at_full_scale(batch, on) for batch in batches}
    cases[f"{wide[0]} -> {wide[1]}, batch {wide[2]}"] = at_width(wide, matrix, on)
    cases[f"from tokens, batch {batches[-1]}"] = from_tokens(batches[-1], activations, on)
    there = on.type == "cuda"
    what = torch.cuda.get_device_name(on) if there else "a tiny trial without a GPU"
    return {"what": what, "unit": "activations/s", "cases": cases}
