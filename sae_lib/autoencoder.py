"""The sparse autoencoder, stored in SAELens' own folder layout."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_lib.errors import ArtefactError

SHAPES = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


class SparseAutoencoder(nn.Module):
    """f = ReLU((x − b_dec) W_enc + b_enc),  x̂ = f W_dec + b_dec  (Bricken et al. 2023, "Sparse Autoencoder Setup").

    A feature is one column of `W_enc` and the same row of `W_dec`; it is active where f > 0.
    """

    def __init__(self, d_in: int, d_sae: int):
        super().__init__()
        # Kept transposed: a feature's weights lie together, as sparse gradients and the fused optimiser want them.
        self.W_enc_T = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder as the formula has it; a view, so that writing into it writes the parameter."""
        return self.W_enc_T.T

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def encode(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_sae"]:
        return torch.nn.functional.linear(x - self.b_dec, self.W_enc_T, self.b_enc).relu_()

    def decode(self, feature_acts: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_in"]:
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Trained on `scale · x`, from now on for x itself: the features' activations stay the same."""
        self.W_enc_T *= scale
        self.W_dec /= scale
        self.b_dec /= scale

    def save(self, folder: Path, metadata: dict) -> None:
        """Write `cfg.json` and `sae_weights.safetensors` as SAELens 6 reads them."""
        config = {
            "architecture": "standard", "d_in": self.d_in, "d_sae": self.d_sae, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.0.0"} | metadata,
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cfg.json").write_text(json.dumps(config, indent=1))
        save_file({name: getattr(self, name).detach().float().cpu().contiguous() for name in SHAPES}, folder / "sae_weights.safetensors")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "SparseAutoencoder":
        """Read such a folder; `ArtefactError` names what is missing, unknown or of the wrong shape."""
        folder = Path(folder)
        try:
            config = json.loads((folder / "cfg.json").read_text())
            tensors = load_file(folder / "sae_weights.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtefactError(f"{folder} is not a readable autoencoder ({error}); expected cfg.json and sae_weights.safetensors in SAELens' layout") from None
        if config.get("architecture") != "standard":
            raise ArtefactError(f"{folder}/cfg.json: architecture {config.get('architecture')!r} is not supported; expected 'standard'")
        if not config.get("apply_b_dec_to_input", True) or config.get("normalize_activations", "none") != "none":
            raise ArtefactError(f"{folder}/cfg.json: expected apply_b_dec_to_input true and normalize_activations 'none'")
        sizes = {"d_in": config.get("d_in"), "d_sae": config.get("d_sae")}
        expected = {name: tuple(sizes[axis] for axis in axes) for name, axes in SHAPES.items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ArtefactError(f"{folder}/sae_weights.safetensors holds {found}; expected {expected}")
        sae = cls(**sizes)
        with torch.no_grad():
            for name, tensor in tensors.items():
                getattr(sae, name).copy_(tensor)
        return sae.to(device).requires_grad_(False)
