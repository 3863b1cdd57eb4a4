"""On a GPU, in three calls of at most eight minutes each and without a network:

    python -m benchmarks.gpu original   # 512 → 4096: steps, training from tokens, language model
    python -m benchmarks.gpu stheno     # 14 336 → 57 344 and more: steps, harvest, memory
    python -m benchmarks.gpu checks     # nothing waits within a step; kill and resume; the stages

Each adds its part to `gpu.json` and its lines to `gpu.log` in `--out`, case by case: one that fails
or takes too long leaves the others' results. `--tiny` goes through all of it in miniature, which
tests do on a CPU and on the simulated device. Text is drawn at random, models have random weights,
and there is one autoencoder at a time.
"""

import argparse
import faulthandler
import gc
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import rehearsal, saelens
from benchmarks.timing import rates, ratio
from sae_lib import checkpoints
from sae_lib.device import autocast, gpu_module, on_gpu, wait_for
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.early_stopping import EarlyStopping
from sae_lib.sae.engine.captured import WARM_UP, captured
from sae_lib.sae.objective import loss
from sae_lib.sae.optimiser import adam
from sae_lib.sae.recipes import at_width, resolve
from sae_lib.settings import SAESettings, Settings, load
from suite import memory_plan, stages
from suite.report.machine import machine

FULL = 89_600_000  # activations: the original's 100 000 steps of 896
LM_STEPS = 25_000
PRODUCTS = 5  # dense ones of a step: encoder, decoder, and three gradients
BF16 = torch.bfloat16
SCHEDULE = (1e-5, 1.0, 0.01)  # rate, share of λ, weight in batchtopk's moving average


@dataclass(frozen=True)
class Sizes:
    """What is measured at full size; `TINY` is the same in miniature."""

    d_in: int = 512
    d_sae: int = 4096
    batches: tuple[int, ...] = (896, 8192)
    rows: int = 6_640_000
    context: int = 128
    buffer_rows: int = 8192
    activations: int = 18_000_000  # trained on from tokens, for the rate
    lm: tuple[str, ...] = ()  # overrides of runpod's language model
    wide: tuple[tuple[int, int], ...] = ((14_336, 57_344), (14_336, 114_688))
    wide_batch: int = 4096
    trunk: str = "LLAMA_3_8B"  # in `rehearsal`
    trunk_rows: tuple[int, int] = (64, 512)
    matrix: int = 8192
    seconds: float = 4.0  # that each case is timed for
    # of the `smoke` profile: those that these are made from are made too
    stages: tuple[str, ...] = (
        *("evaluation", "prompts", "features", "clusters", "circuits"),
        *("last_mlp.evaluation", "last_mlp.features"),
    )


TINY = Sizes(
    d_in=32,
    d_sae=64,
    batches=(64, 128),
    rows=300,
    context=16,
    buffer_rows=64,
    activations=4096,
    lm=("lm.d_model=16", "lm.d_mlp=32", "lm.n_heads=2", "lm.context=16", "lm.batch=4"),
    wide=((64, 128),),
    wide_batch=64,
    trunk="TINY",
    trunk_rows=(4, 16),
    matrix=64,
    seconds=0.02,
    stages=(),  # other tests go through them
)


class Log:
    """Lines on the screen and in `gpu.log`; results in `gpu.json`, written after each."""

    def __init__(self, out: Path, part: str, minutes: float):
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.part = out / "gpu.json", part
        self.lines, self.ends = out / "gpu.log", time.monotonic() + 60 * minutes
        kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.results = kept | {part: {"machine": machine(), "torch": torch.__version__}}

    def say(self, line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {self.part}: {line}"
        print(line, flush=True)
        with self.lines.open("a") as f:
            f.write(line + "\n")

    def measure(self, name: str, function: Callable[[], dict[str, Any]]) -> None:
        """Keep what a case measures, or why it could not; none is begun when time is up."""
        if time.monotonic() > self.ends:
            found: dict[str, Any] = {"left out": "no time left"}
        else:
            try:
                found = function()
            except Exception as error:  # the cases after it are still wanted
                found = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        gc.collect()
        torch.cuda.empty_cache()  # nothing where there is no CUDA
        self.results[self.part][name] = found
        self.file.write_text(json.dumps(self.results, indent=1) + "\n")
        self.say(f"{name}: {json.dumps(found)}")


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """Inside, a `TimeoutError` after so many minutes; half a minute later the process ends, should
    it hang in the driver. Results of earlier cases are in the file by then.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {minutes:g} minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    faulthandler.dump_traceback_later(60 * minutes + 30, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def calls_per_second(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """How often a function can be called, once it is warm; the device is waited for at the end."""
    for _ in range(3):
        function()
    wait_for(device)
    n, began, at_once = 0, time.perf_counter(), max(1, round(2.5 * seconds))
    while time.perf_counter() - began < seconds:
        for _ in range(at_once):
            function()
        wait_for(device)
        n += at_once
    return n / (time.perf_counter() - began)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """The most that torch holds on the device inside, in GB; nothing on a CPU."""
    found: dict[str, float] = {}
    if on_gpu(device):
        gpu_module(device).reset_peak_memory_stats(device)
    yield found
    if on_gpu(device):
        found["peak GB"] = gpu_module(device).max_memory_allocated(device) / 1e9


# --- steps ---


class Step:
    """One training step on a fixed batch, as `training.fit` makes it."""

    def __init__(self, d_in: int, settings: SAESettings, device: torch.device):
        recipe = at_width(resolve(settings), settings.tuned_at, d_in)
        torch.manual_seed(0)
        self.x = torch.randn(recipe.batch, d_in, device=device).relu_()
        with torch.device(device):
            sae = SparseAutoencoder(d_in, settings.d_sae, recipe.architecture, recipe.k)
            silent = torch.zeros(settings.d_sae, dtype=torch.int64)
        with torch.no_grad():
            for weights in (sae.W_dec, sae.W_enc_T):
                weights.normal_(std=d_in**-0.5)
            sae.b_enc.fill_(-2.0)  # some per cent of the features are active
        own = {"recipe": recipe, "scale": 1.0, "silent": silent}
        own |= {"stopping": EarlyStopping(self.x[:1], 0)}
        self.state = training.AutoencoderTraining(sae, adam(sae, recipe), **own)
        self.objective = recipe.objective(d_in, 1.0, settings.d_sae)
        self.take = partial(training.training_step, self.state, BF16)
        self.replay = captured(self.take, sae.W_dec)

    def eager(self) -> None:
        self.take(self.x, *SCHEDULE)

    def ours(self) -> None:
        """Captured, where the device can do that."""
        self.replay(self.x, *SCHEDULE)

    def with_loss(self, function: Callable, dtype: torch.dtype) -> None:
        sae = self.state.model
        sae.zero_grad(set_to_none=True)
        with autocast(self.x.device, dtype):
            total, _ = function(sae, self.x, self.objective)
        total.backward()
        training.update(sae, self.state.optimiser, self.state.recipe)


def step_settings(sizes: Sizes, batch: int, **more: Any) -> SAESettings:
    chosen = {"compare": (), "d_sae": sizes.d_sae, "batch": batch, "resampling": False}
    return SAESettings(**(chosen | more))


def one_step(kind: str, sizes: Sizes, batch: int, device: torch.device) -> dict[str, float]:
    """Rate of one kind of step at the original's size, and the full scale's seconds by it."""
    step = Step(sizes.d_in, step_settings(sizes, batch), device)
    run = {
        "ours": step.ours,
        "ours, not captured": step.eager,
        "plain float32": partial(step.with_loss, loss, torch.float32),
    }.get(kind)
    if kind == "loss compiled":
        run = partial(step.with_loss, torch.compile(loss), BF16)
    rate = batch * calls_per_second(run, device, sizes.seconds)
    return {"activations per second": rate, "seconds for the full scale": FULL / rate}


def beside_others(
    sizes: Sizes, size: tuple[int, int], batch: int, device: torch.device
) -> dict[str, Any]:
    """Rates in alternating rounds: SAELens' standard step beside ours, and sparsify's TopK beside
    ours.
    """
    d_in, d_sae = size
    found: dict[str, Any] = {}
    for package, recipe in (("sae_lens", "bricken_2023"), ("sparsify", "topk")):
        if not saelens.available(package):
            found[package] = "not installed in .venv-saelens"
            continue
        step = Step(d_in, step_settings(sizes, batch, recipe=recipe, d_sae=d_sae), device)
        sae, own = step.state.model, step.state.recipe
        if package == "sae_lens":
            theirs = saelens.saelens_step(sae, step.x, own.l1, device)
        else:
            theirs = saelens.sparsify_step(d_sae, own.k, step.x, device)
        ours = partial(rate_of, step.ours, batch, device, sizes.seconds / 4)
        measured = rates({package: theirs, "ours": ours}, batch)
        theirs.close()
        found[package] = measured | {"times as fast": ratio(measured, "ours", package)}
    return found


def rate_of(function: Callable, batch: int, device: torch.device, seconds: float) -> float:
    return batch * calls_per_second(function, device, seconds)


def profile(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Kernels of a step, and which take most of its time."""
    step = Step(sizes.d_in, step_settings(sizes, sizes.batches[0]), device)
    step.eager()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu(device) else []
    with torch.profiler.profile(activities=activities) as found:
        step.eager()
        wait_for(device)
    time_of = "device_time_total" if on_gpu(device) else "cpu_time_total"
    events = sorted(found.key_averages(), key=lambda e: -getattr(e, time_of))
    kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    top = {e.key[:80]: getattr(e, time_of) for e in events[:15]}
    return {"kernels": len(kernels), "microseconds": top}


def from_tokens(sizes: Sizes, batch: int, device: torch.device) -> dict[str, float]:
    """The whole loop with its harvest, from as many rows as the full scale has."""
    s = runpod(sizes)
    model = language_model.build(s.lm, s.tokenizer.vocab_size, 0).to(device)
    model = language_model.without_waits(model) if on_gpu(device) else model
    hook = HookPoint(model.eval().requires_grad_(False), "blocks.0.mlp.hook_post")
    shape = (sizes.rows, sizes.context)
    rows = np.random.default_rng(0).integers(0, s.tokenizer.vocab_size, shape, np.uint16)
    chosen = {"activations": sizes.activations, "buffer_rows": sizes.buffer_rows}
    settings = step_settings(sizes, batch, precision="bfloat16", **chosen)
    training.fit(hook, rows, settings.model_copy(update={"activations": 20 * batch}), 0)
    with peak_memory(device) as memory:
        began = time.perf_counter()
        _, summary = training.fit(hook, rows, settings, 0)
        seconds = time.perf_counter() - began
    rate = summary["activations"] / seconds
    return {"activations per second": rate, "seconds for the full scale": FULL / rate} | memory


def runpod(sizes: Sizes) -> Settings:
    """The profile's settings, with the sizes of its language model."""
    return load("runpod", list(sizes.lm))


def lm_step(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Steps of the 1-layer language model at the profile's batch and GPT-2's vocabulary."""
    lm, vocab = runpod(sizes).lm, 50_257 if sizes is not TINY else 300
    model = language_model.build(lm, vocab, 0).to(device)
    model = language_model.without_waits(model) if on_gpu(device) else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens = torch.randint(vocab, (lm.batch, lm.context + 1), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        language_model.next_token_loss(model, tokens, BF16).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), lm.grad_clip)
        optimiser.step()

    with peak_memory(device) as memory:
        rate = calls_per_second(step, device, sizes.seconds)
    tokens_per_second = rate * lm.batch * lm.context
    return {"tokens per second": tokens_per_second, "seconds for all": LM_STEPS / rate} | memory


def original(sizes: Sizes, device: torch.device, log: Log) -> None:
    kinds = ["plain float32", "ours, not captured", "ours"]
    kinds += ["loss compiled"] if device.type == "cuda" else []
    for batch in sizes.batches:
        for kind in kinds:
            name = f"step, batch {batch}, {kind}"
            log.measure(name, lambda b=batch, k=kind: one_step(k, sizes, b, device))
        name = f"beside other libraries, batch {batch}"
        size = (sizes.d_in, sizes.d_sae)
        log.measure(name, lambda b=batch, size=size: beside_others(sizes, size, b, device))
        log.measure(f"from tokens, batch {batch}", lambda b=batch: from_tokens(sizes, b, device))
    log.measure("profile", lambda: profile(sizes, device))
    log.measure("language model", lambda: lm_step(sizes, device))


# --- Stheno's width ---


def matrix_rate(sizes: Sizes, device: torch.device) -> float:
    """FLOP/s of a large bfloat16 product."""
    n = sizes.matrix
    a, b = (torch.randn(n, n, device=device, dtype=BF16) for _ in range(2))
    return 2 * n**3 * calls_per_second(lambda: a @ b, device, sizes.seconds)


def wide_step(
    sizes: Sizes, width: tuple[int, int], recipe: str, most: float, device: torch.device
) -> dict[str, float]:
    """A step's share of the matrix rate, and its memory against the plan."""
    d_in, d_sae = width
    more = {"recipe": recipe, "d_sae": d_sae, "tuned_at": 512}
    settings = step_settings(sizes, sizes.wide_batch, **more)
    with peak_memory(device) as memory:
        step = Step(d_in, settings, device)
        rate = sizes.wide_batch * calls_per_second(step.ours, device, sizes.seconds)
    flop = PRODUCTS * 2 * d_in * d_sae * rate
    planned = replace_aux(settings)
    return {
        "activations per second": rate,
        "share of the matrix rate": flop / most,
        "planned GB": memory_plan.training_step(d_in, planned) / 1e9,
    } | memory


def replace_aux(settings: SAESettings) -> SAESettings:
    """The plan counts TopK's auxiliary loss, which no feature here is dead enough for."""
    return settings.model_copy(update={"recipe": "bricken_2023", "k": None})


def trunk(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Harvest at the last MLP against the plain forward pass; random weights."""
    config = getattr(rehearsal, sizes.trunk)
    with peak_memory(device) as memory:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16)
        model = language_model.without_waits(model).eval().requires_grad_(False)
        hook = HookPoint(model, f"blocks.{config.num_hidden_layers - 1}.mlp.hook_post", 1)
        rows = np.random.default_rng(0).integers(2, config.vocab_size, sizes.trunk_rows)
        n, tokens = rows.size, torch.from_numpy(rows).to(device)
        parts = tokens.split(16)

        @torch.no_grad()
        def forward() -> None:
            for part in parts:
                model.base_model(input_ids=part, use_cache=False)

        out = harvest(hook, rows)
        rates = {
            "forward": n * calls_per_second(forward, device, sizes.seconds),
            "harvest": n
            * calls_per_second(lambda: harvest(hook, rows, out), device, sizes.seconds),
        }
    return rates | {"share of the forward pass": rates["harvest"] / rates["forward"]} | memory


def stheno(sizes: Sizes, device: torch.device, log: Log) -> None:
    most: list[float] = []

    def matrix() -> dict[str, float]:
        most.append(matrix_rate(sizes, device))
        return {"FLOP per second": most[0]}

    log.measure("bfloat16 product", matrix)
    for width in sizes.wide:
        for recipe in ("bricken_2023", "topk"):
            name = f"step, {width[0]} -> {width[1]}, {recipe}"
            log.measure(name, lambda w=width, r=recipe: wide_step(sizes, w, r, most[0], device))
    batch = sizes.wide_batch
    name = f"beside other libraries, {sizes.wide[0][0]} -> {sizes.wide[0][1]}"
    log.measure(name, lambda: beside_others(sizes, sizes.wide[0], batch, device))
    log.measure("harvest at the last MLP", lambda: trunk(sizes, device))


# --- what must hold ---


def no_wait(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """A step under CUDA's own check: any wait of the host is an error."""
    found, checked = {}, on_gpu(device)
    for recipe in ("bricken_2023", "topk", "batchtopk", "jumprelu"):
        step = Step(sizes.d_in, step_settings(sizes, sizes.batches[0], recipe=recipe), device)
        for _ in range(WARM_UP + 1):  # the last one captures
            step.ours()
        dead = torch.arange(8, device=device) if step.objective.aux else None
        if checked:
            gpu_module(device).set_sync_debug_mode("error")
        try:
            step.take(step.x, *SCHEDULE, dead=dead)
            step.ours()
        finally:
            if checked:
                gpu_module(device).set_sync_debug_mode("default")
        found[recipe] = "nothing waits" if checked else "not checked on a CPU"
    return found


class Killed(Exception):
    pass


def resume(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """The largest difference in a weight after a kill and a resume, beside that of two runs."""
    s, batch = runpod(sizes), sizes.batches[0]
    torch.manual_seed(0)
    model = language_model.build(s.lm, s.tokenizer.vocab_size, 0).to(device)
    hook = HookPoint(model.eval().requires_grad_(False), "blocks.0.mlp.hook_post")
    shape = (sizes.buffer_rows * 2, sizes.context)
    rows = np.random.default_rng(0).integers(0, s.tokenizer.vocab_size, shape)
    settings = step_settings(
        sizes, batch, activations=20 * batch, buffer_rows=sizes.buffer_rows, checkpoint_every=7
    )

    def trained(folder: Path) -> torch.Tensor:
        return training.fit(hook, rows, settings, 0, checkpoints.CheckpointFolder(folder))[0].W_dec

    save = checkpoints.save_checkpoint

    def save_then_die(*arguments: Any) -> None:
        save(*arguments)
        raise Killed

    with tempfile.TemporaryDirectory() as scratch:
        one, two = (trained(Path(scratch, name)) for name in ("one", "two"))
        checkpoints.save_checkpoint = save_then_die
        try:
            trained(Path(scratch, "killed"))
        except Killed:
            pass
        finally:
            checkpoints.save_checkpoint = save
        again = trained(Path(scratch, "killed"))
    differences = {"two runs": one - two, "killed and resumed": one - again}
    return {name: value.abs().max().item() for name, value in differences.items()}


def smoke(name: str, device: torch.device, folder: str) -> dict[str, float]:
    """Seconds of a stage of the `smoke` profile, from this installation's text."""
    run = stages.open_run("smoke", folder, [f"device={device.type}", "sae.widths=[]"])
    if name.startswith("last_mlp."):
        run, name = run.last_mlp(), name.removeprefix("last_mlp.")
    began = time.perf_counter()
    run.path(name) if stages.STAGES[name].folder else run.results(name)
    return {"seconds": time.perf_counter() - began}


def checks(sizes: Sizes, device: torch.device, log: Log) -> None:
    log.measure("waits", lambda: no_wait(sizes, device))
    log.measure("resume", lambda: resume(sizes, device))
    with tempfile.TemporaryDirectory() as scratch:
        for name in sizes.stages:
            log.measure(f"smoke: {name}", lambda n=name: smoke(n, device, f"{scratch}/run"))


PARTS = {"original": original, "stheno": stheno, "checks": checks}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no case is begun")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    log = Log(given.out, given.part, given.minutes)
    with time_limit(given.minutes + 0.5):
        PARTS[given.part](TINY if given.tiny else Sizes(), torch.device(given.device), log)
    return log.results[given.part]


if __name__ == "__main__":
    main()
