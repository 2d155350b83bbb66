"""Feature-major files read range by range of features, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.store.root import Root

ROWS_AT_ONCE: Final = 8_000_000
"""Firings that are read and sorted in memory at once; of postings about 25 MB in a file."""


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
    rows = _count(root, groups, width)
    low, held = 0, 0
    for feature in range(width):
        if held and held + int(rows[feature]) > rows_at_once:
            yield low, feature
            low, held = feature, 0
        held += int(rows[feature])
    yield low, width


def _count(root: Root, groups: Sequence[RowGroup], width: int) -> npt.NDArray[np.int64]:
    """Return the rows of each feature."""
    rows = np.zeros(width, dtype=np.int64)
    by_path: dict[str, list[int]] = {}
    for group in groups:
        by_path.setdefault(group.path, []).append(group.index)
    for path, indices in by_path.items():
        with pq.ParquetFile(root.open(path), page_checksum_verification=True) as file:
            for index in indices:
                feature = file.read_row_group(index, columns=["feature"])["feature"].to_numpy()
                rows += np.bincount(feature, minlength=width)
    return rows


def read_range(
    root: Root, groups: Sequence[RowGroup], low: int, high: int, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield, file by file, the rows with low <= feature < high."""
    wanted: dict[str, list[int]] = {}
    for group in groups:
        if group.low < high and group.high >= low:
            wanted.setdefault(group.path, []).append(group.index)
    for path, indices in wanted.items():
        with pq.ParquetFile(root.open(path), page_checksum_verification=True) as file:
            rows = file.read_row_groups(indices, columns=list(columns))
        feature = rows["feature"].to_numpy()
        within = (feature >= low) & (feature < high)
        yield rows if within.all() else rows.filter(pa.array(within))
