"""A training step as one CUDA graph: launching its seventy kernels one by one takes the host longer
than a GPU takes to run them, where the autoencoder is small.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_lib.device import gpu_module, on_gpu
from sae_lib.sae.engine.distributed import rank_and_world_size

LARGEST = 2**26  # weights of a matrix in an autoencoder whose step is captured
WARM_UP = 3  # calls before the capture, in which libraries and the optimiser make what they keep


class Captured:
    """A function whose calls replay what the GPU did in one of them.

    So the host may decide nothing by its inputs, which reach it as tensors, and all that it keeps
    has to be written in place. Calls with `dead` features, whose number changes, are made as they
    are.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.function, self.device, self.calls = function, device, 0
        self.graph: Any = None

    def __call__(self, *inputs: Tensor | float, dead: Tensor | None = None) -> Any:
        self.calls += 1
        if self.calls <= WARM_UP or (dead is not None and len(dead)):
            return self.function(*self._tensors(inputs), dead=dead)
        if self.graph is None:
            self._capture(self._tensors(inputs))
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value) if isinstance(value, Tensor) else static.fill_(value)
        self.graph.replay()
        return self.outputs

    def _tensors(self, inputs: tuple[Tensor | float, ...]) -> list[Tensor]:
        """Numbers as tensors of the device, made there, so that nothing waits."""
        full = torch.full
        return [x if isinstance(x, Tensor) else full((), x, device=self.device) for x in inputs]

    def _capture(self, inputs: list[Tensor]) -> None:
        gpu = gpu_module(self.device)
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = gpu.CUDAGraph()
        # records and runs nothing; its stream says on which device
        with gpu.graph(self.graph, stream=gpu.Stream(self.device)):
            self.outputs = self.function(*self.inputs)


def captured(function: Callable[..., Any], weights: Tensor) -> Callable[..., Any]:
    """The function, as a `Captured` one where a GPU can do that, no other process takes part, and
    the `weights` it trains are at most `LARGEST`: beyond that launching takes no share of a step,
    and the graph's own memory, beside that of steps with dead features, is what a card lacks.
    """
    device = weights.device
    alone = rank_and_world_size()[1] == 1 and weights.numel() <= LARGEST
    possible = alone and on_gpu(device) and hasattr(gpu_module(device), "CUDAGraph")
    return Captured(function, device) if possible else function
