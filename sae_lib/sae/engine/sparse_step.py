"""The gradient of an autoencoder's loss, exactly, at the cost of its active features.

After ReLU a few dozen of thousands of features are active. Decoding, the gradient into the
features, and both weight gradients are sums over active (activation, feature) pairs alone, and are
written out here as sparse products; the values are those of the dense gradient
(tests/test_sparse_step.py compares with autograd).
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_lib.device import autocast, on_gpu
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.active_pairs import ActivePairs, active_pairs, starts
from sae_lib.sae.objective import Objective, StepResult, auxiliary_loss, loss

# density of feature activations at which dense products become the faster ones
# (benchmarks/sae_step.py)
DENSE_ABOVE = 0.1
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def gradients(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    objective: Objective,
    dtype: torch.dtype = torch.float32,
    dead: Int[Tensor, " n_dead"] | None = None,
) -> StepResult:
    """Set `.grad` of all parameters to the gradient of `objective.loss`; returns what the step
    measured.

    Where few features are active the step is sparse: on a CPU, with less than `DENSE_ABOVE` of all
    (activation, feature) pairs active, and neither prefixes nor features split over processes.
    Everywhere else, so on every GPU, it is dense: autograd through `objective.loss`.

    `dtype` is that of matrix products: in a dense step of all those of the loss and its gradient,
    in a sparse one of x @ W_enc alone. Weights, gradients and Adam's moments stay float32; with
    float32 both kinds of step give the exact gradient. `dead` are the indices of the features that
    the auxiliary loss is for, where the objective has one.
    """
    # processes that split the features meet in the auxiliary loss, also where one has none
    given = dead is not None and (sae.dense or len(dead))
    dead = dead if objective.aux and given else None
    sparse = not (objective.prefixes or sae.dense or on_gpu(x.device))
    if sparse and _density(sae, x[:: max(1, len(x) // 8)]) < 1.5 * DENSE_ABOVE:
        pairs = active_pairs(sae, x, dtype, objective.bandwidth / 2)
        if len(pairs.row) < DENSE_ABOVE * len(x) * sae.d_sae:
            return _sparse(sae, x, pairs, objective, dead)
    return _dense(sae, x, objective, dtype, dead)


@torch.no_grad()
def _density(sae, x) -> float:
    return 0.0 if sae.k else (sae.encode(x) > 0).float().mean().item()


def _dense(sae, x, objective: Objective, dtype: torch.dtype, dead) -> StepResult:
    sae.zero_grad(set_to_none=True)
    with autocast(x.device, dtype):
        total, measured = loss(sae, x, objective, dead)
    total.backward()
    return measured


@torch.no_grad()
def _sparse(sae, x, pairs: ActivePairs, objective: Objective, dead) -> StepResult:
    n, d_sae = len(x), sae.d_sae
    encoded = sae.encoded_part(x)
    row, column, z = pairs
    active = z > sae.threshold[column] if sae.architecture == "jumprelu" else None
    f = z if active is None else z * active
    by_row = ActivePairs(row, column, f).csr((n, d_sae))
    error = torch.addmm(sae.b_dec, by_row, sae.W_dec).sub_(sae.target(x))
    squared_error, residual = error.pow(2).sum() / n, None if dead is None else -error
    error *= 2 * objective.mse / n  # now the gradient into the reconstruction
    into_f = torch.sparse.sampled_addmm(by_row, error, sae.W_dec.T, beta=0).values()

    # The same pairs ordered by feature: a stable sort keeps the rows of a feature in order (numpy's
    # is a radix sort up to 16 bits).
    order = torch.from_numpy(
        np.argsort(column.numpy().astype(np.min_scalar_type(d_sae - 1)), kind="stable")
    )
    first, rows = starts(column, d_sae), row[order]

    def per_feature(values: Tensor) -> Tensor:
        return torch.zeros(d_sae).index_add_(0, column, values)

    sae.W_dec.grad = embedding_bag(rows, error, first[:-1], mode="sum", per_sample_weights=f[order])
    weight = objective.sparsity / n
    if sae.architecture == "jumprelu":
        near = (z - sae.threshold[column]).abs() < objective.bandwidth / 2
        into_step = z * into_f + (weight if objective.penalty == "l0" else 0)
        sae.threshold.grad = -per_feature(near * into_step) / objective.bandwidth
        into_f *= active
    if objective.penalty == "l1":
        into_f += weight
    elif objective.penalty == "l1_norm":
        norm = sae.W_dec.norm(dim=1)
        into_f += weight * norm[column]
        sae.W_dec.grad.addcmul_(sae.W_dec, (per_feature(f) * weight / norm)[:, None])
    sae.W_enc_T.grad = embedding_bag(
        rows, encoded, first[:-1], mode="sum", per_sample_weights=into_f[order]
    )
    sae.b_enc.grad = per_feature(into_f)
    sae.set_output_gradients(error, encoded)
    if dead is not None:
        with torch.enable_grad():
            auxiliary = auxiliary_loss(sae, x, residual, dead)
            (objective.mse * objective.aux * auxiliary).backward()  # adds to the gradients
    n_active = len(f) if active is None else active.sum().item()
    fired = first.diff() > 0 if active is None else per_feature(active.float()) > 0
    wanted = n_active and sae.architecture == "batchtopk"
    smallest = f[f > 0].min() if wanted else f.new_zeros(())
    return StepResult(squared_error, f.sum() / n, torch.tensor(n_active / n), fired, smallest)
