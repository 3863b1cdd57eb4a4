"""What a clamp does at many positions of held-out text, compared with directions of the same
norm that mean nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.features import clamping
from sae_lib.features.clamping import ROWS_AT_ONCE, Clamp, NextTokens, clamped, next_token_losses
from sae_lib.features.firing import ALIVE, firing, spread_rows
from sae_lib.features.statistics import interval
from sae_lib.model.activations import HookPoint
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, Selected, random_directions
from sae_lib.text.display import Vocabulary

NULLS = ("random directions", "other features")


@dataclass(frozen=True)
class ClampContext:
    """What a run's clamps are tried on: model and hook, autoencoder, feature table, and
    positions in held-out text.
    """

    hook: HookPoint
    dictionary: Dictionary
    tokenizer: Any
    vocabulary: Vocabulary
    table: pd.DataFrame
    positions: "HeldoutPositions"
    alive: list[int]  # the features of `alive_features`

    def maximum(self, feature: int) -> float:
        """Its maximum on held-out text; that on marked positions where it fires on no others."""
        f = self.table.loc[feature]
        return float(f["maximum"] or f.get("maximum_all", 0.0))

    def top_logits(self, feature: int) -> list[int]:
        """The tokens whose logits the feature raises most by itself."""
        return [int(t) for t in self.table["top_logits"][feature]]

    def next_tokens(self, prompt: str, clamps: Sequence[Clamp], **how) -> NextTokens:
        parts = (self.hook, self.tokenizer, self.dictionary)
        return clamping.next_tokens(*parts, prompt, clamps, **how)

    def side_by_side(
        self, prompt: str, clamps: Sequence[Clamp], new_tokens: int, temperature: float, seed: int
    ) -> tuple[Tensor, Tensor, int]:
        parts = (self.hook, self.tokenizer, self.dictionary)
        return clamping.side_by_side(*parts, prompt, clamps, new_tokens, temperature, seed)


@dataclass(frozen=True)
class Effect:
    """KL(clean ‖ clamped) in nats and every token's probability before and after, all as means
    over the positions.
    """

    kl: float
    before: Float[Tensor, " vocab"]
    after: Float[Tensor, " vocab"]

    def probability(self, token_ids: Sequence[int]) -> tuple[float, float]:
        """(before, after) of some tokens together."""
        ids = torch.tensor(list(token_ids), dtype=torch.long)
        return self.before[ids].sum().item(), self.after[ids].sum().item()


class HeldoutPositions:
    """Positions spread evenly over rows of text, `per_row` in each, with the next token's
    distribution there when nothing is clamped.
    """

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
        """Of setting all activations at the hook to zero: the measure of what the hook matters
        at all.
        """
        with self.hook.replaced(torch.zeros_like):
            return self._effect()

    def _effect(self) -> Effect:
        """With d = log q − log p: KL(p ‖ q) = Σ p (eᵈ − 1 − d), whose terms are all ≥ 0, so that
        a tiny KL is no rounding error.
        """
        d = self._log_probabilities() - self.clean
        gained = self.probabilities * d.clamp(max=85).expm1()  # of larger d it would overflow
        kl = (gained - self.probabilities * d).sum(-1).mean().item()
        return Effect(kl, self.before, self.before + gained.mean(0).cpu())

    def _log_probabilities(self) -> Float[Tensor, "n vocab"]:
        options = {"use_cache": False, "logits_to_keep": self.positions}
        parts = self.tokens.split(ROWS_AT_ONCE)
        logits = torch.cat([self.hook.model(input_ids=ids, **options).logits for ids in parts])
        return logits.flatten(0, 1).float().log_softmax(-1)


def value_sweep(
    context: ClampContext, feature: int, values: Sequence[float], draws: int = 8, seed: int = 0
) -> pd.DataFrame:
    """The feature pinned to each of `values`, and the same change of its activation written along
    directions that are not its own.

    Every direction has the norm of the feature's row of `W_dec`: "random directions" are drawn
    evenly from the sphere, "other features" are rows of other living features. Columns: direction,
    draw, value, kl (nats), probability (of the feature's top-logit tokens together, after) and
    change (of that probability); kl and probabilities are means over the positions.
    """
    dictionary, tokens = context.dictionary, context.top_logits(feature)
    others = np.setdiff1d(np.asarray(context.alive, dtype=int), [feature])
    others = np.random.default_rng((seed, feature)).permutation(others)[:draws]
    nulls = (random_directions(dictionary.W_dec, draws, seed).W_dec, dictionary.W_dec[others])
    directions = {"feature": [None]} | dict(zip(NULLS, nulls, strict=True))
    norm, records = dictionary.W_dec[feature].norm(), []
    for name, drawn in tqdm(directions.items(), desc=f"clamping feature {feature}"):
        for draw, row in enumerate(drawn):
            scaled = None if row is None else row[None] * (norm / row.norm())
            for value in map(float, values):
                clamps = [Clamp(feature, "pin", value)]
                effect = context.positions.effect(dictionary, clamps, directions=scaled)
                before, after = effect.probability(tokens)
                records.append((name, draw, value, effect.kl, after, after - before))
    columns = ["direction", "draw", "value", "kl", "probability", "change"]
    return pd.DataFrame(records, columns=columns)


def spread(sweep: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and most over the draws: a row per (direction, value), columns kl, kl_least,
    kl_most, change, change_least, change_most.
    """
    ends = {"": "mean", "_least": "min", "_most": "max"}
    columns = {f"{c}{end}": (c, how) for c in ("kl", "change") for end, how in ends.items()}
    return sweep.groupby(["direction", "value"], sort=False).agg(**columns).reset_index()


def against_null(
    context: ClampContext, feature: int, draws: int, seed: int, movers: int = 5
) -> dict:
    """A feature pinned to its maximum, as plain data for the results: KL and the probability of
    its top-logit tokens, each beside both nulls as [mean, least, most], and the tokens that
    moved most, all over the context's positions.
    """
    value, tokens = context.maximum(feature), context.top_logits(feature)
    nulls = {}
    for row in spread(value_sweep(context, feature, [value], draws, seed)).to_dict("records"):
        if row["direction"] != "feature":
            ranges = {
                c: [row[f"{c}{end}"] for end in ("", "_least", "_most")] for c in ("kl", "change")
            }
            nulls[row["direction"]] = ranges
    effect = context.positions.effect(context.dictionary, [Clamp(feature, "pin", value)])
    change = effect.after - effect.before
    before, after = effect.probability(tokens)
    gained = change[torch.tensor(tokens)].sum().item()
    moved = change.abs().topk(min(movers, len(change))).indices.tolist()
    name = context.vocabulary.name
    sides = {"before": effect.before, "after": effect.after}
    return {
        "feature": feature,
        "value": value,
        "kl": effect.kl,
        "nulls": nulls,
        "raised": [name(i) for i in tokens],
        "probability_before": before,
        "probability_after": after,
        "rose": gained > 0,
        "beyond_nulls": all(gained > null["change"][2] for null in nulls.values()),
        "movers": [{"token": name(i)} | {s: p[i].item() for s, p in sides.items()} for i in moved],
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
    """What ablating each feature costs (nats per token) where it is active and, at as many
    positions of the same text, where it is silent.

    Measured in `at_most` of the rows in which it is active at all; features that are silent in all
    of `rows` are left out. `low` and `high` bound the mean by a bootstrap over rows (95 %); `null`
    is the mean when the same amount is taken away along random directions of the same norm,
    `null_least` and `null_most` its range over `draws`; `hurt` is the share of active positions
    whose loss rises; `silent_most` the largest |change| at a silent one.
    """
    records = []
    chosen = Selected(dictionary, torch.tensor(list(features), dtype=torch.long))
    found = firing(hook, {"": chosen}, rows)[""]
    for feature, fires in zip(tqdm(features, desc="ablation"), found, strict=True):
        active = np.zeros(rows.shape, bool)
        active.reshape(-1)[fires.token] = True
        active = active[:, :-1]  # the last token of a row predicts none of its tokens
        having = np.flatnonzero(active.any(1))
        if len(having):
            chosen = spread_rows(having[:, None], at_most)[:, 0]
            tokens = torch.from_numpy(rows[chosen].astype(np.int64)).to(hook.device)
            where, measured = torch.from_numpy(active[chosen]), int(feature)
            records.append(_ablated(hook, dictionary, measured, tokens, where, draws, seed))
    return pd.DataFrame(records)


def _ablated(
    hook: HookPoint,
    dictionary: Dictionary,
    feature: int,
    tokens: Int[Tensor, "row position"],
    active: Bool[Tensor, "row predicting"],
    draws: int,
    seed: int,
) -> dict:
    """A row of `ablation_losses`."""
    random = torch.rand(active.shape, generator=torch.Generator().manual_seed(seed))
    random = random.masked_fill(active, -1)
    n_silent = min(int(active.sum()), int((~active).sum()) - 1)
    silent = random > random.flatten().sort(descending=True).values[n_silent]
    clean = next_token_losses(hook, tokens, active | silent)

    def change(where: Tensor, directions: Tensor | None = None) -> Float[Tensor, "row predicting"]:
        with clamped(hook, dictionary, [Clamp(feature, "ablate")], directions=directions):
            return (next_token_losses(hook, tokens, where) - clean) * where

    own, norm = change(active | silent), dictionary.W_dec[feature].norm()
    away = random_directions(dictionary.W_dec, draws, seed).W_dec * norm
    null = [change(active, direction[None])[active].mean().item() for direction in away]
    sums = ((own * active).sum(1).numpy(), active.sum(1).numpy())
    low, high = interval(sums, _ratio, paired=True, seed=seed)
    return {
        "feature": feature,
        "rows": len(tokens),
        "n_active": int(active.sum()),
        "active": own[active].mean().item(),
        "low": low,
        "high": high,
        "hurt": (own[active] > 0).float().mean().item(),
        "null": float(np.mean(null)),
        "null_least": min(null),
        "null_most": max(null),
        "n_silent": int(silent.sum()),
        "silent": own[silent].mean().item(),
        "silent_most": own[silent].abs().max().item(),
    }


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray | float:
    """The mean over positions from the sums and counts of rows."""
    return sums.sum(axis) / counts.sum(axis)


def alive_features(table: pd.DataFrame) -> pd.DataFrame:
    """The features with at least `firing.ALIVE` activations on held-out text; where there is
    none, those that fire at all.
    """
    enough = table[table["n_active"] >= ALIVE]
    return enough if len(enough) else table[table["n_active"] > 0]


def clear_features(table: pd.DataFrame, n: int, seed: int) -> list[int]:
    """`n` features drawn at random among the tenth of `alive_features` that, at its maximum, pushes
    its first token's logit up most.
    """
    alive = alive_features(table)
    push = (alive["maximum"] * alive["top_logit_values"].str[0]).sort_values(ascending=False)
    tenth = push.index[: max(n, len(push) // 10)]
    return [int(i) for i in np.random.default_rng(seed).permutation(tenth)[:n]]
