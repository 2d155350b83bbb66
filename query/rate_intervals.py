"""How much two rates of firing differ, with intervals that hold though tokens hang together.

A rate is a ratio of two sums over documents, firings over tokens. Its variance is that of the
documents' residuals (Cochran 1977; Rao and Scott 1992), whatever goes on within them; that of the
log odds ratio follows by the delta method. Documents that have tokens of both sets count as one,
with the covariance of both parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from scopelake.query.tails import Floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Tokens of each document in the two sets, [documents]."""

    n_a: Ints
    n_b: Ints


@dataclass(frozen=True)
class RateDifference:
    """Of each feature, [features]; NaN where there is none."""

    difference: Floats
    """Rate in a less rate in b."""
    difference_low: Floats
    difference_high: Floats
    log_odds: Floats
    """Natural log of the odds ratio of a to b; with half a token more of each kind in each set
    (Haldane 1956, Anscombe 1956) where one is missing. NaN where it fires in neither."""
    log_odds_low: Floats
    log_odds_high: Floats


def rate_difference(
    feature: Ints, document: Ints, fired_a: Floats, fired_b: Floats, n_features: int,
    documents: Documents, confidence: float = 0.95,
) -> RateDifference:  # fmt: skip
    """Return difference and log odds ratio of every feature's two rates.

    Intervals are normal ones. There is none where a set has a single document, and none of the log
    odds ratio where a feature fires in fewer than two documents of a set, or on all of its tokens.

    Args:
        feature: 0 to n_features - 1, [n].
        document: index into `documents`; one row for a feature and document at most, [n].
        fired_a: firings on the document's tokens of set a, [n].
        fired_b: of set b, [n].
        n_features: number of features.
        documents: all documents.
        confidence: of the intervals.
    """
    tokens_a, tokens_b = documents.n_a.astype(np.float64), documents.n_b.astype(np.float64)
    total_a, total_b = tokens_a.sum(), tokens_b.sum()

    def sums(weights: npt.NDArray[Any]) -> Floats:
        return np.bincount(feature, weights=weights, minlength=n_features).astype(np.float64)

    count_a, count_b = sums(fired_a), sums(fired_b)
    rate_a, rate_b = count_a / total_a, count_b / total_b
    of_a, of_b = tokens_a[document], tokens_b[document]
    # Sums over all documents of products of residuals, fired less rate times tokens.
    aa = sums(fired_a**2) - 2 * rate_a * sums(fired_a * of_a) + rate_a**2 * (tokens_a @ tokens_a)
    bb = sums(fired_b**2) - 2 * rate_b * sums(fired_b * of_b) + rate_b**2 * (tokens_b @ tokens_b)
    ab = sums(fired_a * fired_b) - rate_b * sums(fired_a * of_b) - rate_a * sums(fired_b * of_a)
    ab += rate_a * rate_b * (tokens_a @ tokens_b)
    scale_a, scale_b = _small_sample(documents.n_a), _small_sample(documents.n_b)
    aa, bb, ab = aa * scale_a, bb * scale_b, ab * np.sqrt(scale_a * scale_b)
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)

    def step(per_a: Floats, per_b: Floats) -> Floats:
        variance = per_a**2 * aa + per_b**2 * bb - 2 * per_a * per_b * ab
        return np.asarray(quantile * np.sqrt(np.maximum(variance, 0.0)))

    difference = rate_a - rate_b
    wide = step(np.full(n_features, 1 / total_a), np.full(n_features, 1 / total_b))
    log_odds = _log_odds(count_a, count_b, total_a, total_b)
    enough = (sums(fired_a > 0) >= 2) & (sums(fired_b > 0) >= 2) & (rate_a < 1) & (rate_b < 1)
    per = (_per_logit(rate_a, total_a, enough), _per_logit(rate_b, total_b, enough))
    wide_odds = np.where(enough, step(*per), np.nan)
    return RateDifference(
        difference, difference - wide, difference + wide,
        log_odds, log_odds - wide_odds, log_odds + wide_odds,
    )  # fmt: skip


def _small_sample(tokens: Ints) -> float:
    """Return n / (n - 1) of the documents that have tokens of a set; NaN if it is one."""
    n = int(np.count_nonzero(tokens))
    return n / (n - 1) if n > 1 else float("nan")


def _log_odds(count_a: Floats, count_b: Floats, total_a: float, total_b: float) -> Floats:
    cells = np.stack([count_a, total_a - count_a, count_b, total_b - count_b])
    cells = cells + 0.5 * np.any(cells == 0, axis=0)
    found = np.log(cells[0]) - np.log(cells[1]) - np.log(cells[2]) + np.log(cells[3])
    return np.where(count_a + count_b > 0, found, np.nan)


def _per_logit(rate: Floats, total: float, there: npt.NDArray[np.bool_]) -> Floats:
    """Return by how much the log odds grow with a residual."""
    return 1 / np.where(there, total * rate * (1 - rate), 1.0)
