"""Feature-major files read range by range of features, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.store.gathered import count_features
from scopelake.store.root import Root

ROWS_AT_ONCE: Final = 8_000_000
"""Firings that are read and sorted in memory at once; of postings about 25 MB in a file."""

_GROUPS_AT_ONCE: Final = 4


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file and the features that it may hold."""

    path: str
    index: int
    low: int
    high: int
    n_rows: int


def row_groups(root: Root, files: Iterable[str]) -> Iterator[RowGroup]:
    """Yield the row groups of feature-major files that have rows."""
    for path in files:
        metadata = pq.read_metadata(root.open(path))
        column = metadata.schema.to_arrow_schema().get_field_index("feature")
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows:
                bounds = group.column(column).statistics
                yield RowGroup(path, index, bounds.min, bounds.max, group.num_rows)


def ranges(
    root: Root, groups: Sequence[RowGroup], width: int, rows_at_once: int
) -> Iterator[tuple[int, int]]:
    """Yield feature ranges [low, high) that cover all features, each of at most so many rows.

    One feature may alone have more. The rows are counted, which reads one column: row groups do
    not tell, as few of their features may have most of their rows.
    """
    if sum(group.n_rows for group in groups) <= rows_at_once:
        yield 0, width
        return
    rows = count_rows(root, groups, width)
    low, held = 0, 0
    for feature in range(width):
        if held and held + int(rows[feature]) > rows_at_once:
            yield low, feature
            low, held = feature, 0
        held += int(rows[feature])
    yield low, width


def count_rows(root: Root, groups: Sequence[RowGroup], width: int) -> npt.NDArray[np.int64]:
    """Return the rows of each feature."""
    found = read_columns(root, groups, 0, width, ["feature"])
    return count_features((feature for (feature,) in found), 0, width)


def read_columns(
    root: Root, groups: Sequence[RowGroup], low: int, high: int, columns: Sequence[str]
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Yield, some row groups at a time, columns of those that may have low <= feature < high."""
    for path, indices in _wanted(groups, low, high).items():
        with pq.ParquetFile(root.open(path), page_checksum_verification=True) as file:
            for start in range(0, len(indices), _GROUPS_AT_ONCE):
                some = indices[start : start + _GROUPS_AT_ONCE]
                rows = file.read_row_groups(some, columns=list(columns), use_threads=False)
                yield tuple(rows[name].to_numpy() for name in columns)


def by_file(groups: Iterable[RowGroup]) -> list[list[RowGroup]]:
    """Return the row groups of each file."""
    found: dict[str, list[RowGroup]] = {}
    for group in groups:
        found.setdefault(group.path, []).append(group)
    return list(found.values())


def _wanted(groups: Iterable[RowGroup], low: int, high: int) -> dict[str, list[int]]:
    """Return by file the row groups that may have low <= feature < high."""
    wanted: dict[str, list[int]] = {}
    for group in groups:
        if group.low < high and group.high >= low:
            wanted.setdefault(group.path, []).append(group.index)
    return wanted


def read_range(
    root: Root, groups: Sequence[RowGroup], low: int, high: int, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield, file by file, the rows with low <= feature < high."""
    for path, indices in _wanted(groups, low, high).items():
        with pq.ParquetFile(root.open(path), page_checksum_verification=True) as file:
            rows = file.read_row_groups(indices, columns=list(columns))
        feature = rows["feature"].to_numpy()
        within = (feature >= low) & (feature < high)
        yield rows if within.all() else rows.filter(pa.array(within))
