"""Where a run computes, and in which precision that is fast."""

import ctypes
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from sae_lib.errors import SettingsError


def device_of(name: str = "auto") -> torch.device:
    """The device of `settings.device`; `SettingsError` lists those there are."""
    found = [
        "cpu",
        *(["cuda"] if torch.cuda.is_available() else []),
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
    ]
    if name == "auto":
        name = "cuda" if "cuda" in found else "cpu"
    if name not in found:
        raise SettingsError(
            f"device: {name!r} cannot be used here; there are: auto, {', '.join(found)}"
        )
    return torch.device(name)


def precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies in it at speed, else float32; `name` decides unless it is "auto"."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if fast_bfloat16() else torch.float32


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; to a GPU by way of page-locked memory, without waiting for what the GPU still has to do."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 several times as fast as float32, and torch was not told to use less of it."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.cpu._is_avx512_bf16_supported()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep what a training step frees: giving it back and faulting it in again costs a CPU step a tenth of its time."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: all blocks come from the heap, those above 32 MiB too
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: which is not trimmed
