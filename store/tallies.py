"""Statistics of each feature in a shard, which can be added up: for firings that are not kept.

Counts, sums and maxima are exact. Activations are counted by bins 1/32 of a power of two wide, so
quantiles lie within 1.6 % of the exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import InvalidArgumentError
from scopelake.names import KIND_BOS
from scopelake.store.firings import BANDS, Firings, band
from scopelake.store.integrity import checked_copies
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS, file_schema
from scopelake.store.summary import QUANTILES

_MANTISSA_BITS: Final = 5
BINS: Final = 2**_MANTISSA_BITS
"""Bins of a power of two."""

_SHIFT: Final = np.uint32(23 - _MANTISSA_BITS)
"""Bits of a float32 below those of its bin."""


def tally(firings: Firings) -> pa.Table:
    """Return the statistics of each feature that fires, BOS left out.

    Args:
        firings: in any order.

    Returns:
        The columns inside files of the tallies table, sorted by feature.
    """
    keep = firings.kind != KIND_BOS
    feature, activation = firings.feature[keep], firings.activation[keep]
    # Bits of positive floats ascend with them; of what is not positive there are no firings.
    bins = (np.maximum(activation, np.float32(0)).view(np.uint32) >> _SHIFT).astype(np.int64)
    keys, counts = np.unique((feature.astype(np.int64) << 32) | bins, return_counts=True)
    features, starts = np.unique(keys >> 32, return_index=True)
    index = np.searchsorted(features, feature)
    highest = np.full(len(features), -np.inf, np.float32)
    np.maximum.at(highest, index, activation)
    sums = np.bincount(index, weights=activation.astype(np.float64), minlength=len(features))
    return _table(features, sums, highest, keys & 0xFFFFFFFF, counts, starts)


def add_up(parts: Sequence[pa.Table]) -> pa.Table:
    """Return tallies of disjoint firings as one."""
    # Older files have columns that may be null.
    schema = file_schema("tallies")
    rows = pa.concat_tables([part.cast(schema) for part in parts]).combine_chunks()
    feature = rows["feature"].to_numpy()
    lengths = rows["bins"].combine_chunks().value_lengths().to_numpy()
    bins = rows["bins"].combine_chunks().flatten().to_numpy().astype(np.int64)
    counts = rows["counts"].combine_chunks().flatten().to_numpy()
    keys, inverse = np.unique(
        (np.repeat(feature, lengths).astype(np.int64) << 32) | bins, return_inverse=True
    )
    summed = np.zeros(len(keys), np.int64)
    np.add.at(summed, inverse, counts)
    features, index = np.unique(feature, return_inverse=True)
    starts = np.searchsorted(keys >> 32, features)
    highest = np.full(len(features), -np.inf, np.float32)
    np.maximum.at(highest, index, rows["max"].to_numpy())
    sums = np.bincount(index, weights=rows["total"].to_numpy(), minlength=len(features))
    return _table(features, sums, highest, keys & 0xFFFFFFFF, summed, starts)


def read_tallies(root: Root, paths: Sequence[str]) -> pa.Table:
    """Return what files of tallies say together; they are read one after the other.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    found = file_schema("tallies").empty_table()
    with checked_copies(root, list(paths)) as local:
        for path in paths:
            found = add_up([found, pq.read_table(local.open(path))])
    return found


def tallied_statistics(tallies: pa.Table, width: int, n_tokens: int) -> pa.Table:
    """Return the statistics of every feature, as `feature_statistics` does of firings.

    Args:
        tallies: of all firings of a coder on a corpus.
        width: number of features.
        n_tokens: tokens that are not BOS.

    Raises:
        InvalidArgumentError: a feature lies beyond `width`.
    """
    feature = tallies["feature"].to_numpy()
    if len(feature) and int(feature.max()) >= width:
        raise InvalidArgumentError(
            f"statistics of {width} features were asked for; the files have feature "
            f"{int(feature.max())}; give the files and width of one coder"
        )
    lengths = tallies["bins"].combine_chunks().value_lengths().to_numpy()
    of_bin = np.repeat(feature, lengths)
    bins = tallies["bins"].combine_chunks().flatten().to_numpy().astype(np.uint32)
    counts = tallies["counts"].combine_chunks().flatten().to_numpy()
    firings = np.zeros(width, np.int64)
    np.add.at(firings, of_bin, counts)
    total, highest = np.zeros(width), np.zeros(width, np.float32)
    total[feature], highest[feature] = tallies["total"].to_numpy(), tallies["max"].to_numpy()
    silent = firings == 0
    columns: dict[str, Any] = {
        "feature": np.arange(width, dtype=np.int32),
        "firings": firings,
        "density": firings / n_tokens,
        "mean": pa.array((total / np.maximum(firings, 1)).astype(np.float32), mask=silent),
        "max": pa.array(highest, mask=silent),
    }
    values = _middle(bins)
    ends = np.cumsum(counts)
    before = np.concatenate([[0], np.cumsum(firings)[:-1]])
    for name, q in QUANTILES.items():
        at = q * np.maximum(firings - 1, 0)
        below = np.floor(at).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(firings - 1, 0))
        left, right = (_at(values, ends, before + place) for place in (below, above))
        found = (left + (right - left) * (at - below)).astype(np.float32)
        columns[name] = pa.array(np.minimum(found, highest), mask=silent)
    histogram = np.zeros((width, BANDS), np.int64)
    np.add.at(histogram, (of_bin, band(values)), counts)
    offsets = pa.array(np.arange(width + 1) * BANDS, pa.int32())
    columns["histogram"] = pa.ListArray.from_arrays(offsets, pa.array(histogram.ravel()))
    columns["n_tokens"] = np.full(width, n_tokens, dtype=np.int64)
    schema = pa.schema([SCHEMAS["features"].field(name) for name in columns])
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema)


def _at(
    values: npt.NDArray[np.float32], ends: npt.NDArray[np.int64], place: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the values at places of the sorted firings that bins ending at `ends` hold."""
    if len(values) == 0:
        return np.zeros(len(place))
    bins = np.minimum(np.searchsorted(ends, place, side="right"), len(values) - 1)
    return values[bins].astype(np.float64)


def _middle(bins: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return the middle of each bin; bins never straddle a power of two."""
    half = np.uint32(1) << (_SHIFT - np.uint32(1))
    return ((bins << _SHIFT) | half).view(np.float32)


def _table(
    features: npt.NDArray[Any],
    sums: npt.NDArray[Any],
    highest: npt.NDArray[np.float32],
    bins: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    starts: npt.NDArray[Any],
) -> pa.Table:
    offsets = pa.array(np.append(starts, len(bins)).astype(np.int32))
    columns = {
        "feature": features.astype(np.int32),
        "total": sums,
        "max": highest,
        "bins": pa.ListArray.from_arrays(offsets, pa.array(bins.astype(np.int16))),
        "counts": pa.ListArray.from_arrays(offsets, pa.array(counts.astype(np.int64))),
    }
    return pa.table(columns).cast(file_schema("tallies"))
