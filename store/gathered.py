"""Activations gathered by feature, in memory that does not grow with the firings.

A feature with few firings keeps its activations. One with many keeps how often it had each of them:
stored with ten bits of mantissa or fewer there are 1,024 in a power of two. Compiled
(`_statistics.c`), with a plain counterpart that keeps all of them and gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scopelake.names import KIND_BOS
from scopelake.store.firings import BANDS, band, sort_order

try:
    from scopelake.store import _statistics
except ImportError as error:
    WHY_NOT: str | None = f"the compiled statistics are not built ({error})"
else:
    WHY_NOT = None

Part = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int8]]
"""Firings: feature, activation, which is finite, and kind, [n] each."""

PAGED_FROM: Final = 1 << 13
"""Firings of a feature from which it has pages: eight take as much."""

PAGED_BYTES: Final = 14 * 4096
"""What a feature with pages takes, mostly: one for each power of two, and where they are."""

_MOST: Final = 0xFFFFFFFF
"""Firings of a feature that a page can count."""

_EXPONENTS, _VALUES = 512, 1024
"""Pages that a feature can have, one for each sign and exponent; activations of a page."""

_PAGES: Final = 32
"""Of a feature, that there is room for at first; what is not written to takes no memory."""

_FULL, _TOO_FINE = 1, 2
"""Why firings were not taken: pages are used up, or do not tell their activations apart."""


class TooFineError(Exception):
    """Activations have more bits than pages tell apart."""


@dataclass(frozen=True)
class _Pages:
    of: npt.NDArray[np.int64]
    """Features that have some, counted from the first."""
    at: npt.NDArray[np.int32]
    """[features, _EXPONENTS], where in `pool` a page is; -1: there is none."""
    pool: npt.NDArray[np.uint32]
    """[pages, _VALUES], how often each activation was there."""


@dataclass(frozen=True)
class Gathered:
    """Activations of consecutive features, firings on BOS left out."""

    counts: npt.NDArray[np.int64]
    """[n], firings of each feature."""
    _values: npt.NDArray[np.float32]
    """And one more, so that there is something at every start."""
    _starts: npt.NDArray[np.int64]
    """[n]; from there on lie so many sorted values of a feature as `_held` says."""
    _held: npt.NDArray[np.int64]
    _pages: _Pages | None = None

    def facts(
        self, ranks: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return activations at ranks, sums, and histograms.

        Args:
            ranks: [n, ranks], each below the feature's count, or 0.

        Returns:
            [n, ranks], 0 where there is no firing; [n], of float64, from the least on; and
            [n, BANDS], counts by power of two.
        """
        n = len(self.counts)
        sums, bins = np.zeros(n), np.zeros((n, BANDS), np.int64)
        if WHY_NOT is None:
            _statistics.summarize(self._values, self._starts, self._held, sums, bins)
        else:
            _sums_and_bins(self._values[:-1], self._held, sums, bins)
        values = self._values[np.minimum(self._starts[:, None] + ranks, len(self._values) - 1)]
        if (pages := self._pages) is not None:
            at = np.ascontiguousarray(ranks[pages.of])
            found, more = np.zeros(at.shape, np.float32), np.zeros(len(at))
            of_bins = np.zeros((len(at), BANDS), np.int64)
            _statistics.paged(pages.at, pages.pool, at, found, more, of_bins)
            values[pages.of], sums[pages.of], bins[pages.of] = found, more, of_bins
        values[self.counts == 0] = 0
        return values, sums, bins


def count_features(
    features: Iterable[npt.NDArray[np.int32]], low: int, n: int
) -> npt.NDArray[np.int64]:
    """Return how often each of `n` features from `low` on is there."""
    rows = np.zeros(n, np.int64)
    for feature in features:
        if WHY_NOT is None:
            _statistics.count(np.ascontiguousarray(feature), low, rows)
        else:
            there = feature[(feature >= low) & (feature < low + n)]
            rows += np.bincount(there - low, minlength=n)
    return rows


def has_pages(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which features have pages, of so many firings each; there is a most to be counted."""
    return (rows >= PAGED_FROM) & (rows <= _MOST)


def gather(
    parts: Iterable[Part], rows: npt.NDArray[np.int64], low: int, *, may_page: bool = False
) -> Gathered:
    """Gather the activations of features; firings on BOS and of other features are left out.

    Args:
        parts: of the firings, in any order.
        rows: [n], firings of each feature, on BOS too; there may be fewer.
        low: the first feature.
        may_page: whether a feature of many firings may have pages.

    Raises:
        TooFineError: it has them, and activations have more than ten bits of mantissa.
        ValueError: there are more firings than `rows` says.
    """
    found = (
        _gather_plain(parts, len(rows), low)
        if WHY_NOT is not None
        else _gather_compiled(parts, rows, low, has_pages(rows) & may_page)
    )
    if (found.counts > rows).any():
        raise ValueError("there is room for fewer firings")
    return found


def _gather_compiled(
    parts: Iterable[Part],
    rows: npt.NDArray[np.int64],
    low: int,
    is_paged: npt.NDArray[np.bool_],
) -> Gathered:
    held = np.where(is_paged, 0, rows)
    starts = np.cumsum(held) - held
    of = np.flatnonzero(is_paged)
    stops = starts + held
    stops[of] = -1 - np.arange(len(of))
    reached, values = np.where(is_paged, 0, starts), np.empty(int(held.sum()) + 1, np.float32)
    at, used = np.full((len(of), _EXPONENTS), -1, np.int32), np.zeros(1, np.int64)
    # Memory that nothing was written to is not taken.
    pool = np.empty((_PAGES * len(of), _VALUES), np.uint32)
    for part in parts:
        feature, activation, kind = map(np.ascontiguousarray, part)
        row, status = 0, _FULL
        while status == _FULL:
            row, status = _statistics.gather(
                feature, activation, kind, reached, stops, values, at, pool, used, low, row
            )
            if status == _FULL:
                pool = np.concatenate([pool, np.empty_like(pool)])
        if status == _TOO_FINE:
            raise TooFineError
    counts = np.where(is_paged, reached, reached - starts)
    held = np.where(is_paged, 0, counts)
    _statistics.sort(values, starts, held)
    return Gathered(counts, values, starts, held, _Pages(of, at, pool) if len(of) else None)


def activations_by_feature(
    parts: Sequence[Part], low: int, high: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return of firings in any order how many each feature has, and their activations.

    Args:
        parts: of the firings, as they were read.
        low: the first feature; those below are left out, as BOS is.
        high: the first that is not asked for.

    Returns:
        [high - low], and activations sorted by feature, then activation.
    """
    rows = count_features((feature for feature, _, _ in parts), low, high - low)
    found = gather(parts, rows, low)
    values = found._values[:-1]
    if len(values) > int(found.counts.sum()):  # where BOS was there are gaps
        ends = np.repeat(found._starts + found.counts, rows)
        values = values[np.arange(len(ends)) < ends]
    return found.counts, values


def _gather_plain(parts: Iterable[Part], n: int, low: int) -> Gathered:
    empty = (np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int8))
    feature, activation, kind = map(np.concatenate, zip(empty, *parts, strict=True))
    keep = (kind != KIND_BOS) & (feature >= low) & (feature < low + n)
    feature, values = feature[keep], activation[keep]
    counts = np.bincount(feature - low, minlength=n)
    values = values[sort_order(feature)]
    starts = np.cumsum(counts) - counts
    # Feature by feature is faster than by both at once.
    for start, stop in zip(starts.tolist(), (starts + counts).tolist(), strict=True):
        values[start:stop].sort()
    return Gathered(counts, np.append(values, np.float32(0)), starts, counts)


def _sums_and_bins(
    values: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    bins: npt.NDArray[Any],
) -> None:
    """Fill in sums [n] and bins [n, BANDS] of values that lie feature after feature."""
    n = len(counts)
    feature = np.repeat(np.arange(n), counts)
    sums[:] = np.bincount(feature, weights=values.astype(np.float64), minlength=n)
    bins.ravel()[:] = np.bincount(feature * BANDS + band(values), minlength=n * BANDS)
