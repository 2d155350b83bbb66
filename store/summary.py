"""Statistics of every feature, exact, from feature-major files in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import DamagedFileError, InvalidArgumentError
from scopelake.store.feature_ranges import (
    RowGroup,
    by_file,
    count_rows,
    read_columns,
    row_groups,
)
from scopelake.store.firings import BANDS
from scopelake.store.gathered import (
    PAGED_BYTES,
    WHY_NOT,
    Gathered,
    Part,
    TooFineError,
    gather,
    has_pages,
)
from scopelake.store.integrity import checked_copies
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS

QUANTILES: Final = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p99": 0.99}

AT_ONCE: Final = 1 << 25
"""Bytes of gathered activations that a thread may hold, whatever the corpus."""

_AT_ONCE_PLAIN: Final = 640_000_000
"""The same where nothing is compiled: all firings of a range are sorted."""

_FEWEST_ROWS: Final = 1_000_000
"""Firings of a range of features from which several threads share a coder."""

_A_FEATURE: Final = 8 * (BANDS + 12)
"""Bytes of what is known of a feature, apart from its activations."""

_PLAIN: Final = 80
"""Bytes of a firing where nothing is compiled (measured)."""

_COLUMNS: Final = ("feature", "activation", "kind")


def feature_statistics(
    root: Root,
    files: Iterable[str],
    width: int,
    n_tokens: int,
    *,
    most_bytes: int | None = None,
    threads: int = 1,
) -> pa.Table:
    """Return the statistics of every feature, firings on BOS left out.

    Features are taken range by range. How much memory that takes does not grow with the firings,
    if their activations have at most ten bits of mantissa; else a range has a feature at least.

    Args:
        root: the lake's.
        files: postings files of one coder on one corpus; their union is each firing once.
        width: number of features.
        n_tokens: tokens that are not BOS, the denominator of density.
        most_bytes: of gathered activations that each thread may hold, if less than usual.
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
    usual = AT_ONCE if WHY_NOT is None else _AT_ONCE_PLAIN
    most = usual if most_bytes is None else min(usual, most_bytes)
    with checked_copies(root, files) as local:
        groups = list(row_groups(local, files))
        highest = max((g.high for g in groups), default=0)
        if highest >= width:
            raise InvalidArgumentError(
                f"statistics of {width} features were asked for; the files have feature "
                f"{highest}; give the files and width of one coder"
            )
        with ThreadPoolExecutor(threads) as pool:
            of_files = by_file(groups)
            lots = [list(chain(*of_files[i::threads])) for i in range(threads)]
            rows = np.sum(list(pool.map(lambda lot: count_rows(local, lot, width), lots)), axis=0)
            if int(rows.sum()) != sum(group.n_rows for group in groups):
                raise DamagedFileError(
                    f"statistics of {files[0]} and others were asked for; they have features that "
                    "their row groups do not name; run verify"
                )
            task = _Task(local, groups, rows, n_tokens, most)
            found = list(pool.map(task, _ranges(rows, most, threads, may_page=True)))
    return pa.concat_tables(found).combine_chunks()


def _ranges(
    rows: npt.NDArray[np.int64], most: int, threads: int, *, may_page: bool
) -> Iterator[tuple[int, int]]:
    """Yield ranges [low, high) of features that take so many bytes at most; one may take more."""
    if WHY_NOT is None:
        n_bytes = np.where(has_pages(rows) & may_page, PAGED_BYTES, 4 * rows) + _A_FEATURE
    else:
        n_bytes = _PLAIN * rows + _A_FEATURE
    most_rows = max(_FEWEST_ROWS, int(rows.sum()) // threads)
    low, held, n = 0, 0, 0
    for feature, (more, of_rows) in enumerate(zip(n_bytes.tolist(), rows.tolist(), strict=True)):
        if held and (held + more > most or n + of_rows > most_rows):
            yield low, feature
            low, held, n = feature, 0, 0
        held, n = held + more, n + of_rows
    yield low, len(rows)


@dataclass(frozen=True)
class _Task:
    """Makes the statistics of a range of features."""

    root: Root
    groups: Sequence[RowGroup]
    rows: npt.NDArray[np.int64]
    """[width], firings of each feature."""
    n_tokens: int
    most: int

    def __call__(self, bounds: tuple[int, int]) -> pa.Table:
        """Return the rows of the features table for features from `low` to below `high`."""
        try:
            return _table(bounds[0], self._gathered(*bounds, may_page=True), self.n_tokens)
        except TooFineError:
            pass
        low, high = bounds
        parts = []
        for start, stop in _ranges(self.rows[low:high], self.most, 1, may_page=False):
            gathered = self._gathered(low + start, low + stop, may_page=False)
            parts.append(_table(low + start, gathered, self.n_tokens))
        return pa.concat_tables(parts)

    def _gathered(self, low: int, high: int, *, may_page: bool) -> Gathered:
        parts = cast("Iterator[Part]", read_columns(self.root, self.groups, low, high, _COLUMNS))
        return gather(parts, self.rows[low:high], low, may_page=may_page)


def _table(low: int, gathered: Gathered, n_tokens: int) -> pa.Table:
    counts = gathered.counts
    silent = counts == 0
    last = np.maximum(counts - 1, 0)
    at = np.array(list(QUANTILES.values())) * last[:, None]
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, last[:, None])
    ranks = np.stack([below, above], axis=2).reshape(len(counts), -1)
    values, sums, bins = gathered.facts(np.append(ranks, last[:, None], axis=1))
    left, right = values[:, 0:-1:2].astype(np.float64), values[:, 1:-1:2].astype(np.float64)
    quantiles = left + (right - left) * (at - below)
    columns: dict[str, Any] = {
        "feature": np.arange(low, low + len(counts), dtype=np.int32),
        "firings": counts,
        "density": counts / n_tokens,
        "mean": _column(sums / np.maximum(counts, 1), silent),
        "max": _column(values[:, -1], silent),
    }
    for name, found in zip(QUANTILES, quantiles.T, strict=True):
        columns[name] = _column(found, silent)
    offsets = pa.array(np.arange(len(counts) + 1) * BANDS, pa.int32())
    columns["histogram"] = pa.ListArray.from_arrays(offsets, pa.array(bins.ravel()))
    columns["n_tokens"] = np.full(len(counts), n_tokens, dtype=np.int64)
    schema = pa.schema([SCHEMAS["features"].field(name) for name in columns])
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema)


def _column(values: npt.NDArray[Any], silent: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=silent)
