"""Text that a model continues, with whatever is changed at its hook."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.errors import ModelError
from sae_lib.model.activations import HookPoint
from sae_lib.text.tokenizer import token_ids


@torch.no_grad()
def continuation(
    hook: HookPoint,
    ids: Int[Tensor, "1 position"],
    new_tokens: int,
    temperature: float,
    seed: int,
    end: int | None,
) -> Int[Tensor, " n"]:
    """The text with `new_tokens` more, or fewer: it ends with the token `end`, or where the
    model's context is full. At temperature 0 the most probable token is taken. `ModelError` where
    there is no room for a new token.

    Sampled with Gumbel noise, argmax(logits / T + g) (Maddison, Tarlow & Minka 2014, section 2).
    """
    room = hook.model.config.max_position_embeddings - hook.n_before - ids.shape[1]
    if room < 1:
        raise ModelError(
            f"the prompt has {ids.shape[1]} tokens, and the model's context has no room for a new"
            " token; shorten the prompt"
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(min(new_tokens, room)):
        logits = hook.logits(ids, slice(-1, None))[0, -1].float()
        noise = -torch.empty(len(logits)).exponential_(generator=generator).log()
        token = (logits + temperature * noise.to(logits.device)).argmax()
        ids = torch.cat([ids, token.view(1, 1)], 1)
        if token.item() == end:
            break
    return ids[0].cpu()


def of_token(
    hook: HookPoint, tokenizer, text: str, token: int | str
) -> tuple[str, Float[Tensor, " d_in"]]:
    """The activations of one token in a text, given by its index or by its string (its first
    occurrence): (token, activations).
    """
    ids = token_ids(tokenizer, text)
    strings = [tokenizer.decode([i]) for i in ids]
    index = token
    if isinstance(token, str):
        stripped, wanted = [s.strip() for s in strings], token.strip()
        index = stripped.index(wanted) if wanted in stripped else len(ids)
        index = strings.index(token) if token in strings else index
    if not -len(ids) <= index < len(ids):
        raise ModelError(
            f"token {token!r} is not in this text; its {len(ids)} tokens are: {strings}"
        )
    return strings[index], hook.activations(torch.tensor([ids], device=hook.device))[0, index]
