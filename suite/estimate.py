"""How long a run takes on this machine: three small computations, timed, scaled by the settings."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml

from sae_lib.device import device_of, precision, wait_for
from sae_lib.formats import about
from sae_lib.sae.recipes import variants
from sae_lib.settings import Settings
from sae_lib.toy.models import one_thread
from suite.runs import Run, last_mlp_settings

BUDGET = 0.25  # seconds for each of the three
SPEEDUP = 0.8  # n threads are n ** SPEEDUP times as fast as one
KNOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def amounts(s: Settings) -> dict[str, float]:
    """How much there is to do, by the names of `estimate.yaml`; what begins with `lm_` or `sae_`
    is in 10⁹ multiplications by weights, of one pass forward.
    """
    lm = s.lm.model_dump() if s.lm.source == "train" else KNOWN["hub_model"]
    d_model, d_mlp = lm["d_model"], lm["d_mlp"]
    d_in = d_mlp if "mlp.hook_p" in s.sae.hook_name else d_model
    per_token = d_model * (2 * lm["n_layer"] * d_mlp + s.tokenizer.vocab_size) / 1e9
    per_activation = d_in * s.sae.d_sae / 1e9
    widths = sum(sae.d_sae for sae in variants(s).values()) / s.sae.d_sae  # 1: the main one
    clamps = s.clamping.rows * s.clamping.draws
    counts = {
        "trained": s.lm.train_tokens if s.lm.source == "train" else 0,
        "activations": s.sae.activations,
        "autoencoders": s.sae.activations * widths,
        "evaluated": s.evaluation.tokens * (widths + 1),  # by the neurons too
        "heldout": s.evaluation.tokens,
        "scored": s.interpretability.tokens,
        "clamped": clamps * s.lm.context,
        "ranked": s.clamping.rows * s.clamping.ranked * s.lm.context,
    }
    others = {
        "once": 1,
        "corpus": s.corpus.train_tokens,
        "one_page": KNOWN["one_page"][s.profile],
        "toy": KNOWN["toy"][s.toy.preset],
        "rules": s.interpretability.tokens * s.sae.d_sae,
        "clamps": clamps,
    }
    products = {f"lm_{name}": n * per_token for name, n in counts.items()}
    products |= {f"sae_{name}": n * per_activation for name, n in counts.items()}
    return counts | others | products


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
    device = device_of(run.settings.device)
    unit = cache(lambda kernel: KERNELS[kernel](device))
    seconds = dict.fromkeys(names, 0.0)
    for name in names:
        of = run.last_mlp() if name.startswith("05") else run
        amount = amounts(of.settings)
        parts = KNOWN["parts"].get(name.split("_")[0], KNOWN["parts"]["other"])
        for kernel, factor, what, *made in parts:
            if amount[what] and not any(of.folder_of(stage).exists() for stage in made):
                seconds[name] += factor * amount[what] * unit(kernel)
    return Estimate(seconds)


def on_card(s: Settings, name: str) -> float:
    """Seconds of a whole run on one of the rented `cards`, from assumed rates of its kernels."""
    card = KNOWN["cards"][name]
    unit = {
        "python": KNOWN["python_unit"],
        "product": 2e9 / (card["tflops"] * 1e12),
        "pass": 8e3 / (card["tb"] * 1e12),
    }
    seconds = 0.0
    for notebook, parts in KNOWN["parts"].items():
        amount = amounts(last_mlp_settings(s) if notebook == "05" else s)
        seconds += sum(factor * amount[what] * unit[kernel] for kernel, factor, what, *_ in parts)
    return seconds


def _timed(function: Callable[[], object], device: torch.device) -> float:
    """The least seconds of several calls on one thread: two would wait for each other, where
    something else runs too.
    """
    taken: list[float] = []
    with one_thread():
        while sum(taken) < BUDGET or len(taken) < 2:
            began = time.perf_counter()
            function()
            wait_for(device)
            taken.append(time.perf_counter() - began)
    return min(taken)


def _on_all_threads(seconds: float, device: torch.device) -> float:
    return seconds / torch.get_num_threads() ** SPEEDUP if device.type == "cpu" else seconds


def _python(device: torch.device) -> float:
    """Tokens, rules, text and toy models: plain Python, regular expressions and small arrays."""
    text = "def __init__(self, name): return {name: [0, 1.5]}\n" * 40

    def work() -> int:
        words = re.findall(r"\w+|\S", text) * 10
        return len({word: len(word) + i for i, word in enumerate(words)})

    return _timed(work, device)


def _pass(device: torch.device) -> float:
    """A thousand numbers read and written once: sorting out what is active costs many such
    passes.
    """
    n = 4_000 if device.type == "cpu" else 100_000
    x = torch.randn(n, 1000, device=device)
    return _on_all_threads(_timed(lambda: torch.relu(x), device) / n, device)


def _product(device: torch.device) -> float:
    """10⁹ multiplications in a product of matrices, in the precision that is fast here."""
    n, dtype = 512 if device.type == "cpu" else 8192, precision("auto", device)
    x, W = (torch.randn(rows, 1024, device=device, dtype=dtype) for rows in (n, 2048))
    seconds = _timed(lambda: x @ W.T, device) / (n * 1024 * 2048 / 1e9)
    return _on_all_threads(seconds, device)


KERNELS = {"python": _python, "pass": _pass, "product": _product}
