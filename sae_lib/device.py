"""Where a run computes, and in which precision that is fast."""

import torch

from sae_lib.errors import SettingsError
from sae_lib.runs import Run


def device_of(run: Run) -> torch.device:
    """The device of `settings.device`; `SettingsError` lists those there are."""
    found = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    name = run.settings.device if run.settings.device != "auto" else "cuda" if "cuda" in found else "cpu"
    if name not in found:
        raise SettingsError(f"device: {name!r} cannot be used here; there are: auto, {', '.join(found)}")
    return torch.device(name)


def precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies in it at speed, else float32; `name` decides unless it is "auto"."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if fast_bfloat16() else torch.float32


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 several times as fast as float32."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
