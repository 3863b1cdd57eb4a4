"""The feature table: one streaming pass over held-out text, then the text around each top example."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lib import evaluation, language_model, training
from sae_lib.activations import HookPoint, harvest
from sae_lib.device import device_of
from sae_lib.dictionaries import Dictionary, Neurons, activations_of, active
from sae_lib.recipes import variants
from sae_lib.runs import Run, writing
from sae_lib.settings import FeatureSettings
from sae_lib.tokens import Tokens, open_tokens


def make_features(run: Run, name: str = "") -> Path:
    """The `features` stage: `features.parquet` and `examples.parquet` of one autoencoder, or of the raw "neurons"."""
    name = name or run.settings.sae.recipe
    folder, s = run.folder / "features" / name, run.settings
    sae = variants(s)[s.sae.recipe if name == "neurons" else name]
    upstream = language_model.lm_made_from(run) | {"hook_name": sae.hook_name} if name == "neurons" else training.sae_made_from(run, sae)
    made_from = upstream | {"evaluation": s.evaluation.model_dump(), "features": s.features.model_dump()}
    if run.is_made(folder, made_from):
        return folder
    training.make_autoencoder(run, "" if name == "neurons" else name)
    hook = HookPoint(language_model.load(run), sae.hook_name)
    dictionary = Neurons(training.load_autoencoder(run).d_in, device_of(run)) if name == "neurons" else training.load_autoencoder(run, name)
    rows = evaluation.heldout_rows(run, s.evaluation.tokens)
    features, examples = build(hook, dictionary, rows, open_tokens(run), s.features)
    with writing(folder, made_from) as out:
        features.to_parquet(out / "features.parquet", compression="zstd")
        examples.to_parquet(out / "examples.parquet", compression="zstd")
    return folder


def load_features(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / "features.parquet"), pd.read_parquet(folder / "examples.parquet")


@dataclass
class TopExamples:
    """The true top k of every feature over everything seen: memory is d_sae × k, however long the stream."""

    values: Float[Tensor, "d_sae k"]
    tokens: Int[Tensor, "d_sae k"]

    @classmethod
    def empty(cls, d_sae: int, k: int) -> "TopExamples":
        return cls(torch.zeros(d_sae, k), torch.full((d_sae, k), -1))

    def update(self, feature: Int[Tensor, " n"], token: Int[Tensor, " n"], value: Float[Tensor, " n"]) -> None:
        """Take in active (feature, token, value) triples; of equal values the earlier token stays."""
        keep = value > self.values[feature, -1]
        feature, token, value = feature[keep], token[keep], value[keep]
        if len(feature) == 0:
            return
        d_sae, k = self.values.shape
        order = value.argsort(descending=True, stable=True)
        order = order[feature[order].argsort(stable=True)]  # by feature, and within it by falling value
        feature, token, value = feature[order], token[order], value[order]
        first = torch.searchsorted(feature, torch.arange(d_sae))
        rank = torch.arange(len(feature)) - first[feature]
        best = rank < k
        values, tokens = torch.zeros(d_sae, k), torch.full((d_sae, k), -1)
        values[feature[best], rank[best]] = value[best]
        tokens[feature[best], rank[best]] = token[best]
        merged, tokens = torch.cat([self.values, values], 1), torch.cat([self.tokens, tokens], 1)
        self.values, chosen = merged.sort(dim=1, descending=True, stable=True)
        self.values, self.tokens = self.values[:, :k], tokens.gather(1, chosen[:, :k])


@torch.no_grad()
def build(hook: HookPoint, dictionary: Dictionary, rows: np.ndarray, tokens: Tokens, s: FeatureSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(features, examples): a row per feature with density, maximum and logit effects; a row per top example with its text."""
    d_sae = dictionary.d_sae
    top = TopExamples.empty(d_sae, s.top_k)
    counts, sums = torch.zeros(d_sae, dtype=torch.int64), torch.zeros(d_sae, dtype=torch.float64)
    for first, x in evaluation.chunks(hook, rows, "features"):
        token, feature, value = (t.cpu() for t in active(dictionary, x))
        counts += torch.bincount(feature, minlength=d_sae)
        sums.index_add_(0, feature, value.double())
        top.update(feature, token + first, value)
    n = rows.size
    up, down = logit_effects(hook, dictionary.W_dec, s.logits)
    table = pd.DataFrame(
        {
            "feature": np.arange(d_sae),
            "density": (counts.double() / n).numpy(),
            "n_active": counts.numpy(),
            "maximum": top.values[:, 0].numpy(),
            "mean_active": (sums / counts.clamp_min(1)).numpy(),
            "top_logits": up[0].tolist(),
            "top_logit_values": up[1].tolist(),
            "bottom_logits": down[0].tolist(),
            "bottom_logit_values": down[1].tolist(),
        }
    )
    examples = _contexts(hook, dictionary, rows, top, s)
    strongest = examples[examples["rank"] == 0].set_index("feature")
    table["top_token"] = table["feature"].map(strongest["token_id"]).map(lambda t: None if pd.isna(t) else tokens.tokenizer.decode([int(t)]))
    return table, examples


def _contexts(hook: HookPoint, dictionary: Dictionary, rows: np.ndarray, top: TopExamples, s: FeatureSettings) -> pd.DataFrame:
    """The window of tokens around each top example, with the feature's activation on every one of them."""
    feature, rank = (top.tokens >= 0).nonzero(as_tuple=True)
    row, position = top.tokens[feature, rank] // rows.shape[1], top.tokens[feature, rank] % rows.shape[1]
    order = row.argsort(stable=True)
    feature, rank, row, position = (t[order].numpy() for t in (feature, rank, row, position))
    records = []
    starts = np.searchsorted(row, np.arange(0, len(rows) + evaluation.ROWS_AT_ONCE, evaluation.ROWS_AT_ONCE))
    for chunk, (begin, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        if begin == end:
            continue
        first = chunk * evaluation.ROWS_AT_ONCE
        acts = harvest(hook, rows[first : first + evaluation.ROWS_AT_ONCE]).float().view(-1, rows.shape[1], dictionary.d_in)
        by_row = np.split(np.arange(begin, end), np.flatnonzero(np.diff(row[begin:end])) + 1)
        for members in by_row:
            r = row[members[0]]
            strength = activations_of(dictionary, acts[r - first], torch.from_numpy(feature[members])).cpu().numpy()
            for m, column in zip(members, strength.T, strict=True):
                window = slice(max(0, position[m] - s.context), position[m] + s.after + 1)
                records.append((feature[m], rank[m], column[position[m]], r, position[m], position[m] - window.start, rows[r, position[m]], rows[r, window], column[window]))
    columns = ["feature", "rank", "activation", "row", "position", "focus", "token_id", "token_ids", "activations"]
    return pd.DataFrame(records, columns=columns).sort_values(["feature", "rank"], ignore_index=True)


@torch.no_grad()
def logit_effects(hook: HookPoint, W_dec: Float[Tensor, "d_sae d_in"], k: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The k tokens whose logits a feature raises and lowers most, each as (token ids [d_sae, k], effects [d_sae, k]).

    The feature's direct path: decoder row → down projection (for an MLP hook) → final norm's weight → unembedding, centred
    over the vocabulary. The norm's division by its input's size is left out: it scales all logits of a token alike.
    """
    if hook.name.endswith("mlp.hook_pre"):  # what a push there does depends on the activation function's state
        none = torch.zeros(len(W_dec), 0)
        return (none.long(), none), (none.long(), none)
    embed_out = hook.model.get_output_embeddings().weight.float()
    final_norm = getattr(hook.model.base_model, "ln_f", None) or hook.model.base_model.norm
    write_out = _into_residual(hook)
    tops, bottoms = [], []
    for part in W_dec.split(1024):
        residual = part.to(embed_out.device) @ write_out if write_out is not None else part
        if isinstance(final_norm, nn.LayerNorm):
            residual = residual - residual.mean(-1, keepdim=True)
        effects = (residual * final_norm.weight.float()) @ embed_out.T
        effects -= effects.mean(-1, keepdim=True)
        tops.append(effects.topk(k, dim=-1))
        bottoms.append(effects.topk(k, dim=-1, largest=False))
    return tuple((torch.cat([t.indices for t in ts]).cpu(), torch.cat([t.values for t in ts]).cpu()) for ts in (tops, bottoms))


def _into_residual(hook: HookPoint) -> Float[Tensor, "d_in d_model"] | None:
    """The matrix that carries the hook's activations into the residual stream; None where they are in it already."""
    if not hook.name.endswith("mlp.hook_post"):
        return None
    weight = hook.module.weight.float()  # GPT-2's Conv1D stores [in, out], nn.Linear [out, in]
    return weight.T if isinstance(hook.module, nn.Linear) else weight
