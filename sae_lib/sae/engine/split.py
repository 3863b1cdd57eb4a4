"""Features split over processes, for a dictionary that one GPU cannot hold: every process keeps
some of the features with their moments, sees every batch, and harvests its share of the text.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from sae_lib.checkpoints import CheckpointFolder, drop, steps
from sae_lib.errors import SettingsError
from sae_lib.model.activations import ActsByRow, Source, TokenIds
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.distributed import (
    Replicas,
    any_process,
    broadcast_from_rank0,
    rank_and_world_size,
)
from sae_lib.sae.objective import StepResult
from sae_lib.sae.recipes import Recipe

AGREE_EVERY = 10  # steps, on whether it is time for a checkpoint: all write it at the same one


class Entering(torch.autograd.Function):
    """What every process computes with: its gradients from all of them are added."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad


class Total(torch.autograd.Function):
    """The sum over all processes, of which each goes on with the same loss."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad


class SplitAutoencoder(SparseAutoencoder):
    """This process's features of an autoencoder, and `b_dec`, which all have alike."""

    dense = True  # its step is autograd's: processes meet in it

    @property
    def centre(self) -> Float[Tensor, " d_in"]:
        return Entering.apply(self.b_dec)

    def total(self, decoded: Tensor) -> Tensor:
        return Total.apply(decoded)

    def keep_largest(self, z: Tensor, k: int) -> Tensor:
        """Of all processes' features: each offers its k largest."""
        offered = z.new_full((*z.shape[:-1], k), -torch.inf)
        own = z.detach().topk(min(k, z.shape[-1])).values
        offered[..., : own.shape[-1]] = own
        everyone = [torch.empty_like(offered) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, offered)
        floor = torch.cat(everyone, -1).topk(k).values[..., -1:]
        return torch.where(z >= floor, z, 0).relu()


class SharedSource:
    """A source that the processes read together: each harvests its share of the rows."""

    def __init__(self, source: Source):
        self.source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def activations(self, tokens: TokenIds) -> ActsByRow:
        rank, size = rank_and_world_size()
        each = -(-len(tokens) // size)
        rows = torch.arange(rank * each, (rank + 1) * each, device=tokens.device) % len(tokens)
        own = self.source.activations(tokens[rows]).contiguous()
        everyone = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(everyone, own)
        return torch.cat(everyone)[: len(tokens)]


class SplitFeatures(Replicas):
    """Every process has features of its own, and all have the same batches."""

    wanted = False  # a checkpoint

    def replica(self) -> tuple[int, int]:
        return 0, 1

    def source(self, hook: Source) -> SharedSource:
        return SharedSource(hook)

    def store(self, store: CheckpointFolder) -> CheckpointFolder:
        """A folder of its own, back at the newest step that all have."""
        rank, size = rank_and_world_size()
        if store.folder is None:
            return store
        folder = store.folder / f"part-{rank}-of-{size}"
        own, kept = steps(folder), [[0]] * size
        dist.all_gather_object(kept, own)
        newest = max(set(own).intersection(*kept), default=0)
        drop(folder, [step for step in own if step > newest])
        return replace(store, folder=folder)

    @torch.no_grad()
    def share(self, sae: SparseAutoencoder, recipe: Recipe) -> SplitAutoencoder:
        """`SettingsError` where a recipe or a number of features cannot be split."""
        rank, size = rank_and_world_size()
        if used := ", ".join(name for name, value in cannot_split(recipe).items() if value):
            raise SettingsError(
                f"sae.recipe {recipe.name}: {used} cannot be split over processes; expected a"
                " recipe such as topk, or sae.resampling=false; or leave --split out"
            )
        if sae.d_sae % size:
            raise SettingsError(
                f"sae.d_sae: {sae.d_sae} features cannot be split over {size} processes alike"
            )
        own = slice(rank * (sae.d_sae // size), (rank + 1) * (sae.d_sae // size))
        made = SplitAutoencoder(sae.d_in, sae.d_sae // size, sae.architecture, sae.k)
        for name, parameter in made.named_parameters():
            every = getattr(sae, name)
            parameter.copy_(every if name == "b_dec" else every[own])
        broadcast_from_rank0([made.b_dec])
        return made

    @torch.no_grad()
    def combined(self, sae: SplitAutoencoder, measured: StepResult) -> StepResult:
        """Sums, the smallest activation, and which of its own features fired."""
        sums = torch.stack([measured.l1, measured.l0.to(measured.l1)])
        dist.all_reduce(sums)
        least = torch.where(measured.smallest > 0, measured.smallest, torch.inf)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        least = torch.where(least.isfinite(), least, 0)
        return measured._replace(l1=sums[0], l0=sums[1], smallest=least)

    def mean(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    def due(self, due: bool, step: int) -> bool:
        """Once it was in any of them; they ask each other now and then."""
        self.wanted |= due
        if step % AGREE_EVERY:
            return False
        wanted, self.wanted = any_process(self.wanted), False
        return wanted

    @torch.no_grad()
    def whole(self, sae: SplitAutoencoder) -> SparseAutoencoder:
        """All features, in the main memory of the first process; the others keep theirs."""
        rank, size = rank_and_world_size()
        n_features = sae.d_sae * size if rank == 0 else 0
        made = SparseAutoencoder(sae.d_in, n_features, sae.architecture, sae.k)
        for name, parameter in sae.named_parameters():
            for of in range(size):
                part = parameter.detach().clone()
                dist.broadcast(part, of)
                if rank == 0:
                    first = 0 if name == "b_dec" else of * sae.d_sae
                    getattr(made, name)[first : first + len(part)] = part.cpu()
        return made if rank == 0 else sae


def cannot_split(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe looks at all features together."""
    return {
        "resampling": recipe.resampling,
        "grad_clip": recipe.grad_clip,
        "prefixes": recipe.prefixes,
        "transcoder": recipe.transcoder,
        "patience": recipe.patience,
        "decoder_norm": recipe.decoder_norm == "dimensions",
    }
