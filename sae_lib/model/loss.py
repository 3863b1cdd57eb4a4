"""The language model's loss: exact, in memory that does not grow with tokens × vocabulary."""

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.device import autocast, product

# a smaller probability of the token that came counts as this: 87 nats are an explosion
MIN_PROBABILITY = 1e-38
CHUNK = 512  # tokens whose logits exist at once: small enough for a core's cache


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear head, and its gradients, a chunk of tokens at a time.

    The logits of all tokens never exist together: at GPT-2's vocabulary they would be 200 kB a
    token. Since the loss is a scalar, the gradients are made in the forward pass, where the chunk's
    logits still lie in cache.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "vocab d"],
        targets: Int[Tensor, " n"],
        chunk: int,
    ) -> Tensor:
        n = len(hidden)
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.T.shape, device=weight.device)
        weight = weight.to(hidden.dtype)
        for start in range(0, n, chunk):
            h, t = hidden[start : start + chunk], targets[start : start + chunk, None]
            grad = F.softmax(product(h, weight), dim=-1, dtype=torch.float32)
            total -= grad.gather(1, t).clamp_min(MIN_PROBABILITY).log().sum()
            if not ctx.needs_input_grad[0]:  # an evaluation: the loss alone
                continue
            grad.scatter_add_(1, t, torch.full_like(t, -1, dtype=grad.dtype))  # softmax − one-hot
            grad = grad.to(h.dtype)
            grad_hidden[start : start + chunk] = product(grad, weight.T)
            grad_weight += product(h.T, grad.T)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.n = n
        return total / n

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * (grad_output / ctx.n).to(grad_hidden.dtype),
            grad_weight.T * (grad_output / ctx.n),
            None,
            None,
        )


def next_token_loss(
    model: "transformers.PreTrainedModel",
    tokens: Int[Tensor, "row position"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats per predicted token; `dtype` is that of the trunk's and the
    head's matrix products.
    """
    with autocast(tokens.device, dtype):
        hidden = model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    hidden = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
    return LinearCrossEntropy.apply(
        hidden, model.get_output_embeddings().weight, tokens[:, 1:].reshape(-1), CHUNK
    )
