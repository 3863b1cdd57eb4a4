"""How long a run takes on this machine: five small computations, timed, scaled by the settings."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sae_lib.device import device_of, precision
from sae_lib.formats import about
from sae_lib.sae.recipes import variants
from sae_lib.settings import Settings
from sae_lib.toy.models import one_thread
from suite.runs import Run

BUDGET = 0.5  # seconds for each of the five
SPEEDUP = 0.8  # n threads are n ** SPEEDUP times as fast as one
HUB_MODEL = {"d_model": 4096, "d_mlp": 14336, "n_layer": 32}  # what is assumed of one: Llama 3 8B
TOY = {"smoke": 0.01, "laptop": 1.0, "full": 20.0}  # how much a preset computes
ONE_PAGE = {"smoke": 1, "laptop": 15, "runpod": 200}  # and notebook 00, which has its own sizes


PARTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def amounts(s: Settings) -> dict[str, float]:
    """How much there is to do, by the names of `estimate.yaml`."""
    clamps = s.clamping.rows * s.clamping.draws
    widths = sum(sae.d_sae for sae in variants(s).values()) / s.sae.d_sae  # 1: the main one
    return {
        "once": 1,
        "corpus": s.corpus.train_tokens,
        "one_page": ONE_PAGE[s.profile],
        "toy": TOY[s.toy.preset],
        "trained": s.lm.train_tokens if s.lm.source == "train" else 0,
        "activations": s.sae.activations,
        "autoencoders": s.sae.activations * widths,
        "evaluated": s.evaluation.tokens * (widths + 1),  # by the neurons too
        "heldout": s.evaluation.tokens,
        "scored": s.interpretability.tokens,
        "rules": s.interpretability.tokens * s.sae.d_sae,
        "clamps": clamps,
        "clamped_tokens": clamps * s.lm.context,
        "ranked_tokens": s.clamping.rows * s.clamping.ranked * s.lm.context,
    }


@dataclass(frozen=True)
class Estimate:
    """Seconds that each notebook, by its name, is expected to take."""

    seconds: dict[str, float]

    def summary(self) -> str:
        each = ", ".join(
            f"{name if name == 'text' else name[:2]} {about(s)}" for name, s in self.seconds.items()
        )
        return f"about {about(sum(self.seconds.values()))} on this machine ({each})"

    def corrected(self, name: str, measured: dict[str, float]) -> float:
        """One notebook's estimate times how far off those before it were; a quarter of the run
        counts as exact.
        """
        prior = sum(self.seconds.values()) / 4
        expected = sum(self.seconds[n] for n in measured)
        return self.seconds[name] * (sum(measured.values()) + prior) / (expected + prior)

    def left(self, measured: dict[str, float], running: str = "", elapsed: float = 0.0) -> float:
        """Seconds until the end of the run, after `elapsed` seconds of the notebook that runs."""
        if running and elapsed > self.corrected(running, measured):
            measured, running = measured | {running: elapsed}, ""
        rest = sum(self.corrected(n, measured) for n in self.seconds if n not in measured)
        return rest - elapsed if running else rest


def of_run(run: Run, names: list[str]) -> Estimate:
    """Time the kernels that the notebooks need here, and add up what is not made yet."""
    unit: dict[tuple[str, Path], float] = {}
    seconds = dict.fromkeys(names, 0.0)
    for name in names:
        of = run.last_mlp() if name.startswith("05") else run
        amount = amounts(of.settings)
        for kernel, factor, what, *made in PARTS.get(name.split("_")[0], PARTS["other"]):
            if not amount[what] or any(of.folder_of(stage).exists() for stage in made):
                continue
            key = (kernel, of.folder)
            if key not in unit:
                unit[key] = KERNELS[kernel](of)
            seconds[name] += factor * amount[what] * unit[key]
    return Estimate(seconds)


def _timed(function: Callable[[], object], device: torch.device | None = None) -> float:
    """The least seconds of several calls on one thread: two would wait for each other, where
    something else runs too. On a CPU as `device`: what that would take on all threads of torch.
    """
    taken: list[float] = []
    with one_thread():
        while sum(taken) < BUDGET or len(taken) < 2:
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    threads = torch.get_num_threads() if device and device.type == "cpu" else 1
    return min(taken) / threads**SPEEDUP


def _python(run: Run) -> float:
    """Tokens, rules and text are plain Python, regular expressions and small arrays."""
    text = "def __init__(self, name): return {name: [0, 1.5]}\n" * 40

    def work() -> int:
        words = re.findall(r"\w+|\S", text) * 10
        return len({word: len(word) + i for i, word in enumerate(words)})

    return _timed(work)


def _toy(run: Run) -> float:
    """One step of 60 small models that are trained as one batch, on one thread as there."""
    W = torch.randn(60, 5, 20, requires_grad=True)
    optimiser = torch.optim.Adam([W], fused=True)

    def step() -> None:
        x = torch.rand(60, 20, 512)
        (torch.relu(W.mT @ (W @ x)) - x).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return _timed(step)


def _shape(run: Run) -> dict[str, Any]:
    """The sizes of the run's language model."""
    lm = run.settings.lm
    return lm.model_dump() if lm.source == "train" else HUB_MODEL


def _lm(run: Run) -> float:
    """A token's share of a language model's step: its products, forward and backward."""
    shape, device = _shape(run), device_of(run.settings.device)
    tokens = 512 if device.type == "cpu" else 8192
    d, h, layers = min(shape["d_model"], 1024), min(shape["d_mlp"], 4096), min(shape["n_layer"], 4)
    vocabulary = min(run.settings.tokenizer.vocab_size, 8192)
    sizes = [(d, h), (h, d)] * layers + [(d, vocabulary)]
    weights = [torch.randn(n, m, device=device, requires_grad=True) for n, m in sizes]
    x, y = torch.randn(tokens, d, device=device), torch.arange(tokens, device=device) % vocabulary
    dtype = precision(run.settings.lm.precision, device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = x
            for weight in weights:
                out = torch.nn.functional.gelu(out @ weight)
        torch.nn.functional.cross_entropy(out.float(), y).backward()

    whole = shape["d_model"] * (2 * shape["n_layer"] * shape["d_mlp"] + vocabulary)
    return _timed(step, device) / tokens * whole / sum(n * m for n, m in sizes)


def _pass(run: Run) -> float:
    """A thousand numbers read and written once: sorting out what is active costs many such
    passes.
    """
    device = device_of(run.settings.device)
    n = 4_000 if device.type == "cpu" else 100_000
    x = torch.randn(n, 1000, device=device)
    return _timed(lambda: torch.relu(x), device) / n


def _sae(run: Run) -> float:
    """An activation's share of an encoder product, and of finding what is active."""
    sae, device = run.settings.sae, device_of(run.settings.device)
    n = 1024 if device.type == "cpu" else 8192
    whole = _shape(run)["d_mlp" if "mlp.hook_p" in sae.hook_name else "d_model"]
    d_in, d_sae = min(whole, 4096), min(sae.d_sae, 8192)
    dtype = precision("auto", device)
    x = torch.randn(n, d_in, device=device, dtype=dtype)
    W = torch.randn(d_in, d_sae, device=device, dtype=dtype)
    seconds = _timed(lambda: torch.relu(x @ W - 3 * d_in**0.5).nonzero(), device)
    return seconds / n * (whole * sae.d_sae) / (d_in * d_sae)


KERNELS = {"python": _python, "toy": _toy, "lm": _lm, "sae": _sae, "pass": _pass}
