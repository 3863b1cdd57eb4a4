"""The sparse autoencoder, stored in SAELens' own folder layout."""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_lib.device import CentredLinear, on_gpu
from sae_lib.errors import ArtefactError, SettingsError
from sae_lib.files import RECORD, verify

SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}
# and whether each keeps k
ARCHITECTURES = {"standard": False, "topk": True, "batchtopk": True, "jumprelu": False}
OPTIONAL = {"threshold": ("d_sae",), "W_skip": ("d_in", "d_in")}


class SparseAutoencoder(nn.Module):
    """f = σ((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec.

    σ by `architecture`: "standard" ReLU (Bricken et al. 2023); "topk" ReLU of the `k` largest of
    each activation (Gao et al. 2024); "batchtopk" ReLU of the k·n largest of a batch of n, for
    training (Bussmann et al. 2024); "jumprelu" z where z > `threshold`, else 0 (Rajamanoharan et
    al. 2024). A feature is one column of `W_enc` and the same row of `W_dec`; it is active where f
    > 0.
    """

    # SAELens' names of architectures, and what they are here
    SAVED_AS: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"architecture": name} for name in ("standard", "topk", "jumprelu")
    }
    subtracts_b_dec = True  # from what it encodes
    dense = False  # whether only dense steps train it

    def __init__(self, d_in: int, d_sae: int, architecture: str = "standard", k: int = 0):
        super().__init__()
        if architecture not in ARCHITECTURES or (ARCHITECTURES[architecture] and k < 1):
            chosen = " or ".join(name for name, chooses in ARCHITECTURES.items() if chooses)
            raise SettingsError(
                f"there is no autoencoder of architecture {architecture!r} with k = {k}; expected"
                f" one of {', '.join(ARCHITECTURES)}; {chosen} with k of at least 1"
            )
        self.architecture, self.k = architecture, k
        # Kept transposed: a feature's weights lie together, as sparse gradients and the fused
        # optimiser want them.
        self.W_enc_T = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_parameter("W_skip", None)  # of a skip transcoder, see transcoder.py
        # batchtopk does not train with it: it is what decides from `for_inference` on
        if architecture in ("jumprelu", "batchtopk"):
            self.threshold = nn.Parameter(torch.zeros(d_sae))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder as the formula has it; a view, so that writing into it writes the
        parameter.
        """
        return self.W_enc_T.T

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    # From here to `set_output_gradients`: what the two subclasses change. `Transcoder`
    # (transcoder.py) is given [x, y], an MLP's input and output beside each other, encodes x as it
    # is and decodes to y: `pre_activations`, `encoded_part`, `target`, `set_output_gradients`, and
    # below `forward`, `fold_scale` and `save`. `SplitAutoencoder` (engine/split.py) has one
    # process's share of the features, so that sums and choices over all features take all
    # processes: `centre`, `total`, `keep_largest`.

    def pre_activations(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_sae"]:
        """z = (x − b_dec) W_enc + b_enc, of which σ makes f. For training on a GPU it has a
        backward pass of its own, with one product less.
        """
        if on_gpu(x.device) and torch.is_grad_enabled():
            return CentredLinear.apply(x, self.centre, self.W_enc_T, self.b_enc)
        return torch.nn.functional.linear(self.encoded_part(x), self.W_enc_T, self.b_enc)

    def encoded_part(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
        """What the encoder's weights are multiplied with: here x − b_dec."""
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"each activation has {x.shape[-1]} numbers; this autoencoder reads {self.d_in}"
            )
        return x - self.centre

    @property
    def centre(self) -> Float[Tensor, " d_in"]:
        """What is subtracted before encoding."""
        return self.b_dec

    def total(self, decoded: Tensor) -> Tensor:
        """What all features decode to, from what those held here decode to: here all are."""
        return decoded

    def keep_largest(self, z: Float[Tensor, "*n m"], k: int) -> Float[Tensor, "*n m"]:
        """ReLU of the k largest of each row (of all, for a flat z), else 0."""
        largest = z.topk(min(k, z.shape[-1]))
        return torch.zeros_like(z).scatter(-1, largest.indices, largest.values.relu())

    def target(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
        """What the reconstruction is compared with: here x itself."""
        return x

    def set_output_gradients(self, into_output: Tensor, encoded: Tensor) -> None:
        """In a sparse step, set the gradient of `b_dec` (of a skip transcoder also of `W_skip`)
        once those of the other parameters are set.

        `into_output` [n, d_in] is the loss's gradient into x̂, `encoded` [n, d_in] what
        `encoded_part` gave, which only a skip needs. b_dec is added to x̂ and subtracted from x:
        ∂/∂b_dec = Σ_n ∂/∂x̂ − W_enc Σ_n ∂/∂z, and the latter sum is the gradient of b_enc.
        """
        self.b_dec.grad = into_output.sum(0) - self.W_enc @ self.b_enc.grad

    def encode(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_sae"]:
        """f = σ(z), the features' activations."""
        z = self.pre_activations(x)
        if self.architecture == "standard":
            return z.relu()
        if self.architecture == "jumprelu":
            return z * (z > self.threshold)
        if self.architecture == "topk":
            return self.keep_largest(z, self.k)
        n = z.numel() // self.d_sae  # batchtopk: the k·n largest of all n activations together
        return self.keep_largest(z.flatten(), self.k * n).view_as(z)

    def decode(self, feature_acts: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_in"]:
        return self.total(feature_acts @ self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """What was trained on s·x, with s = `scale`, from now on takes x itself.

        (s·x − b_dec) W_enc + b_enc = (x − b_dec/s) (s·W_enc) + b_enc: so f, b_enc and the threshold
        stay as they are. x̂ = (f W_dec + b_dec) / s: so W_dec and b_dec are divided by s, and
        features of norm 1 (rows of W_dec) have the norm 1/s from here on.
        """
        self.W_enc_T *= scale
        self.W_dec /= scale
        self.b_dec /= scale

    @torch.no_grad()
    def for_inference(self) -> None:
        """Make of batchtopk a jumprelu with the threshold that its training has found: a choice
        among a whole batch would make an activation's features depend on its neighbours. The other
        architectures stay as they are.
        """
        if self.architecture == "batchtopk":
            self.architecture, self.k = "jumprelu", 0

    def extra_repr(self) -> str:
        kept = f", k={self.k}" if self.k else ""
        return f"d_in={self.d_in}, d_sae={self.d_sae}, architecture={self.architecture!r}{kept}"

    def save(self, folder: Path | str, metadata: dict | None = None) -> None:
        """Write `cfg.json` and `sae_weights.safetensors` as SAELens 6 reads them; of its
        `metadata`, `hook_name` says where the activations are from.
        """
        if self.architecture == "batchtopk":
            raise SettingsError("batchtopk is for training; call for_inference() before save()")
        folder, arguments = Path(folder), {"architecture": self.architecture}
        arguments |= {} if self.W_skip is None else {"skip": True}
        config = {
            "architecture": next(n for n, of in self.SAVED_AS.items() if of == arguments),
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": self.subtracts_b_dec,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.0.0"} | (metadata or {}),
        }
        if self.architecture == "topk":
            config["k"] = self.k
        if not self.subtracts_b_dec:
            config["d_out"] = self.d_in
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cfg.json").write_text(json.dumps(config, indent=1))
        weights = {name: getattr(self, name).detach() for name in _shapes(**arguments)}
        weights = {name: w.float().cpu().contiguous() for name, w in weights.items()}
        save_file(weights, folder / "sae_weights.safetensors")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "SparseAutoencoder":
        """Read such a folder; `ArtefactError` names what is missing, unknown or misshapen."""
        folder = Path(folder)
        if (folder / RECORD).exists():
            verify(folder)
        try:
            config = json.loads((folder / "cfg.json").read_text())
            tensors = load_file(folder / "sae_weights.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtefactError(
                f"{folder} is not a readable autoencoder ({error}); expected cfg.json and"
                " sae_weights.safetensors in SAELens' layout"
            ) from None
        architecture, k = config.get("architecture"), config.get("k", 0)
        whole = isinstance(k, int) and k >= 1
        if architecture not in cls.SAVED_AS or (architecture == "topk" and not whole):
            raise ArtefactError(
                f"{folder}/cfg.json: architecture {architecture!r} with k {k!r} is not supported;"
                f" expected one of {', '.join(cls.SAVED_AS)}; 'topk' with its k; `load_any` opens"
                " further ones"
            )
        arguments = cls.SAVED_AS[architecture]
        check_plain(folder, config, tensors)
        sizes = {axis: config.get(axis) for axis in ("d_in", "d_sae")}
        shapes = _shapes(**arguments).items()
        expected = {name: tuple(map(sizes.get, axes)) for name, axes in shapes}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ArtefactError(
                f"{folder}/sae_weights.safetensors holds {found}; expected {expected}"
            )
        sae = cls(**sizes, **arguments, k=k)
        with torch.no_grad():
            for name, tensor in tensors.items():
                getattr(sae, name).copy_(tensor)
            # w·x + b is w·(x − b_dec) + (b + w·b_dec)
            if cls.subtracts_b_dec and not config.get("apply_b_dec_to_input", True):
                sae.b_enc += sae.W_enc_T @ sae.b_dec
        return sae.to(device).requires_grad_(False)


def check_plain(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """`ArtefactError` where what SAELens saved scales or reshapes activations, has another
    activation function than its architecture's, or holds a weight that is not finite.
    """
    for key in ("normalize_activations", "reshape_activations"):
        if (value := config.get(key)) not in (None, False, "none"):
            raise ArtefactError(f"{folder}/cfg.json: {key} is {value!r}; expected 'none'")
    function = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if config.get("architecture") == "standard" and function != "relu":
        raise ArtefactError(f"{folder}/cfg.json: activation_fn is {function!r}; expected 'relu'")
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ArtefactError(
            f"{folder}/sae_weights.safetensors: {', '.join(broken)} holds NaN or infinity"
        )


def _shapes(architecture: str, skip: bool = False) -> dict[str, tuple[str, ...]]:
    held = {"threshold": architecture == "jumprelu", "W_skip": skip}
    return SHAPES | {name: shape for name, shape in OPTIONAL.items() if held[name]}
