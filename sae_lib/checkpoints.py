"""Checkpoints of a training loop: safetensors and JSON, written atomically, the last two kept while
they fit, never unpickled.
"""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_lib.device import on_gpu
from sae_lib.errors import ArtefactError, Interrupted, TrainingError
from sae_lib.files import check_same, file_digest, flat, whole_file, write_atomically

KEEP = 2
SECONDS = 600  # after which there is another checkpoint, however many steps it took


def environment_fingerprint(device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    """What the trained weights depend on, to the last bit, besides the settings; a checkpoint is
    continued only under the same. A GPU's do not depend on the threads of the CPU beside it.
    """
    return {
        "torch": torch.__version__,
        "threads": None if on_gpu(device) else torch.get_num_threads(),
        "device": device.type,
        "precision": str(precision).removeprefix("torch."),
    }


@dataclass
class CheckpointFolder:
    """Where one training keeps its checkpoints: the newest is found again by the same settings on
    the same machine.

    `made_from` is what the weights depend on, besides what the training itself adds to it;
    `interrupted` is set where Ctrl-C wants the training
    to save and stop. Without a folder nothing is kept.
    """

    folder: Path | None = None
    made_from: dict[str, Any] = field(default_factory=dict)
    interrupted: threading.Event = field(default_factory=threading.Event)

    def depends_on(self, device: torch.device, precision: torch.dtype, **more: Any) -> None:
        """Further conditions of its checkpoints: the machine, and what `more` names."""
        self.made_from = self.made_from | environment_fingerprint(device, precision) | more


@dataclass
class TrainingState:
    """What a training keeps in a checkpoint: weights, Adam's moments, step and loss curve."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    step: int = 0
    curve: list[dict] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps as safetensors, by dotted names."""
        moments = self.optimiser.state_dict()["state"]
        return flat({"model": self.model.state_dict(), "adam": moments})

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps as JSON."""
        return {"curve": self.curve, "seconds": self.seconds}

    def put_back(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Take over `tensors` and `record` of a checkpoint."""
        self.model.load_state_dict(under("model.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("adam.", tensors).items():
            i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.curve, self.began = record["curve"], time.perf_counter() - record["seconds"]

    @property
    def seconds(self) -> float:
        """How long the training has taken, before and after interruptions."""
        return time.perf_counter() - self.began

    def restore(self, store: CheckpointFolder) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = load_checkpoint(store.folder, store.made_from) if store.folder else None
        if found:
            self.step, tensors, record = found
            self.put_back(tensors, record)

    def due(self, every: int) -> bool:
        """Whether it is time for a checkpoint: every so many steps, and after `SECONDS`."""
        return self.step % every == 0 or time.perf_counter() - self.saved > SECONDS

    def save(self, store: CheckpointFolder, budget_gb: float) -> None:
        """Write a checkpoint, where they are kept."""
        self.saved = time.perf_counter()
        if store.folder:
            made_from, budget = store.made_from, budget_gb * 1e9
            save_checkpoint(
                store.folder, self.step, self.tensors(), self.record(), made_from, budget
            )


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def check_loss(
    what: str, loss: float, limit: float, step: int, folder: Path | None, causes: str
) -> None:
    """`TrainingError` where a loss is not finite or has exploded beyond `limit`, with the step, the
    last good checkpoint and likely causes.
    """
    if loss <= limit:  # false for NaN
        return
    good = "there is no checkpoint yet"
    if folder and (kept := steps(folder)):
        good = (
            f"the last good checkpoint is step {kept[-1]} in {folder}; to try other settings, "
            "choose another run folder"
        )
    raise TrainingError(
        f"{what}: the loss is {loss:.4g} at step {step} (training stops above {limit:.4g}); "
        f"likely causes: {causes}; {good}"
    )


def interrupted_at(what: str, step: int, n_steps: int) -> Interrupted:
    """The error that ends a training whose checkpoint has just been written because of Ctrl-C."""
    return Interrupted(
        f"{what}: interrupted; step {step} of {n_steps} is saved; run the same command to continue"
    )


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    made_from: dict[str, Any],
    budget: float = float("inf"),
) -> None:
    """Write `step-N.safetensors`, then `step-N.json` with its hash. Checkpoints before the last two
    are deleted, or before the last one where two exceed `budget` bytes.

    While the new one is written the one before stays, whatever the budget: there is always a whole
    one. Where three are over it, the one before that goes first.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    path = folder / f"step-{step:08d}.safetensors"
    if (KEEP + 1) * size > budget:
        drop(folder, steps(folder)[:-1])
    with whole_file(path) as scratch:
        save_file(tensors, scratch)  # one after the other, never all of them as bytes
        sha256 = file_digest(scratch)
    record = {"step": step, "sha256": sha256, "state": state, "made_from": made_from}
    write_atomically(path.with_suffix(".json"), json.dumps(record | {"self": _digest(record)}))
    keep = KEEP if KEEP * size <= budget else 1
    drop(folder, steps(folder)[:-keep])


def drop(folder: Path, which: list[int]) -> None:
    """Delete the checkpoints of these steps."""
    for step in which:
        for kind in ("json", "safetensors"):
            (folder / f"step-{step:08d}.{kind}").unlink()


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load_checkpoint(
    folder: Path, made_from: dict[str, Any]
) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint as (step, tensors, state), or None; `ArtefactError` where it is damaged
    or of other settings.
    """
    if not (found := steps(folder)):
        return None
    path = folder / f"step-{found[-1]:08d}.json"
    try:
        record = json.loads(path.read_text())
        if record.pop("self") != _digest(record):
            raise ValueError
        check_same(folder, record["made_from"], json.loads(json.dumps(made_from)))
        if file_digest(path.with_suffix(".safetensors")) != record["sha256"]:
            raise ValueError
        return record["step"], load_file(path.with_suffix(".safetensors")), record["state"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise ArtefactError(
            f"{path.with_suffix('.safetensors')} or {path.name} is damaged (a hash differs); "
            "delete these two files to continue from the checkpoint before"
        ) from None


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in the folder, in order."""
    found = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in folder.glob("step-*.json"))
    return sorted(int(match[1]) for match in found if match)
