"""A transcoder: a sparse autoencoder whose input is that of an MLP and whose target its output, so
that it can stand in the MLP's place (Dunefsky et al. 2024, Transcoders Find Interpretable LLM
Feature Circuits).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder

INPUT, OUTPUT = "mlp.hook_in", "hook_mlp_out"  # the hooks, after blocks.{layer}.


class Transcoder(SparseAutoencoder):
    """f = σ(x W_enc + b_enc), ŷ = f W_dec + b_dec, and + x W_skipᵀ with `skip` (Paulo et al. 2025).

    Input x and output y of an MLP are of one width. They come beside each other, as `MLPPair` gives
    them: [x, y]; where nothing is compared with y, x alone will do.
    """

    SAVED_AS: ClassVar[dict[str, dict[str, Any]]] = {
        "transcoder": {"architecture": "standard"},
        "skip_transcoder": {"architecture": "standard", "skip": True},
        "jumprelu_transcoder": {"architecture": "jumprelu"},
        "jumprelu_skip_transcoder": {"architecture": "jumprelu", "skip": True},
    }
    subtracts_b_dec = False

    def __init__(self, d_in: int, d_sae: int, architecture: str, k: int = 0, skip: bool = False):
        super().__init__(d_in, d_sae, architecture, k)
        if skip:
            self.W_skip = nn.Parameter(torch.zeros(d_in, d_in))

    def encoded_part(self, x: Float[Tensor, "*n either"]) -> Float[Tensor, "*n d_in"]:
        """x of [x, y]."""
        return x[..., : self.d_in]

    def pre_activations(self, x: Float[Tensor, "*n either"]) -> Float[Tensor, "*n d_sae"]:
        """x W_enc + b_enc."""
        return nn.functional.linear(self.encoded_part(x), self.W_enc_T, self.b_enc)

    def target(self, x: Float[Tensor, "*n both"]) -> Float[Tensor, "*n d_in"]:
        """y of [x, y], less what the skip connection gives."""
        return x[..., self.d_in :] - self.skipped(x)

    def set_output_gradients(self, into_output: Tensor, encoded: Tensor) -> None:
        """Of the bias and the skip connection."""
        self.b_dec.grad = into_output.sum(0)
        if self.W_skip is not None:
            self.W_skip.grad = into_output.T @ encoded

    def skipped(self, x: Float[Tensor, "*n either"]) -> Float[Tensor, "*n d_in"] | float:
        """What goes past the features."""
        return 0.0 if self.W_skip is None else self.encoded_part(x) @ self.W_skip.T

    def forward(self, x: Float[Tensor, "*n either"]) -> Float[Tensor, "*n d_in"]:
        return self.decode(self.encode(x)) + self.skipped(x)

    def save(self, folder: Path | str, metadata: dict | None = None) -> None:
        """As an autoencoder; the metadata also name the output's hook."""
        metadata = metadata or {}
        output = metadata.get("hook_name", "").replace(INPUT, OUTPUT)
        super().save(folder, metadata | {"hook_name_out": output})

    @torch.no_grad()
    def fold_scale(self, scale: Float[Tensor, " both"]) -> None:
        """Trained on `scale · [x, y]`, from now on for these themselves."""
        of_input, of_output = scale[0], scale[-1]
        self.W_enc_T *= of_input
        self.W_dec /= of_output
        self.b_dec /= of_output
        if self.W_skip is not None:
            self.W_skip *= of_input / of_output


class MLPPair(HookPoint):
    """Input and output of the MLP in a hook's layer, beside each other: [x, y]. What is replaced is
    its output: the second half of what a change gives, or all where it gives no more.
    """

    def __init__(self, hook: HookPoint):
        super().__init__(hook.model, f"blocks.{hook.layer}.{OUTPUT}", hook.bos)

    @contextmanager
    def replaced(self, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Run the model with `change` of [x, y] as the MLP's output, or that as it is for None."""

        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
            changed = change(torch.cat([args[0], output], -1)[:, self.n_before :])
            if changed is None:
                return None
            changed = changed[..., -output.shape[-1] :]
            return torch.cat([output[:, : self.n_before], changed], 1)

        with self.module.register_forward_hook(hook):
            yield
