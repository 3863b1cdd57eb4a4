"""When more training no longer helps, judged on held-out text."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import active, reconstruction

ACTIVATIONS = 65_536  # held-out ones that are looked at


class EarlyStopping:
    """Says stop after `patience` checks without a better score, FVU + L0 / d_in, and keeps the
    best weights. A patience of 0 means no checks.
    """

    def __init__(self, x: Float[Tensor, "n d_in"], patience: int):
        self.x, self.patience = x, patience
        self.checks: list[dict] = []
        self.best: dict[str, Tensor] = {}

    @torch.no_grad()
    def score(self, sae: SparseAutoencoder) -> tuple[float, float]:
        """(FVU, L0) on the held-out activations."""
        error, n_active = 0.0, 0
        for part in self.x.split(4096):
            pairs = active(sae, part)
            error += (part - reconstruction(sae, part, pairs)).pow(2).sum().item()
            n_active += len(pairs.row)
        return error / (self.x - self.x.mean(0)).pow(2).sum().item(), n_active / len(self.x)

    def stop(self, sae: SparseAutoencoder, step: int) -> bool:
        """Look once; True where it is time."""
        fvu, l0 = self.score(sae)
        self.checks.append({"step": step, "fvu": fvu, "l0": l0, "score": fvu + l0 / sae.d_in})
        best = min(range(len(self.checks)), key=lambda i: self.checks[i]["score"])
        if best == len(self.checks) - 1:
            self.best = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
        return len(self.checks) - 1 - best >= self.patience
