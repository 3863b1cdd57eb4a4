"""Where a run computes, and in which precision that is fast."""

import ctypes
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from sae_lib.errors import SettingsError


def device_of(name: str = "auto") -> torch.device:
    """The device of `settings.device`; `SettingsError` lists those there are."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    name = devices[-1] if name == "auto" else name
    devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if name not in devices:
        raise SettingsError(
            f"device: {name!r} cannot be used here; there are: auto, {', '.join(devices)}"
        )
    return torch.device(name)


def precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies in it at speed, else float32; `name` decides unless it
    is "auto".
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if fast_bfloat16() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Inside, matrix products are made in this precision."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def memory_of(device: torch.device) -> int:
    """Bytes of the device: of a GPU, or of this machine or its container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no container, or "max": no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; to a GPU by way of page-locked memory, without waiting for what the
    GPU still has to do.
    """
    tensor, on_gpu = torch.from_numpy(array), device.type == "cuda"
    return (tensor.pin_memory() if on_gpu else tensor).to(device, non_blocking=on_gpu)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias without a gradient. On a CPU oneDNN makes it: elsewhere than on Intel's,
    torch's own takes 1.2 (AVX2) to 2.4 (AVX-512) times as long.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.cpu._is_avx2_supported():
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 several times as fast as float32, and torch was
    not told to use less of it.
    """
    return (
        torch.backends.mkldnn.is_available()
        and torch.cpu._is_avx512_bf16_supported()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep what a training step frees: giving it back and faulting it in again costs
    a CPU step a tenth of its time.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: all blocks come from the heap, those above 32 MiB too
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: which is not trimmed
