"""What a clamp does over many places in held-out text, held against directions of the same norm that stand for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.features import clamping, evaluation
from sae_lib.features.clamping import Clamp, NextTokens, clamped
from sae_lib.model.activations import HookPoint
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, activations_of, random_directions
from sae_lib.text.display import Vocabulary

ROWS_AT_ONCE = 16
NULLS = ("random directions", "other features")


@dataclass(frozen=True)
class Subject:
    """What a run's clamps are tried on: model and hook, autoencoder, feature table, and places in held-out text."""

    hook: HookPoint
    dictionary: Dictionary
    tokenizer: Any
    vocabulary: Vocabulary
    table: pd.DataFrame
    places: "Places"
    alive: list[int]  # the features of `judged`

    def maximum(self, feature: int) -> float:
        """Its maximum on held-out text; that on marked positions where it fires on no others."""
        f = self.table.loc[feature]
        return float(f["maximum"] or f.get("maximum_all", 0.0))

    def raised(self, feature: int) -> list[int]:
        """The tokens whose logits the feature raises most by itself."""
        return [int(t) for t in self.table["top_logits"][feature]]

    def next_tokens(self, prompt: str, clamps: Sequence[Clamp], **how) -> NextTokens:
        return clamping.next_tokens(
            self.hook, self.tokenizer, self.dictionary, prompt, clamps, **how
        )

    def side_by_side(
        self, prompt: str, clamps: Sequence[Clamp], new_tokens: int, temperature: float, seed: int
    ) -> tuple[Tensor, Tensor, int]:
        return clamping.side_by_side(
            self.hook,
            self.tokenizer,
            self.dictionary,
            prompt,
            clamps,
            new_tokens,
            temperature,
            seed,
        )


@dataclass(frozen=True)
class Effect:
    """KL(clean ‖ clamped) in nats and every token's probability before and after, all as means over the places."""

    kl: float
    before: Float[Tensor, " vocab"]
    after: Float[Tensor, " vocab"]


class Places:
    """Places spread evenly over rows of text, `per_row` in each, with the next token's distribution there when nothing is clamped."""

    @torch.no_grad()
    def __init__(self, hook: HookPoint, rows: np.ndarray, per_row: int = 16):
        self.hook, self.tokens = hook, torch.from_numpy(rows.astype(np.int64)).to(hook.device)
        step = max(1, rows.shape[1] // per_row)
        self.positions = torch.arange(step - 1, rows.shape[1], step, device=hook.device)
        self.clean = self._log_probabilities()
        self.probabilities = self.clean.exp()
        self.before = self.probabilities.mean(0).cpu()

    def __len__(self) -> int:
        return len(self.clean)

    @torch.no_grad()
    def effect(
        self,
        dictionary: Dictionary,
        clamps: Sequence[Clamp],
        keep_error: bool = True,
        directions: Float[Tensor, "n_clamps d_in"] | None = None,
    ) -> Effect:
        """Of clamping at all positions of the text."""
        with clamped(self.hook, dictionary, clamps, keep_error, directions):
            return self._effect()

    @torch.no_grad()
    def effect_of_zero(self) -> Effect:
        """Of setting all activations at the hook to zero: the measure of what the hook matters at all."""
        with self.hook.replaced(torch.zeros_like):
            return self._effect()

    def _effect(self) -> Effect:
        """With d = log q − log p: KL(p ‖ q) = Σ p (eᵈ − 1 − d), whose terms are all ≥ 0, so that a tiny KL is no rounding error."""
        d = self._log_probabilities() - self.clean
        gained = (
            self.probabilities * d.clamp(max=85).expm1()
        )  # of larger d the exponential would overflow
        return Effect(
            (gained - self.probabilities * d).sum(-1).mean().item(),
            self.before,
            self.before + gained.mean(0).cpu(),
        )

    def _log_probabilities(self) -> Float[Tensor, "place vocab"]:
        parts = self.tokens.split(ROWS_AT_ONCE)
        logits = torch.cat(
            [
                self.hook.model(input_ids=t, use_cache=False, logits_to_keep=self.positions).logits
                for t in parts
            ]
        )
        return (
            rearrange(logits, "row position vocab -> (row position) vocab").float().log_softmax(-1)
        )


def value_sweep(
    places: Places,
    dictionary: Dictionary,
    feature: int,
    values: Sequence[float],
    token_ids: Sequence[int],
    others: Sequence[int] = (),
    draws: int = 8,
    seed: int = 0,
    keep_error: bool = True,
) -> pd.DataFrame:
    """The feature pinned to each of `values`, and the same change of its activation written along directions that are not its own.

    Every direction has the norm of the feature's row of `W_dec`: "random directions" are drawn evenly from the sphere, "other features"
    are the rows of features drawn from `others`. Columns: direction, draw, value, kl (nats), probability (of `token_ids` together, after) and
    change (of that probability); kl and probabilities are means over the places.
    """
    written = {
        "feature": [None],
        NULLS[0]: random_directions(dictionary.W_dec, draws, seed).W_dec,
        NULLS[1]: _others(dictionary, feature, others, draws, seed),
    }
    norm, ids = dictionary.W_dec[feature].norm(), torch.tensor(list(token_ids))
    records = []
    for direction, drawn in tqdm(written.items(), desc=f"clamping feature {feature}"):
        for draw, towards in enumerate(drawn):
            for value in values:
                effect = places.effect(
                    dictionary,
                    [Clamp(feature, "pin", float(value))],
                    keep_error,
                    None if towards is None else towards[None] * (norm / towards.norm()),
                )
                probability, before = (
                    effect.after[ids].sum().item(),
                    effect.before[ids].sum().item(),
                )
                records.append(
                    (direction, draw, float(value), effect.kl, probability, probability - before)
                )
    return pd.DataFrame(
        records, columns=["direction", "draw", "value", "kl", "probability", "change"]
    )


def spread(sweep: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and most over the draws: a row per (direction, value), columns kl, kl_least, kl_most, change, change_least, change_most."""
    columns = {
        f"{c}{end}": (c, how)
        for c in ("kl", "change")
        for end, how in (("", "mean"), ("_least", "min"), ("_most", "max"))
    }
    return sweep.groupby(["direction", "value"], sort=False).agg(**columns).reset_index()


def against_null(subject: Subject, feature: int, draws: int, seed: int, movers: int = 5) -> dict:
    """A feature pinned to its maximum, as plain data for the results: KL and the probability of its top-logit tokens, each beside both
    nulls as [mean, least, most], and the tokens that moved most, all over the subject's places."""
    dictionary, places, value, ids = (
        subject.dictionary,
        subject.places,
        subject.maximum(feature),
        torch.tensor(subject.raised(feature)),
    )
    swept = spread(
        value_sweep(places, dictionary, feature, [value], ids.tolist(), subject.alive, draws, seed)
    ).set_index("direction")
    nulls = {
        name: {
            c: [float(row[f"{c}{end}"]) for end in ("", "_least", "_most")]
            for c in ("kl", "change")
        }
        for name, row in swept.iterrows()
        if name != "feature"
    }
    effect = places.effect(dictionary, [Clamp(feature, "pin", value)])
    change = effect.after - effect.before
    gained = change[ids].sum().item()
    return {
        "feature": feature,
        "value": value,
        "kl": effect.kl,
        "nulls": nulls,
        "raised": [subject.vocabulary.name(i) for i in ids.tolist()],
        "probability_before": effect.before[ids].sum().item(),
        "probability_after": effect.after[ids].sum().item(),
        "rose": gained > 0,
        "beyond_nulls": all(gained > null["change"][2] for null in nulls.values()),
        "movers": [
            {
                "token": subject.vocabulary.name(i),
                "before": effect.before[i].item(),
                "after": effect.after[i].item(),
            }
            for i in change.abs().topk(min(movers, len(change))).indices.tolist()
        ],
    }


@torch.no_grad()
def ablation_losses(
    hook: HookPoint,
    dictionary: Dictionary,
    rows: np.ndarray,
    features: Sequence[int],
    at_most: int = 96,
    draws: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """What ablating each feature costs (nats per token) where it is active and, at as many places of the same text, where it is silent.

    Measured in `at_most` of the rows in which it is active at all; features that are silent in all of `rows` are left out. `low` and `high` bound the
    mean by a bootstrap over rows (95 %); `null` is the mean when the same amount is taken away along random directions of the same norm, `null_least`
    and `null_most` its range over `draws`; `hurt` is the share of active places whose loss rises; `silent_most` the largest |change| at a silent place.
    """
    wanted = torch.tensor(list(features), device=hook.device)
    acts = torch.cat(
        [
            activations_of(dictionary, x, wanted).cpu()
            for _, x in evaluation.chunks(hook, rows, "where the features fire")
        ]
    )
    active = (
        acts.view(*rows.shape, len(wanted))[:, :-1] > 0
    )  # the last token of a row predicts none of its tokens
    records = []
    for i, feature in enumerate(tqdm(features, desc="ablation")):
        having = active[:, :, i].any(1).nonzero()[:, 0].numpy()
        if not len(having):
            continue
        chosen = having[
            np.unique(np.linspace(0, len(having) - 1, min(at_most, len(having))).astype(int))
        ]
        where, clamp = active[chosen, :, i], [Clamp(int(feature), "ablate")]
        silent = torch.rand(where.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(
            where, -1
        )  # as many silent places, at random
        silent = (
            silent
            > silent.flatten()
            .sort(descending=True)
            .values[min(int(where.sum()), int((~where).sum()) - 1)]
        )
        measured = where | silent
        clean = _losses(hook, rows[chosen], measured)
        with clamped(hook, dictionary, clamp):
            change = _losses(hook, rows[chosen], measured) - clean
        away = (
            random_directions(dictionary.W_dec, draws, seed).W_dec
            * dictionary.W_dec[feature].norm()
        )
        null = []
        for direction in away:
            with clamped(hook, dictionary, clamp, directions=direction[None]):
                null.append((_losses(hook, rows[chosen], where) - clean)[where].mean().item())
        low, high = _bootstrap(change, where, seed)
        records.append(
            {
                "feature": int(feature),
                "rows": len(chosen),
                "n_active": int(where.sum()),
                "active": change[where].mean().item(),
                "low": low,
                "high": high,
                "hurt": (change[where] > 0).float().mean().item(),
                "null": float(np.mean(null)),
                "null_least": min(null),
                "null_most": max(null),
                "n_silent": int(silent.sum()),
                "silent": change[silent].mean().item(),
                "silent_most": change[silent].abs().max().item(),
            }
        )
    return pd.DataFrame(records)


def _losses(
    hook: HookPoint, rows: np.ndarray, where: Bool[Tensor, "row predicting"]
) -> Float[Tensor, "row predicting"]:
    """The loss of each next token predicted from a place in `where`, 0 elsewhere; only for these are logits made."""
    losses = torch.zeros(where.shape)
    for i in range(0, len(rows), ROWS_AT_ONCE):
        tokens, here = (
            torch.from_numpy(rows[i : i + ROWS_AT_ONCE].astype(np.int64)).to(hook.device),
            where[i : i + ROWS_AT_ONCE].to(hook.device),
        )
        hidden = hook.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        logits = hook.model.get_output_embeddings()(hidden[here]).float()
        losses[i : i + ROWS_AT_ONCE][here.cpu()] = torch.nn.functional.cross_entropy(
            logits, tokens[:, 1:][here], reduction="none"
        ).cpu()
    return losses


def _bootstrap(
    change: Float[Tensor, "row predicting"], where: Tensor, seed: int, times: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of the mean over the places `where`, rows drawn anew with replacement."""
    sums, counts = (change * where).sum(1).numpy(), where.sum(1).numpy()
    drawn = np.random.default_rng(seed).integers(0, len(sums), (times, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def _others(
    dictionary: Dictionary, feature: int, others: Sequence[int], draws: int, seed: int
) -> list[Tensor]:
    candidates = np.setdiff1d(np.asarray(others, dtype=int), [feature])
    return [
        dictionary.W_dec[i]
        for i in np.random.default_rng((seed, feature)).permutation(candidates)[:draws].tolist()
    ]


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The features with at least `evaluation.ALIVE` activations on held-out text; where there is none, those that fire at all."""
    enough = table[table["n_active"] >= evaluation.ALIVE]
    return enough if len(enough) else table[table["n_active"] > 0]


def clear_features(table: pd.DataFrame, n: int, seed: int) -> list[int]:
    """`n` features drawn at random among the tenth of `judged` that, at its maximum, pushes its first token's logit up most."""
    alive = judged(table)
    push = (alive["maximum"] * alive["top_logit_values"].str[0]).sort_values(ascending=False)
    tenth = push.index[: max(n, len(push) // 10)]
    return [int(i) for i in np.random.default_rng(seed).permutation(tenth)[:n]]
