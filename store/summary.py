"""Statistics of every feature, exact, from feature-major files in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.names import KIND_BOS
from scopelake.store import native
from scopelake.store.feature_ranges import ROWS_AT_ONCE, RowGroup, ranges, read_range, row_groups
from scopelake.store.firings import BANDS, band, sort_order
from scopelake.store.integrity import checked_copies
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS

QUANTILES: Final = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p99": 0.99}

_FEWEST_ROWS: Final = 1_000_000
"""To hold at once: each range reads some rows besides of every file."""

_FILES_AT_ONCE: Final = 6
"""Of the largest file's size, as many rows as so many have are held at once: a firing takes 160
bytes while it is written, and 20 while statistics are made (measured; compiled)."""

_COLUMNS: Final = ("feature", "activation", "kind")


def feature_statistics(
    root: Root,
    files: Iterable[str],
    width: int,
    n_tokens: int,
    *,
    most_rows: int | None = None,
    threads: int = 1,
) -> pa.Table:
    """Return the statistics of every feature, firings on BOS left out.

    Features are taken range by range, so that an ingest needs no more memory for its statistics
    than for a shard: at once six times as many firings as the largest file has, but a million at
    least and 8 million at most; or those of one feature where it alone has more.

    Args:
        root: the lake's.
        files: postings files of one coder on one corpus; their union is each firing once.
        width: number of features.
        n_tokens: tokens that are not BOS, the denominator of density.
        most_rows: firings that each thread may hold at most, if that is less.
        threads: that make ranges at once.

    Returns:
        One row for each feature 0..width-1: the columns of the features table from `feature` to
        `n_tokens`; without firings mean, max and quantiles are null. Quantiles are numpy's
        linear ones of the stored activations, the mean is summed in float64.

    Raises:
        DamagedFileError: a file is not what was written.
        InvalidArgumentError: a file has a feature beyond `width`, or `width` or `n_tokens` is
            below 1.
    """
    if width < 1 or n_tokens < 1:
        raise InvalidArgumentError(
            f"statistics of {width} features over {n_tokens} tokens were asked for; give 1 or more"
        )
    files = list(files)
    with checked_copies(root, files) as local:
        groups = list(row_groups(local, files))
        highest = max((g.high for g in groups), default=0)
        if highest >= width:
            raise InvalidArgumentError(
                f"statistics of {width} features were asked for; the files have feature "
                f"{highest}; give the files and width of one coder"
            )
        rows = max(_FEWEST_ROWS, _rows_at_once(groups) // threads)
        rows = rows if most_rows is None else min(rows, most_rows)

        def of_range(bounds: tuple[int, int]) -> pa.Table:
            return _range_statistics(local, groups, *bounds, n_tokens)

        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(of_range, ranges(local, groups, width, rows)))
    return pa.concat_tables(parts).combine_chunks()


def _rows_at_once(groups: Iterable[RowGroup]) -> int:
    rows: Counter[str] = Counter()
    for group in groups:
        rows[group.path] += group.n_rows
    return min(ROWS_AT_ONCE, max(_FEWEST_ROWS, _FILES_AT_ONCE * max(rows.values(), default=0)))


def _range_statistics(
    root: Root, groups: list[RowGroup], low: int, high: int, n_tokens: int
) -> pa.Table:
    counts, activation = activations_by_feature(
        list(_read_range(root, groups, low, high)), low, high
    )
    starts = np.cumsum(counts) - counts
    silent = counts == 0
    sums, bins = sums_and_histograms(counts, activation)
    n = high - low
    columns: dict[str, Any] = {
        "feature": np.arange(low, high, dtype=np.int32),
        "firings": counts,
        "density": counts / n_tokens,
        "mean": _column(sums / np.maximum(counts, 1), silent),
        "max": _column(_quantile(activation, starts, counts, 1.0), silent),
    }
    for name, q in QUANTILES.items():
        columns[name] = _column(_quantile(activation, starts, counts, q), silent)
    offsets = pa.array(np.arange(n + 1) * BANDS, pa.int32())
    columns["histogram"] = pa.ListArray.from_arrays(offsets, pa.array(bins.ravel()))
    columns["n_tokens"] = np.full(n, n_tokens, dtype=np.int64)
    schema = pa.schema([SCHEMAS["features"].field(name) for name in columns])
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema)


Part = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int8]]
"""Firings: feature, activation, which is finite, and kind, [n] each."""


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
    if native.WHY_NOT is None:
        counts, values = native.bucket(parts, low, high)
    else:
        empty = (np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int8))
        feature, activation, kind = map(np.concatenate, zip(empty, *parts, strict=True))
        keep = (kind != KIND_BOS) & (feature >= low) & (feature < high)
        feature, values = feature[keep], activation[keep]
        counts = np.bincount(feature - low, minlength=high - low)
        values = values[sort_order(feature)]
    # Feature by feature is faster than by both at once.
    start = 0
    for stop in np.cumsum(counts).tolist():
        values[start:stop].sort()
        start = stop
    return counts, values


def sums_and_histograms(
    counts: npt.NDArray[np.int64], activation: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return each feature's sum, and its activations by power of two: [n], [n, BANDS].

    Args:
        counts: [n].
        activation: by feature; sums are of float64, one after the other.
    """
    if native.WHY_NOT is None:
        return native.summarize(counts, activation)
    n = len(counts)
    feature = np.repeat(np.arange(n), counts)
    sums = np.bincount(feature, weights=activation.astype(np.float64), minlength=n)
    flat = feature * BANDS + band(activation)
    bins = np.bincount(flat, minlength=n * BANDS).astype(np.int64).reshape(n, BANDS)
    return sums.astype(np.float64), bins


def _read_range(root: Root, groups: list[RowGroup], low: int, high: int) -> Iterator[Part]:
    """Yield, file by file, feature, activation and kind of all with low <= feature < high."""
    for rows in read_range(root, groups, low, high, _COLUMNS):
        feature, activation, kind = (rows[name].to_numpy() for name in _COLUMNS)
        yield feature, activation, kind


def _quantile(
    values: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    q: float,
) -> npt.NDArray[np.float64]:
    """Return the linear quantile of each sorted run of `values`; anything where it is empty."""
    if len(values) == 0:
        return np.zeros(len(counts))
    at = q * np.maximum(counts - 1, 0)
    below = np.floor(at).astype(np.int64)
    last = len(values) - 1
    left = values[np.minimum(starts + below, last)].astype(np.float64)
    above = np.minimum(below + 1, np.maximum(counts - 1, 0))
    right = values[np.minimum(starts + above, last)].astype(np.float64)
    found: npt.NDArray[np.float64] = left + (right - left) * (at - below)
    return found


def _column(values: npt.NDArray[np.float64], silent: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=silent)
