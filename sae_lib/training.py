"""One training loop for every recipe."""

import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lib import checkpoints, language_model
from sae_lib.activations import ActivationBuffer, HookPoint, Source, harvest
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.device import device_of, precision
from sae_lib.errors import TrainingError
from sae_lib.recipes import Recipe, resolve, variants
from sae_lib.resampling import resample
from sae_lib.runs import Run, keep_freed_memory, writing
from sae_lib.settings import SAESettings
from sae_lib.sparse_step import gradients
from sae_lib.tokens import open_tokens

THRESHOLD_SPEED = 0.01  # of the moving average that batchtopk's threshold is, per step
STATISTICS_ROWS = 256  # rows of text that the scale and the mean are taken from


def sae_made_from(run: Run, sae: SAESettings) -> dict:
    return language_model.lm_made_from(run) | {"sae": sae.model_dump(mode="json", exclude={"compare", "widths", "checkpoint_every"})}


def make_autoencoder(run: Run, name: str = "") -> Path:
    """The `sae` stage: train one of `recipes.variants(settings)`, by default the run's own recipe; returns its folder."""
    name = name or run.settings.sae.recipe
    sae = variants(run.settings)[name]
    folder = run.folder / "saes" / name
    if run.is_made(folder, sae_made_from(run, sae)):
        return folder
    language_model.make_language_model(run)
    if name == f"{run.settings.sae.recipe}-no_resampling":
        main = make_autoencoder(run)
        if not any(e["resampled"] for e in training_summary(run)["resampling"]):
            _same_without_resampling(run, sae, main, folder)
            return folder
    train(run, HookPoint(language_model.load(run), sae.hook_name), sae, folder, _twin(run, name))
    return folder


def _twin(run: Run, name: str) -> tuple[Path, dict] | None:
    """Where the same autoencoder without resampling will look for a checkpoint, and which settings it will ask of it."""
    twin, folder = variants(run.settings).get(f"{name}-no_resampling"), run.folder / "saes" / f"{name}-no_resampling"
    if twin is None or folder.exists():
        return None
    return _checkpoints_of(folder), sae_made_from(run, twin)


def _checkpoints_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.checkpoints")


def _same_without_resampling(run: Run, sae: SAESettings, main: Path, folder: Path) -> None:
    """Where resampling found nothing dead, training without it is the same computation: take its result, and say so."""
    summary = training_summary(run) | {"resampling": [], "same_as": main.name}
    summary["recipe"]["resampling"] = None
    with writing(folder, sae_made_from(run, sae)) as out:
        for file in ("cfg.json", "sae_weights.safetensors"):
            shutil.copy2(main / file, out / file)
        (out / "training.json").write_text(json.dumps(summary, indent=1))


def load_autoencoder(run: Run, name: str = "") -> SparseAutoencoder:
    """The run's autoencoder, trained first where it is not there."""
    return SparseAutoencoder.load(make_autoencoder(run, name), device_of(run))


def training_summary(run: Run, name: str = "") -> dict:
    """What training measured: curves, resampling events, seconds, activations per second."""
    return json.loads((run.folder / "saes" / (name or run.settings.sae.recipe) / "training.json").read_text())


def train(run: Run, hook: HookPoint, settings: SAESettings, folder: Path, twin: tuple[Path, dict] | None = None) -> None:
    """Fit on the run's training tokens and write the artefact: the autoencoder, and `training.json` with what happened."""
    rows, made_from = open_tokens(run).rows("train", run.settings.lm.context), sae_made_from(run, settings)
    scratch = _checkpoints_of(folder)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # Adam's moments of silent features decay into denormals, which are an order of magnitude slower
    try:
        sae, summary = fit(hook, rows, settings, run.settings.seed, scratch, made_from, twin)
    finally:
        torch.set_flush_denormal(False)
    metadata = {"model_name": run.settings.lm.source, "context_size": run.settings.lm.context, "dataset_path": run.settings.corpus.source, "prepend_bos": False}
    with writing(folder, made_from) as out:
        sae.save(out, metadata | {"hook_name": settings.hook_name})
        (out / "training.json").write_text(json.dumps(summary, indent=1))
    shutil.rmtree(scratch, ignore_errors=True)


def fit(
    hook: Source, rows: np.ndarray, settings: SAESettings, seed: int, scratch: Path, made_from: dict, twin: tuple[Path, dict] | None = None
) -> tuple[SparseAutoencoder, dict]:
    """The training loop, on the hook's activations of all positions of `rows` [row, position].

    Goes on from the last checkpoint in `scratch` where there is one made from the same settings. Until resampling touches a
    feature, training without it is the same computation: up to there its checkpoint goes to `twin` as well. Returns the autoencoder for
    unscaled activations and a summary: curves, resampling events, seconds, activations per second.
    """
    recipe = resolve(settings)
    n_steps = max(1, settings.activations // recipe.batch)
    mean, scale = statistics(hook, rows, recipe)
    sae = initialise(recipe, mean * scale, settings.d_sae, seed).to(mean.device)
    optimiser = torch.optim.Adam(trained(sae, recipe), lr=recipe.lr, betas=recipe.betas, fused=mean.device.type != "mps")
    encoder_dtype = precision(settings.precision, mean.device)
    silent = torch.zeros(settings.d_sae, dtype=torch.int64, device=mean.device)  # activations since the feature last fired
    start, curve, events, seconds = 0, [], [], 0.0
    if checkpoint := checkpoints.load_checkpoint(scratch, made_from):
        start, tensors, state = checkpoint
        sae.load_state_dict({k.removeprefix("sae."): v for k, v in tensors.items() if k.startswith("sae.")})
        checkpoints.restore_optimiser(optimiser, tensors)
        silent.copy_(tensors["silent"])
        curve, events, seconds = state["curve"], state["events"], state["seconds"]
    buffer = ActivationBuffer(hook, rows, recipe.batch, settings.buffer_rows, seed, start)
    began = time.perf_counter() - seconds

    def save(folder: Path, made_from: dict, step: int, events: list[dict]) -> None:
        tensors = {f"sae.{k}": v for k, v in sae.state_dict().items()} | checkpoints.optimiser_tensors(optimiser) | {"silent": silent}
        checkpoints.save_checkpoint(folder, step, tensors, {"curve": curve, "events": events, "seconds": time.perf_counter() - began}, made_from)

    bar = tqdm(zip(range(start, n_steps), buffer, strict=False), desc=recipe.name, initial=start, total=n_steps)
    for step, x in bar:
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * rate(step, n_steps, recipe.lr_warmup, recipe.lr_decay)
        measured = gradients(sae, x * scale, recipe.objective(sae.d_in, rate(step, n_steps, recipe.l1_warmup, 0)), encoder_dtype)
        update(sae, optimiser, recipe)
        if sae.architecture == "batchtopk":
            sae.threshold.data.lerp_(measured.smallest, THRESHOLD_SPEED if step else 1.0)
        silent = torch.where(measured.fired, 0, silent + len(x))
        if (step + 1) % settings.log_every == 0 or step + 1 == n_steps:
            point = {"step": step + 1, "squared_error": measured.squared_error.item(), "l1": measured.l1.item(), "l0": measured.l0.item()}
            if not math.isfinite(point["squared_error"] + point["l1"]):
                raise TrainingError(f"{recipe.name}: the loss is not finite at step {step + 1}; likely sae.lr {recipe.lr} is too high; the last good checkpoint lies in {scratch}")
            curve.append(point | {"silent": (silent >= settings.dead_window).float().mean().item()})
            bar.set_postfix(error=f"{point['squared_error']:.3g}", L0=f"{point['l0']:.1f}")
        if is_resampling_step(recipe, step + 1, n_steps):
            if twin and not any(e["resampled"] for e in events):
                save(*twin, step + 1, [])
            events.append(resample_dead(hook, rows, settings, recipe, sae, optimiser, silent, scale, seed, step + 1))
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < n_steps:
            save(scratch, made_from, step + 1, events)
    seconds = time.perf_counter() - began
    sae.fold_scale(scale)
    sae.for_inference()
    used = n_steps * recipe.batch
    return sae.requires_grad_(False), {
        "curve": curve, "resampling": events, "seconds": seconds, "activations": used, "activations_per_second": used / seconds,
        "scale": scale, "final_silent": (silent >= settings.dead_window).float().mean().item(), "recipe": asdict(recipe),
    }  # fmt: skip


def statistics(hook: Source, rows: np.ndarray, recipe: Recipe) -> tuple[Float[Tensor, " d_in"], float]:
    """The activations' mean, and the factor that makes their mean squared norm d_in (1 for recipes that keep their units)."""
    acts = harvest(hook, rows[np.linspace(0, len(rows) - 1, min(STATISTICS_ROWS, len(rows))).astype(int)]).float()
    scale = math.sqrt(acts.shape[1] / acts.pow(2).sum(1).mean().item()) if recipe.scale_activations else 1.0
    return acts.mean(0), scale


@torch.no_grad()
def initialise(recipe: Recipe, mean: Float[Tensor, " d_in"], d_sae: int, seed: int) -> SparseAutoencoder:
    """A fresh autoencoder: random unit features with a small tied encoder around the mean, or torch's `nn.Linear` defaults."""
    sae, generator = SparseAutoencoder(len(mean), d_sae, recipe.architecture, recipe.k), torch.Generator().manual_seed(seed)
    if recipe.init == "small_tied":
        sae.W_dec.normal_(generator=generator)
        sae.W_dec *= recipe.decoder_init / sae.W_dec.norm(dim=1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T * (1.0 if recipe.tied else recipe.encoder_init / recipe.decoder_init))
        sae.b_dec.copy_(mean)
        if recipe.architecture == "jumprelu":
            sae.threshold.fill_(recipe.threshold_init)
    else:
        for parameter, fan_in in ((sae.W_enc_T, len(mean)), (sae.b_enc, len(mean)), (sae.W_dec, d_sae), (sae.b_dec, d_sae)):
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    return sae


def trained(sae: SparseAutoencoder, recipe: Recipe) -> list[Tensor]:
    """What the optimiser moves: with tied weights the encoder follows the decoder, and batchtopk's threshold follows its batches."""
    left_out = {"W_enc_T"} if recipe.tied else set()
    left_out |= {"threshold"} if sae.architecture == "batchtopk" else set()
    return [parameter for name, parameter in sae.named_parameters() if name not in left_out]


@torch.no_grad()
def update(sae: SparseAutoencoder, optimiser: torch.optim.Optimizer, recipe: Recipe) -> None:
    """One optimiser step that ends with the decoder's norm in place."""
    if recipe.tied:
        sae.W_dec.grad += sae.W_enc_T.grad
    if recipe.grad_clip:
        torch.nn.utils.clip_grad_norm_(trained(sae, recipe), recipe.grad_clip)
    if recipe.decoder_norm == "features":  # the part of the gradient along a unit feature would only change its norm
        along = torch.linalg.vecdot(sae.W_dec.grad, sae.W_dec)
        sae.W_dec.grad.addcmul_(along[:, None], sae.W_dec, value=-1)
    optimiser.step()
    keep_shape(sae, recipe)


@torch.no_grad()
def keep_shape(sae: SparseAutoencoder, recipe: Recipe) -> None:
    """Unit features (rows of W_dec), or, faithful to the original's mistake, unit dimensions (columns of W_dec), or free; tied weights."""
    if recipe.decoder_norm != "free":
        sae.W_dec /= sae.W_dec.norm(dim=1 if recipe.decoder_norm == "features" else 0, keepdim=True).clamp_min(1e-8)
    if recipe.tied:
        sae.W_enc_T.copy_(sae.W_dec)
    if sae.architecture == "jumprelu":
        sae.threshold.clamp_(min=0)


def rate(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """Share of the peak value: linear up over the first `warmup`, linear down to zero over the last `decay` of training."""
    up = (step + 1) / max(1, round(warmup * n_steps))
    down = (n_steps - step) / max(1, round(decay * n_steps)) if decay else 1.0
    return min(1.0, up, down)


def is_resampling_step(recipe: Recipe, step: int, n_steps: int) -> bool:
    r = recipe.resampling
    return bool(r) and (step in {round(share * n_steps) for share in r.at} or (r.every > 0 and step % r.every == 0))


def resample_dead(hook: Source, rows: np.ndarray, settings: SAESettings, recipe: Recipe, sae, optimiser, silent, scale: float, seed: int, step: int) -> dict:
    """Find the dead features, resample them, count: {"step", "dead", "resampled"}. `silent` starts anew for those touched."""
    r = recipe.resampling
    rng = np.random.default_rng((seed, step))
    wanted = r.fresh_sample or settings.resampling_inputs
    drawn = rng.choice(len(rows), min(len(rows), -(-wanted // rows.shape[1])), replace=False)
    x = harvest(hook, rows[np.sort(drawn)])[:wanted].float() * scale
    if r.fresh_sample:
        dead = ~torch.stack([(sae.encode(part) > 0).any(0) for part in x.split(2048)]).any(0)
    else:
        dead = silent >= settings.dead_window
    touched = resample(sae, optimiser, dead, x, r.encoder_scale, r.centred, torch.Generator().manual_seed(seed + step))
    silent[dead] = 0
    if touched:
        keep_shape(sae, recipe)
    return {"step": step, "dead": int(dead.sum()), "resampled": touched}
