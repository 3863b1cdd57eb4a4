"""Which features are active where: the one product of an autoencoder that is dense by nature.

Where the processor multiplies bfloat16 at speed, that product merely proposes candidates, with a
margin that provably misses none, and float32 decides about them: the result is that of the float32
product at a third of its cost.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.device import fast_bfloat16, product
from sae_lib.sae.autoencoder import SparseAutoencoder

# of a bfloat16 product with float32 sums, relative to ‖x‖‖w‖: twice bfloat16's 2⁻⁸, and a tenth for
# the sums
ROUNDING = 2**-7 * 1.1
# share of candidates from which the float32 product is the cheaper way to decide
MAX_CANDIDATE_SHARE = 0.1


class ActivePairs(NamedTuple):
    """The active (activation, feature) pairs, activation by activation, and the features'
    activations there.
    """

    row: Int[Tensor, " pair"]
    column: Int[Tensor, " pair"]
    value: Float[Tensor, " pair"]

    def take(self, which: Tensor) -> "ActivePairs":
        return ActivePairs(self.row[which], self.column[which], self.value[which])

    def csr(self, shape: tuple[int, int]) -> Tensor:
        return torch.sparse_csr_tensor(
            starts(self.row, shape[0]), self.column, self.value, shape, check_invariants=False
        )


@torch.no_grad()
def active_pairs(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    dtype: torch.dtype = torch.float32,
    margin: float = 0.0,
) -> ActivePairs:
    """The pairs where `sae.encode(x)` is above zero, with the pre-activations there, which are its
    values.

    `dtype` is the precision of the values, and float32 is exact. Of a jumprelu autoencoder also the
    pairs that miss their threshold by less than `margin`.
    """
    if x.device.type != "cpu":
        return pairs_of(sae.encode(x))
    if sae.architecture in ("topk", "batchtopk"):
        return _largest(sae, x, dtype)
    return _above(sae, x, sae.threshold - margin if sae.architecture == "jumprelu" else 0.0, dtype)


def pairs_of(feature_acts: Float[Tensor, "n d_sae"]) -> ActivePairs:
    row, column = _where_above(feature_acts)
    return ActivePairs(row, column, feature_acts[row, column])


def _above(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    threshold: Float[Tensor, " d_sae"] | float,
    dtype: torch.dtype,
) -> ActivePairs:
    """The pairs whose pre-activation is above the feature's threshold."""
    centred, bias = sae.encoded_part(x), sae.b_enc - threshold
    at = torch.as_tensor(threshold).expand(sae.d_sae)
    if dtype == torch.bfloat16:
        z = _bfloat16_product(sae, centred, bias)
        row, column = _where_above(z)
        return ActivePairs(row, column, z[row, column].float() + at[column])
    if fast_bfloat16():
        margin = (centred.norm(dim=1) * 1.01, sae.W_enc_T.norm(dim=1) * (1.01 * ROUNDING))
        # every pair that float32 could find above
        z = _bfloat16_product(sae, centred, bias + 2**-7 * bias.abs(), margin)
        row, column = _where_above(z)
        if len(row) < MAX_CANDIDATE_SHARE * len(x) * sae.d_sae:
            pattern = ActivePairs(row, column, torch.zeros(len(row))).csr((len(x), sae.d_sae))
            z = torch.sparse.sampled_addmm(pattern, centred, sae.W_enc, beta=0).values()
            z += sae.b_enc[column]
            above = z > at[column]
            return ActivePairs(row[above], column[above], z[above])
    z = product(centred, sae.W_enc_T, sae.b_enc)
    row, column = _where_above(z, threshold)
    return ActivePairs(row, column, z[row, column])


def _largest(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], dtype: torch.dtype) -> ActivePairs:
    """The k largest of each activation, or the k·n largest of all; as ReLU has it, only those above
    zero.

    Only pairs above a floor, guessed from a few activations, are ranked; where it turns out too
    high, all are.
    """
    sample, k = sae.pre_activations(x[:: max(1, len(x) // 64)]), sae.k
    if sae.architecture == "batchtopk":
        wanted = k * len(x)
        n_above = min(sample.numel(), -(-5 * k * len(sample) // 4))
        pairs = _above(sae, x, max(0.0, sample.flatten().topk(n_above).values[-1].item()), dtype)
        if len(pairs.value) < wanted:
            pairs = _above(sae, x, 0.0, dtype)
        return pairs.take(pairs.value.topk(min(wanted, len(pairs.value))).indices.sort().values)
    floor = max(0.0, sample.topk(k).values[:, -1].quantile(0.1).item())
    pairs = _above(sae, x, floor, dtype)
    short = torch.bincount(pairs.row, minlength=len(x)) < k
    if floor > 0 and short.any():
        again, where = _above(sae, x[short], 0.0, dtype), short.nonzero().squeeze(1)
        again = ActivePairs(where[again.row], again.column, again.value)
        kept = pairs.take(~short[pairs.row])
        pairs = ActivePairs(*map(torch.cat, zip(kept, again, strict=True)))
        pairs = pairs.take(pairs.row.argsort(stable=True))
    order = torch.from_numpy(np.lexsort((-pairs.value.numpy(), pairs.row.numpy())))
    rank = torch.arange(len(order)) - starts(pairs.row, len(x))[pairs.row]
    return pairs.take(order[rank < k].sort().values)


def starts(index: Int[Tensor, " pair"], length: int) -> Int[Tensor, " _"]:
    """Where the pairs of each of `length` ordered indices begin, and where the last ones end."""
    result = torch.zeros(length + 1, dtype=torch.int64, device=index.device)
    torch.cumsum(torch.bincount(index, minlength=length), 0, out=result[1:])
    return result


def _bfloat16_product(
    sae: SparseAutoencoder,
    centred: Float[Tensor, "n d_in"],
    bias: Tensor,
    margin: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "n d_sae"]:
    """x·w + bias, and + margin₀ margin₁ where given, in one product: each is one column more (to
    a multiple of 32, as the processor likes it).
    """
    d_in = sae.d_in
    width = -(-(d_in + 2) // 32) * 32
    x, w = (torch.zeros(n, width, dtype=torch.bfloat16) for n in (len(centred), sae.d_sae))
    x[:, :d_in], w[:, :d_in] = centred, sae.W_enc_T
    x[:, d_in], w[:, d_in] = 1, bias
    if margin:
        x[:, d_in + 1], w[:, d_in + 1] = margin
    return x @ w.T


def _where_above(
    z: Float[Tensor, "n d_sae"], threshold: Float[Tensor, " d_sae"] | float = 0.0
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Like `nonzero` of `z > threshold`; on the CPU several times as fast (a positive bfloat16
    is a positive int16).
    """
    if z.device.type != "cpu":
        return (z > threshold).nonzero(as_tuple=True)
    bits = z.view(torch.int16) if z.dtype == torch.bfloat16 else z
    row, column = np.divmod(np.flatnonzero(bits.numpy() > np.asarray(threshold)), z.shape[1])
    return torch.from_numpy(row), torch.from_numpy(column)
