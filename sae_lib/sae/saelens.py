"""Autoencoders and transcoders that SAELens saved, of every architecture whose features depend on
one activation alone and are never below zero; and the hook that they name.

Those of other architectures than ours become one of ours with the same activations: a gated
autoencoder with tied weights is a jumprelu (Rajamanoharan et al. 2024, Improving Dictionary
Learning with Gated Sparse Autoencoders, section 3.2), and so is batchtopk, with one threshold.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_lib.errors import ArtefactError
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder, check_plain
from sae_lib.sae.transcoder import MLPPair, Transcoder

OURS = {name: kind for kind in (SparseAutoencoder, Transcoder) for name in kind.SAVED_AS}
AS_JUMPRELU = ("gated", "batchtopk", "matryoshka_batchtopk")  # the last two: still in training


class MLPInput(MLPPair):
    """The input of a layer's MLP, where a transcoder's features are read; they write to its output,
    which names this hook.
    """

    def activations(self, tokens: Tensor) -> Float[Tensor, "row position d_model"]:
        return super().activations(tokens)[..., : self.model.config.hidden_size]


def hook_of(dictionary: SparseAutoencoder, model: Any, name: str) -> HookPoint:
    """Where its features are read; `ModelError` where the model has no such hook."""
    if not isinstance(dictionary, Transcoder):
        return HookPoint(model, name)
    inputs = r"(ln2\.hook_normalized|mlp\.hook_in)$"
    return MLPInput(HookPoint(model, re.sub(inputs, "hook_mlp_out", name)))


@torch.no_grad()
def load_any(folder: Path | str) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """(the autoencoder in a folder, its metadata); `ArtefactError` says what cannot be read."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "cfg.json").read_text())
        name = config.get("architecture")
        held = load_file(folder / "sae_weights.safetensors")
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ArtefactError(
            f"{folder} is not a readable autoencoder ({error!r}); expected cfg.json and"
            " sae_weights.safetensors in SAELens' layout"
        ) from None
    if name not in (*OURS, *AS_JUMPRELU):
        raise ArtefactError(
            f"{folder}/cfg.json: architecture {name!r} is not supported; expected one of"
            f" {', '.join((*OURS, *AS_JUMPRELU))}, as SAELens 6 writes it"
        )
    sae = _as_jumprelu(folder, config, held) if name in AS_JUMPRELU else OURS[name].load(folder)
    if config.get("rescale_acts_by_decoder_norm"):  # and divided by it before they are decoded
        norm = sae.W_dec.norm(dim=1).clamp_min(1e-12)
        sae.b_enc *= norm
        sae.W_enc_T *= norm[:, None]
        sae.W_dec /= norm[:, None]
    if sae.architecture == "jumprelu":  # SAELens' jumprelu is of ReLU
        sae.threshold.clamp_(min=0)
    return sae, config | (config.get("metadata") or {})


def _as_jumprelu(
    folder: Path, config: dict[str, Any], held: dict[str, Tensor]
) -> SparseAutoencoder:
    """Gated: z = eʳ (x − b_dec) W_enc + b_mag is active where (x − b_dec) W_enc > −b_gate, so above
    b_mag − eʳ b_gate. Batchtopk: with the threshold that training has found so far.
    """
    check_plain(folder, config, held)
    sizes, found = [config.get("d_in"), config.get("d_sae")], dict(held)
    try:
        sae = SparseAutoencoder(*sizes, "jumprelu").requires_grad_(False)
        W_enc_T = found.pop("W_enc").T
        if config["architecture"] == "gated":
            scale, bias = found.pop("r_mag").exp(), found.pop("b_mag")
            W_enc_T = W_enc_T * scale[:, None]
            found |= {"b_enc": bias, "threshold": bias - scale * found.pop("b_gate")}
        else:
            found["threshold"] = found.pop("topk_threshold").expand(len(W_enc_T))
        sae.load_state_dict(found | {"W_enc_T": W_enc_T})
    except (KeyError, RuntimeError, TypeError):
        shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
        raise ArtefactError(
            f"{folder}/sae_weights.safetensors holds {shapes}; expected a"
            f" {config['architecture']} autoencoder of d_in {sizes[0]} and d_sae {sizes[1]}"
        ) from None
    if not config.get("apply_b_dec_to_input", True):  # w·x + b is w·(x − b_dec) + (b + w·b_dec)
        sae.b_enc += sae.W_enc_T @ sae.b_dec
    return sae
