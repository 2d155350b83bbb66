"""Rank tests of many features at once, over documents of which most have the value 0.

Only values above 0 are given; all others of a feature are 0 and tied. The tests are those of
Mann and Whitney (1947) for documents of two kinds, and of Wilcoxon (1945) for documents that have
two values each; ties get the mean of their ranks. Effect sizes are common-language ones: the chance
that a document of one kind has the higher value, ties counted half.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from scopelake.query.tails import (
    MOST_EXACT,
    Floats,
    drawn_weights,
    exact_tails,
    normal_tails,
    skewed_tails,
    two_sided,
)

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BISECTIONS: Final = 100


@dataclass(frozen=True)
class RankTest:
    """What a rank test found of each feature, [features]; NaN where all values are 0."""

    auc: Floats
    """Chance that the first has the higher value, ties half; (rank-biserial + 1) / 2."""
    auc_low: Floats
    auc_high: Floats
    z: Floats
    """Rank sum of the first, standardized; above 0 where its values are higher."""
    p: Floats
    """Two-sided."""


def rank_sum(
    feature: Ints, value: Floats, is_a: Mask, n_features: int, n_a: int, n_b: int,
    confidence: float = 0.95,
) -> RankTest:  # fmt: skip
    """Return the rank-sum test of Mann, Whitney and Wilcoxon for every feature.

    The null distribution is that of which documents are of which kind, given the values: exact
    where at most ten documents have a value above 0, else by its first three moments. The
    interval of the effect is DeLong's (1988) on the logit scale, and Newcombe's (2006, method 5)
    where the two kinds do not overlap.

    Args:
        feature: of each value, 0 to n_features - 1, [n].
        value: above 0; one for a feature and document at most, [n].
        is_a: whether the document is of the first kind, [n].
        n_features: number of features.
        n_a: documents of the first kind, also those without a value; 2 or more.
        n_b: documents of the second kind; 2 or more.
        confidence: of the intervals.
    """
    order = np.lexsort((value, feature))
    feature, value, is_a = feature[order], value[order], is_a[order]
    n = n_a + n_b
    k = np.bincount(feature, minlength=n_features)
    zeros = (n - k).astype(np.float64)
    rank = zeros[feature] + _midranks(feature, value)
    # Ranks about their mean; a value of 0 has -k / 2.
    centred = rank - (n + 1) / 2
    in_a = np.bincount(feature[is_a], minlength=n_features)
    total = _sums(feature, centred * is_a, n_features) - (n_a - in_a) * k / 2
    squares = _sums(feature, centred**2, n_features) + zeros * k**2 / 4
    cubes = _sums(feature, centred**3, n_features) - zeros * k.astype(np.float64) ** 3 / 8
    variance = n_a * n_b / (n * (n - 1)) * squares
    third = n_a * n_b * (n_b - n_a) / (n * (n - 1) * (n - 2)) * cubes
    z, skewness = _standardized(total, variance, third)
    lower, upper = skewed_tails(z, skewness)
    scores = rank - (zeros[feature] + 1) / 2
    weights = {j: drawn_weights(j, n, n_a) for j in range(1, MOST_EXACT + 1) if j <= n}
    lower, upper = _exact_where_few(feature, k, scores, is_a, weights, (lower, upper))
    auc = 0.5 + total / (n_a * n_b)
    deviation = _delong(feature, value, rank, is_a, auc, k, n_a, n_b)
    low, high = _logit_interval(auc, deviation, confidence, _newcombe(n_a, n_b, confidence))
    return _where_known(k > 0, RankTest(auc, low, high, z, two_sided(lower, upper)))


def signed_rank(
    feature: Ints, difference: Floats, n_features: int, n_pairs: int, confidence: float = 0.95
) -> RankTest:
    """Return Wilcoxon's signed-rank test for every feature.

    Pairs without a difference say nothing (Wilcoxon 1945). The null distribution is that of the
    signs: exact where at most ten pairs differ, else normal, with the variance of tied ranks. The
    effect is the share of all pairs in which the first is higher, ties half, with an interval on
    the logit scale; Wilson's (1927) where all pairs say the same.

    Args:
        feature: of each difference, 0 to n_features - 1, [n].
        difference: first less second, not 0; one for a feature and pair at most, [n].
        n_features: number of features.
        n_pairs: pairs, also those without a difference; 2 or more.
        confidence: of the intervals.
    """
    order = np.lexsort((np.abs(difference), feature))
    feature, difference = feature[order], difference[order]
    k = np.bincount(feature, minlength=n_features)
    rank = _midranks(feature, np.abs(difference))
    is_up = difference > 0
    total = _sums(feature, rank * np.sign(difference), n_features) / 2
    variance = _sums(feature, rank**2, n_features) / 4
    z, skewness = _standardized(total, variance, np.zeros(n_features))
    lower, upper = normal_tails(z)
    weights = {j: np.full(j + 1, 0.5**j) for j in range(1, MOST_EXACT + 1)}
    lower, upper = _exact_where_few(feature, k, rank, is_up, weights, (lower, upper))
    up = np.bincount(feature[is_up], minlength=n_features)
    down = k - up
    auc = 0.5 + (up - down) / (2 * n_pairs)
    spread = up * (1 - auc) ** 2 + down * auc**2 + (n_pairs - k) * (0.5 - auc) ** 2
    deviation = np.sqrt(spread / (n_pairs - 1) / n_pairs)
    quantile = _quantile(confidence)
    wilson = n_pairs / (n_pairs + quantile**2)
    low, high = _logit_interval(auc, deviation, confidence, wilson)
    return _where_known(k > 0, RankTest(auc, low, high, z, two_sided(lower, upper)))


def discovery_rates(p: Floats) -> Floats:
    """Return Benjamini and Hochberg's (1995) q-values of p-values; NaN, an untested one, stays.

    Args:
        p: of one family of tests, [n].
    """
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    # Of all larger p-values the lowest counts.
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def _midranks(group: Ints, value: Floats) -> Floats:
    """Return ranks within groups from 1, ties at their mean; rows come by group, then value."""
    n = len(group)
    if not n:
        return np.zeros(0)
    is_new = np.ones(n, bool)
    is_new[1:] = (group[1:] != group[:-1]) | (value[1:] != value[:-1])
    starts = np.flatnonzero(is_new)
    sizes = np.diff(np.append(starts, n))
    first_of_group = np.searchsorted(group, group[starts], "left")
    middle = starts - first_of_group + (sizes + 1) / 2
    return np.repeat(middle, sizes)


def _sums(group: Ints, weights: Floats, n_groups: int) -> Floats:
    return np.bincount(group, weights=weights, minlength=n_groups).astype(np.float64)


def _standardized(total: Floats, variance: Floats, third: Floats) -> tuple[Floats, Floats]:
    """Return z and the skewness; 0 where nothing varies."""
    varies = variance > 0
    deviation = np.sqrt(np.where(varies, variance, 1.0))
    return np.where(varies, total / deviation, 0.0), np.where(varies, third / deviation**3, 0.0)


def _exact_where_few(
    feature: Ints, k: Ints, scores: Floats, is_chosen: Mask, weights: dict[int, Floats],
    tails: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:  # fmt: skip
    """Put exact tails in the place of those of features with few values; rows come by feature."""
    lower, upper = tails
    starts = np.cumsum(k) - k
    for n, of_size in weights.items():
        few = np.flatnonzero(k == n)
        rows = starts[few][:, None] + np.arange(n)
        observed = (scores[rows] * is_chosen[rows]).sum(axis=1)
        lower[few], upper[few] = exact_tails(scores[rows], observed, of_size)
    return lower, upper


def _delong(
    feature: Ints, value: Floats, rank: Floats, is_a: Mask, auc: Floats, k: Ints, n_a: int,
    n_b: int,
) -> Floats:  # fmt: skip
    """Return DeLong's standard error of the AUC, from each document's placement in the others."""
    variance = np.zeros(len(auc))
    sides = ((is_a, n_a, n_b, auc), (~is_a, n_b, n_a, 1 - auc))
    for mine, own, other, centre in sides:
        f, n_features = feature[mine], len(auc)
        k_own = np.bincount(f, minlength=n_features)
        zeros = (own - k_own).astype(np.float64)
        within = zeros[f] + _midranks(f, value[mine])
        # Share of the others that are lower, ties half; of a value of 0 half of their zeros.
        placed = (rank[mine] - within) / other
        of_zero = (other - (k - k_own)) / 2 / other
        spread = _sums(f, (placed - centre[f]) ** 2, n_features) + zeros * (of_zero - centre) ** 2
        variance += spread / (own - 1) / own
    return np.sqrt(variance)


def _newcombe(n_a: int, n_b: int, confidence: float) -> float:
    """Return the lower bound of an AUC that was found to be 1 (Newcombe 2006, method 5)."""
    squared, half = _quantile(confidence) ** 2, (n_a + n_b) / 2 - 1
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        spread = (1 - t) / (2 - t) + t / (1 + t)
        variance = t * (1 - t) / (n_a * n_b) * (1 + half * spread)
        low, high = (t, high) if (1 - t) ** 2 > squared * variance else (low, t)
    return low


def _logit_interval(
    auc: Floats, deviation: Floats, confidence: float, bound_of_one: float
) -> tuple[Floats, Floats]:
    """Return intervals that stay within 0 and 1.

    Args:
        auc: the shares, [n].
        deviation: their standard errors, [n].
        confidence: of the intervals.
        bound_of_one: lower bound of a share of 1; that of 0 is its mirror image.
    """
    inner = (auc > 0) & (auc < 1)
    share = np.where(inner, auc, 0.5)
    logit = np.log(share / (1 - share))
    step = _quantile(confidence) * deviation / (share * (1 - share))
    low, high = 1 / (1 + np.exp(step - logit)), 1 / (1 + np.exp(-logit - step))
    low = np.where(inner, low, np.where(auc >= 1, bound_of_one, 0.0))
    high = np.where(inner, high, np.where(auc >= 1, 1.0, 1 - bound_of_one))
    return low, high


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _where_known(known: Mask, test: RankTest) -> RankTest:
    return RankTest(*(np.where(known, column, np.nan) for column in vars(test).values()))
