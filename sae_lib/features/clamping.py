"""Features held at chosen values while the model runs, and what that does to the next token and to
whole continuations.

At the hook an activation is x = x̂ + ε, what the autoencoder explains and what it does not. A clamp
changes a feature's activation f to f′. With the error kept, x + (f′ − f)·W_dec goes on; with the
error dropped, decode(f′).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.errors import ModelError, SettingsError
from sae_lib.model.activations import HookPoint
from sae_lib.sae.dictionaries import Dictionary, activations_of
from sae_lib.text.tokenizer import token_ids

LARGEST_VALUE = 10**6  # beyond, squares in the model's norms overflow
ROWS_AT_ONCE = 16  # whose logits exist together


@dataclass(frozen=True)
class Clamp:
    """One feature and what becomes of its activation f: "pin" sets it to `value`, "scale" to
    `value`·f, "ablate" to 0.

    `positions` counts in the sequence that the model is given, negative ones from its end; None
    means all of them.
    """

    feature: int
    how: Literal["pin", "scale", "ablate"] = "pin"
    value: float = 0.0
    positions: tuple[int, ...] | None = None


@contextmanager
def clamped(
    hook: HookPoint,
    dictionary: Dictionary,
    clamps: Sequence[Clamp],
    keep_error: bool = True,
    directions: Float[Tensor, "n_clamps d_in"] | None = None,
) -> Iterator[None]:
    """The model runs with the features clamped at the hook; `SettingsError` for a feature, value or
    position that is not there.

    `directions`, a row per clamp, are written in place of the features' own rows of `W_dec`: the
    null that a clamp is held against.
    """
    check(dictionary, clamps)
    with hook.replaced(lambda x: clamp_activations(x, dictionary, clamps, keep_error, directions)):
        yield


@torch.no_grad()
def clamp_activations(
    x: Float[Tensor, "row position d_in"],
    dictionary: Dictionary,
    clamps: Sequence[Clamp],
    keep_error: bool = True,
    directions: Float[Tensor, "n_clamps d_in"] | None = None,
) -> Float[Tensor, "row position d_in"]:
    """What goes on from the hook in place of `x`: computed in float32, given back in `x`'s own
    type. No change of f is no change of x.
    """
    flat = x.float().flatten(0, 1)
    features = torch.tensor([c.feature for c in clamps], dtype=torch.long, device=x.device)
    before = activations_of(dictionary, flat, features).unflatten(0, x.shape[:2])
    after = before.clone()
    for i, clamp in enumerate(clamps):
        where = slice(None) if clamp.positions is None else _positions(clamp, x.shape[1])
        scaled = clamp.value * before[:, where, i]
        after[:, where, i] = {"pin": clamp.value, "scale": scaled, "ablate": 0.0}[clamp.how]
    directions = dictionary.W_dec[features] if directions is None else directions
    kept = flat if keep_error else dictionary.decode(dictionary.encode(flat))
    return (kept + (after - before).flatten(0, 1) @ directions).to(x.dtype).view_as(x)


def check(dictionary: Dictionary, clamps: Sequence[Clamp]) -> None:
    """`SettingsError` for a feature that does not exist or is named twice, and for what cannot
    be done to it.
    """
    check_values(clamps)
    for clamp in clamps:
        if not 0 <= clamp.feature < dictionary.d_sae:
            raise SettingsError(
                f"feature {clamp.feature} does not exist:"
                f" this autoencoder has the features 0 to {dictionary.d_sae - 1}"
            )


def check_values(clamps: Sequence[Clamp]) -> None:
    """What can be checked of clamps before the autoencoder is known."""
    seen = set()
    for clamp in clamps:
        if clamp.feature in seen:
            raise SettingsError(f"feature {clamp.feature} is clamped twice; name it once")
        if not abs(clamp.value) <= LARGEST_VALUE:
            raise SettingsError(
                f"feature {clamp.feature}: found the value {clamp.value}; expected a number"
                f" from -{LARGEST_VALUE:,} to {LARGEST_VALUE:,}"
            )
        seen.add(clamp.feature)


def check_temperature(temperature: float) -> None:
    """`SettingsError` for a temperature that is not between 0 and 100."""
    if not 0 <= temperature <= 100:
        raise SettingsError(f"temperature: found {temperature}; expected a number from 0 to 100")


def _positions(clamp: Clamp, n_positions: int) -> list[int]:
    if outside := [p for p in clamp.positions if not -n_positions <= p < n_positions]:
        raise SettingsError(
            f"feature {clamp.feature} is clamped at position {outside[0]}, but the text has"
            f" {n_positions} tokens: positions go from 0 to {n_positions - 1}"
        )
    return list(clamp.positions)


def encode(
    hook: HookPoint, tokenizer, prompt: str, new_tokens: int = 0
) -> Int[Tensor, "1 position"]:
    """A prompt's token ids; `SettingsError` where it is empty, `ModelError` where the context
    has no room for it and one new token.
    """
    ids = token_ids(tokenizer, prompt)
    if not ids:
        raise SettingsError("the prompt is empty: give at least one token of text")
    limit = hook.model.config.max_position_embeddings
    if len(ids) + min(new_tokens, 1) > limit:
        no_room = ": there is no room for a new token" if new_tokens else ""
        raise ModelError(
            f"the prompt has {len(ids)} tokens and the model's context is {limit}{no_room};"
            " shorten the prompt"
        )
    return torch.tensor([ids], device=hook.device)


@dataclass(frozen=True)
class NextTokens:
    """The next token's distribution without and with the clamps.

    `table` has a row for each token among the k most probable before, the k most probable after and
    the k whose probability changed most, largest change first: token_id, before, after, change
    (probabilities), rank_before, rank_after (0 is the most probable).
    """

    before: Float[Tensor, " vocab"]
    after: Float[Tensor, " vocab"]
    kl: float  # KL(before ‖ after), nats
    table: pd.DataFrame


@torch.no_grad()
def next_tokens(
    hook: HookPoint,
    tokenizer,
    dictionary: Dictionary,
    prompt: str,
    clamps: Sequence[Clamp],
    k: int = 10,
    keep_error: bool = True,
) -> NextTokens:
    """What the clamps do to the token after `prompt`; errors as `clamped` and `encode`."""
    ids = encode(hook, tokenizer, prompt)
    log_before = _logits(hook, ids).double().log_softmax(-1)
    with clamped(hook, dictionary, clamps, keep_error):
        log_after = _logits(hook, ids).double().log_softmax(-1)
    kl = (log_before.exp() * (log_before - log_after)).sum().item()
    before, after = (log.exp().float().cpu() for log in (log_before, log_after))
    table = pd.DataFrame({"before": before.numpy(), "after": after.numpy()})
    table["change"] = table["after"] - table["before"]
    for side in ("before", "after"):
        rank = table[side].rank(ascending=False, method="first")
        table[f"rank_{side}"] = rank.astype(np.int64) - 1
    largest = (table["before"], table["after"], table["change"].abs())
    shown = sorted(set().union(*(column.nlargest(k).index for column in largest)))
    by_change = {"key": abs, "ascending": False, "kind": "stable"}
    table = table.loc[shown].sort_values("change", **by_change)
    return NextTokens(before, after, kl, table.rename_axis("token_id").reset_index())


@torch.no_grad()
def side_by_side(  # noqa: PLR0913  what a continuation depends on
    hook: HookPoint,
    tokenizer,
    dictionary: Dictionary,
    prompt: str,
    clamps: Sequence[Clamp],
    new_tokens: int,
    temperature: float,
    seed: int,
    keep_error: bool = True,
) -> tuple[Int[Tensor, " baseline"], Int[Tensor, " clamped"], int]:
    """A continuation without and with the clamps, at the same random numbers: (token ids, token
    ids, prompt length); the prompt is part of both.

    Each ends with the end-of-text token, after `new_tokens`, or where the model's context is full.
    At temperature 0 the most probable token is taken.
    """
    check_temperature(temperature)
    if new_tokens < 1:
        raise SettingsError(f"new tokens: found {new_tokens}; expected at least 1")
    ids = encode(hook, tokenizer, prompt, new_tokens)
    continued = []
    for context in (nullcontext(), clamped(hook, dictionary, clamps, keep_error)):
        with context:
            end = tokenizer.eos_token_id
            continued.append(_continue(hook, ids, end, new_tokens, temperature, seed))
    return continued[0], continued[1], ids.shape[1]


def _continue(
    hook: HookPoint,
    ids: Int[Tensor, "1 position"],
    end: int | None,
    new_tokens: int,
    temperature: float,
    seed: int,
) -> Int[Tensor, " n"]:
    """Sampled with Gumbel noise, argmax(logits / T + g): with the same noise two distributions
    give the same token as long as they are alike, and nearly as often as any common randomness
    can make them (Maddison, Tarlow & Minka 2014, section 2, for the sampling).
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(min(new_tokens, hook.model.config.max_position_embeddings - ids.shape[1])):
        logits = _logits(hook, ids)
        noise = -torch.empty(len(logits)).exponential_(generator=generator).log()
        token = (logits.float() + temperature * noise.to(logits.device)).argmax()
        ids = torch.cat([ids, token.view(1, 1)], 1)
        if token.item() == end:
            break
    return ids[0].cpu()


def _logits(hook: HookPoint, ids: Int[Tensor, "1 position"]) -> Float[Tensor, " vocab"]:
    return hook.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def next_token_losses(
    hook: HookPoint, tokens: Int[Tensor, "row position"], where: Bool[Tensor, "row predicting"]
) -> Float[Tensor, "row predicting"]:
    """The loss (nats) of each next token predicted from a position in `where`, 0 elsewhere; only
    for these are logits made.
    """
    losses = torch.zeros(where.shape)
    parts = (t.split(ROWS_AT_ONCE) for t in (tokens, where, losses))
    for ids, here, loss in zip(*parts, strict=True):
        hidden = hook.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = hook.model.get_output_embeddings()(hidden[here.to(ids.device)]).float()
        targets = ids[:, 1:][here.to(ids.device)]
        loss[here] = F.cross_entropy(logits, targets, reduction="none").cpu()
    return losses
