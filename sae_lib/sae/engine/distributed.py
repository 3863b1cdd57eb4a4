"""Several processes of torchrun: each harvests its own share of the text, and gradients are
averaged; or the features are split over them, see `split.py`.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WAIT = timedelta(days=2)  # for the first process, which makes tokens and language model alone


def start() -> None:
    """Join the other processes where torchrun has started this one; does nothing otherwise."""
    if "RANK" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=WAIT)
        # gloo's threads may still hold a tensor when the interpreter ends, and then abort the
        # process (pytorch/pytorch#179291): they end while it is whole.
        atexit.register(dist.destroy_process_group)


def rank_and_world_size() -> tuple[int, int]:
    """(number of this process, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process goes through the block alone; the others follow, and find what it has
    made.
    """
    rank, size = rank_and_world_size()
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and size > 1:
        dist.barrier()


@torch.no_grad()
def average_gradients(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


@torch.no_grad()
def all_reduce_metrics(measured: Any) -> Any:
    """What a step measured (a `StepResult`) over all processes: means, and every feature that fired
    anywhere.
    """
    fired, means = measured.fired.float(), measured._asdict()
    del means["fired"]
    values = torch.stack([mean.to(measured.l1) for mean in means.values()])
    dist.all_reduce(values)
    dist.all_reduce(fired, dist.ReduceOp.MAX)
    means = zip(means, values / dist.get_world_size(), strict=True)
    return measured._replace(**dict(means), fired=fired > 0)


def any_process(flag: bool, now: bool = True) -> bool:
    """Whether the flag is set in any process, so that all of them do the same; they ask each other
    only `now`.
    """
    alone = rank_and_world_size()[1] == 1
    if alone or not now:
        return flag and alone
    highest = torch.tensor(float(flag))
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return highest.item() > 0


@torch.no_grad()
def broadcast_from_rank0(tensors: list[Tensor]) -> None:
    """Every process takes over the first one's values; nothing to do for one process."""
    if rank_and_world_size()[1] == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor, 0)


class Replicas:
    """How processes work together: each has all features, and batches of its own. What splits the
    features instead is in `split.py`.
    """

    def replica(self) -> tuple[int, int]:
        """(which share of the text this process trains on, of how many)."""
        return rank_and_world_size()

    def source(self, hook: Any) -> Any:
        """What this process reads activations from."""
        return hook

    def store(self, store: Any) -> Any:
        """Where it keeps checkpoints."""
        return store

    def share(self, sae: Any, recipe: Any) -> Any:
        """What of a fresh autoencoder it trains."""
        broadcast_from_rank0(list(sae.parameters()))
        return sae

    def combined(self, sae: Any, measured: Any) -> Any:
        """What a step measured in all, after its gradients, too, are made those of all."""
        if rank_and_world_size()[1] == 1:
            return measured
        average_gradients([p for p in sae.parameters() if p.grad is not None])
        return all_reduce_metrics(measured)

    def mean(self, value: Tensor) -> Tensor:
        """Of a number that each has for its features."""
        return value

    def due(self, due: bool, step: int) -> bool:
        """Whether it is time for a checkpoint."""
        return due

    def whole(self, sae: Any) -> Any:
        """The trained autoencoder with all its features, in the first process."""
        return sae


TEAM = Replicas()
