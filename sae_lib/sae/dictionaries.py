"""What is measured beside an autoencoder, through the same code: neurons, random directions,
principal directions.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.active_pairs import ActivePairs, active_pairs, pairs_of

DIRECTIONS_AT_ONCE = 128  # whose values on a whole sample exist together


class Neurons:
    """The neurons themselves as features: the baseline that reconstructs without an error."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu"):
        self.d_in = self.d_sae = d_in
        self.W_dec = torch.eye(d_in, device=device)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts


class Directions:
    """Unit directions as features: f = z where z = (x − centre) · direction is above its threshold
    (≥ 0), else 0.

    They have no decoder: `W_dec` holds the directions, for logit effects and neighbours.
    """

    def __init__(
        self,
        directions: Float[Tensor, "n d_in"],
        centre: Float[Tensor, " d_in"],
        threshold: Float[Tensor, " n"] | None = None,
    ):
        self.W_dec = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-8)
        self.d_sae, self.d_in = directions.shape
        self.centre = centre
        self.threshold = directions.new_zeros(self.d_sae) if threshold is None else threshold

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        z = (x - self.centre) @ self.W_dec.T
        return z * (z > self.threshold)

    def at_density(
        self, x: Float[Tensor, "n d_in"], density: Float[Tensor, " d_sae"]
    ) -> "Directions":
        """The same directions with thresholds at which each is active on its share `density` of
        the activations `x`.
        """
        n_active = (density.to(x.device) * len(x)).round().long()
        nth = (len(x) - n_active - 1).clamp(0, len(x) - 1)  # from below
        around = torch.stack([nth, (nth + 1).clamp_max(len(x) - 1)], 1)
        x, thresholds = x - self.centre, []
        parts = self.W_dec.split(DIRECTIONS_AT_ONCE), around.split(DIRECTIONS_AT_ONCE)
        for directions, places in zip(*parts, strict=True):
            below, above = _sorted(directions @ x.T).gather(1, places).unbind(1)
            thresholds.append(((below + above) / 2).clamp_min(0))  # rounding flips neither of them
        return Directions(self.W_dec, self.centre, torch.cat(thresholds))


def _sorted(z: Tensor) -> Tensor:
    """Its rows in rising order; numpy sorts floats in a tenth of the time that torch takes on
    the CPU.
    """
    if z.device.type == "cpu":
        return torch.from_numpy(np.sort(z.numpy(), axis=1))
    return z.sort(dim=1).values


class Selected:
    """Some features of a dictionary: cheaper to encode than all of them where they are few."""

    def __init__(self, dictionary: "Dictionary", features: Int[Tensor, " k"]):
        self.dictionary, self.features, self.d_sae = dictionary, features, len(features)

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n k"]:
        return activations_of(self.dictionary, x, self.features.to(x.device))


# everything whose features have activations
Dictionary = SparseAutoencoder | Neurons | Directions | Selected


def active(dictionary: Dictionary, x: Float[Tensor, "n d_in"]) -> ActivePairs:
    """Where a dictionary's features are above zero: a table of thousands of features is nearly
    empty.
    """
    if isinstance(dictionary, SparseAutoencoder):
        return active_pairs(dictionary, x)
    return pairs_of(dictionary.encode(x))


def reconstruction(
    dictionary: Dictionary, x: Float[Tensor, "n d_in"], pairs: ActivePairs | None = None
) -> Float[Tensor, "n d_out"]:
    """decode(encode(x)); of an autoencoder at the cost of its active pairs. Only a transcoder gives
    other dimensions than it is given.
    """
    if not isinstance(dictionary, SparseAutoencoder):
        return dictionary.decode(dictionary.encode(x))
    pairs = pairs or active(dictionary, x)
    added = dictionary.b_dec
    if dictionary.W_skip is not None:
        added = added + dictionary.skipped(x)
    return torch.addmm(added, pairs.csr((len(x), dictionary.d_sae)), dictionary.W_dec)


def activations_of(
    dictionary: Dictionary, x: Float[Tensor, "n d_in"], features
) -> Float[Tensor, "n k"]:
    """Activations of a few features only; where they do not depend on the others, without
    encoding those.
    """
    if isinstance(dictionary, Neurons):
        return x[:, features]
    if isinstance(dictionary, Directions):
        z = (x - dictionary.centre) @ dictionary.W_dec[features].T
        return z * (z > dictionary.threshold[features])
    if dictionary.architecture == "topk":
        return dictionary.encode(x)[:, features]
    z = dictionary.encoded_part(x) @ dictionary.W_enc[:, features] + dictionary.b_enc[features]
    floor = dictionary.threshold[features] if dictionary.architecture == "jumprelu" else 0.0
    return torch.relu(z) * (z > floor)
