"""What passes over a text add up about every feature: exact, and in memory that does not grow with the text.

Two passes, because the tenths of a feature's range need its maximum first. Only active pairs are looked at.
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

BINS, TENTHS = 40, 10  # of (0, maximum_all]; a tenth is BINS / TENTHS of the bins
OFTEN = 5  # a token that occurs less often has no mean activation worth a place
DENSE = 0.1  # share of active pairs from which dense products are the cheaper ones
PAIRS, PAIRS_PER_FEATURE = (
    1 << 24,
    256,
)  # (token, feature) sums that are kept: so many, or so many per feature where that is more


@dataclass(frozen=True)
class Chunk:
    """The tokens of some rows, one after the other, and the active pairs among them, ordered by token."""

    first: int  # number of its first token in the whole text
    token_ids: Int[np.ndarray, " n"]
    before_ids: Int[np.ndarray, " n"]  # −1 where a row begins
    marked: Bool[np.ndarray, " n"]
    left_out: Bool[
        np.ndarray, " n"
    ]  # of what is "top", and of correlations: the marked ones, or none
    token: Int[np.ndarray, " pair"]  # number within the chunk
    feature: Int[np.ndarray, " pair"]
    value: Float[np.ndarray, " pair"]

    def sparse(self, data: Shaped[np.ndarray, " pair"], d_sae: int) -> scipy.sparse.csr_matrix:
        starts = np.searchsorted(self.token, np.arange(len(self.token_ids) + 1)).astype(np.int32)
        return scipy.sparse.csr_matrix(
            (data, self.feature.astype(np.int32), starts), shape=(len(self.token_ids), d_sae)
        )


@dataclass
class TopExamples:
    """Of every cell the k entries with the largest keys, over everything seen: memory is cells × k, however long the stream."""

    keys: Shaped[np.ndarray, "cell k"]  # 0: none
    tokens: Int[np.ndarray, "cell k"]  # −1: none
    values: Float[np.ndarray, "cell k"]

    @classmethod
    def empty(cls, cells: int, k: int, dtype: type = np.float32) -> "TopExamples":
        return cls(
            np.zeros((cells, k), dtype), np.full((cells, k), -1), np.zeros((cells, k), np.float32)
        )

    def update(
        self,
        cell: Int[np.ndarray, " n"],
        token: Int[np.ndarray, " n"],
        key: Shaped[np.ndarray, " n"],
        value: Float[np.ndarray, " n"],
    ) -> None:
        """Take in entries in the order of their tokens; of equal keys the earlier token stays."""
        keep = np.flatnonzero(key > self.keys[:, -1][cell])
        if len(keep) == 0:
            return
        order = keep[np.lexsort((-key[keep], cell[keep]))]  # by cell, and within it by falling key
        rank = rank_within(cell[order])
        order, rank = order[rank < self.keys.shape[1]], rank[rank < self.keys.shape[1]]
        touched, place = np.unique(cell[order], return_inverse=True)
        fresh = TopExamples.empty(len(touched), self.keys.shape[1], self.keys.dtype.type)
        fresh.keys[place, rank], fresh.tokens[place, rank], fresh.values[place, rank] = (
            key[order],
            token[order],
            value[order],
        )
        merged = np.concatenate([self.keys[touched], fresh.keys], 1)
        best = np.argsort(-merged, axis=1, kind="stable")[:, : self.keys.shape[1]]
        for mine, theirs in (
            (self.keys, fresh.keys),
            (self.tokens, fresh.tokens),
            (self.values, fresh.values),
        ):
            mine[touched] = np.take_along_axis(np.concatenate([mine[touched], theirs], 1), best, 1)


class TokenSums:
    """Sums of something over the pairs of a token and a feature.

    At most max(2²⁴, 256 d_sae) pairs are kept. Up to there the sums are exact. Beyond, each feature keeps its largest ones (by
    `sum / per[token]`), half as many in all; a pair that was dropped and comes back has lost what it had before.
    """

    def __init__(self, per: Shaped[np.ndarray, " vocab"], d_sae: int):
        self.per, self.d_sae = per, d_sae
        self.limit = max(PAIRS, PAIRS_PER_FEATURE * d_sae)
        self.parts: list[
            scipy.sparse.csr_matrix
        ] = []  # [vocab, d_sae], each much larger than the next

    def add(
        self,
        chunk: Chunk,
        ids: Int[np.ndarray, " n"],
        which: Bool[np.ndarray, " n"],
        pairs: scipy.sparse.csr_matrix,
    ) -> None:
        """Take in the pairs of those tokens of a chunk that `which` says, under the token ids `ids`."""
        n = np.flatnonzero(which)
        select = scipy.sparse.csr_matrix(
            (np.ones(len(n), pairs.dtype), (ids[n], n)), shape=(len(self.per), len(which))
        )
        self.parts.append(select @ pairs)
        while len(self.parts) > 1 and 2 * self.parts[-1].nnz > self.parts[-2].nnz:
            self.parts[-2:] = [self.parts[-2] + self.parts[-1]]
        if sum(part.nnz for part in self.parts) > self.limit:
            feature, token, total = self._largest(self.limit // 2 // self.d_sae)
            self.parts = [
                scipy.sparse.csr_matrix(
                    (total, (token, feature)), shape=(len(self.per), self.d_sae)
                )
            ]

    def largest(self, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of every feature the k tokens with the largest `sum / per[token]`, and their sums; fewer where fewer are above zero."""
        feature, token, total = self._largest(k)
        return lists(feature, token, self.d_sae), lists(feature, total, self.d_sae)

    def _largest(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        whole = sum(self.parts[1:], self.parts[0]).tocsc()
        whole.sort_indices()
        feature, token, score = (
            np.repeat(np.arange(self.d_sae), np.diff(whole.indptr)),
            whole.indices,
            whole.data / self.per[whole.indices],
        )
        order = np.lexsort((-score, feature))
        rank = rank_within(feature[order])
        order = order[(rank < k) & (score[order] > 0)]
        return feature[order], token[order], whole.data[order]


@dataclass
class FirstPass:
    """Counts, sums, maxima, the true top examples, and how features and neurons go together."""

    d_sae: int
    vocab: int
    top_k: int
    centre: Float[
        Tensor, " d_in"
    ]  # near the neurons' means: products of centred activations lose no digits
    n: int = 0  # tokens
    n_kept: int = 0  # of them not left out
    counts: np.ndarray = field(init=False)
    marked_counts: np.ndarray = field(init=False)
    sums: np.ndarray = field(init=False)
    maximum: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts, self.marked_counts = (
            np.zeros(self.d_sae, np.int64),
            np.zeros(self.d_sae, np.int64),
        )
        self.sums, self.maximum = np.zeros(self.d_sae), np.zeros(self.d_sae, np.float32)
        self.kept_sums, self.kept_squares = np.zeros(self.d_sae), np.zeros(self.d_sae)
        self.occurrences = np.zeros(self.vocab, np.int64)  # of tokens not left out
        self.top = TopExamples.empty(self.d_sae, self.top_k)
        self.products = self.centre.new_zeros(
            self.d_sae, len(self.centre)
        )  # Σ f · (x − centre), as large as W_dec
        self.x_sums, self.x_squares = (
            torch.zeros(len(self.centre), dtype=torch.float64) for _ in range(2)
        )

    def update(self, chunk: Chunk, x: Float[Tensor, "n d_in"]) -> None:
        kept = chunk.value * ~chunk.left_out[chunk.token]
        self.n, self.n_kept = self.n + len(chunk.marked), self.n_kept + int((~chunk.left_out).sum())
        self.occurrences += np.bincount(chunk.token_ids[~chunk.left_out], minlength=self.vocab)
        self.counts += np.bincount(chunk.feature, minlength=self.d_sae)
        self.marked_counts += np.bincount(
            chunk.feature[chunk.marked[chunk.token]], minlength=self.d_sae
        )
        self.sums += np.bincount(chunk.feature, chunk.value, self.d_sae)
        self.kept_sums += np.bincount(chunk.feature, kept, self.d_sae)
        self.kept_squares += np.bincount(chunk.feature, kept * kept, self.d_sae)
        torch.from_numpy(self.maximum).scatter_reduce_(
            0, torch.from_numpy(chunk.feature), torch.from_numpy(chunk.value), "amax"
        )
        self.top.update(chunk.feature, chunk.token + chunk.first, kept, chunk.value)
        x = x - self.centre
        x[torch.from_numpy(chunk.left_out).to(x.device)] = 0
        self.x_sums += x.sum(0, dtype=torch.float64).cpu()
        self.x_squares += x.pow(2).sum(0).double().cpu()
        if x.device.type == "cpu" and len(kept) < DENSE * len(x) * self.d_sae:
            by_feature = chunk.sparse(kept, self.d_sae).tocsc()
            parts = (
                torch.from_numpy(part)
                for part in (by_feature.indptr, by_feature.indices, by_feature.data)
            )
            torch.addmm(
                self.products,
                torch.sparse_csr_tensor(*parts, (self.d_sae, len(x)), check_invariants=False),
                x,
                out=self.products,
            )
        else:
            token, feature, value = (
                torch.from_numpy(part).to(x.device) for part in (chunk.token, chunk.feature, kept)
            )
            f = x.new_zeros(len(x), self.d_sae)
            f[token, feature] = value
            self.products.addmm_(f.T, x)

    def correlated(self, k: int) -> tuple[Int[np.ndarray, "d_sae k"], Float[np.ndarray, "d_sae k"]]:
        """The k neurons whose activations have the largest Pearson correlation with each feature's, and these."""
        x_mean, f_mean = self.x_sums / self.n_kept, torch.from_numpy(self.kept_sums / self.n_kept)
        x_spread = (self.x_squares / self.n_kept - x_mean**2).clamp_min(0).sqrt()
        f_spread = (
            (torch.from_numpy(self.kept_squares / self.n_kept) - f_mean**2).clamp_min(0).sqrt()
        )
        found = []
        for i in range(0, self.d_sae, 1024):
            part = slice(i, i + 1024)
            covariance = (
                self.products[part].cpu().double() / self.n_kept - f_mean[part, None] * x_mean
            )
            found.append(
                (covariance / (f_spread[part, None] * x_spread).clamp_min(1e-30)).topk(
                    min(k, len(x_mean)), dim=1
                )
            )
        return torch.cat([f.indices for f in found]).numpy(), torch.cat(
            [f.values for f in found]
        ).float().numpy()


@dataclass
class SecondPass:
    """Histograms, an even random sample of every tenth of a feature's range, and the tokens under and before its activations."""

    first: FirstPass
    n_samples: int
    seed: int

    def __post_init__(self) -> None:
        d_sae = self.first.d_sae
        self.histogram = np.zeros((d_sae, BINS), np.int64)
        self.samples = TopExamples.empty(d_sae * TENTHS, self.n_samples, np.int64)
        self.scale = BINS / np.maximum(self.first.maximum, 1e-30)
        self.token_sums = TokenSums(np.maximum(self.first.occurrences, 1), d_sae)
        self.before_counts = TokenSums(np.ones(self.first.vocab, np.int64), d_sae)

    def update(self, chunk: Chunk) -> None:
        d_sae, seen = self.first.d_sae, ~chunk.left_out
        bins = np.ceil(chunk.value * self.scale[chunk.feature]).astype(np.int64) - 1
        bins.clip(0, BINS - 1, out=bins)
        self.histogram += np.bincount(
            chunk.feature * BINS + bins, minlength=self.histogram.size
        ).reshape(self.histogram.shape)
        cell, number = chunk.feature * TENTHS + bins // (BINS // TENTHS), chunk.token + chunk.first
        self.samples.update(
            cell, number, random_keys(number, chunk.feature, self.seed), chunk.value
        )
        self.token_sums.add(
            chunk,
            chunk.token_ids,
            seen & (self.first.occurrences[chunk.token_ids] >= OFTEN),
            chunk.sparse(chunk.value, d_sae),
        )
        self.before_counts.add(
            chunk,
            chunk.before_ids,
            seen & (chunk.before_ids >= 0),
            chunk.sparse(np.ones(len(chunk.value), np.int32), d_sae),
        )


def random_keys(
    token: Int[np.ndarray, " pair"], feature: Int[np.ndarray, " pair"], seed: int
) -> Int[np.ndarray, " pair"]:
    """Random positive numbers that depend on (token, feature, seed) alone: who has the largest does not depend on how the text is cut."""
    if len(token) == 0:
        return token
    mixed = _of_each(token, seed % 2**32) ^ _of_each(feature, 2**32 + seed % 2**32)
    return (_mix(mixed) >> np.uint64(1)).astype(np.int64) | 1


def _of_each(number: Int[np.ndarray, " pair"], seed: int) -> np.ndarray:
    """Random bits of every number, made once for all between the smallest and the largest."""
    smallest = number.min()
    numbers = np.arange(smallest, number.max() + 1).astype(np.uint64)
    return _mix(numbers * np.uint64(0x9E3779B97F4A7C15) + _mix(np.array([seed], np.uint64)))[
        number - smallest
    ]


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def rank_within(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Of entries ordered by group: which of its group each one is, from 0."""
    begins = np.flatnonzero(np.diff(group, prepend=group[:1] - 1))
    return np.arange(len(group)) - np.repeat(begins, np.diff(begins, append=len(group)))


def lists(
    group: Int[np.ndarray, " n"], values: Shaped[np.ndarray, " n"], n_groups: int
) -> list[np.ndarray]:
    """Entries ordered by group, as a list per group."""
    return np.split(values, np.searchsorted(group, np.arange(1, n_groups)))
