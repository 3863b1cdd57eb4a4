"""The gradient of an autoencoder's loss, exactly, at the cost of its active features.

After ReLU a few dozen of thousands of features are active. Only the encoder's product is dense by nature; decoding, the
gradient into the features, and both weight gradients are sums over active (activation, feature) pairs alone. They are written
out here as sparse products; the values are those of the dense gradient (tests/test_sparse_step.py compares with autograd).
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.autoencoder import SparseAutoencoder

DENSE_ABOVE = 0.1  # density of feature activations at which dense products become the faster ones (benchmarks/sae_step.py)
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class StepResult(NamedTuple):
    """What a step measured, as tensors on the device (reading them is what waits for it)."""

    squared_error: Float[Tensor, ""]  # Σ over dimensions, mean over the batch
    l1: Float[Tensor, ""]  # Σ over features, mean over the batch
    l0: Float[Tensor, ""]  # active features per activation
    fired: Bool[Tensor, " d_sae"]


@torch.no_grad()
def gradients(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], mse_weight: float, l1: float, encoder_dtype: torch.dtype = torch.float32) -> StepResult:
    """Set `.grad` of all four parameters for the loss mean_n( mse_weight · Σ_d (x − x̂)² + l1 · Σ_f f ).

    `encoder_dtype` is the precision of the encoder's product alone; with float32 the gradient is exact.
    """
    n = len(x)
    centred = x - sae.b_dec
    if encoder_dtype == torch.float32:
        feature_acts = torch.addmm(sae.b_enc, centred, sae.W_enc).relu_()
    else:
        feature_acts = (centred.to(encoder_dtype) @ sae.W_enc_T.to(encoder_dtype).T).float().add_(sae.b_enc).relu_()
    if x.device.type == "cpu":
        active = feature_acts.view(-1).nonzero().squeeze(-1)
        if len(active) < DENSE_ABOVE * feature_acts.numel():
            return _sparse(sae, x, centred, feature_acts, active, 2 * mse_weight / n, l1 / n)
    return _dense(sae, x, centred, feature_acts, 2 * mse_weight / n, l1 / n)


def _sparse(sae, x, centred, feature_acts, active, error_weight: float, l1: float) -> StepResult:
    n, d_sae = feature_acts.shape
    row, column = active // d_sae, active % d_sae
    starts = torch.zeros(n + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=n), 0, out=starts[1:])
    by_row = torch.sparse_csr_tensor(starts, column, feature_acts.view(-1)[active], (n, d_sae), check_invariants=False)

    error = torch.addmm(sae.b_dec, by_row, sae.W_dec).sub_(x)
    squared_error = error.pow(2).sum() / n
    error *= error_weight  # now the gradient into the reconstruction
    into_acts = torch.sparse.sampled_addmm(by_row, error, sae.W_dec.T, beta=0).values().add_(l1)

    # The same pairs ordered by feature: a stable sort keeps the rows of a feature in order.
    order = column.argsort(stable=True)
    counts = torch.bincount(column, minlength=d_sae)
    starts_t = torch.zeros(d_sae + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts_t[1:])
    rows_t = row[order]
    acts_t = torch.sparse_csr_tensor(starts_t, rows_t, by_row.values()[order], (d_sae, n), check_invariants=False)
    into_acts_t = torch.sparse_csr_tensor(starts_t, rows_t, into_acts[order], (d_sae, n), check_invariants=False)

    sae.W_dec.grad = acts_t @ error
    sae.W_enc_T.grad = into_acts_t @ centred
    sae.b_enc.grad = torch.zeros(d_sae).index_add_(0, column, into_acts)
    sae.b_dec.grad = error.sum(0) - sae.W_enc @ sae.b_enc.grad
    return StepResult(squared_error, by_row.values().sum() / n, torch.tensor(len(active) / n), counts > 0)


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
