"""One training loop for every recipe."""

import json
import math
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor

from sae_lib import checkpoints, distributed, language_model
from sae_lib.activations import ActivationBuffer, HookPoint, Source, harvest
from sae_lib.active_pairs import active_pairs
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.device import device_of, precision
from sae_lib.early_stopping import ACTIVATIONS, EarlyStopping
from sae_lib.errors import Interrupted
from sae_lib.initialise import initialise, statistics
from sae_lib.progress import tqdm
from sae_lib.recipes import Recipe, is_resampling_step, rate, resolve, variant, variants
from sae_lib.resampling import resample
from sae_lib.runs import Run, checkpoints_of, keep_freed_memory, writing
from sae_lib.settings import SAESettings
from sae_lib.sparse_step import gradients
from sae_lib.tokens import open_tokens

EXPLODED = 1000  # times the loss of the first step
THRESHOLD_SPEED = 0.01  # of the moving average that batchtopk's threshold is, per step


def sae_made_from(run: Run, sae: SAESettings) -> dict:
    return language_model.lm_made_from(run) | {"sae": identity(sae)}


def identity(sae: SAESettings) -> dict:
    """The settings that the trained weights depend on, with what they leave to the recipe."""
    values = {
        name: value
        for name, value in asdict(resolve(sae)).items()
        if name not in ("name", "source", "differences")
    }
    return (
        sae.model_dump(
            mode="json",
            exclude={"compare", "widths", "checkpoint_every", "checkpoint_gb", "resample_at"},
        )
        | values
    )


def make_autoencoder(run: Run, name: str = "") -> Path:
    """The `sae` stage: train one of `recipes.variants(settings)`, by default the run's own recipe; returns its folder."""
    name = name or run.settings.sae.recipe
    sae = variant(run.settings, name)
    folder = run.folder / "saes" / name
    with ExitStack() as stack:
        with distributed.first_process_first():
            missing = stack.enter_context(run.making(folder, sae_made_from(run, sae)))
        if missing:
            _make(run, name, sae, folder)
    return folder


def _make(run: Run, name: str, sae: SAESettings, folder: Path) -> None:
    with distributed.first_process_first():
        language_model.make_language_model(run)
    if name == f"{run.settings.sae.recipe}-no_resampling":
        main = make_autoencoder(run)
        if not any(e["resampled"] for e in training_summary(run)["resampling"]):
            _same_without_resampling(run, sae, main, folder)
            return
    train(run, HookPoint(language_model.load(run), sae.hook_name), sae, folder, _twin(run, name))


def _twin(run: Run, name: str) -> tuple[Path, dict] | None:
    """Where the same autoencoder without resampling will look for a checkpoint, and which settings it will ask of it."""
    twin, folder = (
        variants(run.settings).get(f"{name}-no_resampling"),
        run.folder / "saes" / f"{name}-no_resampling",
    )
    if twin is None or folder.exists():
        return None
    return checkpoints_of(folder), sae_made_from(run, twin)


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
    return json.loads(
        (run.folder / "saes" / (name or run.settings.sae.recipe) / "training.json").read_text()
    )


def train(
    run: Run,
    hook: HookPoint,
    settings: SAESettings,
    folder: Path,
    twin: tuple[Path, dict] | None = None,
) -> None:
    """Fit on the run's training tokens and write the artefact: the autoencoder, and `training.json` with what happened."""
    rows, made_from = (
        open_tokens(run).rows("train", run.settings.lm.context),
        sae_made_from(run, settings),
    )
    scratch, context = checkpoints_of(folder), run.settings.lm.context
    heldout = (
        open_tokens(run).rows("heldout", context)[: ACTIVATIONS // context]
        if resolve(settings).patience
        else None
    )
    metadata = {
        "model_name": run.settings.lm.source,
        "context_size": context,
        "dataset_path": run.settings.corpus.source,
        "prepend_bos": False,
    }
    keep_freed_memory()
    torch.set_flush_denormal(
        True
    )  # Adam's moments of silent features decay into denormals, which are an order of magnitude slower
    try:
        with checkpoints.finish_the_step(settings.recipe) as interrupted:
            sae, summary = fit(
                hook,
                rows,
                settings,
                run.settings.seed,
                scratch,
                made_from,
                twin,
                heldout,
                interrupted,
            )
            with distributed.first_process_first():
                if distributed.place()[0] == 0:
                    with writing(folder, made_from) as out:
                        sae.save(out, metadata | {"hook_name": settings.hook_name})
                        (out / "training.json").write_text(json.dumps(summary, indent=1))
    finally:
        torch.set_flush_denormal(False)


def fit(
    hook: Source,
    rows: np.ndarray,
    settings: SAESettings,
    seed: int,
    scratch: Path,
    made_from: dict,
    twin: tuple[Path, dict] | None = None,
    heldout: np.ndarray | None = None,
    interrupted: Event | None = None,
) -> tuple[SparseAutoencoder, dict]:
    """The training loop, on the hook's activations of all positions of `rows` [row, position].

    Goes on from the last checkpoint in `scratch` where there is one made from the same settings. Until resampling touches a
    feature, training without it is the same computation: up to there its checkpoint goes to `twin` as well. `heldout` rows are for
    early stopping; `interrupted` ends training with a checkpoint after the step. Returns the autoencoder for unscaled activations and a summary: curves, resampling events, seconds,
    activations per second.
    """
    recipe, (rank, ranks) = resolve(settings), distributed.place()
    seed = seed if settings.seed is None else settings.seed
    n_steps = max(1, settings.activations // (recipe.batch * ranks))
    mean, scale = statistics(hook, rows, recipe)
    sae = initialise(recipe, mean * scale, settings.d_sae, seed).to(mean.device)
    if ranks > 1:
        distributed.follow_the_first(list(sae.parameters()))
    optimiser = torch.optim.Adam(
        trained(sae, recipe), lr=recipe.lr, betas=recipe.betas, fused=mean.device.type != "mps"
    )
    encoder_dtype = precision(settings.precision, mean.device)
    stopping = (
        EarlyStopping(harvest(hook, heldout).float() * scale, recipe.patience)
        if recipe.patience and heldout is not None
        else None
    )
    silent = torch.zeros(
        settings.d_sae, dtype=torch.int64, device=mean.device
    )  # activations since the feature last fired
    circumstances = checkpoints.circumstances(mean.device, encoder_dtype) | {"processes": ranks}
    made_from = made_from | circumstances
    start, curve, events, seconds, reference = 0, [], [], 0.0, None
    if checkpoint := checkpoints.load_checkpoint(scratch, made_from):
        start, tensors, state = checkpoint
        parts = lambda prefix: {  # noqa: E731
            k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
        }  # noqa: E731
        sae.load_state_dict(parts("sae."))
        checkpoints.restore_optimiser(optimiser, tensors)
        silent.copy_(tensors["silent"])
        curve, events, seconds, reference = (
            state["curve"],
            state["events"],
            state["seconds"],
            state["reference"],
        )
        if stopping:
            stopping.checks, stopping.best = state["checks"], parts("best.")

    def save(folder: Path, made_from: dict, step: int, events: list[dict]) -> None:
        if rank == 0:
            tensors = (
                {f"sae.{k}": v for k, v in sae.state_dict().items()}
                | checkpoints.optimiser_tensors(optimiser)
                | {"silent": silent}
            )
            tensors |= {f"best.{k}": v for k, v in stopping.best.items()} if stopping else {}
            state = {
                "curve": curve,
                "events": events,
                "reference": reference,
                "seconds": time.perf_counter() - began,
                "checks": stopping.checks if stopping else [],
            }
            checkpoints.save_checkpoint(
                folder, step, tensors, state, made_from, settings.checkpoint_gb * 1e9
            )

    buffer = ActivationBuffer(
        hook, rows[rank::ranks], recipe.batch, settings.buffer_rows, seed, start
    )
    began, step = time.perf_counter() - seconds, start - 1
    bar = tqdm(
        zip(range(start, n_steps), buffer, strict=False),
        desc=recipe.name,
        initial=start,
        total=n_steps,
        disable=rank > 0,
    )
    for step, x in bar:
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * rate(step, n_steps, recipe.lr_warmup, recipe.lr_decay)
        measured = gradients(
            sae,
            x * scale,
            recipe.objective(sae.d_in, rate(step, n_steps, recipe.l1_warmup, 0)),
            encoder_dtype,
        )
        if ranks > 1:
            distributed.average_gradients([p for p in sae.parameters() if p.grad is not None])
            measured = distributed.agree(measured)
        update(sae, optimiser, recipe)
        if sae.architecture == "batchtopk":
            sae.threshold.data.lerp_(measured.smallest, THRESHOLD_SPEED if step else 1.0)
        silent = torch.where(measured.fired, 0, silent + len(x) * ranks)
        logged = (step + 1) % settings.log_every == 0 or step + 1 == n_steps
        stop = (
            interrupted is not None and interrupted.is_set()
            if ranks == 1
            else logged
            and distributed.any_process(interrupted is not None and interrupted.is_set())
        )
        due = step + 1 < n_steps and ((step + 1) % settings.checkpoint_every == 0 or stop)
        if due or logged or reference is None:
            total = (measured.squared_error + measured.l1).item()
            reference = total if reference is None else reference
            limit = EXPLODED * reference if math.isfinite(reference) else sys.float_info.max
            checkpoints.check_loss(
                recipe.name,
                total,
                limit,
                step + 1,
                scratch,
                f"sae.lr {recipe.lr} or λ {recipe.l1} too high, or activations that are not finite",
            )
        if logged:
            point = {
                "step": step + 1,
                "squared_error": measured.squared_error.item(),
                "l1": measured.l1.item(),
                "l0": measured.l0.item(),
            }
            curve.append(point | {"silent": (silent >= settings.dead_window).float().mean().item()})
            bar.set_postfix(error=f"{point['squared_error']:.3g}", L0=f"{point['l0']:.1f}")
        if is_resampling_step(recipe, step + 1, n_steps):
            if twin and not any(e["resampled"] for e in events):
                save(twin[0], twin[1] | circumstances, step + 1, [])
            events.append(
                resample_dead(
                    hook, rows, settings, recipe, sae, optimiser, silent, scale, seed, step + 1
                )
            )
            if ranks > 1:
                moments = [
                    tensor
                    for name, tensor in checkpoints.optimiser_tensors(optimiser).items()
                    if not name.endswith(".step")
                ]
                distributed.follow_the_first([*sae.parameters(), *moments, silent])
        if (
            stopping
            and ((step + 1) % settings.check_every == 0 or step + 1 == n_steps)
            and distributed.any_process(stopping.stop(sae, step + 1))
        ):
            break
        if due:
            save(scratch, made_from, step + 1, events)
            if stop:
                raise Interrupted(
                    f"{recipe.name}: interrupted; step {step + 1} of {n_steps} is saved; run the same command to continue"
                )
    seconds, used = time.perf_counter() - began, (step + 1) * recipe.batch * ranks
    if stopping and stopping.best:
        sae.load_state_dict(stopping.best)
    sae.fold_scale(scale)
    sae.for_inference()
    return sae.requires_grad_(False), {
        "curve": curve,
        "resampling": events,
        "seconds": seconds,
        "activations": used,
        "activations_per_second": used / seconds,
        "scale": scale,
        "final_silent": (silent >= settings.dead_window).float().mean().item(),
        "recipe": asdict(recipe),
        "checks": stopping.checks if stopping else [],
    }


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
    if (
        recipe.decoder_norm == "features"
    ):  # the part of the gradient along a unit feature would only change its norm
        along = torch.linalg.vecdot(sae.W_dec.grad, sae.W_dec)
        sae.W_dec.grad.addcmul_(along[:, None], sae.W_dec, value=-1)
    optimiser.step()
    keep_shape(sae, recipe)


@torch.no_grad()
def keep_shape(sae: SparseAutoencoder, recipe: Recipe) -> None:
    """Unit features (rows of W_dec), or, faithful to the original's mistake, unit dimensions (columns of W_dec), or free; tied weights."""
    if recipe.decoder_norm != "free":
        sae.W_dec /= sae.W_dec.norm(
            dim=1 if recipe.decoder_norm == "features" else 0, keepdim=True
        ).clamp_min(1e-8)
    if recipe.tied:
        sae.W_enc_T.copy_(sae.W_dec)
    if sae.architecture == "jumprelu":
        sae.threshold.clamp_(min=0)


def resample_dead(
    hook: Source,
    rows: np.ndarray,
    settings: SAESettings,
    recipe: Recipe,
    sae,
    optimiser,
    silent,
    scale: float,
    seed: int,
    step: int,
) -> dict:
    """Find the dead features, resample them, count: {"step", "dead", "resampled"}. `silent` starts anew for the dead."""
    r = recipe.resampling
    rng = np.random.default_rng((seed, step))
    wanted = r.fresh_sample or settings.resampling_inputs
    drawn = rng.choice(len(rows), min(len(rows), -(-wanted // rows.shape[1])), replace=False)
    x = harvest(hook, rows[np.sort(drawn)])[:wanted].float() * scale
    if r.fresh_sample:
        dead = torch.bincount(active_pairs(sae, x).column, minlength=sae.d_sae) == 0
    else:
        dead = silent >= settings.dead_window
    touched = resample(
        sae,
        optimiser,
        dead,
        x,
        r.encoder_scale,
        r.centred,
        torch.Generator().manual_seed(seed + step),
    )
    silent[dead] = 0
    if touched:
        keep_shape(sae, recipe)
    return {"step": step, "dead": int(dead.sum()), "resampled": touched}
