"""What the weights alone say of features: the logits they push, the features and neurons near
them.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.features.statistics import Largest, joined
from sae_lib.model.activations import HookPoint, Source

AT_ONCE = 1024  # features whose products with the vocabulary or with all features exist at a time
MIN_SIZE = 1e-4  # a smaller cosine or component is rounding
Decoder = Float[Tensor, "d_sae d_in"]


@torch.no_grad()
def logit_effects(hook: Source, W_dec: Decoder, k: int) -> tuple[Largest, Largest]:
    """The k tokens (all, where there are fewer) whose logits a feature raises and lowers most, each
    as (token ids [d_sae, k], effects [d_sae, k]).

    The feature's direct path: decoder row → down projection (for an MLP hook) → final norm's weight
    → unembedding, centred over the vocabulary. The norm's division by its input's size is left out:
    it scales all logits of a token alike.
    """
    # without a model there are no logits; before the activation function a push's effect depends on
    # that function's state
    if not isinstance(hook, HookPoint) or hook.name.endswith("mlp.hook_pre"):
        none = torch.zeros(len(W_dec), 0)
        return (none.long(), none), (none.long(), none)
    k = min(k, len(hook.model.get_output_embeddings().weight))
    raised, lowered = [], []
    for part in W_dec.split(AT_ONCE):
        effects = direct_logits(hook, part)
        raised.append(effects.topk(k, dim=-1))
        lowered.append(effects.topk(k, dim=-1, largest=False))
    return joined(raised), joined(lowered)


@torch.no_grad()
def direct_logits(hook: HookPoint, directions: Decoder) -> Float[Tensor, "d_sae vocab"]:
    """What directions at the hook add to every token's logit by the path of `logit_effects`."""
    unembedding = hook.model.get_output_embeddings().weight.float()
    final_norm = getattr(hook.model.base_model, "ln_f", None) or hook.model.base_model.norm
    residual = _into_residual(hook, directions.to(unembedding.device))
    if isinstance(final_norm, nn.LayerNorm):
        residual = residual - residual.mean(-1, keepdim=True)
    effects = (residual * final_norm.weight.float()) @ unembedding.T
    return effects - effects.mean(-1, keepdim=True)


def _into_residual(hook: HookPoint, directions: Tensor) -> Float[Tensor, "n d_model"]:
    """What directions [n, d_in] at the hook write into the residual stream; at the stream itself
    that is they.
    """
    if not hook.name.endswith("mlp.hook_post"):
        return directions
    weight = hook.module.weight.float()  # GPT-2's Conv1D stores [in, out], nn.Linear [out, in]
    return directions @ (weight.T if isinstance(hook.module, nn.Linear) else weight)


@torch.no_grad()
def nearest(W_dec: Decoder, k: int) -> list[list[list]]:
    """Of every feature [the k others whose decoder directions have the largest cosine with its
    own, and these]; only cosines above zero.
    """
    unit, found = nn.functional.normalize(W_dec, dim=1), []
    for i, part in enumerate(unit.split(AT_ONCE)):
        cosines = part @ unit.T
        cosines.diagonal(i * AT_ONCE).fill_(-2)
        found.append(cosines.topk(min(k, len(W_dec)), dim=1))
    indices, cosines = joined(found)
    return _without_rounding(indices, cosines.clamp_min(0))


@torch.no_grad()
def aligned(W_dec: Decoder, k: int) -> list[list[list]]:
    """[The k neurons (dimensions of the hook) with the largest components, by size, of each
    feature's unit decoder direction, and these, signed].
    """
    unit = nn.functional.normalize(W_dec, dim=1)
    indices = unit.abs().topk(min(k, unit.shape[1]), dim=1).indices
    return _without_rounding(indices, unit.gather(1, indices))


def _without_rounding(indices: Tensor, values: Tensor) -> list[list[list]]:
    """Of each row, whose `values` fall in size, the indices and values above `MIN_SIZE` in
    size.
    """
    counts = (values.abs() > MIN_SIZE).sum(1).tolist()
    parts = (indices.tolist(), values.tolist())
    return [[row[:n] for row, n in zip(part, counts, strict=True)] for part in parts]
