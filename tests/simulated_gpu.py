"""A GPU without a GPU: real numbers on the CPU, in tensors that say that they lie on `gpu:0`.

What CUDA refuses is refused: a CPU tensor beside one of the device. What makes the host wait for
the device (`.item()`, `nonzero`, a boolean index, a copy to the CPU, an upload that blocks) is
counted in `LOG.waits` by the line of `sae_lib` or `suite` that did it; launches of kernels and
uploads are counted too, and so is the device's memory.

torch can register one such device in a process, for good: `tests/on_simulated_gpu.py` therefore
runs in a process of its own.
"""

import contextlib
import os
import traceback
import types
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.active_pairs import ActivePairs

NAME, MEMORY = "gpu", 24 << 30
OURS = (f"{os.sep}sae_lib{os.sep}", f"{os.sep}suite{os.sep}", f"{os.sep}tests{os.sep}on_")
aten = torch.ops.aten

# kernels of their own are not launched by …
VIEWS = set(
    "view _unsafe_view t transpose permute expand slice select unsqueeze squeeze detach alias"
    " as_strided split split_with_sizes unbind empty empty_like empty_strided new_empty"
    " new_empty_strided _reshape_alias lift_fresh unfold diagonal narrow is_pinned"
    " _local_scalar_dense set_ resize_".split()
)
# the host waits for the result or for its size
WAITS = set(
    "_local_scalar_dense nonzero masked_select item equal unique _unique2 unique_dim"
    " unique_consecutive repeat_interleave is_nonzero bincount _linalg_eigh".split()
)
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
ACROSS = {"_to_copy", "copy_", "_pin_memory", "to", "copy", "lift_fresh", "_copy_from"}
PLAIN = {"_local_scalar_dense", "is_pinned", "equal", "is_nonzero", "_fused_sdp_choice"}


class Log:
    """What happened on the device since `reset`."""

    def __init__(self):
        self.live = self.peak = 0
        self.capturing, self.strict = None, False
        self.reset()

    def reset(self) -> None:
        self.kernels, self.waits, self.uploads = Counter(), Counter(), Counter()
        self.peak = self.live

    def wait(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if self.strict:
            raise RuntimeError(f"called a synchronizing operation: {what}")
        self.waits[f"{what} {where()}"] += 1

    def freed(self, n_bytes: int) -> None:
        self.live -= n_bytes

    def forget_peak(self, device=None) -> None:
        self.peak = self.live


def where() -> str:
    """The innermost line of ours that is being executed."""
    ours = [f for f in traceback.extract_stack() if any(part in f.filename for part in OURS)]
    return f"{os.path.basename(ours[-1].filename)}:{ours[-1].name}" if ours else "elsewhere"


LOG = Log()


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)

    def manual_seed_all(self, seed):
        pass  # numbers are drawn on the CPU, whose seed torch has set


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(f"{NAME}:0")


class Stream:
    """Everything happens at once here; the order in which streams wait is kept for the tests."""

    def __init__(self, device=None):
        self.waited_for = []

    def wait_stream(self, other) -> None:
        self.waited_for.append(other)


class Graph:
    """What a stream was given while it was captured: every operation with the very tensors that it
    read and wrote, which a replay reads and writes again. Python numbers are as they were then.
    """

    def __init__(self):
        self.operations, self.before = [], {}

    def record(self, func, args, kwargs, out) -> None:
        self.operations.append((func, args, kwargs, out))

    def keep(self, func, args) -> None:
        """What `func` will write into: a capture records and runs nothing, so it is put back."""
        for spec, value in zip(func._schema.arguments, args, strict=False):
            if spec.alias_info is not None and spec.alias_info.is_write:
                for tensor in tree_flatten(value)[0]:
                    storage = tensor.untyped_storage()
                    self.before.setdefault(storage._cdata, (storage, storage.clone()))

    def replay(self) -> None:
        LOG.kernels["graph"] += 1
        for func, args, kwargs, out in self.operations:
            again, first = tree_flatten(func(*args, **kwargs))[0], tree_flatten(out)[0]
            if func.overloadpacket.__name__.startswith(("empty", "new_empty")):
                continue
            given = {
                t.untyped_storage()._cdata
                for t in tree_flatten((args, kwargs))[0]
                if isinstance(t, torch.Tensor)
            }
            for old, new in zip(first, again, strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage()._cdata not in given:
                    old.copy_(new)


@contextlib.contextmanager
def capture(graph: Graph, stream: Stream):
    LOG.capturing = graph
    try:
        yield
    finally:
        LOG.capturing = None
        for storage, before in graph.before.values():
            storage.copy_(before)


DEFAULT_STREAM = Stream()
MODULE = types.SimpleNamespace(
    Stream=Stream,
    CUDAGraph=Graph,
    graph=capture,
    current_stream=lambda device=None: DEFAULT_STREAM,
    stream=lambda stream: contextlib.nullcontext(),
    synchronize=lambda device=None: LOG.wait("synchronize"),
    is_bf16_supported=lambda: True,
    get_device_properties=lambda device: types.SimpleNamespace(total_memory=MEMORY),
    set_sync_debug_mode=lambda mode: setattr(LOG, "strict", mode == "error"),
    reset_peak_memory_stats=LOG.forget_peak,
    max_memory_allocated=lambda device=None: LOG.peak,
)


def _autocast_products() -> list[torch.library.Library]:
    """Matrix products in autocast's precision and sums in float32, as CUDA has them."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    fall_through = torch.library.Library("_", "IMPL")
    fall_through.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL")

    def cast_to(op, dtype):
        def cast(*args, **kwargs):
            with torch._C._ExcludeDispatchKeyGuard(key):
                wanted = dtype or torch.get_autocast_dtype(NAME)

                def to(value):
                    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
                    return value.to(wanted) if floating and value.dtype != wanted else value

                return op(*tree_map(to, args), **kwargs)

        return cast

    for name in ("linear", "matmul", "mm", "addmm", "bmm", "scaled_dot_product_attention"):
        library.impl(name, cast_to(getattr(aten, name).default, None), "AutocastPrivateUse1")
    for name in ("sum", "sum.dim_IntList", "pow.Tensor_Scalar"):
        op, _, overload = name.partition(".")
        op = getattr(getattr(aten, op), overload or "default")
        library.impl(name, cast_to(op, torch.float32), "AutocastPrivateUse1")
    return [fall_through, library]


_LIBRARIES = _autocast_products()


class DeviceTensor(torch.Tensor):
    """A tensor of the device around the CPU tensor that has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem, requires_grad=False):
        layout = {}
        if elem.layout == torch.strided:
            layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset()}
            _count(elem.untyped_storage())
        options = {"dtype": elem.dtype, "layout": elem.layout, "device": DEVICE}
        made = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), **layout, **options, requires_grad=requires_grad
        )
        made.elem = elem
        return made

    def __repr__(self):
        return f"DeviceTensor({self.elem})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


_counted: dict[int, weakref.finalize] = {}


def _count(storage: torch.UntypedStorage) -> None:
    """Add a storage to the device's memory until it is freed."""
    key = storage._cdata
    if key in _counted and _counted[key].alive:
        return
    n_bytes = storage.nbytes()
    LOG.live += n_bytes
    LOG.peak = max(LOG.peak, LOG.live)
    _counted[key] = weakref.finalize(storage, LOG.freed, n_bytes)


def _check_devices(func, name: str, args, off: list[torch.Tensor]) -> None:
    wrong = [tensor for tensor in off if tensor.dim() > 0]
    if name in INDEXING and isinstance(args[0], DeviceTensor):
        if wrong:  # CUDA takes CPU indices, with a hidden copy, but not CPU values
            LOG.wait(f"{name} with CPU indices")
        wrong = [tensor for tensor in wrong if any(tensor is value for value in args[2:])]
    if wrong:
        shapes = [tuple(tensor.shape) for tensor in wrong]
        raise RuntimeError(f"all tensors must be on the same device: {func} mixes cpu {shapes}")


def _count_waits(name: str, args, kwargs, on: list, target) -> None:
    to_device = target is not None and target.type == NAME
    if on and name in WAITS:
        LOG.wait(name)
    if on and name in INDEXING:
        if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
            LOG.wait(f"boolean {name}")
    if name == "_to_copy" and on and target is not None and target.type == "cpu":
        LOG.wait("to cpu")
    if name == "_to_copy" and not on and to_device:
        LOG.uploads[where()] += 1
        if not kwargs.get("non_blocking"):
            LOG.wait("blocking upload")
    if name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
        LOG.wait("copy_ across")


def _on_cpu(value):
    return value.elem if isinstance(value, DeviceTensor) else value


def _on_device(value):
    bare = isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor)
    return DeviceTensor(value) if bare else value


def run(func, args, kwargs):
    """One operation: refused where CUDA would refuse it, counted, and done on the CPU."""
    name = func.overloadpacket.__name__
    flat, _ = tree_flatten((args, kwargs))
    on = [t for t in flat if isinstance(t, DeviceTensor)]
    off = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, DeviceTensor)]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    to_device = target is not None and target.type == NAME
    to_cpu = target is not None and target.type == "cpu"
    if on and off and name not in ACROSS:
        _check_devices(func, name, args, off)
    _count_waits(name, args, kwargs, on, target)
    if name == "_pin_memory":
        return args[0]
    a, k = tree_map(_on_cpu, (args, kwargs))
    if target is not None:
        k["device"] = "cpu"
    k.pop("pin_memory", None)
    if (on or to_device) and name not in VIEWS:
        LOG.kernels[name] += 1
    capturing = LOG.capturing if on or to_device else None
    if capturing is not None:
        capturing.keep(func, a)
    out = func(*a, **k)
    if capturing is not None:
        capturing.record(func, a, k, out)
    if name in PLAIN:
        return out
    if name == "copy_":
        return args[0]
    if not (to_device or (on and not to_cpu)):
        return out
    out = tree_map(_on_device, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if on else out


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextlib.contextmanager
def simulated(monkeypatch):
    """Inside, `device: auto` is the simulated device for everything in `sae_lib` and `suite`."""
    tolist, record = torch.Tensor.tolist, torch.Tensor.record_stream

    def counted_tolist(self):
        if isinstance(self, DeviceTensor):
            LOG.wait("tolist")
            return self.elem.tolist()
        return tolist(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", counted_tolist)
        patch.setattr(
            torch.Tensor,
            "record_stream",
            lambda self, stream: record(self, stream) if type(self) is torch.Tensor else None,
        )
        patch.setattr("sae_lib.device.gpus", lambda: [str(DEVICE)])
        for module in ("sae_lib.device", "sae_lib.sae.engine.captured", "benchmarks.gpu"):
            patch.setattr(f"{module}.gpu_module", lambda device: MODULE)
        # torch.tensor(…, device=…) is made on the CPU and moved: what a dispatch mode can see
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with Mode():
                yield LOG
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


class Peak(TorchDispatchMode):
    """The most bytes that exist on the device at a time: under FakeTensorMode, which computes
    nothing, of models of any size.

    What depends on numbers is made up: no two that are read are the same; of a row of so many
    activations `active[width]` are above zero, 64 unless said otherwise; and masks keep everything.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.read = 0
        self.active: dict[int, int] = {}
        self.seen: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.read += 1
            return self.read
        shape = None
        if name == "nonzero":
            width = args[0].shape[-1]
            per_row = self.active.get(width, 64) if args[0].dim() > 1 else width
            shape = (args[0].numel() // width * per_row, args[0].dim())
        elif name == "bincount":
            shape = ([*args, *kwargs.values()][-1],)  # minlength
        elif name == "index" and getattr(args[1][0], "dtype", None) == torch.bool:
            mask = args[1][0]
            shape = (mask.numel(), *args[0].shape[mask.dim() :])
        if shape is None:
            out = func(*args, **kwargs)
        else:
            out = args[0].new_empty(shape, dtype=args[0].dtype if name == "index" else torch.int64)
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == NAME:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.live += n_bytes
            self.peak = max(self.peak, self.live)
            self.seen[key] = weakref.finalize(storage, self._freed, key, n_bytes)

    def _freed(self, key: int, n_bytes: int) -> None:
        self.live -= n_bytes
        del self.seen[key]


def zeros_of(tensor: torch.Tensor) -> np.ndarray:
    """Stands for a fake tensor's numbers on the host."""
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


def moved(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`module.to(device)`, which refuses fake parameters."""
    for name, parameter in list(module.named_parameters()):
        setattr(
            module, name, torch.nn.Parameter(parameter.data.to(device), parameter.requires_grad)
        )
    return module


@contextlib.contextmanager
def fake_memory():
    """Inside, tensors have sizes and no numbers; gives what counts their bytes on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTensorMode, "avoid_device_init", property(lambda self: True))
        patch.setattr(torch.Tensor, "numpy", zeros_of)
        patch.setattr(FakeTensor, "tolist", lambda tensor: zeros_of(tensor).tolist())
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr("sae_lib.device.gpu_module", lambda device: MODULE)
        patch.setattr(SparseAutoencoder, "to", moved)
        # fake sparse tensors do not exist; a table that takes no memory gives products of its shape
        patch.setattr(
            ActivePairs, "csr", lambda pairs, shape: pairs.value.new_empty(1).expand(shape)
        )
        with FakeTensorMode(allow_non_fake_inputs=True), Peak() as peak:
            yield peak
