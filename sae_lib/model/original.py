"""What the original (Ward 2024) does otherwise than the method: its attention, and one activation
of each row of text.
"""

import numpy as np
import torch
import transformers

from sae_lib.device import upload
from sae_lib.model.activations import ROWS_AT_ONCE, ActivationTable, HookPoint


@torch.no_grad()
def use_wards_attention(model: "transformers.PreTrainedModel") -> "transformers.PreTrainedModel":
    """Attention as in the original: logits scaled by 1/√d_model instead of 1/√d_head, and heads
    that write side by side into the residual stream, without an output projection.
    """
    for block in model.transformer.h:
        block.attn.scaling = block.attn.embed_dim**-0.5
        block.attn.c_proj.requires_grad_(False)
        block.attn.c_proj.weight.copy_(torch.eye(block.attn.embed_dim))
    return model


@torch.no_grad()
def fold_attention_scale(model: "transformers.PreTrainedModel") -> "transformers.PreTrainedModel":
    """The same GPT-2 with the usual 1/√d_head, for its queries make up for the difference: only so
    does it survive being saved.
    """
    for attention in (block.attn for block in getattr(model.base_model, "h", ())):
        usual, queries = attention.head_dim**-0.5, slice(attention.embed_dim)
        if attention.scaling != usual:
            attention.c_attn.weight[:, queries] *= attention.scaling / usual
            attention.c_attn.bias[queries] *= attention.scaling / usual
            attention.scaling = usual
    return model


def one_position_each(
    hook: HookPoint, rows: np.ndarray, n: int, seed: int
) -> tuple[ActivationTable, np.ndarray]:
    """The activations of `n` tokens, one at a random position of each row, which are gone through
    again with other positions until there are enough: (table, its rows, in the shape of `rows`).
    """
    rng, width = np.random.default_rng(seed), rows.shape[1]
    table, filled = torch.empty(0), 0
    while filled < n:
        drawn = rows[rng.integers(len(rows), size=min(ROWS_AT_ONCE, n - filled))]
        acts = hook.activations(upload(drawn.astype(np.int64), hook.device))
        acts = acts[torch.arange(len(drawn)), rng.integers(width, size=len(drawn))]
        table = acts.new_empty(n, acts.shape[1]) if filled == 0 else table
        table[filled : filled + len(drawn)] = acts
        filled += len(drawn)
    return ActivationTable(table), np.arange(n // width * width).reshape(-1, width)
