"""How well a dictionary explains a hook's activations, on held-out documents only. Active means
f > 0, everywhere.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_lib.features.firing import (
    ALIVE,
    VALUES_AT_ONCE,
    Dictionaries,
    Rows,
    batches,
    rows_at_once,
    spread_rows,
)
from sae_lib.features.statistics import interval
from sae_lib.model.activations import ActsByRow, HookPoint, Source
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, reconstruction
from sae_lib.settings import EvaluationSettings

LOSS_ROWS_AT_ONCE = 16  # whose logits, clean and changed, exist together


@torch.no_grad()
def density_and_error(
    hook: Source, dictionaries: Dictionaries, rows: Rows
) -> tuple[dict[str, dict], Float[Tensor, " d_in"]]:
    """By dictionary: L0, density and the squared error over all of `rows`, in one pass; and the
    mean of what is reconstructed.

    `dead_share` of the features never fire here; `alive`, a count, at least `ALIVE` times. FVU =
    Σ‖x − x̂‖² / Σ‖x − mean(x)‖² over the whole set; `mse` is the mean over tokens and dimensions.
    Activations that `hook.left_out` leaves out count nowhere, `left_out` says how many.
    """
    counts = {name: torch.zeros(d.d_sae, dtype=torch.int64) for name, d in dictionaries.items()}
    l0: dict[str, list[Tensor]] = {name: [] for name in dictionaries}
    error, total, squares, n = dict.fromkeys(dictionaries, 0.0), 0.0, 0.0, 0
    for batch in batches(hook, dictionaries, rows, "firing"):
        counted = slice(None) if batch.kept is None else batch.kept
        target = batch.x
        for name, dictionary in dictionaries.items():
            pairs = batch.pairs[name]
            counts[name] += torch.bincount(pairs.column, minlength=dictionary.d_sae).cpu()
            l0[name].append(torch.bincount(pairs.row, minlength=len(batch.x))[counted].cpu())
            made = reconstruction(dictionary, batch.x, pairs)
            target = batch.x[:, -made.shape[1] :]  # a transcoder's is y of [x, y], the others' all
            error[name] += (target - made)[counted].pow(2).sum().item()
        counted_target = target[counted]
        n += len(counted_target)
        total = total + counted_target.sum(0, dtype=torch.float64)
        squares += counted_target.double().pow(2).sum().item()
    mean, results = total / n, {}
    for name, n_active in counts.items():
        density, sizes = n_active.double() / n, torch.cat(l0[name]).float()
        results[name] = {
            "tokens": n,
            "left_out": rows.size - n,
            "l0_mean": sizes.mean().item(),
            "l0_median": sizes.median().item(),
            "fvu": error[name] / (squares - n * mean.pow(2).sum().item()),
            "mse": error[name] / (n * len(mean)),
            "dead_share": (n_active == 0).double().mean().item(),
            "alive": int((n_active >= ALIVE).sum()),
            "density_median": density.median().item(),
            "density": density.numpy(),
        }
    return results, mean.float()


@torch.no_grad()
def loss_recovered(
    hook: HookPoint,
    dictionaries: Dictionaries,
    rows: Rows,
    mean: Float[Tensor, " d_in"],
    documents: Rows | None = None,
    leader: str = "",
) -> dict[str, dict]:
    """By dictionary: cross-entropy (nats/token) clean, with its reconstruction spliced in, and with
    the hook ablated to zero or the mean.

    Recovered share = (ablated − spliced) / (ablated − clean); KL(clean ‖ spliced) in nats per
    token. 95 % intervals are bootstraps over `documents`, which say of each token where it is from
    (None: over rows); `behind` is by how much less than the dictionary `leader` is recovered (mean
    ablation), paired by document.
    """
    changes = {
        "ce_clean": lambda x: None,
        "ce_zero": torch.zeros_like,
        "ce_mean": lambda x: mean.to(x.dtype).expand(*x.shape[:-1], -1),
    }
    changes |= {("ce", name): partial(_spliced, d) for name, d in dictionaries.items()}
    if documents is None:
        documents = np.indices(rows.shape)[0]
    sums, losses = _losses(hook, changes, rows, documents)
    n, results = rows[:, 1:].size, {}
    ce = {name: sums[name] / n for name in ("ce_clean", "ce_zero", "ce_mean")}
    for name in dictionaries:
        spliced, between = sums["ce", name] / n, partial(_interval, losses, ("ce", name))
        results[name] = ce | {
            "ce_spliced": spliced,
            "kl": sums["kl", name] / n,
            "loss_tokens": n,
            "recovered_zero": (ce["ce_zero"] - spliced) / (ce["ce_zero"] - ce["ce_clean"]),
            "recovered_mean": (ce["ce_mean"] - spliced) / (ce["ce_mean"] - ce["ce_clean"]),
            "recovered_zero_interval": between("ce_zero", "ce_zero"),
            "recovered_mean_interval": between("ce_mean", "ce_mean"),
        }
        if leader:
            behind = (spliced - sums["ce", leader] / n) / (ce["ce_mean"] - ce["ce_clean"])
            ends = _interval(losses, ("ce", leader), ("ce", name), "ce_mean")
            results[name]["behind"] = {"difference": behind, "interval": ends}
    return results


def _losses(
    hook: HookPoint, changes: dict, rows: Rows, documents: Rows
) -> tuple[Counter, dict[Any, Float[np.ndarray, " source"]]]:
    """(sums over the tokens, sums by document) of the cross-entropy with each change at the hook;
    and of KL(clean ‖ changed) for dictionaries, whose names are pairs.
    """
    sources = np.unique(documents[:, 1:], return_inverse=True)[1].reshape(rows[:, 1:].shape)
    sums, losses = Counter(), {name: np.zeros(sources.max() + 1) for name in changes}
    step = rows_at_once(LOSS_ROWS_AT_ONCE, hook.model.config.vocab_size * rows.shape[1])
    for i in tqdm(range(0, len(rows), step), desc="loss recovered"):
        of = sources[i : i + step].ravel()
        part = rows[i : i + step].astype(np.int64)
        tokens = torch.from_numpy(part).to(hook.device)
        for name, change in changes.items():
            with hook.replaced(partial(_on_text, hook, part, change)):
                changed = _log_probabilities(hook, tokens)
            nll = -changed.gather(1, tokens[:, 1:].reshape(-1, 1)).squeeze(1)
            sums[name] += nll.sum().item()
            losses[name] += np.bincount(of, nll.cpu().numpy(), len(losses[name]))
            if name == "ce_clean":
                clean = changed
            elif isinstance(name, tuple):
                kl = F.kl_div(changed, clean, log_target=True, reduction="sum")
                sums["kl", name[1]] += kl.item()
    return sums, losses


def _interval(losses: dict, spliced, reference, ablated: str) -> tuple[float, float]:
    """Of (reference − spliced) / (ablated − clean), resampling documents."""
    names = (reference, spliced, ablated, "ce_clean")
    return interval([losses[name] for name in names], _ratio, paired=True)


def _ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int = -1):
    return (a.sum(axis) - b.sum(axis)) / (c.sum(axis) - d.sum(axis))


def _on_text(hook: HookPoint, rows: Rows, change: Callable, x: Tensor) -> Tensor | None:
    """The change, but for the activations that are left out: they stay."""
    changed = change(x)
    if changed is None or hook.left_out is None:
        return changed
    return torch.where(hook.left_out.kept(rows, x)[..., None], changed, x)


def _spliced(dictionary: Dictionary, x: ActsByRow) -> Float[Tensor, "row position d_out"]:
    at_once = max(1, VALUES_AT_ONCE // dictionary.d_sae)
    parts = x.float().flatten(0, 1).split(at_once)
    return (
        torch.cat([reconstruction(dictionary, part) for part in parts])
        .unflatten(0, x.shape[:2])
        .to(x.dtype)
    )


def _log_probabilities(hook: HookPoint, tokens: Tensor) -> Float[Tensor, "n vocab"]:
    return hook.logits(tokens)[:, :-1].float().flatten(0, 1).log_softmax(-1)


def evaluate(
    hook: HookPoint,
    dictionaries: Dictionaries,
    rows: Rows,
    s: EvaluationSettings,
    documents: Rows | None = None,
    compare: tuple[str, Callable[[float], Dictionaries]] | None = None,
) -> dict[str, dict]:
    """All measures of each dictionary on held-out `rows`: densities on `s.tokens` of them,
    losses on `s.loss_tokens`; `documents` as for `loss_recovered`.

    `compare` is the name of a dictionary, and what gives the dictionaries that it is held against
    at its L0: its `baselines`, all on the tokens of the losses.
    """
    results, mean = density_and_error(hook, dictionaries, spread_rows(rows, s.tokens))
    name, at_equal_l0 = compare or ("", None)
    baselines = at_equal_l0(results[name]["l0_mean"]) if at_equal_l0 else {}
    chosen = spread_rows(rows, s.loss_tokens)
    sources = None if documents is None else spread_rows(documents, s.loss_tokens)
    losses = loss_recovered(hook, dictionaries | baselines, chosen, mean, sources, name)
    results = {of: result | losses[of] for of, result in results.items()}
    if baselines:
        compared, _ = density_and_error(hook, {name: dictionaries[name]} | baselines, chosen)
        results[name]["baselines"] = {
            of: {measure: found[measure] for measure in ("l0_mean", "fvu")} | losses[of]
            for of, found in compared.items()
        }
    return results
