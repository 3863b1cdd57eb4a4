"""The memory plan against the stages at full size, counted on fake tensors of the simulated
device; started by `test_gpu.py`.
"""

import pytest
import torch
import transformers

from sae_lib.model.activations import BYTES_AT_ONCE, HookPoint
from sae_lib.model.language_model import without_waits
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.optimiser import adam
from sae_lib.sae.recipes import at_width, resolve
from sae_lib.settings import SAESettings, load
from suite import memory_plan
from tests import simulated_gpu

STHENO = transformers.LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
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


def test_stheno_and_its_harvest_take_what_is_planned():
    STHENO._attn_implementation = "sdpa"
    with simulated_gpu.fake_memory() as memory:
        with torch.device(simulated_gpu.DEVICE):
            model = transformers.AutoModelForCausalLM.from_config(STHENO, dtype=torch.bfloat16)
        hook = HookPoint(without_waits(model).eval(), "blocks.31.mlp.hook_post", 128_000)
        planned = memory_plan.model_shape(memory_plan.parts(load("runpod"))["last_mlp."])[0]
        assert planned == pytest.approx(memory.live, rel=0.01)
        rows = BYTES_AT_ONCE // (hook.token_bytes * 512)
        with torch.device(simulated_gpu.DEVICE):
            tokens = torch.empty(rows, 512, dtype=torch.int64)
        before = memory.peak = memory.live
        hook.activations(tokens)
        assert memory.peak - before <= 1.1 * BYTES_AT_ONCE
        assert memory.peak - before >= 0.8 * BYTES_AT_ONCE
