"""Features held at chosen values while the model runs, and what that does to the next token and to
whole continuations.

At the hook an activation is x = x̂ + ε, what the autoencoder explains and what it does not. A clamp
changes a feature's activation f to f′. With the error kept, x + (f′ − f)·W_dec goes on; with the
error dropped, decode(f′).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.errors import ModelError, SettingsError
from sae_lib.features.firing import ALIVE, Rows, firing, spread_rows
from sae_lib.features.statistics import interval
from sae_lib.features.weights import logit_effects
from sae_lib.formats import number, percent
from sae_lib.model.activations import HookPoint
from sae_lib.model.generation import continuation
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, Selected, activations_of
from sae_lib.sae.directions import random_directions
from sae_lib.text.display import Vocabulary
from sae_lib.text.tokenizer import token_ids

LARGEST_VALUE = 10**6  # beyond, squares in the model's norms overflow
ROWS_AT_ONCE = 16  # whose logits exist together
PER_ROW = 16  # positions of a row at which clamps are measured
NULLS = ("random directions", "other features")
TOP_LOGITS = 10  # tokens of a direction that is ranked
RANK_DRAWS = 19  # random directions that each feature is ranked among: the first of 20 has p = 0.05
SIGNIFICANT = 0.05
Acts = Float[Tensor, "row position d_in"]
Directions = Float[Tensor, "n_clamps d_in"] | None  # None: the features' own


@dataclass(frozen=True)
class Clamp:
    """One feature and what becomes of its activation f: "pin" sets it to `value`, "scale" to
    `value`·f, "ablate" to 0.

    `positions` counts in the sequence that the model is given, negative ones from its end; None
    means all of them.
    """

    feature: int
    how: Literal["pin", "scale", "ablate"] = "pin"
    value: float = 0.0
    positions: tuple[int, ...] | None = None


Clamps = Sequence[Clamp]


@contextmanager
def clamped(
    hook: HookPoint,
    dictionary: Dictionary,
    clamps: Clamps,
    keep_error: bool = True,
    directions: Directions = None,
) -> Iterator[None]:
    """The model runs with the features clamped at the hook; `SettingsError` for a feature, value or
    position that is not there.

    `directions`, a row per clamp, are written in place of the features' own rows of `W_dec`: the
    null that a clamp is held against.
    """
    check(clamps, dictionary)
    with hook.replaced(lambda x: clamp_activations(x, dictionary, clamps, keep_error, directions)):
        yield


@torch.no_grad()
def clamp_activations(
    x: Acts,
    dictionary: Dictionary,
    clamps: Clamps,
    keep_error: bool = True,
    directions: Directions = None,
) -> Acts:
    """What goes on from the hook in place of `x`: computed in float32, given back in `x`'s own
    type. No change of f is no change of x.
    """
    flat, n = x.float().flatten(0, 1), x.shape[1]
    features = torch.tensor([c.feature for c in clamps], dtype=torch.long, device=x.device)
    before = activations_of(dictionary, flat, features).unflatten(0, x.shape[:2])
    after = before.clone()
    for i, clamp in enumerate(clamps):
        where = slice(None) if clamp.positions is None else list(clamp.positions)
        if outside := [p for p in clamp.positions or () if not -n <= p < n]:
            raise SettingsError(
                f"feature {clamp.feature} is clamped at position {outside[0]}, but the text has"
                f" {n} tokens: positions go from 0 to {n - 1}"
            )
        scaled = clamp.value * before[:, where, i]
        after[:, where, i] = {"pin": clamp.value, "scale": scaled, "ablate": 0.0}[clamp.how]
    directions = dictionary.W_dec[features] if directions is None else directions
    kept = flat if keep_error else dictionary.decode(dictionary.encode(flat))
    return (kept + (after - before).flatten(0, 1) @ directions).to(x.dtype).view_as(x)


def check(clamps: Clamps, dictionary: Dictionary | None = None) -> None:
    """`SettingsError` for a feature that is named twice or (where the dictionary is known) does
    not exist, and for a value that it cannot have.
    """
    seen = set()
    for clamp in clamps:
        feature = clamp.feature
        if feature in seen:
            raise SettingsError(f"feature {feature} is clamped twice; name it once")
        seen.add(feature)
        if not abs(clamp.value) <= LARGEST_VALUE:
            raise SettingsError(
                f"feature {feature}: found the value {clamp.value}; expected a number"
                f" from -{LARGEST_VALUE:,} to {LARGEST_VALUE:,}"
            )
        if dictionary is not None and not 0 <= feature < dictionary.d_sae:
            raise SettingsError(
                f"feature {feature} does not exist:"
                f" this autoencoder has the features 0 to {dictionary.d_sae - 1}"
            )


@dataclass(frozen=True)
class Effect:
    """KL(clean ‖ clamped) in nats and every token's probability before and after; over several
    positions their means.
    """

    kl: float
    before: Float[Tensor, " vocab"]
    after: Float[Tensor, " vocab"]

    def probability(self, token_ids: Sequence[int]) -> tuple[float, float]:
        """(before, after) of some tokens together."""
        ids = list(token_ids)
        return self.before[ids].sum().item(), self.after[ids].sum().item()


@dataclass(frozen=True)
class NextTokens(Effect):
    """The next token's distribution without and with the clamps.

    `table` has a row for each token among the k most probable before, the k most probable after and
    the k whose probability changed most, largest change first: token_id, before, after, change
    (probabilities).
    """

    table: pd.DataFrame


@dataclass(frozen=True)
class ClampTarget:
    """What clamps act on: a hook of a model and the dictionary there; the tokeniser reads
    prompts.
    """

    hook: HookPoint
    dictionary: Dictionary
    tokenizer: Any

    def encode(self, prompt: str | Sequence[int]) -> Int[Tensor, "1 position"]:
        """A prompt's token ids, where it is not given as such; `SettingsError` where it is empty,
        `ModelError` where the context has no room for it.
        """
        ids = token_ids(self.tokenizer, prompt) if isinstance(prompt, str) else [*prompt]
        if not ids:
            raise SettingsError("the prompt is empty: give at least one token of text")
        limit = self.hook.model.config.max_position_embeddings - self.hook.n_before
        if len(ids) > limit:
            raise ModelError(
                f"the prompt has {len(ids)} tokens and the model's context is {limit}; shorten it"
            )
        return torch.tensor([ids], device=self.hook.device)

    @torch.no_grad()
    def next_tokens(
        self, prompt: str, clamps: Clamps, k: int = 10, keep_error: bool = True
    ) -> NextTokens:
        """What the clamps do to the token after `prompt`; errors as `clamped` and `encode`."""
        last = HeldoutPositions(self.hook, self.encode(prompt).cpu().numpy(), per_row=1)
        effect = last.effect(self.dictionary, clamps, keep_error=keep_error)
        table = pd.DataFrame({"before": effect.before.numpy(), "after": effect.after.numpy()})
        table["change"] = table["after"] - table["before"]
        largest = (table["before"], table["after"], table["change"].abs())
        shown = sorted(set().union(*(column.nlargest(k).index for column in largest)))
        by_change = {"key": abs, "ascending": False, "kind": "stable"}
        table = table.loc[shown].sort_values("change", **by_change)
        return NextTokens(**vars(effect), table=table.rename_axis("token_id").reset_index())

    @torch.no_grad()
    def side_by_side(
        self,
        prompt: str | Sequence[int],
        clamps: Clamps,
        new_tokens: int,
        temperature: float,
        seed: int,
        keep_error: bool = True,
    ) -> tuple[Int[Tensor, " baseline"], Int[Tensor, " clamped"], int]:
        """A continuation without and with the clamps, at the same random numbers: (token ids, token
        ids, prompt length); the prompt is part of both.

        With the same noise two distributions give the same token as long as they are alike, and
        nearly as often as any common randomness can make them; errors as `continuation`.
        """
        if not 0 <= temperature <= 100:
            raise SettingsError(
                f"temperature: found {temperature}; expected a number from 0 to 100"
            )
        if new_tokens < 1:
            raise SettingsError(f"new tokens: found {new_tokens}; expected at least 1")
        ids, end = self.encode(prompt), self.tokenizer.eos_token_id
        how = (self.hook, ids, new_tokens, temperature, seed, end)
        baseline = continuation(*how)
        with clamped(self.hook, self.dictionary, clamps, keep_error):
            return baseline, continuation(*how), ids.shape[1]


@torch.no_grad()
def next_token_losses(
    hook: HookPoint, tokens: Int[Tensor, "row position"], where: Bool[Tensor, "row predicting"]
) -> Float[Tensor, "row predicting"]:
    """The loss (nats) of each next token predicted from a position in `where`, 0 elsewhere; only
    for these are logits made.
    """
    losses = torch.zeros(where.shape)
    parts = (t.split(ROWS_AT_ONCE) for t in (tokens, where, losses))
    for ids, here, loss in zip(*parts, strict=True):
        hidden = hook.hidden(ids)[:, :-1]
        predicting = here.to(ids.device)
        logits = hook.model.get_output_embeddings()(hidden[predicting]).float()
        targets = ids[:, 1:][predicting]
        loss[here] = F.cross_entropy(logits, targets, reduction="none").cpu()
    return losses


@torch.no_grad()
def ablation_effect(
    hook: HookPoint, dictionary: Dictionary, token_ids: Int[Tensor, " n"], feature: int
) -> Float[Tensor, " n"]:
    """By how much the loss (nats) of predicting each token rises when the feature is taken out on
    all of them; 0 for the first.

    Only its own part is subtracted from the activations, x − f · W_dec: what the autoencoder does
    not reconstruct stays.
    """
    ids = token_ids[None].long().to(hook.device)
    everywhere = torch.ones(1, len(token_ids) - 1, dtype=torch.bool)
    before = next_token_losses(hook, ids, everywhere)
    with clamped(hook, dictionary, [Clamp(feature, "ablate")]):
        change = next_token_losses(hook, ids, everywhere) - before
    return F.pad(change[0], (1, 0))


# --- at many positions of held-out text, against directions of the same norm that mean nothing ---


@dataclass(frozen=True)
class ClampContext(ClampTarget):
    """What a run's clamps are tried on: model and hook, autoencoder, feature table, and
    positions in held-out text.
    """

    vocabulary: Vocabulary
    table: pd.DataFrame
    positions: "HeldoutPositions"

    def maximum(self, feature: int) -> float:
        """Its maximum on held-out text; that on marked positions where it fires on no others."""
        f = self.table.loc[feature]
        return float(f["maximum"] or f.get("maximum_all", 0.0))

    def top_logits(self, feature: int) -> list[int]:
        """The tokens whose logits the feature raises most by itself."""
        return [int(t) for t in self.table["top_logits"][feature]]


class HeldoutPositions:
    """Positions spread evenly over rows of text, `per_row` in each, with the next token's
    distribution there when nothing is clamped.
    """

    @torch.no_grad()
    def __init__(self, hook: HookPoint, rows: Rows, per_row: int = PER_ROW):
        self.hook, self.tokens = hook, torch.from_numpy(rows.astype(np.int64)).to(hook.device)
        step = max(1, rows.shape[1] // per_row)
        self.positions = torch.arange(step - 1, rows.shape[1], step, device=hook.device)
        self.clean = self._log_probabilities()
        self.probabilities = self.clean.exp()
        self.before = self.probabilities.mean(0).cpu()

    def __len__(self) -> int:
        return len(self.clean)

    @torch.no_grad()
    def effect(self, dictionary: Dictionary, clamps: Clamps, **how) -> Effect:
        """Of clamping at all positions of the text; `how` as in `clamped`."""
        with clamped(self.hook, dictionary, clamps, **how):
            return self._effect()

    @torch.no_grad()
    def effect_of_zero(self) -> Effect:
        """Of setting all activations at the hook to zero: the measure of what the hook matters
        at all.
        """
        with self.hook.replaced(torch.zeros_like):
            return self._effect()

    @torch.no_grad()
    def gained(self, tokens: Sequence[int], dictionary: Dictionary, clamps: Clamps, **how) -> float:
        """Mean probability that `tokens` gain together when clamping at all positions."""
        with clamped(self.hook, dictionary, clamps, **how):
            after = self._log_probabilities()[:, tokens].exp()
        return (after - self.probabilities[:, tokens]).sum(-1).mean().item()

    def _effect(self) -> Effect:
        """With d = log q − log p: KL(p ‖ q) = Σ p (eᵈ − 1 − d), whose terms are all ≥ 0, so that
        a tiny KL is no rounding error.
        """
        d = self._log_probabilities() - self.clean
        gained = self.probabilities * d.clamp(max=85).expm1()  # of larger d it would overflow
        kl = (gained - self.probabilities * d).sum(-1).mean().item()
        return Effect(kl, self.before, self.before + gained.mean(0).cpu())

    def _log_probabilities(self) -> Float[Tensor, "n vocab"]:
        parts = self.tokens.split(ROWS_AT_ONCE)
        logits = torch.cat([self.hook.logits(ids, self.positions) for ids in parts])
        return logits.flatten(0, 1).float().log_softmax(-1)


def value_sweep(
    context: ClampContext, feature: int, values: Sequence[float], draws: int = 8, seed: int = 0
) -> pd.DataFrame:
    """The feature pinned to each of `values`, and the same change of its activation written along
    directions that are not its own.

    Every direction has the norm of the feature's row of `W_dec`: "random directions" are drawn
    evenly from the sphere, "other features" are rows of other living features. Columns: direction,
    draw, value, kl (nats), probability (after, of the direction's own top-logit tokens) and change
    (of that probability); kl and probabilities are means over the positions.
    """
    dictionary, n_tokens = context.dictionary, len(context.top_logits(feature))
    others = alive_features(context.table).index.drop(feature, errors="ignore")
    others = np.random.default_rng((seed, feature)).permutation(others)[:draws]
    nulls = (random_directions(dictionary.W_dec, draws, seed).W_dec, dictionary.W_dec[others])
    directions = {"feature": [None]} | dict(zip(NULLS, nulls, strict=True))
    norm, records = dictionary.W_dec[feature].norm(), []
    for name, rows in tqdm(directions.items(), desc=f"clamping feature {feature}"):
        for draw, row in enumerate(rows):
            scaled, tokens = None, context.top_logits(feature)
            if row is not None:
                scaled = row[None] * (norm / row.norm())
                tokens = top_logits(context.hook, scaled, n_tokens)[0]
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
    its top-logit tokens, each beside both nulls as [mean, least, most] (of their own top-logit
    tokens), and the tokens that moved most, all over the context's positions.
    """
    value, tokens = context.maximum(feature), context.top_logits(feature)
    ranges = spread(value_sweep(context, feature, [value], draws, seed)).set_index("direction")
    nulls = {
        name: {c: row.filter(regex=f"^{c}").tolist() for c in ("kl", "change")}
        for name, row in ranges.drop("feature").iterrows()
    }
    effect = context.positions.effect(context.dictionary, [Clamp(feature, "pin", value)])
    change, name = effect.after - effect.before, context.vocabulary.name
    before, after = effect.probability(tokens)
    moved = change.abs().topk(min(movers, len(change))).indices.tolist()
    sides = {"before": effect.before, "after": effect.after}
    return {
        "feature": feature,
        "value": value,
        "kl": effect.kl,
        "nulls": nulls,
        "raised": [name(i) for i in tokens],
        "probability_before": before,
        "probability_after": after,
        "beyond_nulls": all(after - before > null["change"][2] for null in nulls.values()),
        "movers": [{"token": name(i)} | {s: p[i].item() for s, p in sides.items()} for i in moved],
    }


def top_logits(hook: HookPoint, directions: Float[Tensor, "n d_in"], k: int) -> list[list[int]]:
    """The k tokens whose logits each direction raises most by itself, as in the feature table."""
    return logit_effects(hook, directions, k)[0][0].tolist()


def clamp_ranks(
    positions: HeldoutPositions,
    dictionary: Dictionary,
    maxima: dict[int, float],
    seed: int,
    k: int = TOP_LOGITS,
) -> pd.DataFrame:
    """Each feature of `maxima` pinned to its value there, and the same change of its activation
    written along `RANK_DRAWS` random directions of the same norm: a row per feature.

    Every direction, the feature's own too, is measured by the probability that its own `k` tokens
    gain, those whose logits it raises most by itself. Columns: feature, gained, null (the mean of
    the random directions), rank (the share of random directions that it beats; ties count half),
    p = (1 + number of random directions that gain as much or more) / (1 + `RANK_DRAWS`).
    """
    records = []
    for feature, value in tqdm(maxima.items(), desc="ranking clamps"):
        own = dictionary.W_dec[feature]
        own_seed = int(np.random.default_rng((seed, feature)).integers(2**31))
        random = random_directions(dictionary.W_dec, RANK_DRAWS, own_seed).W_dec * own.norm()
        directions, clamps = torch.cat([own[None], random]), [Clamp(feature, "pin", value)]
        tokens = top_logits(positions.hook, directions, k)
        gained, *null = (
            positions.gained(ids, dictionary, clamps, directions=direction[None])
            for ids, direction in zip(tokens, directions, strict=True)
        )
        null = np.array(null)
        rank = np.mean([null < gained, null <= gained])
        p = (1 + (null >= gained).sum()) / (1 + RANK_DRAWS)
        records.append((feature, gained, null.mean(), rank, p))
    return pd.DataFrame(records, columns=["feature", "gained", "null", "rank", "p"])


def rank_summary(ranks: pd.DataFrame, seed: int) -> dict:
    """How many features are beyond chance. `share` (the primary measure) is that of features with
    p ≤ 0.05, with its Wilson interval (95 %) beside the 5 % expected of random directions, which
    decides the `verdict`. `median_p` has a bootstrap interval; 0.525 is expected.
    """
    p = ranks["p"].to_numpy()
    found = scipy.stats.binomtest(int((p <= SIGNIFICANT).sum()), len(p))
    share, (low, high) = found.statistic, found.proportion_ci(method="wilson")
    verdict = "fewer than by chance" if high < SIGNIFICANT else "not distinguishable from chance"
    return {
        "features": len(p),
        "draws": RANK_DRAWS,
        "expected": SIGNIFICANT,
        "share": share,
        "interval": [low, high],
        "verdict": "more than by chance" if low > SIGNIFICANT else verdict,
        "median_p": np.median(p),
        "median_p_interval": list(interval((p,), np.median, seed=seed)),
    }


def ranks_sentence(ranked: dict) -> str:
    """What `rank_summary` found, whichever way it came out."""
    low, high = (percent(end) for end in ranked["interval"])
    p_low, p_high = map(number, ranked["median_p_interval"])
    return (
        f"Of {ranked['features']} features {percent(ranked['share'])} (95 % interval {low} to"
        f" {high}) raise their own top-logit tokens more than each of {ranked['draws']} random"
        f" directions raises its own; by chance {percent(ranked['expected'])} would:"
        f" {ranked['verdict']}."
        f" The median p is {number(ranked['median_p'])} ({p_low} to {p_high}; by chance 0.525)."
    )


@torch.no_grad()
def ablation_losses(
    hook: HookPoint,
    dictionary: Dictionary,
    rows: Rows,
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
    selected = Selected(dictionary, torch.tensor(list(features), dtype=torch.long))
    firings = firing(hook, {"": selected}, rows)[""]
    for feature, fires in zip(tqdm(features, desc="ablation"), firings, strict=True):
        active = np.isin(np.arange(rows.size), fires.token).reshape(rows.shape)
        active = active[:, :-1]  # the last token of a row predicts none of its tokens
        having = np.flatnonzero(active.any(1))
        if len(having):
            chosen = spread_rows(having[:, None], at_most)[:, 0]
            tokens = torch.from_numpy(rows[chosen].astype(np.int64)).to(hook.device)
            where, clamp = torch.from_numpy(active[chosen]), Clamp(int(feature), "ablate")
            records.append(_ablated(hook, dictionary, clamp, tokens, where, draws, seed))
    return pd.DataFrame(records)


def _ablated(
    hook: HookPoint,
    dictionary: Dictionary,
    clamp: Clamp,
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
        with clamped(hook, dictionary, [clamp], directions=directions):
            return (next_token_losses(hook, tokens, where) - clean) * where

    losses, norm = change(active | silent), dictionary.W_dec[clamp.feature].norm()
    at_active, at_silent = losses[active], losses[silent]
    away = random_directions(dictionary.W_dec, draws, seed).W_dec * norm
    null = [change(active, direction[None])[active].mean().item() for direction in away]
    sums = ((losses * active).sum(1).numpy(), active.sum(1).numpy())
    low, high = interval(sums, _ratio, paired=True, seed=seed)
    return {
        "feature": clamp.feature,
        "rows": len(tokens),
        "n_active": len(at_active),
        "active": at_active.mean().item(),
        "low": low,
        "high": high,
        "hurt": (at_active > 0).float().mean().item(),
        "null": float(np.mean(null)),
        "null_least": min(null),
        "null_most": max(null),
        "n_silent": len(at_silent),
        "silent": at_silent.mean().item(),
        "silent_most": at_silent.abs().max().item(),
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


def drawn_maxima(context: ClampContext, n: int, seed: int) -> dict[int, float]:
    """`n` of `alive_features`, drawn at random, with their maxima on held-out text."""
    alive = alive_features(context.table)
    drawn = np.random.default_rng((seed, 5)).permutation(alive.index)[:n].tolist()
    return {feature: context.maximum(feature) for feature in drawn}


def clear_features(table: pd.DataFrame, n: int, seed: int) -> list[int]:
    """`n` features drawn at random among the tenth of `alive_features` that, at its maximum, pushes
    its first token's logit up most.
    """
    alive = alive_features(table)
    push = (alive["maximum"] * alive["top_logit_values"].str[0]).sort_values(ascending=False)
    tenth = push.index[: max(n, len(push) // 10)]
    return np.random.default_rng(seed).permutation(tenth)[:n].tolist()
