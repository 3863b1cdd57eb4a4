"""Where a run computes, and in which precision that is fast."""

import ctypes
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from sae_lib.errors import SettingsError
from sae_lib.settings import Settings

GIB = 1 << 30


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


def check_memory(settings: Settings, device: torch.device, prefix: str = "") -> None:
    """`SettingsError` where a model's weights, gradients and Adam moments alone exceed the memory: the system would kill the process."""
    lm, sae, have = settings.lm, settings.sae, memory_of(device)
    d_in = lm.d_mlp if "mlp.hook_post" in sae.hook_name else lm.d_model
    width, shown = max(sae.d_sae, *sae.widths, 0), settings.features
    examples = width * (shown.top_k + 10 * shown.samples)  # of the feature table, 12 bytes each
    for names, size in (
        ("sae.d_sae, sae.widths or lm.d_mlp", 16 * 2 * width * d_in),
        (
            "lm.d_model, lm.d_mlp or lm.n_layer",
            16 * lm.n_layer * lm.d_model * (4 * lm.d_model + 2 * lm.d_mlp),
        ),
        ("features.top_k, features.samples or sae.d_sae", 12 * examples),
    ):
        if size > have:
            raise SettingsError(
                f"{prefix}{names}: {size / GIB:,.0f} GiB of memory are needed, and {device} has {have / GIB:,.0f}; choose less"
            )


def memory_of(device: torch.device) -> int:
    """Bytes of the device: of a GPU, or of this machine or its container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no container, or "max": no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; to a GPU by way of page-locked memory, without waiting for what the GPU still has to do."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias without a gradient. On a CPU oneDNN makes it: elsewhere than on Intel's, torch's own takes 1.2 (AVX2) to 2.4 (AVX-512) times as long."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.cpu._is_avx2_supported():
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


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
