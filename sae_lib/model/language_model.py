"""The language model under study: a small one trained here, or any causal language model in
Hugging Face's format.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from sae_lib import checkpoints
from sae_lib.device import in_float32, keep_freed_memory, on_gpu, precision, upload
from sae_lib.errors import CorpusError, ModelError
from sae_lib.model.activations import HookPoint, permutation, spread
from sae_lib.model.loss import next_token_loss
from sae_lib.model.original import fold_attention_scale, use_wards_attention
from sae_lib.progress import tqdm
from sae_lib.settings import LanguageModelSettings
from sae_lib.text import hub
from sae_lib.text.tokens import Tokens

MAX_LOSS_RATIO = 7  # times the loss of a guess among all tokens alike
ATTENTION = "causal_sdpa"
log = logging.getLogger(__name__)


def load(
    source: str, context: int, device: torch.device, revision: str | None = None
) -> "transformers.PreTrainedModel":
    """The model of a folder or hub name in evaluation mode; `ModelError` where it cannot be had."""
    model = open_model(source, device, revision)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and context > longest:
        raise ModelError(
            f"lm.context {context} is more than the {longest} positions of {source}; set a smaller"
            " one"
        )
    return model.eval().requires_grad_(False)


def open_model(
    source: str, device: torch.device | str = "cpu", revision: str | None = None
) -> "transformers.PreTrainedModel":
    """A causal language model from a local folder or the hub on its device: on a GPU in its own
    precision, else in float32 where memory allows (`device.in_float32`).
    """
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto",
            local_files_only=Path(source).exists() or not hub.reached(),
            revision=revision or "main",
        )
    except Exception as error:  # transformers raises OSError, ValueError and the hub's own kinds
        problem = f"{hub.problem(error)}; or give a local folder"
        if Path(source).exists():
            problem = (
                f"the folder cannot be loaded ({str(error).splitlines()[0]}); expected config.json"
                " and model.safetensors of a causal language model"
            )
        raise ModelError(f"model {source}: {problem}") from None
    if on_gpu(device):
        return without_waits(model).to(device)
    if model.dtype == torch.float32 or in_float32(model.num_parameters()):
        return model.float()
    log.warning("model %s stays in %s: memory is too small for it in float32", source, model.dtype)
    return model


def without_waits(model: "transformers.PreTrainedModel") -> "transformers.PreTrainedModel":
    """The model with torch's attention under another name: for the names that it knows,
    transformers looks into the positions on every call whether rows are packed together, and a
    GPU's host waits for that. Rows here never are, and are never padded.
    """
    sdpa = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
    transformers.AttentionInterface.register(ATTENTION, sdpa)
    model.set_attn_implementation(ATTENTION)
    return model


def build(
    settings: LanguageModelSettings, vocab_size: int, eos: int
) -> "transformers.PreTrainedModel":
    """A fresh model: GPT-2's shape with ReLU and without dropout, or a small Llama with its
    gated MLP. The head is not tied.
    """
    common = dict(
        vocab_size=vocab_size,
        bos_token_id=eos,
        eos_token_id=eos,
        tie_word_embeddings=False,
        max_position_embeddings=settings.context,
        hidden_size=settings.d_model,
        num_hidden_layers=settings.n_layer,
        num_attention_heads=settings.n_heads,
    )
    if settings.architecture == "gpt2":
        config = transformers.GPT2Config(
            n_inner=settings.d_mlp,
            activation_function="relu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
    else:
        config = transformers.LlamaConfig(intermediate_size=settings.d_mlp, **common)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return use_wards_attention(model) if settings.attention == "ward_2024" else model


def untrained(
    s: LanguageModelSettings, tokenizer: Any, seed: int, device: torch.device
) -> "transformers.PreTrainedModel":
    """The language model as it would be before training: its own configuration with random
    weights.
    """
    torch.manual_seed(seed)
    if s.source == "train":
        model = fold_attention_scale(build(s, len(tokenizer), tokenizer.eos_token_id))
    else:
        config = transformers.AutoConfig.from_pretrained(
            s.source, local_files_only=not hub.reached(), revision=s.revision or "main"
        )
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=config.dtype or torch.float32
        )
    model = without_waits(model) if on_gpu(device) else model
    return model.to(device).eval().requires_grad_(False)


class LanguageModelTraining(checkpoints.TrainingState):
    """The state of a language model's training."""

    def check_loss(
        self, loss: float, norm: float, s: LanguageModelSettings, folder: Path | None
    ) -> None:
        """`TrainingError` where loss or gradient is not finite, or the loss far above that of a
        guess.
        """
        limit = MAX_LOSS_RATIO * math.log(self.model.config.vocab_size)
        causes = f"lm.lr {s.lr} too high, or lm.grad_clip {s.grad_clip} too lax"
        limit = limit if math.isfinite(norm) else -1.0
        checkpoints.check_loss("language model", loss, limit, self.step, folder, causes)

    def log(self, loss: float, tokens: Tokens, s: LanguageModelSettings) -> Float[Tensor, " d_mlp"]:
        """Add a point to the curve; returns the neurons' densities."""
        heldout, density = evaluate(self.model, tokens, s)
        point = {"step": self.step, "tokens": self.step * s.batch * s.context, "train": loss}
        self.curve.append(point | {"heldout": heldout, "density_median": density.median().item()})
        return density

    def summary(self, s: LanguageModelSettings, tokens: Tokens, dtype: torch.dtype) -> dict:
        """Loss curve, seconds, tokens per second and more."""
        seconds, trained = self.seconds, self.step * s.batch * s.context
        return {
            "curve": self.curve,
            "seconds": seconds,
            "tokens": trained,
            "tokens_per_second": trained / seconds,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": trained / tokens.train.size,
            "precision": str(dtype).removeprefix("torch."),
        }


def prepare(
    s: LanguageModelSettings, tokens: Tokens, seed: int, device: torch.device, dtype: torch.dtype
) -> LanguageModelTraining:
    """A fresh model and AdamW."""
    torch.manual_seed(seed)
    model = build(s, len(tokens.tokenizer), tokens.tokenizer.eos_token_id).to(device)
    if on_gpu(device):
        without_waits(model)
    elif dtype == torch.bfloat16:
        model.set_attn_implementation("eager")  # its backward pass takes a third of the fused one's
    options = {"betas": (0.9, 0.95), "weight_decay": s.weight_decay, "fused": device.type != "mps"}
    optimiser = torch.optim.AdamW(model.parameters(), lr=s.lr, **options)
    return LanguageModelTraining(model, optimiser)


def train(
    s: LanguageModelSettings,
    tokens: Tokens,
    seed: int,
    device: torch.device,
    store: checkpoints.CheckpointFolder,
) -> tuple["transformers.PreTrainedModel", dict]:
    """(model, summary): AdamW, linear warm-up, cosine decay, gradient clipping; goes on from the
    newest checkpoint in `store`. `CorpusError` where the text fills no batch.

    The summary holds loss curve, seconds, tokens per second and each neuron's density.
    """
    keep_freed_memory()
    dtype, rows = precision(s.precision, device), tokens.rows("train", s.context + 1)
    if len(rows) < s.batch:
        raise CorpusError(
            f"the corpus has {len(tokens.train):,} training tokens, fewer than one batch of"
            f" {s.batch} × {s.context + 1} (lm.batch, lm.context); give more text"
        )
    n_steps = max(1, s.train_tokens // (s.batch * s.context))
    store.depends_on(device, dtype)
    state = prepare(s, tokens, seed, device, dtype)
    state.restore(store)
    model, optimiser, start = state.model, state.optimiser, state.step
    bar = tqdm(range(start, n_steps), desc="language model", initial=start, total=n_steps)
    for step in bar:
        optimiser.param_groups[0]["lr"] = s.lr * schedule(step, n_steps, s.warmup, s.final_lr)
        chosen = rows[rows_of_step(step, len(rows), s.batch, seed)]
        loss = next_token_loss(model, upload(chosen.astype(np.int64), device), dtype)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        optimiser.step()
        state.step, last = step + 1, step + 1 == n_steps
        logged, stop = last or state.step % s.eval_every == 0, store.interrupted.is_set()
        due = not last and (stop or state.due(s.checkpoint_every))
        if due or logged:
            state.check_loss(loss.item(), norm.item(), s, store.folder)
        if logged:
            density = state.log(loss.item(), tokens, s)
            bar.set_postfix(
                heldout=f"{state.curve[-1]['heldout']:.3f}", density=f"{density.median():.0%}"
            )
        if due:
            state.save(store, s.checkpoint_gb)
            if stop:
                raise checkpoints.interrupted_at("language model", state.step, n_steps)
    fold_attention_scale(model)
    return model, state.summary(s, tokens, dtype) | {"density": density.tolist()}


@torch.no_grad()
def evaluate(
    model: "transformers.PreTrainedModel", tokens: Tokens, s: LanguageModelSettings
) -> tuple[float, Float[Tensor, " d_mlp"]]:
    """Held-out loss (nats/token) and the density of the last MLP's neurons, on the same
    `eval_rows` rows every time.
    """
    rows = spread(tokens.rows("heldout", s.context + 1), s.eval_rows)
    device = next(model.parameters()).device
    loss, active = 0.0, 0.0
    hook = HookPoint(model, f"blocks.{s.n_layer - 1}.mlp.hook_post")
    for chunk in np.array_split(rows, max(1, len(rows) // s.batch)):
        batch = upload(chunk.astype(np.int64), device)
        captured: list[Tensor] = []
        with hook.replaced(captured.append):
            loss += next_token_loss(model, batch).item() * len(chunk)
        active += (captured[0] > 0).float().sum((0, 1))
    return loss / len(rows), (active / (len(rows) * s.context)).cpu()


def rows_of_step(step: int, n_rows: int, batch: int, seed: int) -> np.ndarray:
    """Row numbers of a step: each epoch its own permutation, so that the position in the data is
    just the step.
    """
    epoch, i = divmod(step, n_rows // batch)
    return permutation(n_rows, seed, epoch)[i * batch : (i + 1) * batch]


def schedule(step: int, n_steps: int, warmup: float, final: float) -> float:
    """Share of the peak rate: linear warm-up over `warmup` of the steps, then a cosine down to
    `final`.
    """
    warm = max(1, round(warmup * n_steps))
    if step < warm:
        return (step + 1) / warm
    share = (step - warm) / max(1, n_steps - warm)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
