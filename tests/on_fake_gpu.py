"""The memory plan against the stages at full size, counted on fake tensors of the simulated
device; started by `test_gpu.py`.
"""

import numpy as np
import pytest
import torch
import transformers

from benchmarks.rehearsal import LLAMA_3_8B
from sae_lib.features import clamping, evaluation, feature_table, hook_comparison
from sae_lib.features.weights import aligned, logit_effects, nearest
from sae_lib.model.activations import BYTES_AT_ONCE, HookPoint
from sae_lib.model.language_model import without_waits
from sae_lib.model.left_out import LeftOut
from sae_lib.sae import initialise, training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Neurons
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.optimiser import adam
from sae_lib.sae.recipes import at_width, resolve
from sae_lib.settings import SAESettings, Settings, load
from suite import memory_plan
from tests import simulated_gpu

SIZES = [(14_336, 57_344, 4096), (14_336, 114_688, 4096), (512, 4096, 1024), (512, 4096, 8192)]


def step_peak(d_in: int, settings: SAESettings, n_dead: int) -> int:
    """Bytes at the peak of a second training step, of which `n_dead` features are dead."""
    with simulated_gpu.fake_memory() as memory:
        recipe = at_width(resolve(settings), settings.tuned_at, d_in)
        with torch.device(simulated_gpu.DEVICE):
            sae = SparseAutoencoder(d_in, settings.d_sae, recipe.architecture, recipe.k)
            x, dead = torch.empty(recipe.batch, d_in), torch.empty(n_dead, dtype=torch.int64)
        optimiser = adam(sae, recipe)
        for _ in range(2):
            memory.peak = memory.live
            gradients(sae, x, recipe.objective(d_in), torch.bfloat16, dead if n_dead else None)
            training.update(sae, optimiser, recipe)
        return memory.peak


@pytest.mark.parametrize(("d_in", "d_sae", "batch"), SIZES)
@pytest.mark.parametrize(("recipe", "dead"), [("bricken_2023", 0.0), ("topk", 1.0)])
def test_a_training_step_takes_what_is_planned(recipe, dead, d_in, d_sae, batch):
    settings = SAESettings(
        recipe=recipe, compare=(), d_sae=d_sae, batch=batch, resampling=False, tuned_at=512
    )
    found = step_peak(d_in, settings, int(dead * d_sae))
    assert memory_plan.training_step(d_in, settings) == pytest.approx(found, rel=0.1)


def llama(layers: int) -> HookPoint:
    """The last MLP of Llama-3-8B's shape with so many layers, where special tokens and outliers
    are left out.
    """
    config = transformers.LlamaConfig(**LLAMA_3_8B.to_dict() | {"num_hidden_layers": layers})
    config._attn_implementation = "sdpa"
    with torch.device(simulated_gpu.DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        special = torch.empty(256, dtype=torch.int64)
    hook = HookPoint(without_waits(model).eval(), f"blocks.{layers - 1}.mlp.hook_post", 128_000)
    hook.left_out = LeftOut(special, False, 100.0, {})
    return hook


def test_stheno_and_its_harvest_take_what_is_planned():
    with simulated_gpu.fake_memory() as memory:
        hook = llama(LLAMA_3_8B.num_hidden_layers)
        planned = memory_plan.model_shape(memory_plan.parts(load("runpod"))["last_mlp."])[0]
        assert planned == pytest.approx(memory.live, rel=0.01)
        rows = BYTES_AT_ONCE // (hook.token_bytes * 512)
        with torch.device(simulated_gpu.DEVICE):
            tokens = torch.empty(rows, 512, dtype=torch.int64)
        before = memory.peak = memory.live
        hook.activations(tokens)
        assert memory.peak - before <= 1.1 * BYTES_AT_ONCE
        assert memory.peak - before >= 0.8 * BYTES_AT_ONCE


# --- stages: the model has one layer here, and the others are added: they take no more with 32 ---


def start(hook: HookPoint, sae: SparseAutoencoder, rows: np.ndarray, s: Settings) -> None:
    initialise.statistics(hook, rows, resolve(s.sae))


def train(hook: HookPoint, sae: SparseAutoencoder, rows: np.ndarray, s: Settings) -> None:
    """The first steps, with a chunk being harvested beside them, and all features dead."""
    changes = {"activations": 3 * s.sae.batch, "dead_window": 1, "log_every": 1}
    training.fit(hook, rows, s.sae.model_copy(update=changes), 0)


def features(hook: HookPoint, sae: SparseAutoencoder, rows: np.ndarray, s: Settings) -> None:
    """What of a feature table is made on the device."""
    text = feature_table.MarkedText(hook, sae, rows[:4], None, False)
    one = feature_table.FirstPass(sae.d_sae, 128_256, s.features.top_k, text.centre)
    for chunk in text.chunks("maxima"):
        one.update(chunk)
    logit_effects(hook, sae.W_dec, s.features.logits)
    nearest(sae.W_dec, 10)
    aligned(sae.W_dec, 5)


def evaluate(hook: HookPoint, sae: SparseAutoencoder, rows: np.ndarray, s: Settings) -> None:
    dictionaries = {"topk": sae, "neurons": Neurons(sae.d_in, simulated_gpu.DEVICE)}
    evaluation.evaluate(hook, dictionaries, rows[:4], s.evaluation)


def hooks(hook: HookPoint, sae: SparseAutoencoder, rows: np.ndarray, s: Settings) -> None:
    """Without its losses, which take less."""
    hook_comparison.compare_hooks([hook], rows[:64])


def clamp(hook: HookPoint, sae: SparseAutoencoder, rows: np.ndarray, s: Settings) -> None:
    positions = clamping.HeldoutPositions(hook, rows[: s.clamping.rows])
    positions.effect(sae, [clamping.Clamp(3, "pin", 1.0)])


STAGES = {
    "start": start,
    "training topk": train,
    "features of topk": features,
    "evaluation": evaluate,
    "comparing hooks": hooks,
    "clamping": clamp,
}


# those that do not depend on the width of the autoencoder once, at the profile's own
WIDTHS = {"start": (57_344,), "comparing hooks": (57_344,)}
CASES = [(name, width) for name in STAGES for width in WIDTHS.get(name, (16_384, 57_344))]


@pytest.mark.parametrize(("stage", "d_sae"), CASES)
def test_a_stage_of_stheno_takes_what_is_planned(stage, d_sae, monkeypatch):
    monkeypatch.setattr(
        hook_comparison.scipy.stats, "kurtosis", lambda x: [0.0]
    )  # of 470 million numbers
    losses = {"strongest": dict.fromkeys(("ce_clean", "ce_zero", "ce_mean", "recovered_mean"), 0)}
    monkeypatch.setattr(hook_comparison, "loss_recovered", lambda *_: losses)
    s = memory_plan.parts(load("runpod", [f"last_mlp.sae.d_sae={d_sae}"]))["last_mlp."]
    with simulated_gpu.fake_memory() as memory:
        memory.active[14_336] = 7168  # neurons of a gated MLP
        hook, rows = llama(1), np.zeros((512, 512), np.uint32)
        rows[:, 5] = 128_255
        model, sae = memory.live, None
        if stage not in ("start", "training topk", "comparing hooks"):
            with torch.device(simulated_gpu.DEVICE):
                sae = SparseAutoencoder(14_336, d_sae, "topk", 64).requires_grad_(False)
        memory.peak = memory.live
        STAGES[stage](hook, sae, rows, s)
        whole = memory_plan.model_shape(s)[0]
        found, planned = memory.peak - model + whole, memory_plan.tensors(s)[stage]
        assert planned == pytest.approx(found, rel=0.1)
