"""What passes over a text add up about every feature: exact, and in memory that does not grow with
the text.

Two passes, because the tenths of a feature's range need its maximum first. Only active pairs are
looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped
from pandas.util import hash_array
from scipy.sparse import csr_matrix as Sparse
from torch import Tensor

BINS, TENTHS = 40, 10  # of (0, maximum_all]; a tenth is BINS / TENTHS of the bins
MIN_OCCURRENCES = 5  # a token that occurs less often has no mean activation worth a place
DENSE = 0.1  # share of active pairs from which dense products are the cheaper ones
# (token, feature) sums that are kept: so many, or so many per feature where that is more
PAIRS, PAIRS_PER_FEATURE = 1 << 24, 256
RESAMPLES = 2000  # of a bootstrap
Ints, Bools = Int[np.ndarray, " n"], Bool[np.ndarray, " n"]
Values = Shaped[np.ndarray, " n"]
PairInts = Int[np.ndarray, " pair"]
Largest = tuple[Shaped[Tensor, "d_sae k"], Float[Tensor, "d_sae k"]]  # (indices, values)
AT_ONCE = 1024  # features whose correlations with all neurons exist together


@dataclass(frozen=True)
class Chunk:
    """The tokens of some rows, one after the other, and the active pairs among them, ordered by
    token.
    """

    first: int  # number of its first token in the whole text
    x: Float[Tensor, "n d_in"]
    token_ids: Ints
    before_ids: Ints  # −1 where a row begins
    marked: Bools
    # what counts for top examples, top tokens, tokens before and correlations: the unmarked tokens,
    # or all
    for_top: Bools
    token: PairInts  # number within the chunk
    feature: PairInts
    value: Float[np.ndarray, " pair"]

    def sparse(self, data: Shaped[np.ndarray, " pair"], d_sae: int) -> Sparse:
        """The pairs as a table [token, feature] that holds `data`."""
        n = len(self.token_ids)
        starts = np.searchsorted(self.token, np.arange(n + 1)).astype(np.int32)
        return Sparse((data, self.feature.astype(np.int32), starts), (n, d_sae))


class TopExamples:
    """Of every cell the k entries with the largest keys, over everything seen: memory is cells × k,
    however long the stream.

    `best` [cell, k] has the fields key (0: no entry), token (−1: no entry) and value.
    """

    def __init__(self, cells: int, k: int, key_type: type = np.float32):
        fields = [("key", key_type), ("token", np.int64), ("value", np.float32)]
        self.no_entry = np.array((0, -1, 0), fields)
        self.best = np.full((cells, k), self.no_entry)

    def update(self, cell: Ints, token: Ints, key: Values, value: Values) -> None:
        """Take in entries in the order of their tokens; of equal keys the earlier token stays."""
        k = self.best.shape[1]
        larger = np.flatnonzero(key > self.best["key"][cell, -1])
        order = larger[np.lexsort((-key[larger], cell[larger]))]
        rank = rank_within(cell[order])
        order, rank = order[rank < k], rank[rank < k]
        touched, place = np.unique(cell[order], return_inverse=True)
        fresh = np.full((len(touched), k), self.no_entry)
        for name, column in (("key", key), ("token", token), ("value", value)):
            fresh[name][place, rank] = column[order]
        merged = np.concatenate([self.best[touched], fresh], 1)
        best = np.argsort(-merged["key"], axis=1, kind="stable")[:, :k]
        self.best[touched] = np.take_along_axis(merged, best, 1)


class TokenSums:
    """Sums of something over the pairs of a token and a feature.

    At most max(2²⁴, 256 d_sae) pairs are kept. Up to there the sums are exact. Beyond, each feature
    keeps its largest ones (by `sum / per[token]`), half as many in all; a pair that was dropped and
    comes back has lost what it had before.
    """

    def __init__(self, per: Shaped[np.ndarray, " vocab"], d_sae: int):
        self.per, self.d_sae = per, d_sae
        self.limit = max(PAIRS, PAIRS_PER_FEATURE * d_sae)
        # tables [vocab, d_sae], each much larger than the next
        self.parts: list[Sparse] = []

    def add(self, ids: Ints, which: Bools, pairs: Sparse) -> None:
        """Take in `pairs` [n, d_sae] of those tokens that `which` says, under the token ids
        `ids`.
        """
        n = np.flatnonzero(which)
        select = (np.ones(len(n), pairs.dtype), (ids[n], n))
        self.parts.append(Sparse(select, (len(self.per), len(which))) @ pairs)
        while len(self.parts) > 1 and 2 * self.parts[-1].nnz > self.parts[-2].nnz:
            self.parts[-2:] = [self.parts[-2] + self.parts[-1]]
        if sum(part.nnz for part in self.parts) > self.limit:
            feature, token, total = self._largest(self.limit // 2 // self.d_sae)
            self.parts = [Sparse((total, (token, feature)), (len(self.per), self.d_sae))]

    def largest(self, k: int) -> list[list[np.ndarray]]:
        """Of every feature [the k tokens with the largest `sum / per[token]`, and their sums];
        fewer where fewer are above zero.
        """
        feature, *columns = self._largest(k)
        return [lists(feature, column, self.d_sae) for column in columns]

    def _largest(self, k: int) -> tuple[Ints, Ints, Values]:
        whole = sum(self.parts[1:], self.parts[0]).tocsc()
        whole.sort_indices()
        feature = np.repeat(np.arange(self.d_sae), np.diff(whole.indptr))
        score = whole.data / self.per[whole.indices]
        order = np.lexsort((-score, feature))
        order = order[(rank_within(feature[order]) < k) & (score[order] > 0)]
        return feature[order], whole.indices[order], whole.data[order]


class FirstPass:
    """Counts, sums, maxima, the true top examples, and how features and neurons go together.

    `centre` lies near the neurons' means: products of centred activations lose no digits.
    """

    def __init__(self, d_sae: int, vocab: int, top_k: int, centre: Float[Tensor, " d_in"]):
        self.d_sae, self.centre = d_sae, centre
        self.counts = np.zeros(d_sae, np.int64)
        self._sums = np.zeros((4, d_sae))
        self.sums, self.marked_counts, self.kept_sums, self.kept_squares = self._sums
        self.maximum = np.zeros(d_sae, np.float32)
        self.occurrences = np.zeros(vocab, np.int64)  # of kept tokens
        self.top = TopExamples(d_sae, top_k)
        # Σ f · (x − centre), as large as W_dec
        self.products = centre.new_zeros(d_sae, len(centre))
        self.x_sums, self.x_squares = torch.zeros(2, len(centre), dtype=torch.float64)

    def update(self, chunk: Chunk) -> None:
        kept = chunk.value * chunk.for_top[chunk.token]
        kept_ids = chunk.token_ids[chunk.for_top]
        self.occurrences += np.bincount(kept_ids, minlength=len(self.occurrences))
        self.counts += np.bincount(chunk.feature, minlength=self.d_sae)
        addends = (chunk.value, chunk.marked[chunk.token], kept, kept * kept)
        for total, addend in zip(self._sums, addends, strict=True):
            total += np.bincount(chunk.feature, addend, self.d_sae)
        feature, value = torch.from_numpy(chunk.feature), torch.from_numpy(chunk.value)
        torch.from_numpy(self.maximum).scatter_reduce_(0, feature, value, "amax")
        self.top.update(chunk.feature, chunk.token + chunk.first, kept, chunk.value)
        x = chunk.x - self.centre
        x[torch.from_numpy(~chunk.for_top).to(x.device)] = 0
        self.x_sums += x.sum(0, dtype=torch.float64).cpu()
        self.x_squares += x.pow(2).sum(0).double().cpu()
        self._add_products(chunk, kept, x)

    def _add_products(self, chunk: Chunk, kept: np.ndarray, x: Tensor) -> None:
        if x.device.type == "cpu" and len(kept) < DENSE * len(x) * self.d_sae:
            columns = chunk.sparse(kept, self.d_sae).tocsc()  # the rows of the transpose
            parts = map(torch.from_numpy, (columns.indptr, columns.indices, columns.data))
            shape = (self.d_sae, len(x))
            f = torch.sparse_csr_tensor(*parts, shape, check_invariants=False)
            torch.addmm(self.products, f, x, out=self.products)
        else:
            parts = (chunk.token, chunk.feature, kept)
            token, feature, value = (torch.from_numpy(part).to(x.device) for part in parts)
            f = x.new_zeros(len(x), self.d_sae)
            f[token, feature] = value
            self.products.addmm_(f.T, x)

    def correlated(self, k: int) -> tuple[Int[Tensor, "d_sae k"], Float[Tensor, "d_sae k"]]:
        """The k neurons whose activations have the largest Pearson correlation with each
        feature's, and these.
        """
        n, found = int(self.occurrences.sum()), []
        of_features = map(torch.from_numpy, (self.kept_sums, self.kept_squares))
        x_mean, x_spread = _mean_and_spread(n, self.x_sums, self.x_squares)
        parts = (self.products, *_mean_and_spread(n, *of_features))
        for products, mean, spread in zip(*(t.split(AT_ONCE) for t in parts), strict=True):
            covariance = products.cpu().double() / n - mean[:, None] * x_mean
            correlation = covariance / (spread[:, None] * x_spread).clamp_min(1e-30)
            found.append(correlation.topk(min(k, len(x_mean)), dim=1))
        neurons, values = joined(found)
        return neurons, values.float()


def _mean_and_spread(n: int, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    mean = sums / n
    return mean, (squares / n - mean**2).clamp_min(0).sqrt()


class SecondPass:
    """Histograms, an even random sample of every tenth of a feature's range, and the tokens
    under and before its activations.
    """

    def __init__(self, first: FirstPass, n_samples: int, seed: int):
        self.first, self.seed = first, seed
        self.histogram = np.zeros((first.d_sae, BINS), np.int64)
        self.samples = TopExamples(first.d_sae * TENTHS, n_samples, np.int64)
        self.scale = BINS / np.maximum(first.maximum, 1e-30)
        self.token_sums = TokenSums(np.maximum(first.occurrences, 1), first.d_sae)
        self.before_counts = TokenSums(np.ones_like(first.occurrences), first.d_sae)

    def update(self, chunk: Chunk) -> None:
        bins = np.ceil(chunk.value * self.scale[chunk.feature]).astype(np.int64) - 1
        bins.clip(0, BINS - 1, out=bins)
        counts = np.bincount(chunk.feature * BINS + bins, minlength=self.histogram.size)
        self.histogram += counts.reshape(self.histogram.shape)
        cell, number = chunk.feature * TENTHS + bins // (BINS // TENTHS), chunk.token + chunk.first
        keys = random_keys(number, chunk.feature, self.seed)
        self.samples.update(cell, number, keys, chunk.value)
        d_sae, ids, before = self.first.d_sae, chunk.token_ids, chunk.before_ids
        often = self.first.occurrences[ids] >= MIN_OCCURRENCES
        self.token_sums.add(ids, chunk.for_top & often, chunk.sparse(chunk.value, d_sae))
        ones = np.ones(len(chunk.value), np.int32)
        self.before_counts.add(before, chunk.for_top & (before >= 0), chunk.sparse(ones, d_sae))


def random_keys(token: PairInts, feature: PairInts, seed: int) -> PairInts:
    """Random positive numbers that depend on (token, feature, seed) alone: who has the largest
    does not depend on how the text is cut.

    SplitMix64 (Steele, Lea and Flood 2014); pandas hashes whole numbers with its finaliser.
    """
    step, parts = np.uint64(0x9E3779B97F4A7C15), (token, feature)
    seeds = hash_array(np.array([seed % 2**32, 2**32 + seed % 2**32], np.uint64))
    streams = (part.astype(np.uint64) * step + s for part, s in zip(parts, seeds, strict=True))
    mixed = hash_array(np.bitwise_xor(*map(hash_array, streams)))
    return (mixed >> np.uint64(1)).astype(np.int64) | 1


def rank_within(group: Ints) -> Ints:
    """Of entries ordered by group: which of its group each one is, from 0."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def lists(group: Integer[np.ndarray, " n"], values: Values, n_groups: int) -> list[np.ndarray]:
    """Entries ordered by group, as a list per group."""
    return np.split(values, np.searchsorted(group, np.arange(1, n_groups)))[:n_groups]


def joined(parts: Sequence[tuple[Tensor, Tensor]]) -> Largest:
    """(indices, values) on the CPU from what `topk` gave for parts of the features."""
    values, indices = zip(*parts, strict=True)
    return torch.cat(indices).cpu(), torch.cat(values).cpu()


def interval(
    samples: Sequence[np.ndarray], statistic: Callable, paired: bool = False, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap percentiles of a statistic of one or more samples; NaN where one has fewer
    than two values.
    """
    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    options = {"n_resamples": RESAMPLES, "method": "percentile", "vectorized": True}
    rng = np.random.default_rng(seed)
    found = scipy.stats.bootstrap(samples, statistic, paired=paired, rng=rng, **options)
    low, high = found.confidence_interval
    return float(low), float(high)
