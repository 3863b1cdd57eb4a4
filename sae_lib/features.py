"""The feature table: two streaming passes over held-out text, then the text around each example."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lib import evaluation, language_model, training
from sae_lib.activations import HookPoint, Source, harvest
from sae_lib.device import device_of
from sae_lib.dictionaries import (
    Dictionary,
    Directions,
    Neurons,
    activations_of,
    active,
    principal_directions,
    random_directions,
)
from sae_lib.feature_examples import examples_table
from sae_lib.feature_statistics import BINS, TENTHS, Chunk, FirstPass, SecondPass
from sae_lib.feature_weights import aligned, logit_effects, nearest
from sae_lib.progress import tqdm
from sae_lib.recipes import variant
from sae_lib.runs import Run, keep_freed_memory, writing
from sae_lib.settings import FeatureSettings
from sae_lib.tokenizer import separator_id
from sae_lib.tokens import open_tokens

BASELINES = ("neurons", "random", "principal")
OUTLYING = 10.0  # times the median norm: activations this long, as on attention sinks, are marked
REFERENCE_TOKENS = (
    8192  # that the median norm and the neurons' means are taken from, spread over the text
)
DIRECTION_TOKENS = (
    131_072  # that thresholds of directions are taken from, or fewer where they would not fit …
)
DIRECTION_VALUES = 1 << 26  # … into so many activations of neurons
VALUES_AT_ONCE = 1 << 27  # activations of features, most of them zero, that may exist together
TOKENS_SHOWN, NEAR, NEURONS_SHOWN = 10, 10, 5


def make_features(run: Run, name: str = "") -> Path:
    """The `features` stage: `features.parquet` and `examples.parquet` of an autoencoder of the run, or of one of `BASELINES`.

    "neurons" are the hook's own dimensions; "random" and "principal" are directions, see `make_directions`.
    """
    name = name or run.settings.sae.recipe
    folder, s = run.folder / "features" / name, run.settings
    sae = variant(s, s.sae.recipe if name in BASELINES else name)
    upstream = (
        language_model.lm_made_from(run) | {"hook_name": sae.hook_name}
        if name == "neurons"
        else training.sae_made_from(run, sae)
    )
    made_from = upstream | {
        "evaluation": s.evaluation.model_dump(),
        "features": s.features.model_dump(),
    }
    with run.making(folder, made_from, cheap=True) as missing:
        if missing:
            _make(run, name, folder, made_from)
    return folder


def _make(run: Run, name: str, folder: Path, made_from: dict) -> None:
    s = run.settings
    sae = variant(s, s.sae.recipe if name in BASELINES else name)
    training.make_autoencoder(run, "" if name in BASELINES else name)
    hook = HookPoint(language_model.load(run), sae.hook_name)
    rows = evaluation.heldout_rows(run, s.evaluation.tokens)
    directions = name in ("random", "principal")
    dictionary = (
        make_directions(run, hook, name, rows) if directions else load_dictionary(run, name)
    )
    keep_freed_memory()
    features, examples = build(
        hook, dictionary, rows, open_tokens(run).tokenizer, s.features, s.seed
    )
    with writing(folder, made_from) as out:
        features.to_parquet(out / "features.parquet", compression="zstd")
        pq.write_table(examples, out / "examples.parquet", compression="zstd")
        if directions:
            tensors = {
                "directions": dictionary.W_dec,
                "centre": dictionary.centre,
                "threshold": dictionary.threshold,
            }
            save_file(
                {key: value.cpu().contiguous() for key, value in tensors.items()},
                out / "directions.safetensors",
            )


def load_features(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / "features.parquet"), pd.read_parquet(
        folder / "examples.parquet"
    )


def load_dictionary(run: Run, name: str = "") -> Dictionary:
    """What a feature table of that name is about, made first where it is not there."""
    if name == "neurons":
        return Neurons(training.load_autoencoder(run).d_in, device_of(run))
    if name in BASELINES:
        stored = load_file(make_features(run, name) / "directions.safetensors", str(device_of(run)))
        return Directions(stored["directions"], stored["centre"], stored["threshold"])
    return training.load_autoencoder(run, name)


def make_directions(
    run: Run, hook: HookPoint, name: str, rows: Integer[np.ndarray, "row position"]
) -> Directions:
    """Directions to hold the run's autoencoder against, each as rarely active as one of its features, on a sample of `rows`.

    "random": as many as it has features; the i-th has the i-th feature's density. "principal": the principal components in both
    senses; the largest has the density of the densest feature and so on down, through evenly spaced quantiles of those alive. No
    direction is active below the mean, so that half of all tokens or so is the most that a density can be.
    """
    density = load_features(make_features(run))[0]["density"].to_numpy()
    d_in = training.load_autoencoder(run).d_in
    wanted = max(1, min(DIRECTION_TOKENS, DIRECTION_VALUES // d_in) // rows.shape[1])
    x = harvest(hook, _spread(rows, wanted)).float()
    if name == "random":
        directions = random_directions(x, len(density), run.settings.seed)
    else:
        directions = principal_directions(x)
        alive = density[density > 0]
        density = np.quantile(alive if len(alive) else density, np.linspace(1, 0, directions.d_sae))
    return directions.at_density(x, torch.from_numpy(density).to(x.device))


@dataclass(frozen=True)
class Marks:
    """Which positions are marked: the first of a row, padding, and those whose activations are longer than `OUTLYING` × the median."""

    centre: Float[Tensor, " d_in"]
    median_norm: float
    padding: int | None

    @classmethod
    def measured(
        cls, hook: Source, rows: Integer[np.ndarray, "row position"], padding: int | None
    ) -> "Marks":
        """From a few rows spread over the text, so that it does not depend on how the text is cut into chunks."""
        x = harvest(hook, _spread(rows, max(2, REFERENCE_TOKENS // rows.shape[1]))).float()
        behind_the_first = x.view(-1, rows.shape[1], x.shape[1])[:, min(1, rows.shape[1] - 1) :]
        return cls(x.mean(0), behind_the_first.norm(dim=-1).median().item(), padding)

    def of(
        self, x: Float[Tensor, "n d_in"], ids: Integer[np.ndarray, "row position"]
    ) -> Bool[np.ndarray, " n"]:
        marked = (x.norm(dim=1) > OUTLYING * self.median_norm).cpu().numpy().reshape(ids.shape)
        marked[:, 0] = True
        return (marked | (ids == self.padding) if self.padding is not None else marked).reshape(-1)


def stream(
    hook: Source,
    dictionary: Dictionary,
    rows: np.ndarray,
    marks: Marks,
    keep_marked: bool,
    desc: str,
) -> Iterator[tuple[Chunk, Float[Tensor, "n d_in"]]]:
    """The active pairs of `rows`, a few rows at a time: fewer where there are more features."""
    length = rows.shape[1]
    step = max(1, min(evaluation.ROWS_AT_ONCE, VALUES_AT_ONCE // dictionary.d_sae // length))
    for first in tqdm(range(0, len(rows), step), desc=desc):
        ids = rows[first : first + step].astype(np.int64)
        x = harvest(hook, ids).float()
        token, feature, value = (t.cpu().numpy() for t in active(dictionary, x))
        marked = marks.of(x, ids)
        before = np.concatenate([np.full((len(ids), 1), -1), ids[:, :-1]], 1).reshape(-1)
        left_out = np.zeros_like(marked) if keep_marked else marked
        yield (
            Chunk(first * length, ids.reshape(-1), before, marked, left_out, token, feature, value),
            x,
        )


@torch.no_grad()
def build(
    hook: Source,
    dictionary: Dictionary,
    rows: Integer[np.ndarray, "row position"],
    tokenizer,
    s: FeatureSettings,
    seed: int = 0,
) -> tuple[pd.DataFrame, pa.Table]:
    """(features, examples): a row per feature, row i is feature i; a row per example of one, see `examples_table`.

    Marked positions (see `Marks`) are left out of the top examples, of `maximum`, of the top tokens, of the tokens before and of
    the correlations, unless `keep_marked`; all else counts every token. A feature's range is (0, maximum_all]: `histogram` counts
    its activations in 40 equal parts of it, `tenths` are their shares in ten, and `samples` of each tenth are among the examples.
    `near_*` go by decoder cosine; `aligned_*` and `correlated_*` are neurons, by weight and by Pearson correlation of activations.
    """
    d_sae, vocab = dictionary.d_sae, int(rows.max()) + 1
    pad = tokenizer.pad_token_id
    marks = Marks.measured(hook, rows, pad if pad != separator_id(tokenizer) else None)
    one, marked = FirstPass(d_sae, vocab, s.top_k, marks.centre), np.zeros(rows.size, bool)
    for chunk, x in stream(hook, dictionary, rows, marks, s.keep_marked, "features: maxima"):
        one.update(chunk, x)
        marked[chunk.first :][: len(chunk.marked)] = chunk.marked
    two = SecondPass(one, s.samples, seed)
    for chunk, _ in stream(hook, dictionary, rows, marks, s.keep_marked, "features: tenths"):
        two.update(chunk)
    up, down = logit_effects(hook, dictionary.W_dec, s.logits)
    n_active, strongest = np.maximum(one.counts, 1), one.top.tokens[:, 0]
    shown = tokenizer.batch_decode(rows.reshape(-1)[strongest.clip(0)][:, None].tolist())
    top_tokens, top_sums = two.token_sums.largest(TOKENS_SHOWN)
    columns = {
        "feature": np.arange(d_sae),
        "density": one.counts / one.n,
        "n_active": one.counts,
        "maximum": one.top.values[:, 0],
        "maximum_all": one.maximum,
        "mean_active": one.sums / n_active,
        "marked_share": one.marked_counts / n_active,
        "histogram": two.histogram.tolist(),
        "tenths": (
            two.histogram.reshape(d_sae, TENTHS, BINS // TENTHS).sum(2) / n_active[:, None]
        ).tolist(),
        "top_token": [
            token if place >= 0 else None for token, place in zip(shown, strongest, strict=True)
        ],
        "top_tokens": top_tokens,
        "top_token_counts": [one.occurrences[t] for t in top_tokens],
        "top_token_means": [
            total / one.occurrences[t] for t, total in zip(top_tokens, top_sums, strict=True)
        ],
    }
    pairs = {
        "top_logits top_logit_values": (t.tolist() for t in up),
        "bottom_logits bottom_logit_values": (t.tolist() for t in down),
        "before_tokens before_counts": two.before_counts.largest(TOKENS_SHOWN),
        "near_features near_cosines": nearest(dictionary.W_dec, NEAR),
        "aligned_neurons aligned_values": aligned(dictionary.W_dec, NEURONS_SHOWN),
        "correlated_neurons correlated_values": (t.tolist() for t in one.correlated(NEURONS_SHOWN)),
    }
    for names, values in pairs.items():
        columns |= dict(zip(names.split(), values, strict=True))
    return pd.DataFrame(columns), examples_table(
        hook, dictionary, rows, one.top, two.samples, marked, s
    )


def whole_row(
    run: Run, name: str, feature: int, row: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(token ids, activations of the feature) of the whole row that an example of the table `name` stands in.

    It opens the model; with one at hand, `row_activations` of `evaluation.heldout_rows(run, …)[row]` is the same.
    """
    ids = evaluation.heldout_rows(run, run.settings.evaluation.tokens)[row].astype(np.int64)
    hook = HookPoint(language_model.load(run), run.settings.sae.hook_name)
    return ids, row_activations(
        hook, load_dictionary(run, name), torch.from_numpy(ids), feature
    ).cpu().numpy()


@torch.no_grad()
def row_activations(
    hook: Source, dictionary: Dictionary, token_ids: Int[Tensor, " n"], feature: int
) -> Float[Tensor, " n"]:
    """A feature's activation on every token of a text."""
    x = hook.activations(token_ids[None].to(hook.device))[0].float()
    return activations_of(dictionary, x, torch.tensor([feature], device=x.device))[:, 0]


@torch.no_grad()
def ablation_effect(
    hook: HookPoint, dictionary: Dictionary, token_ids: Int[Tensor, " n"], feature: int
) -> Float[Tensor, " n"]:
    """By how much the loss (nats) of predicting each token rises when the feature is taken out on all of them; 0 for the first.

    Only its own part is subtracted from the activations, x − f · W_dec: what the autoencoder does not reconstruct stays.
    """
    ids = token_ids[None].long().to(hook.device)

    def without(x: Float[Tensor, "row position d_in"]) -> Float[Tensor, "row position d_in"]:
        f = activations_of(dictionary, x[0].float(), torch.tensor([feature], device=x.device))
        return x - (f * dictionary.W_dec[feature]).to(x.dtype)

    before = _losses(hook, ids)
    with hook.replaced(without):
        return torch.cat([before.new_zeros(1), _losses(hook, ids) - before])


def _losses(hook: HookPoint, ids: Int[Tensor, "1 n"]) -> Float[Tensor, " m"]:
    logits = hook.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return F.cross_entropy(logits, ids[0, 1:], reduction="none")


def _spread(rows: np.ndarray, n: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]
