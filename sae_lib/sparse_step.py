"""The gradient of an autoencoder's loss, exactly, at the cost of its active features.

After ReLU a few dozen of thousands of features are active. Decoding, the gradient into the features, and both weight gradients
are sums over active (activation, feature) pairs alone, and are written out here as sparse products. Only *which* pairs are active
takes a dense product; where the processor multiplies bfloat16 at speed, that product merely proposes candidates, with a margin
that provably misses none, and float32 decides about them. The values are those of the dense float32 gradient
(tests/test_sparse_step.py compares with autograd).
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.device import fast_bfloat16

DENSE_ABOVE = 0.1  # density of feature activations at which dense products become the faster ones (benchmarks/sae_step.py)
ROUNDING = 2**-8 * 1.1  # of a bfloat16 product with float32 sums, relative to ‖x‖‖w‖: 2⁻⁹ for each factor, and a tenth for the sums
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class StepResult(NamedTuple):
    """What a step measured, as tensors on the device (reading them is what waits for it)."""

    squared_error: Float[Tensor, ""]  # Σ over dimensions, mean over the batch
    l1: Float[Tensor, ""]  # Σ over features, mean over the batch
    l0: Float[Tensor, ""]  # active features per activation
    fired: Bool[Tensor, " d_sae"]


class ActivePairs(NamedTuple):
    """The active (activation, feature) pairs, activation by activation, and the features' activations there."""

    row: Int[Tensor, " pair"]
    column: Int[Tensor, " pair"]
    value: Float[Tensor, " pair"]


@torch.no_grad()
def gradients(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], mse_weight: float, l1: float, encoder_dtype: torch.dtype = torch.float32) -> StepResult:
    """Set `.grad` of all four parameters for the loss mean_n( mse_weight · Σ_d (x − x̂)² + l1 · Σ_f f ).

    `encoder_dtype` is the precision of the features' activations alone; with float32 the gradient is exact.
    """
    n = len(x)
    centred = x - sae.b_dec
    if x.device.type == "cpu":
        pairs = _active_pairs(sae, centred, encoder_dtype)
        if pairs is not None:
            return _sparse(sae, x, centred, pairs, 2 * mse_weight / n, l1 / n)
    if encoder_dtype == torch.float32:
        feature_acts = torch.addmm(sae.b_enc, centred, sae.W_enc).relu_()
    else:
        feature_acts = (centred.to(encoder_dtype) @ sae.W_enc_T.to(encoder_dtype).T).float().add_(sae.b_enc).relu_()
    return _dense(sae, x, centred, feature_acts, 2 * mse_weight / n, l1 / n)


def _active_pairs(sae, centred, encoder_dtype: torch.dtype) -> ActivePairs | None:
    """None where they are too many for sparse products to pay."""
    limit = DENSE_ABOVE * len(centred) * sae.d_sae
    if encoder_dtype == torch.float32 and fast_bfloat16():
        row, column = _candidates(sae, centred)
        if len(row) >= 1.5 * limit:
            return None
        pattern = _csr(row, column, torch.zeros(len(row)), (len(centred), sae.d_sae))
        value = torch.sparse.sampled_addmm(pattern, centred, sae.W_enc, beta=0).values().add_(sae.b_enc[column])
        active = value > 0
        pairs = ActivePairs(row[active], column[active], value[active])
    else:
        feature_acts = (centred.to(encoder_dtype) @ sae.W_enc_T.to(encoder_dtype).T).float().add_(sae.b_enc)
        row, column = _where_positive(feature_acts)
        pairs = ActivePairs(row, column, feature_acts[row, column])
    return pairs if len(pairs.row) < limit else None


def _candidates(sae, centred) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Every pair that float32 could find active: x·w + b + ROUNDING ‖x‖‖w‖ > 0, as one bfloat16 product with two columns more."""
    d_in = sae.d_in
    x, w = (torch.zeros(len(t), -(-(d_in + 2) // 32) * 32, dtype=torch.bfloat16) for t in (centred, sae.W_enc_T))
    x[:, :d_in], w[:, :d_in] = centred, sae.W_enc_T
    x[:, d_in], w[:, d_in] = 1, sae.b_enc + 2**-8 * sae.b_enc.abs()
    x[:, d_in + 1], w[:, d_in + 1] = centred.norm(dim=1) * 1.01, sae.W_enc_T.norm(dim=1) * (1.01 * ROUNDING)
    return _where_positive(x @ w.T)


def _where_positive(product: Float[Tensor, "n d_sae"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Like `nonzero` of `product > 0`, several times as fast (a positive bfloat16 is a positive int16)."""
    bits = product.view(torch.int16) if product.dtype == torch.bfloat16 else product
    row, column = np.divmod(np.flatnonzero(bits.numpy() > 0), product.shape[1])
    return torch.from_numpy(row), torch.from_numpy(column)


def _csr(row, column, value, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(_starts(row, shape[0]), column, value, shape, check_invariants=False)


def _starts(index: Int[Tensor, " pair"], length: int) -> Int[Tensor, " _"]:
    """Where the pairs of each of `length` ordered indices begin and end."""
    starts = torch.zeros(length + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(index, minlength=length), 0, out=starts[1:])
    return starts


def _sparse(sae, x, centred, pairs: ActivePairs, error_weight: float, l1: float) -> StepResult:
    n, d_sae = len(x), sae.d_sae
    by_row = _csr(*pairs, (n, d_sae))
    error = torch.addmm(sae.b_dec, by_row, sae.W_dec).sub_(x)
    squared_error = error.pow(2).sum() / n
    error *= error_weight  # now the gradient into the reconstruction
    into_acts = torch.sparse.sampled_addmm(by_row, error, sae.W_dec.T, beta=0).values().add_(l1)

    # The same pairs ordered by feature: a stable sort keeps the rows of a feature in order (numpy's is a radix sort up to 16 bits).
    order = torch.from_numpy(np.argsort(pairs.column.numpy().astype(np.min_scalar_type(d_sae - 1)), kind="stable"))
    starts = _starts(pairs.column, d_sae)
    rows = pairs.row[order]
    sae.W_dec.grad = embedding_bag(rows, error, starts[:-1], mode="sum", per_sample_weights=pairs.value[order])
    sae.W_enc_T.grad = embedding_bag(rows, centred, starts[:-1], mode="sum", per_sample_weights=into_acts[order])
    sae.b_enc.grad = torch.zeros(d_sae).index_add_(0, pairs.column, into_acts)
    sae.b_dec.grad = error.sum(0) - sae.W_enc @ sae.b_enc.grad
    return StepResult(squared_error, pairs.value.sum() / n, torch.tensor(len(rows) / n), starts.diff() > 0)


def _dense(sae, x, centred, feature_acts, error_weight: float, l1: float) -> StepResult:
    n = len(x)
    active = feature_acts > 0
    error = torch.addmm(sae.b_dec, feature_acts, sae.W_dec).sub_(x)
    squared_error = error.pow(2).sum() / n
    error *= error_weight
    into_acts = (error @ sae.W_dec.T).add_(l1).mul_(active)
    sae.W_dec.grad = feature_acts.T @ error
    sae.W_enc_T.grad = into_acts.T @ centred
    sae.b_enc.grad = into_acts.sum(0)
    sae.b_dec.grad = error.sum(0) - sae.W_enc @ sae.b_enc.grad
    return StepResult(squared_error, feature_acts.sum() / n, active.sum() / n, active.any(0))
