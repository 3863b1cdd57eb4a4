"""Directions that nobody trained: neurons, random ones, principal components; and autoencoders made
of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Directions


def coordinate_directions(d_in: int, device: torch.device | str = "cpu") -> Directions:
    """The neurons as directions, so that they can be thresholded; unlike `Neurons` only what is
    above zero counts.
    """
    return Directions(torch.eye(d_in, device=device), torch.zeros(d_in, device=device))


def random_directions(x: Float[Tensor, "n d_in"], n: int, seed: int) -> Directions:
    """`n` directions drawn evenly from the sphere, around the mean of `x`: the null for every
    claim about features.
    """
    drawn = torch.randn(n, x.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)
    return Directions(drawn, x.mean(0))


def principal_directions(x: Float[Tensor, "n d_in"]) -> Directions:
    """The principal components of `x`, each in both senses: 2 d_in directions, the largest
    variance first.
    """
    _, vectors = torch.linalg.eigh(torch.cov(x.double().T))
    components = vectors.T.flip(0).to(x.dtype)
    return Directions(torch.stack([components, -components], 1).flatten(0, 1), x.mean(0))


@torch.no_grad()
def keep_largest(directions: Directions, k: int, x: Float[Tensor, "n d_in"]) -> SparseAutoencoder:
    """An autoencoder that was not trained: of each activation it keeps the `k` largest values along
    the unit `directions` around their centre. One factor for all of its decoder, 1 for orthogonal
    directions, reconstructs `x` best.
    """
    sae = _tied(directions, "topk", min(k, directions.d_sae))
    written, centred = sae(x) - directions.centre, x - directions.centre
    sae.W_dec *= (written * centred).sum() / written.pow(2).sum().clamp_min(1e-30)
    return sae


def thresholded(directions: Directions) -> SparseAutoencoder:
    """The same features as `directions`, as an autoencoder: much faster where they are many."""
    sae = _tied(directions, "jumprelu")
    sae.threshold.copy_(directions.threshold)
    return sae


def _tied(directions: Directions, architecture: str, k: int = 0) -> SparseAutoencoder:
    sae = SparseAutoencoder(directions.d_in, directions.d_sae, architecture, k)
    sae = sae.to(directions.W_dec.device).requires_grad_(False)
    sae.W_enc_T.copy_(directions.W_dec)
    sae.W_dec.copy_(directions.W_dec)
    sae.b_dec.copy_(directions.centre)
    return sae
