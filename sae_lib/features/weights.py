"""What the weights alone say about features: the logits they push, the features and neurons near them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lib.model.activations import HookPoint, Source

AT_ONCE = 1024  # features whose products with the vocabulary or with all features exist at a time
TOUCHING = 1e-4  # a smaller cosine or component is rounding


@torch.no_grad()
def logit_effects(
    hook: Source, W_dec: Float[Tensor, "d_sae d_in"], k: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The k tokens (all, where there are fewer) whose logits a feature raises and lowers most, each as (token ids [d_sae, k], effects [d_sae, k]).

    The feature's direct path: decoder row → down projection (for an MLP hook) → final norm's weight → unembedding, centred
    over the vocabulary. The norm's division by its input's size is left out: it scales all logits of a token alike.
    """
    if not isinstance(hook, HookPoint) or hook.name.endswith(
        "mlp.hook_pre"
    ):  # no model; or what a push does depends on the activation function's state
        none = torch.zeros(len(W_dec), 0)
        return (none.long(), none), (none.long(), none)
    embed_out = hook.model.get_output_embeddings().weight.float()
    final_norm = getattr(hook.model.base_model, "ln_f", None) or hook.model.base_model.norm
    write_out, k = _into_residual(hook), min(k, len(embed_out))
    tops, bottoms = [], []
    for part in W_dec.split(AT_ONCE):
        residual = part.to(embed_out.device) @ write_out if write_out is not None else part
        if isinstance(final_norm, nn.LayerNorm):
            residual = residual - residual.mean(-1, keepdim=True)
        effects = (residual * final_norm.weight.float()) @ embed_out.T
        effects -= effects.mean(-1, keepdim=True)
        tops.append(effects.topk(k, dim=-1))
        bottoms.append(effects.topk(k, dim=-1, largest=False))
    return tuple(
        (torch.cat([t.indices for t in ts]).cpu(), torch.cat([t.values for t in ts]).cpu())
        for ts in (tops, bottoms)
    )


def _into_residual(hook: HookPoint) -> Float[Tensor, "d_in d_model"] | None:
    """The matrix that carries the hook's activations into the residual stream; None where they are in it already."""
    if not hook.name.endswith("mlp.hook_post"):
        return None
    weight = hook.module.weight.float()  # GPT-2's Conv1D stores [in, out], nn.Linear [out, in]
    return weight.T if isinstance(hook.module, nn.Linear) else weight


@torch.no_grad()
def nearest(
    W_dec: Float[Tensor, "d_sae d_in"], k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Of every feature the k others whose decoder directions have the largest cosine with its own, and these; only cosines above zero."""
    unit = torch.nn.functional.normalize(W_dec, dim=1)
    found = []
    for i, part in enumerate(unit.split(AT_ONCE)):
        cosines = part @ unit.T
        cosines[torch.arange(len(part)), torch.arange(len(part)) + i * AT_ONCE] = -2
        found.append(cosines.topk(min(k, len(W_dec) - 1), dim=1))
    indices, values = torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
    return _where(values > TOUCHING, indices), _where(values > TOUCHING, values)


@torch.no_grad()
def aligned(
    W_dec: Float[Tensor, "d_sae d_in"], k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The k neurons (dimensions of the hook) with the largest components, by size, of each feature's unit decoder direction, and these, signed."""
    unit = torch.nn.functional.normalize(W_dec, dim=1)
    indices: Int[Tensor, "d_sae k"] = unit.abs().topk(min(k, unit.shape[1]), dim=1).indices
    values = unit.gather(1, indices)
    return _where(values.abs() > TOUCHING, indices), _where(values.abs() > TOUCHING, values)


def _where(keep: Tensor, values: Tensor) -> list[list]:
    return [
        [v for v, k in zip(row, kept, strict=True) if k]
        for row, kept in zip(values.tolist(), keep.tolist(), strict=True)
    ]
