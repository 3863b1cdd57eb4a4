"""One training loop for every recipe."""

import math
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib import checkpoints
from sae_lib.device import on_gpu, precision
from sae_lib.model.activations import ActivationBuffer, Source, harvest, harvest_kept
from sae_lib.progress import tqdm
from sae_lib.sae import resampling
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import reconstruction
from sae_lib.sae.early_stopping import EarlyStopping
from sae_lib.sae.engine import distributed
from sae_lib.sae.engine.active_pairs import active_pairs
from sae_lib.sae.engine.captured import captured
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.initialise import initialise, statistics, stay_near
from sae_lib.sae.objective import StepResult
from sae_lib.sae.optimiser import adam, set_learning_rate, trained
from sae_lib.sae.recipes import (
    Recipe,
    at_width,
    is_resampling_step,
    rate,
    rate_after_resampling,
    resolve,
    training_fingerprint,
)
from sae_lib.settings import SAESettings

MAX_LOSS_RATIO = 1000  # times the loss of the first step
EXPLAINED = 4096  # inputs on which the error and the L0 are measured before and after resampling
THRESHOLD_STEPS = 100  # that batchtopk's threshold averages over, at most a tenth of training


@dataclass(kw_only=True)
class AutoencoderTraining(checkpoints.TrainingState):
    """The state of an autoencoder's training: also for how long each feature has been
    silent, and what early stopping knows.
    """

    recipe: Recipe
    scale: float | Tensor  # that activations are multiplied by
    silent: Int[Tensor, " d_sae"]  # activations since the feature last fired
    stopping: EarlyStopping
    reference: float | None = None  # the loss of the first step
    events: list[dict] = field(default_factory=list)
    last_dead_indices: Int[Tensor, " n_dead"] | None = None  # what `dead_indices` gave last

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, the best weights so far, and the features' silence."""
        best = {f"best.{name}": tensor for name, tensor in self.stopping.best.items()}
        return super().tensors() | best | {"silent": self.silent}

    def record(self) -> dict[str, Any]:
        """Curve, resampling events, the first loss and the checks of early stopping."""
        own = {"events": self.events, "reference": self.reference, "checks": self.stopping.checks}
        return super().record() | own

    def put_back(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Take over `tensors` and `record` of a checkpoint."""
        super().put_back(tensors, record)
        self.silent.copy_(tensors["silent"])
        self.events, self.reference = record["events"], record["reference"]
        self.stopping.checks = record["checks"]
        self.stopping.best = checkpoints.under("best.", tensors)

    def save(self, store: checkpoints.CheckpointFolder, budget_gb: float) -> None:
        """Write a checkpoint; of processes with the same weights the first one does."""
        if distributed.TEAM.replica()[0] == 0:
            super().save(store, budget_gb)

    def check_loss(self, measured: StepResult, folder: Path | None) -> None:
        """`TrainingError` where the loss is not finite or many times that of the first step.

        It judges `squared_error + l1` as measured, without the weights that both have in the loss
        (`objective.mse` and λ, of which the latter changes while it is warmed up).
        """
        total = (measured.squared_error + measured.l1).item()
        self.reference = total if self.reference is None else self.reference
        finite = math.isfinite(self.reference)
        limit = MAX_LOSS_RATIO * self.reference if finite else sys.float_info.max
        recipe = self.recipe
        causes = f"sae.lr {recipe.lr} or λ {recipe.l1} too high, or activations that are not finite"
        checkpoints.check_loss(recipe.name, total, limit, self.step, folder, causes)

    def dead_mask(self, dead_window: int) -> Bool[Tensor, " d_sae"]:
        """[d_sae], true for features that fired on none of the last `dead_window` training
        activations.
        """
        return self.silent >= dead_window

    def dead_indices(self, settings: SAESettings) -> Int[Tensor, " n_dead"]:
        """[n_dead], the indices of the dead features, rising. On a GPU those of the last log point
        (`last_dead_indices`), as the host has to wait for new ones.
        """
        if (
            self.last_dead_indices is None
            or not on_gpu(self.silent.device)
            or self.step % settings.log_every == 0
        ):
            self.last_dead_indices = self.dead_mask(settings.dead_window).nonzero().squeeze(1)
        return self.last_dead_indices

    def dead_share(self, dead_window: int) -> float:
        """The share of all features that `dead_mask` marks."""
        return distributed.TEAM.mean(self.dead_mask(dead_window).float().mean()).item()

    def log(self, measured: StepResult, dead_window: int) -> dict[str, str]:
        """Append a point to the curves, and return what of it a progress bar shows."""
        values = {name: getattr(measured, name).item() for name in ("squared_error", "l1", "l0")}
        silent = {"silent": self.dead_share(dead_window)}
        silent |= {"silent_quarter": self.dead_share(dead_window // 4)}
        self.curve.append({"step": self.step} | values | silent)
        return {"error": f"{values['squared_error']:.3g}", "L0": f"{values['l0']:.1f}"}

    def summary(self, activations: int, dead_window: int) -> dict:
        """Curves, resampling events, seconds, activations per second."""
        return {
            "curve": self.curve,
            "resampling": self.events,
            "seconds": self.seconds,
            "activations": activations,
            "activations_per_second": activations / self.seconds,
            "scale": self.scale.tolist() if isinstance(self.scale, Tensor) else self.scale,
            "final_silent": self.dead_share(dead_window),
            "recipe": asdict(self.recipe),
            "checks": self.stopping.checks,
        }


def prepare(
    hook: Source, rows: np.ndarray, settings: SAESettings, seed: int, heldout: np.ndarray | None
) -> AutoencoderTraining:
    """A fresh training: the recipe for the width of these activations and their scale, weights,
    Adam, and early stopping where the recipe has it.
    """
    recipe = resolve(settings)
    mean, scale = statistics(hook, rows, recipe)
    recipe = at_width(recipe, settings.tuned_at, len(mean))
    sae = initialise(recipe, mean * scale, settings.d_sae, seed)
    sae = distributed.TEAM.share(sae, recipe).to(mean.device)
    optimiser = adam(sae, recipe)
    if recipe.frozen == "soft_decoder":
        optimiser.register_step_post_hook(stay_near(sae.W_dec))
    stopping = EarlyStopping(mean[None], 0)
    if recipe.patience and heldout is not None:
        stopping = EarlyStopping(harvest_kept(hook, heldout) * scale, recipe.patience)
    silent = torch.zeros(sae.d_sae, dtype=torch.int64, device=mean.device)
    own = {"recipe": recipe, "scale": scale, "silent": silent, "stopping": stopping}
    return AutoencoderTraining(sae, optimiser, **own)


def identity(hook: Source, rows: np.ndarray, settings: SAESettings, seed: int) -> dict[str, Any]:
    """What tells a training from others: settings, seed, and of the data the shape of its rows and
    the norm of the first one's activations.
    """
    data = [*rows.shape, f"{harvest(hook, rows[:1]).norm().item():.4g}"]
    return {"settings": training_fingerprint(settings), "seed": seed, "data": data}


def fit(
    hook: Source,
    rows: np.ndarray,
    settings: SAESettings,
    seed: int,
    store: checkpoints.CheckpointFolder | None = None,
    heldout: np.ndarray | None = None,
) -> tuple[SparseAutoencoder, dict]:
    """(autoencoder for unscaled activations, summary): trained on all positions of `rows`.

    Goes on from the newest checkpoint in `store`, which Ctrl-C makes it write; `ArtefactError`
    where that is of other settings, seed or activations. `settings.seed` goes before `seed`.
    `heldout` rows are for early stopping.
    """
    team = distributed.TEAM
    (rank, ranks), hook = team.replica(), team.source(hook)
    store = team.store(store or checkpoints.CheckpointFolder())
    seed = seed if settings.seed is None else settings.seed
    state = prepare(hook, rows, settings, seed, heldout)
    sae, recipe, device = state.model, state.recipe, state.silent.device
    n_steps = max(1, settings.activations // (recipe.batch * ranks))
    dtype = precision(settings.precision, device)
    if store.folder:
        training = identity(hook, rows, settings, seed)
        store.depends_on(device, dtype, processes=ranks, training=training)
    state.restore(store)
    buffer = ActivationBuffer(
        hook, rows[rank::ranks], recipe.batch, settings.buffer_rows, seed, state.step
    )
    take_step = captured(partial(training_step, state, dtype), sae.W_dec)
    steps = zip(range(state.step, n_steps), buffer, strict=False)
    bar = tqdm(steps, desc=recipe.name, initial=state.step, total=n_steps, disable=rank > 0)
    for step, x in bar:
        dead_indices = state.dead_indices(settings) if recipe.aux else None
        measured = take_step(x, *scheduled(recipe, step, n_steps), dead=dead_indices)
        state.step, last = step + 1, step + 1 == n_steps
        logged = last or state.step % settings.log_every == 0
        stop = distributed.any_process(store.interrupted.is_set(), logged)
        due = not last and (stop or team.due(state.due(settings.checkpoint_every), state.step))
        if due or logged or state.reference is None:
            state.check_loss(measured, store.folder)
        if logged:
            bar.set_postfix(state.log(measured, settings.dead_window))
        if is_resampling_step(recipe, state.step, n_steps):
            state.events.append(resample_dead(hook, rows, settings, state, seed))
        if state.stopping.patience and (last or state.step % settings.check_every == 0):
            if distributed.any_process(state.stopping.stop(sae, state.step)):
                break
        if due:
            state.save(store, settings.checkpoint_gb)
            if stop:
                raise checkpoints.interrupted_at(recipe.name, state.step, n_steps)
    return finished(state), state.summary(state.step * recipe.batch * ranks, settings.dead_window)


def finished(state: AutoencoderTraining) -> SparseAutoencoder:
    """The trained autoencoder, or the best one where early stopping kept it, for activations
    that are not scaled.
    """
    sae = state.model
    if state.stopping.best:
        sae.load_state_dict(state.stopping.best)
    sae = distributed.TEAM.whole(sae)
    sae.fold_scale(state.scale)
    sae.for_inference()
    return sae.requires_grad_(False)


def scheduled(recipe: Recipe, step: int, n_steps: int) -> tuple[float, float, float]:
    """What changes from step to step, in the order in which `training_step` takes it: `lr`, the
    learning rate; `l1_share`, the share of λ that counts; `threshold_weight`, that of this step in
    the moving average which is batchtopk's threshold.
    """
    threshold_weight = min(1.0, max(1 / THRESHOLD_STEPS, 10 / n_steps)) if step else 1.0
    lr = recipe.lr * rate(step, n_steps, recipe.lr_warmup, recipe.lr_decay)
    lr *= rate_after_resampling(recipe, step, n_steps)
    return lr, rate(step, n_steps, recipe.l1_warmup, 0), threshold_weight


def training_step(
    state: AutoencoderTraining,
    dtype: torch.dtype,
    x: Float[Tensor, "n d_in"],
    lr: float | Tensor,
    l1_share: float | Tensor,
    threshold_weight: float | Tensor,
    dead: Int[Tensor, " n_dead"] | None = None,
) -> StepResult:
    """Gradients of a batch of unscaled activations `x`, the optimiser's step, and the count of
    every feature's silence.

    `lr`, `l1_share` and `threshold_weight` are what `scheduled` gives, on a GPU as tensors, since
    the step may be replayed as a CUDA graph. `dtype` is that of matrix products, see `gradients`;
    weights, gradients and Adam's moments stay float32. `dead` are the indices of the features that
    the auxiliary loss is for.
    """
    sae, recipe = state.model, state.recipe
    set_learning_rate(state.optimiser, lr)
    objective = recipe.objective(sae.d_in, l1_share, sae.d_sae)
    measured = gradients(sae, x * state.scale, objective, dtype, dead)
    measured = distributed.TEAM.combined(sae, measured)
    update(sae, state.optimiser, recipe)
    if sae.architecture == "batchtopk":
        sae.threshold.data.lerp_(measured.smallest, threshold_weight)
    state.silent.add_(len(x) * distributed.TEAM.replica()[1]).masked_fill_(measured.fired, 0)
    return measured


@torch.no_grad()
def update(sae: SparseAutoencoder, optimiser: torch.optim.Optimizer, recipe: Recipe) -> None:
    """One optimiser step with the gradients that are set, then `constrain`."""
    if recipe.tied:
        sae.W_dec.grad += sae.W_enc_T.grad
    if recipe.grad_clip:
        torch.nn.utils.clip_grad_norm_(trained(sae, recipe), recipe.grad_clip)
    # The part of the gradient along a unit feature would only change the norm, which `constrain`
    # undoes; but Adam's moments would take it in, and with them the step would be another.
    if recipe.decoder_norm == "features":
        along = torch.linalg.vecdot(sae.W_dec.grad, sae.W_dec)
        sae.W_dec.grad.addcmul_(along[:, None], sae.W_dec, value=-1)
    optimiser.step()
    constrain(sae, recipe)


@torch.no_grad()
def constrain(sae: SparseAutoencoder, recipe: Recipe) -> None:
    """Bring the weights back to what the recipe demands, after a step or a resampling.

    `decoder_norm` "features" divides every row of W_dec (a feature) by its norm, "dimensions" every
    column (one dimension of all features), which is the mistake of `ward_2024`'s source, kept;
    "free" does nothing. With tied weights the encoder becomes a copy of the decoder. A jumprelu's
    thresholds below 0 become 0, so that the activations of active features are above 0.
    """
    if recipe.decoder_norm != "free":
        dim = 1 if recipe.decoder_norm == "features" else 0
        sae.W_dec /= sae.W_dec.norm(dim=dim, keepdim=True).clamp_min(1e-8)
    if recipe.tied:
        sae.W_enc_T.copy_(sae.W_dec)
    if sae.architecture == "jumprelu":
        sae.threshold.clamp_(min=0)


def resample_dead(
    hook: Source,
    rows: np.ndarray,
    settings: SAESettings,
    state: AutoencoderTraining,
    seed: int,
) -> dict:
    """Find the dead features and resample them. Returns {"step"; "dead", "resampled": how many;
    "squared_error", "l0": [before, after], see `explained`}. Their silence goes on being counted
    until they fire.

    Dead are those of `dead_mask`, or, with `resampling.fresh_sample`, those that fire on none of so
    many activations drawn here.
    """
    recipe, sae, step = state.recipe, state.model, state.step
    r = recipe.resampling
    wanted = r.fresh_sample or settings.resampling_inputs
    n_rows = min(len(rows), math.ceil(wanted / rows.shape[1]))
    drawn = np.random.default_rng((seed, step)).choice(len(rows), n_rows, replace=False)
    x = harvest_kept(hook, rows[np.sort(drawn)])[:wanted] * state.scale
    if r.fresh_sample:
        dead_mask = resampling.silent_on(sae, x)
    else:
        dead_mask = state.dead_mask(settings.dead_window)
    generator, before = torch.Generator().manual_seed(seed + step), explained(sae, x[:EXPLAINED])
    touched = resampling.resample(sae, state.optimiser, dead_mask, x, r, generator)
    if touched:
        constrain(sae, recipe)
    adam = state.optimiser.state.values()
    moments = [moment[name] for moment in adam for name in ("exp_avg", "exp_avg_sq")]
    distributed.broadcast_from_rank0([*sae.parameters(), *moments, state.silent])
    event = {"step": step, "dead": int(dead_mask.sum()), "resampled": touched}
    pairs = zip(before, explained(sae, x[:EXPLAINED]), strict=True)
    return event | dict(zip(("squared_error", "l0"), map(list, pairs), strict=True))


@torch.no_grad()
def explained(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"]) -> tuple[float, float]:
    """The mean squared error ‖x − x̂‖² and L0 on inputs that are scaled as in training."""
    pairs = active_pairs(sae, x)
    error = (x - reconstruction(sae, x, pairs)).square().sum(-1).mean()
    return float(error), len(pairs.row) / len(x)
