"""What an autoencoder is held against: as many of the strongest neurons or principal components,
and n-grams in place of the language model.
"""

import math

import numpy as np
import torch
from jaxtyping import Float

from sae_lib.features.firing import Dictionaries, Rows, spread_rows
from sae_lib.model.activations import HookPoint, Source, harvest, harvest_kept
from sae_lib.sae.dictionaries import Directions
from sae_lib.sae.directions import keep_largest, principal_directions, random_directions

FIT_VALUES = 1 << 25  # activations × d_in that principal components are fitted on, or 4 d_in
SCALED_ON = 8192  # activations
# that thresholds of directions are taken from, or fewer where they would not fit …
DIRECTION_TOKENS = 131_072
DIRECTION_VALUES = 1 << 26  # … into so many activations of neurons
NGRAM_TOKENS = 1 << 24  # of training text that n-grams are counted in, at most


@torch.no_grad()
def at_equal_l0(hook: Source, rows: Rows, l0: float) -> Dictionaries:
    """What needs no autoencoder, fitted on training `rows`: the strongest neurons of each
    activation, with the others at zero or at their means, and the strongest principal components.
    As many as `l0`, rounded up in their favour.
    """
    d_in = harvest(hook, rows[:1]).shape[1]
    x = harvest_kept(hook, spread_rows(rows, max(FIT_VALUES // d_in, 4 * d_in)))
    principal, one = principal_directions(x), torch.eye(d_in, device=x.device)
    neurons = torch.cat([one, -one])
    directions = {
        "neurons, others at zero": Directions(neurons, torch.zeros_like(principal.centre)),
        "neurons, others at their means": Directions(neurons, principal.centre),
        "principal components": principal,
    }
    k, x = math.ceil(l0), x[:SCALED_ON]
    return {name: keep_largest(along, k, x) for name, along in directions.items()}


def ngram_losses(train_rows: Rows, rows: Rows) -> dict[str, float]:
    """Nats per token of `rows`, but for their first positions, by counts from `train_rows`:
    "unigram" add-one; "bigram" interpolated with it by Witten and Bell (1991), where the unigrams
    have weight T / (n + T) after a token seen n times with T different followers.
    """
    train = spread_rows(train_rows, NGRAM_TOKENS).astype(np.int64)
    before, after = (part.ravel().astype(np.int64) for part in (rows[:, :-1], rows[:, 1:]))
    vocab = 1 + max(train.max(), rows.max())
    unigram = np.bincount(train.ravel(), minlength=vocab) + 1
    unigram = unigram[after] / unigram.sum()
    pairs, counts = np.unique(train[:, :-1] * vocab + train[:, 1:], return_counts=True)
    wanted = before * vocab + after
    at = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    n = np.bincount(pairs // vocab, counts, vocab)[before]
    followers = np.bincount(pairs // vocab, minlength=vocab).clip(min=1)[before]
    bigram = (seen + followers * unigram) / (n + followers)
    return {"unigram": -np.log(unigram).mean(), "bigram": -np.log(bigram).mean()}


def directions_like(
    kind: str,
    density: Float[np.ndarray, " d_sae"],
    hook: HookPoint,
    rows: Rows,
    seed: int,
) -> Directions:
    """Directions to hold an autoencoder against, each as rarely active as one of its features, on a
    sample of `rows`.

    `kind` "random": as many as it has features; the i-th has the i-th feature's `density`.
    "principal": the principal components in both senses; the largest has the density of the densest
    feature and so on down, through evenly spaced quantiles of those alive. No direction is active
    below the mean, so that half of all tokens or so is the most that a density can be.
    """
    d_in = harvest(hook, rows[:1]).shape[1]
    n_tokens = min(DIRECTION_TOKENS, DIRECTION_VALUES // d_in)
    x = harvest_kept(hook, spread_rows(rows, n_tokens))
    if kind == "random":
        directions = random_directions(x, len(density), seed)
    else:
        directions = principal_directions(x)
        alive = density[density > 0]
        density = np.quantile(alive if len(alive) else density, np.linspace(1, 0, directions.d_sae))
    return directions.at_density(x, torch.tensor(density))
