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
    """The activations of `n` tokens, each at a random position of a row drawn at random: (table,
    its rows, in the shape of `rows`). A row that is drawn again is computed once, as it is the same
    text: the original, with more text than it needed, computed a row for each.
    """
    rng, width = np.random.default_rng(seed), rows.shape[1]
    distinct, row = np.unique(rng.integers(len(rows), size=n), return_inverse=True)
    position, by_row, table = rng.integers(width, size=n), np.argsort(row), torch.empty(0)
    for start in range(0, len(distinct), ROWS_AT_ONCE):
        part = distinct[start : start + ROWS_AT_ONCE]
        acts = hook.activations(upload(rows[part].astype(np.int64), hook.device))
        table = acts.new_empty(n, acts.shape[-1]) if start == 0 else table
        chosen = by_row[slice(*np.searchsorted(row[by_row], (start, start + len(part))))]
        table[chosen] = acts[row[chosen] - start, position[chosen]]
    activations = ActivationTable(table)
    return activations, activations.rows(width)
