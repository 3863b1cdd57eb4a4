"""How well a dictionary explains a hook's activations, on held-out documents only. Active means f > 0, everywhere."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Tensor

from sae_lib.model.activations import HookPoint, Source, harvest
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, active, reconstruction
from sae_lib.settings import EvaluationSettings

ROWS_AT_ONCE = 64
ALIVE = 100  # activations on the evaluation set, the original's own threshold


def spread_rows(rows: Integer[np.ndarray, "row position"], n_tokens: int) -> np.ndarray:
    """At most `n_tokens` of the text as rows, spread evenly over it."""
    wanted = max(1, n_tokens // rows.shape[1])
    return rows if wanted >= len(rows) else rows[np.linspace(0, len(rows) - 1, wanted).astype(int)]


def chunks(
    hook: Source, rows: np.ndarray, desc: str
) -> Iterator[tuple[int, Float[Tensor, "n d_in"]]]:
    """(number of the first token, activations) over `rows`, `ROWS_AT_ONCE` rows at a time."""
    for i in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc=desc):
        yield i * rows.shape[1], harvest(hook, rows[i : i + ROWS_AT_ONCE]).float()


@torch.no_grad()
def firing(
    hook: Source, dictionaries: dict[str, Dictionary], rows: np.ndarray
) -> tuple[dict[str, dict], Float[Tensor, " d_in"]]:
    """By dictionary: L0, density and the squared error over all of `rows`, in one pass; and the mean activation.

    FVU = Σ‖x − x̂‖² / Σ‖x − mean(x)‖² over the whole set; `mse` is the mean over tokens and dimensions.
    """
    counts = {name: torch.zeros(d.d_sae, dtype=torch.int64) for name, d in dictionaries.items()}
    l0: dict[str, list[Tensor]] = {name: [] for name in dictionaries}
    error, total, squares, n, d_in = dict.fromkeys(dictionaries, 0.0), 0.0, 0.0, 0, 1
    for _, x in chunks(hook, rows, "firing"):
        for name, dictionary in dictionaries.items():
            pairs = active(dictionary, x)
            counts[name] += torch.bincount(pairs.column, minlength=dictionary.d_sae).cpu()
            l0[name].append(torch.bincount(pairs.row, minlength=len(x)).cpu())
            error[name] += (x - reconstruction(dictionary, x, pairs)).pow(2).sum().item()
        total, squares, n, d_in = (
            total + x.sum(0, dtype=torch.float64),
            squares + x.double().pow(2).sum().item(),
            n + len(x),
            x.shape[1],
        )
    mean, results = total / n, {}
    for name in dictionaries:
        density, sizes = counts[name].double() / n, torch.cat(l0[name]).float()
        results[name] = {
            "tokens": n,
            "l0_mean": sizes.mean().item(),
            "l0_median": sizes.median().item(),
            "fvu": error[name] / (squares - n * mean.pow(2).sum().item()),
            "mse": error[name] / (n * d_in),
            "dead_share": (counts[name] == 0).double().mean().item(),
            "alive": int((counts[name] >= ALIVE).sum()),
            "density_median": density.median().item(),
            "density": density.numpy(),
        }
    return results, mean.float()


@torch.no_grad()
def loss_recovered(
    hook: HookPoint,
    dictionaries: dict[str, Dictionary],
    rows: np.ndarray,
    mean: Float[Tensor, " d_in"],
) -> dict[str, dict]:
    """By dictionary: cross-entropy (nats/token) clean, with its reconstruction spliced in, and with the hook ablated to zero or the mean.

    Recovered share = (ablated − spliced) / (ablated − clean); KL(clean ‖ spliced) in nats per token.
    """
    ablations = {"zero": torch.zeros_like, "mean": lambda x: mean.to(x.dtype).expand_as(x)}
    spliced = {
        name: lambda x, d=d: reconstruction(d, x.float().flatten(0, 1)).view_as(x).to(x.dtype)
        for name, d in dictionaries.items()
    }
    shared, ce, kl, n = (
        dict.fromkeys(["clean", *ablations], 0.0),
        dict.fromkeys(spliced, 0.0),
        dict.fromkeys(spliced, 0.0),
        0,
    )
    for i in tqdm(range(0, len(rows), ROWS_AT_ONCE // 4), desc="loss recovered"):
        tokens = torch.from_numpy(rows[i : i + ROWS_AT_ONCE // 4].astype(np.int64)).to(hook.device)
        clean = _log_probabilities(hook, tokens)
        shared["clean"] += _nll(clean, tokens)
        for name, change in ablations.items():
            with hook.replaced(change):
                shared[name] += _nll(_log_probabilities(hook, tokens), tokens)
        for name, change in spliced.items():
            with hook.replaced(change):
                changed = _log_probabilities(hook, tokens)
            ce[name] += _nll(changed, tokens)
            kl[name] += F.kl_div(changed, clean, log_target=True, reduction="sum").item()
        n += tokens[:, 1:].numel()
    results = {}
    for name in spliced:
        nats = {k: v / n for k, v in (shared | {"spliced": ce[name]}).items()}
        recovered = {
            f"recovered_{k}": (nats[k] - nats["spliced"]) / (nats[k] - nats["clean"])
            for k in ablations
        }
        results[name] = (
            {f"ce_{k}": nats[k] for k in ("clean", "spliced", "zero", "mean")}
            | {"kl": kl[name] / n, "loss_tokens": n}
            | recovered
        )
    return results


def mmcs(directions: Float[Tensor, "n d_in"], others: Float[Tensor, "m d_in"]) -> float:
    """Mean over `directions` of the largest cosine with one of `others` (Sharkey et al. 2022); give it living features only."""
    unit = [d / d.norm(dim=1, keepdim=True).clamp_min(1e-8) for d in (directions, others)]
    return torch.cat([(part @ unit[1].T).amax(1) for part in unit[0].split(1024)]).mean().item()


def _log_probabilities(hook: HookPoint, tokens: Tensor) -> Float[Tensor, "n vocab"]:
    logits = hook.model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return rearrange(logits.float(), "row position vocab -> (row position) vocab").log_softmax(-1)


def _nll(log_probabilities: Tensor, tokens: Tensor) -> float:
    return -log_probabilities.gather(1, tokens[:, 1:].reshape(-1, 1)).sum().item()


def evaluate(
    hook: HookPoint,
    dictionaries: dict[str, Dictionary],
    rows: Integer[np.ndarray, "row position"],
    s: EvaluationSettings,
) -> dict[str, dict]:
    """All measures of each dictionary on held-out `rows`: densities on `s.tokens` of them, losses on `s.loss_tokens`."""
    results, mean = firing(hook, dictionaries, spread_rows(rows, s.tokens))
    losses = loss_recovered(hook, dictionaries, spread_rows(rows, s.loss_tokens), mean)
    return {name: result | losses[name] for name, result in results.items()}
