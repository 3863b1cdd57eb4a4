"""How well a dictionary explains a hook's activations, on held-out documents only. Active means f > 0, everywhere."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lib import language_model, training
from sae_lib.activations import HookPoint, Source, harvest
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.device import device_of
from sae_lib.recipes import variants
from sae_lib.runs import Run
from sae_lib.tokens import open_tokens

ROWS_AT_ONCE = 64
ALIVE = 100  # activations on the evaluation set, the original's own threshold


class Neurons:
    """The neurons themselves as features: the baseline that goes through the same code."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu"):
        self.d_in = self.d_sae = d_in
        self.W_dec = torch.eye(d_in, device=device)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts


Dictionary = SparseAutoencoder | Neurons  # what can be evaluated


def heldout_rows(run: Run, n_tokens: int) -> np.ndarray:
    """At most `n_tokens` held-out tokens as rows [row, position], spread evenly over the held-out documents."""
    rows = open_tokens(run).rows("heldout", run.settings.lm.context)
    wanted = max(1, n_tokens // rows.shape[1])
    return rows if wanted >= len(rows) else rows[np.linspace(0, len(rows) - 1, wanted).astype(int)]


def chunks(hook: Source, rows: np.ndarray, desc: str) -> Iterator[tuple[int, Float[Tensor, "n d_in"]]]:
    """(number of the first token, activations) over `rows`, `ROWS_AT_ONCE` rows at a time."""
    for i in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc=desc):
        yield i * rows.shape[1], harvest(hook, rows[i : i + ROWS_AT_ONCE]).float()


@torch.no_grad()
def firing(hook: Source, dictionary: Dictionary, rows: np.ndarray) -> dict:
    """L0, density and the squared error over all of `rows`, in one pass.

    FVU = Σ‖x − x̂‖² / Σ‖x − mean(x)‖² over the whole set; `mse` is the mean over tokens and dimensions.
    """
    counts, l0 = torch.zeros(dictionary.d_sae, dtype=torch.int64), []
    error, total, squares, n = 0.0, 0.0, 0.0, 0
    for _, x in chunks(hook, rows, "firing"):
        feature_acts = dictionary.encode(x)
        token, feature, value = active(feature_acts)
        counts += torch.bincount(feature, minlength=dictionary.d_sae).cpu()
        l0.append(torch.bincount(token, minlength=len(x)).cpu())
        error += (x - _decode(dictionary, feature_acts, (token, feature, value))).pow(2).sum().item()
        total, squares, n = total + x.sum(0, dtype=torch.float64), squares + x.double().pow(2).sum().item(), n + len(x)
    mean, l0 = total / n, torch.cat(l0).float()
    density = counts.double() / n
    return {
        "tokens": n,
        "l0_mean": l0.mean().item(),
        "l0_median": l0.median().item(),
        "fvu": error / (squares - n * mean.pow(2).sum().item()),
        "mse": error / (n * dictionary.d_in),
        "dead_share": (counts == 0).double().mean().item(),
        "alive": int((counts >= ALIVE).sum()),
        "density_median": density.median().item(),
        "density": density.numpy(),
        "mean_activation": mean.float(),
    }


def active(feature_acts: Float[Tensor, "n d_sae"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, " k"]]:
    """The active (token, feature, value) triples, token by token: a table of thousands of features is nearly empty."""
    flat = feature_acts.view(-1).nonzero().squeeze(-1)
    value = feature_acts.view(-1)[flat]
    flat, value = flat[value > 0], value[value > 0]
    return flat // feature_acts.shape[1], flat % feature_acts.shape[1], value


def _decode(dictionary: Dictionary, feature_acts: Tensor, triples: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """`dictionary.decode`, on the CPU as a sparse product of the active triples."""
    if feature_acts.device.type != "cpu" or isinstance(dictionary, Neurons):
        return dictionary.decode(feature_acts)
    token, feature, value = triples
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(token, minlength=len(feature_acts)).cumsum(0)])
    return torch.addmm(dictionary.b_dec, torch.sparse_csr_tensor(starts, feature, value, feature_acts.shape, check_invariants=False), dictionary.W_dec)


@torch.no_grad()
def loss_recovered(hook: HookPoint, dictionary: Dictionary, rows: np.ndarray, mean: Float[Tensor, " d_in"]) -> dict:
    """Cross-entropy (nats/token) clean, with the reconstruction spliced in, and with the hook ablated to zero or the mean.

    Recovered share = (ablated − spliced) / (ablated − clean); KL(clean ‖ spliced) in nats per token.
    """
    replacements = {
        "spliced": lambda x: dictionary.decode(dictionary.encode(x.float())).to(x.dtype),
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x.dtype).expand_as(x),
    }
    sums, n = dict.fromkeys(["clean", *replacements, "kl"], 0.0), 0
    for i in tqdm(range(0, len(rows), ROWS_AT_ONCE // 4), desc="loss recovered"):
        tokens = torch.from_numpy(rows[i : i + ROWS_AT_ONCE // 4].astype(np.int64)).to(hook.device)
        clean = _log_probabilities(hook, tokens)
        sums["clean"] += _nll(clean, tokens)
        for name, change in replacements.items():
            with hook.replaced(change):
                changed = _log_probabilities(hook, tokens)
            sums[name] += _nll(changed, tokens)
            if name == "spliced":
                sums["kl"] += F.kl_div(changed, clean, log_target=True, reduction="sum").item()
        n += tokens[:, 1:].numel()
    ce = {name: value / n for name, value in sums.items()}
    recovered = {f"recovered_{k}": (ce[k] - ce["spliced"]) / (ce[k] - ce["clean"]) for k in ("zero", "mean")}
    return {f"ce_{k}": ce[k] for k in ("clean", "spliced", "zero", "mean")} | {"kl": ce["kl"], "loss_tokens": n} | recovered


def _log_probabilities(hook: HookPoint, tokens: Tensor) -> Float[Tensor, "n vocab"]:
    logits = hook.model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return rearrange(logits.float(), "row position vocab -> (row position) vocab").log_softmax(-1)


def _nll(log_probabilities: Tensor, tokens: Tensor) -> float:
    return -log_probabilities.gather(1, tokens[:, 1:].reshape(-1, 1)).sum().item()


def evaluate(run: Run, hook: HookPoint, dictionary: Dictionary) -> dict:
    """All measures of one dictionary at the run's evaluation settings."""
    s = run.settings.evaluation
    result = firing(hook, dictionary, heldout_rows(run, s.tokens))
    return result | loss_recovered(hook, dictionary, heldout_rows(run, s.loss_tokens), result.pop("mean_activation"))


def evaluate_run(run: Run) -> dict[str, dict]:
    """The `evaluate` stage: every autoencoder of the run and the raw neurons, saved as `results/evaluation*.json`."""
    for name in variants(run.settings):
        training.make_autoencoder(run, name)
    hook = HookPoint(language_model.load(run), run.settings.sae.hook_name)
    made_from = {name: training.sae_made_from(run, sae) for name, sae in variants(run.settings).items()} | {"evaluation": run.settings.evaluation.model_dump()}
    where = "evaluation" if run.parent is None else f"evaluation_{run.folder.name}"
    if (found := run.saved_results(where, made_from)) is not None:
        return found
    results: dict[str, dict] = {}
    for name in variants(run.settings):
        same = training.training_summary(run, name).get("same_as")
        results[name] = results[same] if same else evaluate(run, hook, training.load_autoencoder(run, name))
    results["neurons"] = evaluate(run, hook, Neurons(training.load_autoencoder(run).d_in, device_of(run)))
    run.save_results(where, results, made_from)
    return run.saved_results(where, made_from)
