"""How long a run takes on this machine: five small computations, timed, scaled by the settings."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

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


@dataclass(frozen=True)
class Part:
    """Work of one notebook: `factor` × `amount` × the seconds of one unit of its kernel."""

    kernel: str
    factor: float
    amount: Callable[[Settings], float] = lambda s: 1.0
    folder: str = ""  # of its artefact: what is already made takes no time
    last_mlp: bool = False


def _trained(s: Settings) -> float:
    return s.lm.train_tokens if s.lm.source == "train" else 0


def _rules(s: Settings) -> float:
    return s.interpretability.tokens * s.sae.d_sae


def _widths(s: Settings) -> float:
    """All autoencoders of the run, in units of the main one."""
    return sum(sae.d_sae for sae in variants(s).values()) / s.sae.d_sae


def _evaluated(s: Settings) -> float:
    """Held-out tokens times the dictionaries that are evaluated on them: those of the run, and
    neurons.
    """
    return s.evaluation.tokens * (_widths(s) + 1)


START = Part("python", 13_000)  # a kernel, imports and figures

# To measure these factors again: run a profile into a new folder on a machine that does nothing
# else, then multiply each notebook's factors by its seconds over those estimated; the run prints
# both. (Last, on two cores, in s: 02 140, 03 297, 04 171, 05 125, 06 24 with fast bfloat16 and
# 264, 416, 212, 149, 26 without; 01 37 on both.)
PARTS = {
    "text": [Part("python", 2.3e-3, lambda s: s.corpus.train_tokens, "tokens")],
    "00": [START, Part("python", 30_000, lambda s: ONE_PAGE[s.profile])],
    "01": [START, Part("toy", 7_800, lambda s: TOY[s.toy.preset])],
    "02": [
        START,
        Part("lm", 0.77, _trained, "language_model"),
        Part("pass", 96, _trained, "language_model"),
    ],
    "03": [
        START,
        Part("sae", 0.9, lambda s: s.sae.activations * _widths(s), "saes/{recipe}"),
        Part("pass", 310, lambda s: s.sae.activations * _widths(s), "saes/{recipe}"),
        Part("sae", 0.44, _evaluated),
        Part("pass", 310, _evaluated),
    ],
    "04": [
        START,
        Part("sae", 1.4, lambda s: s.evaluation.tokens, "features/{recipe}"),
        Part("pass", 1030, lambda s: s.evaluation.tokens, "features/{recipe}"),
        Part("sae", 3.0, lambda s: s.interpretability.tokens, "interpretability/{recipe}"),
        Part("pass", 2700, lambda s: s.interpretability.tokens, "interpretability/{recipe}"),
        Part("python", 6.5e-5, _rules, "interpretability/{recipe}"),
    ],
    "05": [
        START,
        Part("lm", 0.4, _trained, "language_model", True),
        Part("lm", 0.2, lambda s: s.sae.activations, "saes/{recipe}", True),
        Part("sae", 0.6, lambda s: s.sae.activations, "saes/{recipe}", True),
        Part("pass", 690, lambda s: s.sae.activations, "saes/{recipe}", True),
        Part("lm", 0.5, lambda s: s.evaluation.tokens, "features/{recipe}", True),
        Part("sae", 1.2, lambda s: s.evaluation.tokens, "features/{recipe}", True),
        Part("pass", 690, lambda s: s.evaluation.tokens, "features/{recipe}", True),
    ],
    "06": [
        START,
        Part("python", 400, lambda s: s.clamping.rows * s.clamping.draws),
        Part("lm", 9, lambda s: s.clamping.rows * s.lm.context * s.clamping.draws),
    ],
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
    unit: dict[tuple[str, bool], float] = {}
    seconds = dict.fromkeys(names, 0.0)
    for name in names:
        for part in PARTS.get(name.split("_")[0], [START]):
            of = run.last_mlp() if part.last_mlp else run
            amount = part.amount(of.settings)
            folder = (
                of.tokens_folder
                if part.folder == "tokens"
                else of.folder / part.folder.format(recipe=of.settings.sae.recipe)
            )
            if not amount or part.folder and folder.exists():
                continue
            key = (part.kernel, part.last_mlp)
            if key not in unit:
                unit[key] = KERNELS[part.kernel](of)
            seconds[name] += part.factor * amount * unit[key]
    return Estimate(seconds)


def _timed(function: Callable[[], object]) -> float:
    """The least seconds of several calls on one thread: two would wait for each other, where
    something else runs too.
    """
    taken: list[float] = []
    with one_thread():
        while sum(taken) < BUDGET or len(taken) < 2:
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return min(taken)


def _threaded(seconds: float, device: torch.device) -> float:
    """What took that long on one thread, on all that torch uses."""
    return seconds / torch.get_num_threads() ** SPEEDUP if device.type == "cpu" else seconds


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


def _lm(run: Run) -> float:
    """A token's share of a language model's step: its products, forward and backward."""
    s, device = run.settings.lm, device_of(run.settings.device)
    tokens = 512 if device.type == "cpu" else 8192
    shape = {"d_model": s.d_model, "d_mlp": s.d_mlp, "n_layer": s.n_layer}
    shape = shape if s.source == "train" else HUB_MODEL
    d, h, layers = min(shape["d_model"], 1024), min(shape["d_mlp"], 4096), min(shape["n_layer"], 4)
    vocabulary = min(run.settings.tokenizer.vocab_size, 8192)
    sizes = [(d, h), (h, d)] * layers + [(d, vocabulary)]
    weights = [torch.randn(n, m, device=device, requires_grad=True) for n, m in sizes]
    x, y = torch.randn(tokens, d, device=device), torch.arange(tokens, device=device) % vocabulary
    dtype = precision(s.precision, device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = x
            for weight in weights:
                out = torch.nn.functional.gelu(out @ weight)
        torch.nn.functional.cross_entropy(out.float(), y).backward()

    whole = shape["d_model"] * (2 * shape["n_layer"] * shape["d_mlp"] + vocabulary)
    seconds = _threaded(_timed(step), device)
    return seconds / tokens * whole / (d * (2 * layers * h + vocabulary))


def _pass(run: Run) -> float:
    """A thousand numbers read and written once: sorting out what is active costs many such
    passes.
    """
    device = device_of(run.settings.device)
    n = 4_000 if device.type == "cpu" else 100_000
    x = torch.randn(n, 1000, device=device)
    return _threaded(_timed(lambda: torch.relu(x)), device) / n


def _sae(run: Run) -> float:
    """An activation's share of an encoder product, and of finding what is active."""
    s, device = run.settings, device_of(run.settings.device)
    n = 1024 if device.type == "cpu" else 8192
    lm = s.lm.model_dump() if s.lm.source == "train" else HUB_MODEL
    whole = lm["d_mlp" if "mlp.hook_p" in s.sae.hook_name else "d_model"], s.sae.d_sae
    d_in, d_sae = min(whole[0], 4096), min(whole[1], 8192)
    dtype = precision("auto", device)
    x = torch.randn(n, d_in, device=device, dtype=dtype)
    W = torch.randn(d_in, d_sae, device=device, dtype=dtype)
    seconds = _threaded(_timed(lambda: torch.relu(x @ W - 3 * d_in**0.5).nonzero()), device)
    return seconds / n * (whole[0] * whole[1]) / (d_in * d_sae)


KERNELS = {"python": _python, "toy": _toy, "lm": _lm, "sae": _sae, "pass": _pass}
