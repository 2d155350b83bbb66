"""Rows of a few keys straight from a lake's files, where to start a query costs more than reading.

A delta scan reads the table's log before each query, and footers are parsed again; here both are
read once for a snapshot. The rows are those of `point_query`, by which those of an object store are
read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.query.snapshot_files import SnapshotFiles
from scopelake.query.views import PRIVATE
from scopelake.store.layout import table_folder
from scopelake.store.reading import Filters
from scopelake.store.root import Root
from scopelake.store.schema import PARTITIONS, SCHEMAS, SORTED_BY

_FOOTERS: Final = 256
"""Kept; one of a file of 8 million firings takes about a megabyte."""

_AT_ONCE: Final = 32
"""Row groups that are read before what was asked for of them is kept."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Footer:
    """A file's metadata, and of its row groups the bounds of the columns that it is sorted by."""

    metadata: pq.FileMetaData
    bounds: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    """By column lowest and highest value, [row groups]."""

    @classmethod
    def of(cls, metadata: pq.FileMetaData, columns: Sequence[str]) -> _Footer:
        names = metadata.schema.to_arrow_schema().names
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        bounds = {}
        for index, name in enumerate(names[: metadata.num_columns]):
            if name in columns:
                found = [_bounds(group.column(index)) for group in groups]
                low, high = zip(*found, strict=True) if found else ((), ())
                bounds[name] = (np.array(low, np.float64), np.array(high, np.float64))
        return cls(metadata, bounds)

    def groups(self, filters: Filters) -> list[int]:
        """Return the row groups that may hold rows that meet the filters."""
        keep: Mask = np.ones(self.metadata.num_row_groups, bool)
        for column, how, value in filters:
            if column in self.bounds:
                keep &= _may_hold(*self.bounds[column], how, value)
        return [int(i) for i in np.flatnonzero(keep)]


@dataclass(frozen=True)
class _Part:
    """Some row groups of a file."""

    path: str
    metadata: pq.FileMetaData
    groups: list[int]
    partition: dict[str, str]
    """Value of each partition column."""


class _Footers:
    """The footers that were used last, of all snapshots: a file is never written again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, Hashable], _Footer] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[str, str, Hashable], read: Callable[[], _Footer]) -> _Footer:
        """Return the footer of a lake's file at a version, by `read` unless it is here."""
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        found = read()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _FOOTERS:
                self._kept.popitem(last=False)
        return found


_footers: Final = _Footers()


class PointReads:
    """Reads of a snapshot's rows by their keys, from files of a folder.

    Args:
        root: the lake's.
        files: of the snapshot.
    """

    def __init__(self, root: Root, files: SnapshotFiles) -> None:
        self._root, self._files = root, files

    def rows(self, table: str, columns: Sequence[str], filters: Filters) -> pa.Table:
        """Return columns of the rows that meet the filters.

        Args:
            table: its name.
            columns: those to return.
            filters: of ``=``, ``in`` and ``<``, on partition columns or whole numbers.

        Raises:
            DamagedFileError: a file that may hold them is not what was written.
        """
        partitions = PARTITIONS[table]
        own = [f for f in filters if f[0] not in partitions]
        wanted = pa.schema([SCHEMAS[table].field(c) for c in columns])
        # One after the other and without threads: both cost more than they save here.
        found = [self._read(part, wanted, own) for part in self._parts(table, filters, own)]
        return pa.concat_tables([wanted.empty_table(), *found]).combine_chunks()

    def _parts(self, table: str, filters: Filters, own: Filters) -> Iterator[_Part]:
        """Yield what may hold rows that meet the filters, some row groups of a file at once."""
        for action in self._files.checked(table, filters).to_pylist():
            path = f"{table_folder(table)}/{action['path']}"
            footer = self._footer(path, SORTED_BY.get(table, ()))
            partition = {name: action[f"partition.{name}"] for name in PARTITIONS[table]}
            groups = footer.groups(own)
            for at in range(0, len(groups), _AT_ONCE):
                yield _Part(path, footer.metadata, groups[at : at + _AT_ONCE], partition)

    def _read(self, part: _Part, wanted: pa.Schema, filters: Filters) -> pa.Table:
        inside = [name for name in wanted.names if name not in part.partition]
        columns = list(dict.fromkeys([*inside, *(f[0] for f in filters)]))
        with pq.ParquetFile(self._root.open(part.path), metadata=part.metadata) as file:
            rows = file.read_row_groups(part.groups, columns=columns, use_threads=False)
        keep: Mask = np.ones(rows.num_rows, bool)
        for column, how, value in filters:
            keep &= _meets(rows[column].to_numpy(), how, value)
        rows = rows.take(np.flatnonzero(keep))
        for name in wanted.names:
            if name in part.partition:
                value = pa.scalar(part.partition[name], pa.string())
                rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
            elif name not in rows.column_names:
                # A column that lakes of older versions lack.
                rows = rows.append_column(name, pa.nulls(rows.num_rows, wanted.field(name).type))
        return rows.select(wanted.names).cast(wanted)

    def _footer(self, path: str, columns: Sequence[str]) -> _Footer:
        def read() -> _Footer:
            return _Footer.of(pq.read_metadata(self._root.open(path)), columns)

        return _footers.get((self._root.url, path, self._root.version(path)), read)


def point_query(table: str, columns: Sequence[str], filters: Filters) -> tuple[str, list[Any]]:
    """Return the query whose rows `PointReads.rows` gives, and its parameters."""
    conditions, params = ["true"], []
    for column, how, value in filters:
        values = list(value) if how == "in" else [value]
        marks = ", ".join("?" * len(values))
        # Of no values none is equal.
        conditions.append(f"{column} {how} ({marks})" if values else "false")
        params += values
    return (
        f"SELECT {', '.join(columns)} FROM {PRIVATE}.{table} WHERE {' AND '.join(conditions)}",
        params,
    )


def _bounds(chunk: Any) -> tuple[float, float]:  # noqa: ANN401
    found = chunk.statistics
    if found is None or not found.has_min_max:
        return -np.inf, np.inf
    return found.min, found.max


def _may_hold(
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    how: str,
    value: Any,  # noqa: ANN401
) -> Mask:
    if how == "<":
        return np.asarray(low < value)
    ordered = np.sort(np.atleast_1d(np.asarray(value if how == "=" else list(value), np.float64)))
    # Whether a value lies within the bounds: the first that is not below the lowest is not above.
    at = np.searchsorted(ordered, low)
    return np.asarray(np.append(ordered, np.inf)[at] <= high) & (at < len(ordered))


def _meets(values: npt.NDArray[Any], how: str, value: Any) -> Mask:  # noqa: ANN401
    if how == "<":
        return np.asarray(values < value)
    return np.asarray(values == value) if how == "=" else np.isin(values, list(value))
