"""How strong a firing is among all those of its feature on a corpus.

A percentile is the share, in percent, of the feature's firings there, BOS left out, that are
weaker. It is counted from ``postings`` where all firings of the SAE are stored and those of the
features asked for are not too many; else the statistics in ``features`` bound it, from both sides,
and it is the middle with half the distance as its error.

Firings are compared as the corpus stores them: rounded to as many mantissa bits. Of one that was
rounded to other bits before, all values are looked at that it may have had.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.query.connect import Connection
from scopelake.query.resolve import SaeInfo
from scopelake.store.firings import band
from scopelake.store.gathered import activations_by_feature
from scopelake.store.precision import MANTISSA_BITS, round_mantissa
from scopelake.store.summary import QUANTILES

EXACT_ROWS: Final = 2_000_000
"""Firings of an SAE's features that are counted one by one."""

_STATISTICS: Final = ("feature", "firings", "histogram", "max", *QUANTILES)

Shares = npt.NDArray[np.float64]


def percentiles(
    connection: Connection,
    sae: SaeInfo,
    corpus: str,
    feature: npt.NDArray[np.int32],
    activation: npt.NDArray[np.float32],
    *,
    bits: int | None = None,
    most_rows: int = EXACT_ROWS,
) -> tuple[Shares, Shares]:
    """Return the percentile of each firing of an SAE and its error, in points, [n] each.

    Both are NaN of features that never fire on the corpus. The percentile is exact where the error
    is 0.

    Args:
        connection: of the lake with the corpus.
        sae: complete on it.
        corpus: the corpus.
        feature: of each firing, [n].
        activation: of each, above 0, [n].
        bits: of the mantissa, to which the activations were rounded; None: as on the corpus.
        most_rows: firings on the corpus that are read, at most.
    """
    features, index = np.unique(feature, return_inverse=True)
    filters: list[tuple[str, str, Any]] = [("sae", "=", sae.name), ("corpus", "=", corpus)]
    filters += [("feature", "in", features.tolist())]
    rows = connection.rows("features", ("feature", "firings"), filters).sort_by("feature")
    firings = rows["firings"].to_numpy()
    known = np.where(firings > 0, 1.0, np.nan)[index]
    least, most = _as_stored(activation, bits, connection.coverage.bits(sae.name, corpus))
    is_whole = corpus not in sae.partial
    if is_whole and firings.sum() <= most_rows:
        found = connection.rows("postings", ("feature", "activation", "kind"), filters)
        n = np.maximum(firings[index], 1)
        low, high = _count_weaker(found, feature, np.stack([least, most])) / n
    else:
        rows = connection.rows("features", _STATISTICS, filters).sort_by("feature").combine_chunks()
        low, _ = _bounds(rows, index, least, has_quantiles=is_whole)
        _, high = _bounds(rows, index, most, has_quantiles=is_whole)
    return 50 * (low + high) * known, 50 * (high - low) * known


def _as_stored(
    activation: npt.NDArray[np.float32], bits: int | None, stored: Collection[int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the least and the most that each activation may be where `stored` bits are kept.

    Args:
        activation: above 0, rounded to `bits`, [n].
        bits: None: as those that are stored.
        stored: one of these it is.
    """
    if bits is None or not set(stored) - {bits}:
        return activation, activation
    raw = np.ascontiguousarray(activation, np.float32).view(np.uint32)
    # Rounding is done on the bits: whatever is at most half a step away became this value.
    half = np.uint32((1 << (MANTISSA_BITS - bits)) >> 1)
    ends = (raw - np.minimum(raw, half)).view(np.float32), (raw + half).view(np.float32)
    least, most = (
        [activation if n == bits else round_mantissa(end, n) for n in stored] for end in ends
    )
    return np.minimum.reduce(least), np.maximum.reduce(most)


def _count_weaker(
    rows: pa.Table, feature: npt.NDArray[np.int32], activation: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Return how many of `rows` have each firing's feature and a lower activation, [m, n].

    Args:
        rows: feature, activation, kind; there may be far more of them than firings.
        feature: of each firing, [n].
        activation: of each firing some values, [m, n].
    """
    high = int(feature.max(initial=-1)) + 1
    part = rows["feature"].to_numpy(), rows["activation"].to_numpy(), rows["kind"].to_numpy()
    counts, values = activations_by_feature([part], 0, high)
    there = _keys(np.repeat(np.arange(high, dtype=np.uint64), counts), values)
    below = np.searchsorted(there, _keys(np.broadcast_to(feature, activation.shape), activation))
    return below - (np.cumsum(counts) - counts)[feature]


def _keys(feature: npt.NDArray[Any], activation: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Numbers in the order of feature, then activation: bits of floats above 0 are in theirs."""
    bits = np.ascontiguousarray(activation, np.float32).view(np.uint32)
    return (feature.astype(np.uint64) << np.uint64(32)) | bits.astype(np.uint64)


def _bounds(
    rows: pa.Table,
    index: npt.NDArray[np.int64],
    activation: npt.NDArray[np.float32],
    *,
    has_quantiles: bool,
) -> tuple[Shares, Shares]:
    """Return the lowest and the highest share of weaker firings that the statistics leave.

    Args:
        rows: the features' statistics.
        index: of each firing's feature in them.
        activation: of each firing.
        has_quantiles: whether they are of the firings, and not estimated.
    """
    counts = rows["histogram"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    ends = np.cumsum(counts, axis=1)[index, band(activation)]
    n = np.maximum(rows["firings"].to_numpy(), 1)[index].astype(np.float64)
    low, high = ends - counts[index, band(activation)], ends.astype(np.float64)
    of = {"max": 1.0} | (QUANTILES if has_quantiles else {})
    for name, q in of.items():
        value = _column(rows, name)[index]
        # The quantiles are between two firings, and rounded.
        above = activation > np.nextafter(value, np.float32(np.inf), dtype=np.float32)
        low = np.where(above, np.maximum(low, np.floor(q * (n - 1)) + 1), low)
        within = activation <= np.nextafter(value, np.float32(-np.inf), dtype=np.float32)
        high = np.where(within, np.minimum(high, np.ceil(q * (n - 1))), high)
    return low / n, np.maximum(high, low) / n


def _column(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = rows[name].to_numpy(zero_copy_only=False).astype(np.float32)
    return values
