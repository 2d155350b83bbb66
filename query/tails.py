"""Tail probabilities of test statistics: exact for few scores, else normal or Pearson's type III.

Of a sum of few scores every outcome is counted. Of many, mean, variance and skewness of the
permutation distribution are exact, and the tail is that of the shifted gamma distribution that has
them (Pearson's type III; Mielke and Berry, Permutation Methods, 2007). Where documents that fire
are rare and the sets are of unlike size the distribution is skewed, and a normal tail would be too
light by orders of magnitude.
"""

from __future__ import annotations

from math import comb, erfc, lgamma, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_EXACT: Final = 10
"""Scores of which all 2^n outcomes are counted."""

LEAST: Final = 1e-300
"""Below it a probability is called this: it would be 0 soon."""

_ROWS_AT_ONCE: Final = 2048
_WIDE: Final = 1e5
"""Shapes of the gamma distribution from which Wilson and Hilferty's cube root stands for it."""
_STRAIGHT: Final = 1e-6
"""Skewness below which the distribution is called normal."""
_ITERATIONS: Final = 5000
_SMALL: Final = 1e-300

_log_gamma = np.vectorize(lgamma, otypes=[np.float64])
_erfc = np.vectorize(erfc, otypes=[np.float64])


def two_sided(lower: Floats, upper: Floats) -> Floats:
    """Return twice the smaller tail, at most 1."""
    return np.clip(2.0 * np.minimum(lower, upper), LEAST, 1.0)


def normal_tails(z: Floats) -> tuple[Floats, Floats]:
    """Return P(Z <= z) and P(Z >= z) of a standard normal variable."""
    if not len(z):
        return z, z
    # A distribution function by erf would lose all digits of the far tail.
    return 0.5 * _erfc(-z / sqrt(2)), 0.5 * _erfc(z / sqrt(2))


def skewed_tails(z: Floats, skewness: Floats) -> tuple[Floats, Floats]:
    """Return P(Z <= z) and P(Z >= z) of a standardized variable of Pearson's type III.

    Args:
        z: values, [n].
        skewness: of the distribution, [n]; 0 is the normal one.
    """
    lower, upper = normal_tails(z)
    at = np.flatnonzero(np.abs(skewness) > _STRAIGHT)
    sign = np.sign(skewness[at])
    shape = 4.0 / skewness[at] ** 2
    # Of negative skewness the mirror image.
    below, above = _gamma_tails(shape, shape + sign * z[at] * np.sqrt(shape))
    lower[at] = np.where(sign > 0, below, above)
    upper[at] = np.where(sign > 0, above, below)
    return lower, upper


def _gamma_tails(shape: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return P(G <= x) and P(G >= x) of gamma variables of scale 1."""
    lower, upper = np.zeros(len(x)), np.ones(len(x))
    there = x > 0
    wide = there & (shape > _WIDE)
    root = np.cbrt(x[wide] / shape[wide]) - 1.0 + 1.0 / (9.0 * shape[wide])
    lower[wide], upper[wide] = normal_tails(3.0 * np.sqrt(shape[wide]) * root)
    series = there & ~wide & (x < shape + 1.0)
    lower[series] = _gamma_series(shape[series], x[series])
    upper[series] = 1.0 - lower[series]
    far = there & ~wide & ~series
    upper[far] = _gamma_fraction(shape[far], x[far])
    lower[far] = 1.0 - upper[far]
    return lower, upper


def _gamma_series(shape: Floats, x: Floats) -> Floats:
    """Return P(G <= x) by its power series, for x < shape + 1."""
    if not len(x):
        return x
    term = 1.0 / shape
    total = term.copy()
    for n in range(1, _ITERATIONS):
        term *= x / (shape + n)
        total += term
        if np.all(term < total * 1e-15):
            break
    return np.asarray(np.minimum(total * np.exp(shape * np.log(x) - x - _log_gamma(shape)), 1.0))


def _gamma_fraction(shape: Floats, x: Floats) -> Floats:
    """Return P(G >= x) by its continued fraction (Lentz's method), for x >= shape + 1."""
    if not len(x):
        return x
    b = x + 1.0 - shape
    c = np.full(len(x), 1.0 / _SMALL)
    d = 1.0 / b
    h = d.copy()
    for n in range(1, _ITERATIONS):
        a = -n * (n - shape)
        b += 2.0
        d = a * d + b
        d[np.abs(d) < _SMALL] = _SMALL
        c = b + a / c
        c[np.abs(c) < _SMALL] = _SMALL
        d = 1.0 / d
        h *= d * c
        if np.all(np.abs(d * c - 1.0) < 1e-15):
            break
    return np.asarray(np.minimum(h * np.exp(shape * np.log(x) - x - _log_gamma(shape)), 1.0))


def drawn_weights(n_scores: int, n_in_all: int, n_drawn: int) -> Floats:
    """Return, by number of scores that are drawn, the probability of each such outcome.

    Args:
        n_scores: items that have a score; the others score 0.
        n_in_all: items that there are.
        n_drawn: items of these that are drawn, without replacement.
    """
    everything = comb(n_in_all, n_drawn)
    ways = [
        comb(n_in_all - n_scores, n_drawn - j) / everything if n_drawn >= j else 0.0
        for j in range(n_scores + 1)
    ]
    return np.array(ways)


def exact_tails(scores: Floats, observed: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return P(T <= t) and P(T >= t) of sums of subsets of scores, by counting all of them.

    Args:
        scores: multiples of a half, [n, k] with k at most `MOST_EXACT`.
        observed: the sum that was found, [n].
        weights: probability of one subset by its size, [k + 1].
    """
    k = scores.shape[1]
    subsets = (np.arange(1 << k)[None, :] >> np.arange(k)[:, None] & 1).astype(np.float64)
    chance = weights[subsets.sum(axis=0).astype(np.int64)]
    lower, upper = np.empty(len(scores)), np.empty(len(scores))
    for start in range(0, len(scores), _ROWS_AT_ONCE):
        at = slice(start, start + _ROWS_AT_ONCE)
        sums = scores[at] @ subsets
        # Half of the smallest step between two sums.
        lower[at] = (sums <= observed[at, None] + 0.25) @ chance
        upper[at] = (sums >= observed[at, None] - 0.25) @ chance
    return lower, upper
