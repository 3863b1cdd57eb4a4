"""Which activations are those of no text, and would spoil scale, training and measures."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.device import upload

Rows = Int[np.ndarray, "row position"]


@dataclass(frozen=True)
class LeftOut:
    """Activations of special tokens, of first positions that no BOS stands before (`first`), and
    those longer than `max_norm`, as on attention sinks. `shares` says of how many tokens, by
    reason.
    """

    special: Int[Tensor, " n"]
    first: bool
    max_norm: float
    shares: dict[str, float]

    @classmethod
    def found(
        cls, rows: Rows, norms: Float[Tensor, " n"], special: list[int], first: bool, ratio: float
    ) -> "LeftOut":
        """From the norms of some rows: what is longer than `ratio` times their median."""
        max_norm = ratio * norms.view(rows.shape)[:, 1:].median().item()
        shares = {
            "long": (norms > max_norm).float().mean().item(),
            "special": np.isin(rows, special).mean().item(),
            "first": first / rows.shape[1],
        }
        return cls(upload(np.array(special, np.int64), norms.device), first, max_norm, shares)

    def kept(self, rows: Rows, acts: Tensor) -> Bool[Tensor, "row position"]:
        """Which activations of these rows count."""
        tokens = upload(rows.astype(np.int64), acts.device)
        norms = torch.linalg.vector_norm(acts, dim=-1, dtype=torch.float32)
        kept = (norms <= self.max_norm).view(tokens.shape)
        kept &= (tokens[..., None] != self.special).all(-1)
        if self.first:
            kept[:, 0] = False
        return kept


def of_kept(order: Int[Tensor, " n"], kept: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The order without what is left out; at its end it begins again, as a chunk's size is not to
    depend on that (the host would wait for it).
    """
    kept_first = order[(~kept[order]).byte().argsort(stable=True)]
    again = torch.arange(len(order), device=order.device) % kept.sum().clamp_min(1)
    return kept_first[again]
