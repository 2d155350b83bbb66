"""How many rows of peaks and samples an ingest writes: what can still count beside what is there.

Of N contexts in which a feature fires at random, one is among the K strongest so far with
probability K / N: rows grow like K * (1 + ln(N / K)), a little faster because a shard does not look
back at itself. Everything here is expectation; how features differ is a `Profile`, guessed or
measured.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from scopelake.ingest.shapes import Shards
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND
from scopelake.store.tallies import BINS

_Array = npt.NDArray[np.float64]

_EXACT_SHARDS: Final = 16
"""So many are summed one by one; behind them the sum is the integral, within a few percent."""

SIGMA: Final = 1.6
"""Standard deviation of the logarithm of features' densities; the tiny model's 1,024 features have
1.56 to 1.67."""

_CLUSTERING: Final = (1.5, 2.8)
"""Exponent and scale of 1 - (1 + n / scale) ** -exponent, the share of contexts in which a feature
of n firings a context fires: they cluster. Fitted to the tiny model's in contexts of 32 to 1,024
tokens, where the length made little difference."""

_BANDS: Final = (0.59, 0.35, 0.059, 0.001)
"""Shares of a feature's firings in its powers of two, the commonest first: about the tiny model's,
where the fewest features have the rarer ones at all."""

_QUANTILES: Final = 200


@dataclass(frozen=True)
class Profile:
    """How often features fire: entries that stand for one feature each, or for several."""

    contexts: _Array
    """Share of contexts in which each fires, [n]."""
    contexts_weight: float
    """Features that each of these stands for."""
    bands: _Array
    """Firings a token of each feature in each of its bands of activation, [m]."""
    bands_weight: float
    """Features that each of these stands for."""

    def peaks(self, shards: Shards) -> float:
        """Return the rows of peaks that the shards bring."""
        rates = [(self.contexts * n) for n in shards.contexts[:_EXACT_SHARDS]]
        before = self.contexts * shards.contexts_before
        total = self.contexts * (shards.contexts_before + shards.n_contexts)
        rows = _rows(rates, before, total, PEAKS_DEPTH, knows_neighbour=True)
        return self.contexts_weight * rows

    def samples(self, shards: Shards) -> float:
        """Return the rows of samples that the shards bring."""
        rates = [(self.bands * n) for n in shards.tokens[:_EXACT_SHARDS]]
        per_context = shards.n_tokens / max(shards.n_contexts, 1)
        before = self.bands * shards.contexts_before * per_context
        total = before + self.bands * shards.n_tokens
        rows = _rows(rates, before, total, SAMPLES_PER_BAND, knows_neighbour=False)
        return self.bands_weight * rows

    def tallied(self, shards: Shards) -> tuple[float, float]:
        """Return the rows of tallies that the shards bring, and the bins in them."""
        rows = bins = 0.0
        for n, times in Counter(shards.contexts).items():
            rows += times * float((1 - np.exp(-self.contexts * n)).sum())
        for n, times in Counter(shards.tokens).items():
            bins += times * float((1 - np.exp(-self.bands * n / BINS)).sum())
        return self.contexts_weight * rows, self.bands_weight * BINS * bins


def _rows(
    per_shard: list[_Array], before: _Array, total: _Array, k: int, *, knows_neighbour: bool
) -> float:
    """Sum over features what each shard brings among the `k` best so far.

    A shard does not know the one before it, which is in memory beside it. Samples are as many as
    follows from that, peaks as if it did: both measured (docs/scale.md).
    """
    known, seen, rows = before, before, 0.0
    for new in per_shard:
        rows += float(np.minimum(np.minimum(new, k), new * k / np.maximum(known, k)).sum())
        known, seen = seen, seen + new
        if knows_neighbour:
            known = seen
    # The shards behind the first: up to k all count, then k in seen.
    rows += float((np.minimum(total, k) - np.minimum(seen, k)).clip(min=0).sum())
    return rows + float((k * np.log(np.maximum(total, k) / np.maximum(seen, k))).sum())


@lru_cache(maxsize=1024)
def guessed_profile(width: int, l0: float, context_length: int) -> Profile:
    """Return the profile of a coder of which only width and L0 are known.

    Densities are log-normal with the mean L0 / width.
    """
    share = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    density = np.exp(SIGMA * np.array([NormalDist().inv_cdf(float(s)) for s in share]))
    density = np.minimum(density * (l0 / width / density.mean()), 1.0)
    exponent, scale = _CLUSTERING
    fires = 1 - (1 + density * context_length / scale) ** -exponent
    bands = np.outer(density, _BANDS).ravel()
    return Profile(fires, width / _QUANTILES, bands, width / _QUANTILES)
