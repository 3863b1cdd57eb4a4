"""Where a run computes, and in which precision that is fast."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import torch
from torch import Tensor

from sae_lib.errors import SettingsError


def gpus() -> list[str]:
    """The GPUs that torch can use here; tests put a simulated one in their place."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(found)]


def on_gpu(device: torch.device | str) -> bool:
    """Whether what is done there runs beside this process, with memory of its own."""
    return torch.device(device).type != "cpu"


def gpu_module(device: torch.device) -> ModuleType:
    """`torch.cuda`, or what does its work for a GPU of another kind: streams, memory, waiting."""
    return torch.get_device_module(device)


def device_of(name: str = "auto") -> torch.device:
    """The device of `settings.device`; `SettingsError` lists those there are."""
    found = gpus()
    devices = ["cpu", *({gpu.partition(":")[0] for gpu in found})]
    name = devices[-1] if name == "auto" else name
    devices += found
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
    fast = gpu_module(device).is_bf16_supported() if on_gpu(device) else fast_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Inside, matrix products are made in this precision."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def memory_of(device: torch.device) -> int:
    """Bytes of the device: of a GPU, or of this machine or its container."""
    if on_gpu(device):
        return gpu_module(device).get_device_properties(device).total_memory
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no container, or "max": no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def in_float32(parameters: int) -> bool:
    """Whether a CPU holds a model of so many parameters in float32: where that takes at most half
    of the memory. In its own precision the weights stay in their files, mapped.
    """
    return 4 * parameters <= memory_of(torch.device("cpu")) / 2


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; to a GPU by way of page-locked memory, without waiting for what the
    GPU still has to do.
    """
    tensor, away = torch.from_numpy(array), on_gpu(device)
    return (tensor.pin_memory() if away else tensor).to(device, non_blocking=away)


def made_ahead(
    make: Callable[[int], tuple[Tensor, ...]], first: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """make(first), make(first + 1) and so on; on a GPU each on a stream of its own, beside what is
    done with the one before, which the caller lets go when it is done with it. The GPU waits where
    it has to, and the host never.
    """
    if not on_gpu(device):
        yield from map(make, count(first))
    gpu = gpu_module(device)
    stream, used = gpu.Stream(device), gpu.current_stream(device)

    def started(number: int) -> tuple[Tensor, ...]:
        stream.wait_stream(used)
        with gpu.stream(stream):
            return make(number)

    ahead = started(first)
    for number in count(first + 1):
        used.wait_stream(stream)
        for tensor in ahead:
            tensor.record_stream(used)
        made, ahead = ahead, started(number)
        yield made
        del made  # before the next is begun: no more than two exist at a time


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias without a gradient. On a CPU oneDNN makes it: elsewhere than on Intel's,
    torch's own takes 1.2 (AVX2) to 2.4 (AVX-512) times as long.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.cpu._is_avx2_supported():
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class CentredLinear(torch.autograd.Function):
    """(x − b_dec) W_encᵀ + b_enc, with one product less in the backward pass than autograd's: the
    gradient into b_dec is made from that into b_enc, and not from one per activation.
    """

    @staticmethod
    def forward(ctx, x, b_dec, W_enc_T, b_enc):
        centred = x - b_dec
        z = torch.nn.functional.linear(centred, W_enc_T, b_enc)
        ctx.save_for_backward(centred.to(z.dtype), W_enc_T)
        return z

    @staticmethod
    def backward(ctx, grad):
        centred, W_enc_T = ctx.saved_tensors
        into_b_enc = grad.sum(0, dtype=W_enc_T.dtype)
        into_W_enc_T = (grad.T @ centred).to(W_enc_T.dtype)
        return None, -torch.mv(W_enc_T.T, into_b_enc), into_W_enc_T, into_b_enc


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from this seed on the CPU and on `device`; outside nothing changes."""
    forked = {"devices": []}
    if on_gpu(device):
        forked = {"devices": [device], "device_type": device.type}
    with torch.random.fork_rng(**forked):
        torch.manual_seed(seed)
        yield


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if on_gpu(device):
        gpu_module(device).synchronize(device)


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
