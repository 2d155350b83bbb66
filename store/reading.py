"""Rows of a Delta table: which files may hold them, and the rows themselves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc
import pyarrow.dataset as ds

from scopelake.store.integrity import check_files
from scopelake.store.layout import table_folder
from scopelake.store.root import Root
from scopelake.store.schema import PARTITIONS, SCHEMAS
from scopelake.store.small_files import SMALL, SMALL_FILES

Filters = Sequence[tuple[str, str, Any]]
"""(column, operator, value), all of which must hold; see `OPERATORS`."""

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS: Final = (*_COMPARE, "in", "not in")

_PARQUET: Final = ds.ParquetFileFormat()
_THREADS: Final = 8


def matching_files(actions: pa.Table, filters: Filters) -> pa.Table:
    """Return the files that may hold rows that meet `filters`, by partition and bounds.

    Args:
        actions: path, partition.<column>, min.<column>, max.<column>, as the Delta log has them.
        filters: conditions; a file without bounds of a column may hold anything.
    """
    keep = None
    for column, how, value in filters:
        if f"partition.{column}" in actions.column_names:
            values = actions[f"partition.{column}"].cast(pa.string())
            mask = _evaluate(values, how, value)
        else:
            mask = _may_hold(actions, column, how, value)
        if mask is not None:
            mask = pc.fill_null(mask, True)
            keep = mask if keep is None else pc.and_(keep, mask)
    return actions if keep is None else actions.filter(keep)


def read_files(
    root: Root, table: str, files: pa.Table, columns: Sequence[str], filters: Filters
) -> pa.Table:
    """Return the rows of `files` that meet `filters`, in the table's types.

    Args:
        root: the lake's.
        table: its name.
        files: path and partition.<column> of each.
        columns: those to return.
        filters: conditions on columns inside the files; those on partitions are met already.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    schema, partitions = SCHEMAS[table], PARTITIONS[table]
    inside = pa.schema([f for f in schema if f.name not in partitions])
    condition = _condition(schema, [f for f in filters if f[0] not in partitions])
    names = [c for c in columns if c not in partitions]
    sizes = files["size_bytes"].to_pylist() if "size_bytes" in files.column_names else None
    if not partitions and sizes is not None and max(sizes, default=0) <= SMALL:
        return _small(root, table, files["path"].to_pylist(), condition).select(list(columns))
    groups: dict[tuple[str, ...], list[str]] = {}
    keys = [files[f"partition.{p}"].to_pylist() for p in partitions]
    for path, *values in zip(files["path"].to_pylist(), *keys, strict=True):
        groups.setdefault(tuple(values), []).append(f"{table_folder(table)}/{path}")
    parts = []

    def load(path: str) -> pa.Table:
        fragment = _PARQUET.make_fragment(root.open(path))
        return fragment.to_table(schema=inside, columns=names, filter=condition)

    for key, paths in groups.items():
        check_files(root, paths)
        rows = _load_all(load, paths)
        for name, value in zip(partitions, key, strict=True):
            if name in columns:
                rows = rows.append_column(name, pa.repeat(pa.scalar(value), rows.num_rows))
        parts.append(rows.select(list(columns)))
    wanted = pa.schema([schema.field(c) for c in columns])
    return pa.concat_tables(p.cast(wanted) for p in parts) if parts else wanted.empty_table()


def _small(
    root: Root, table: str, names: Sequence[str], condition: ds.Expression | None
) -> pa.Table:
    """Return rows of small files without partitions, which are kept in memory."""
    schema, paths = SCHEMAS[table], [f"{table_folder(table)}/{name}" for name in names]

    def load(path: str) -> pa.Table:
        fragment = _PARQUET.make_fragment(root.open(path))
        return fragment.to_table(schema=schema).cast(schema)

    def load_all(paths: Sequence[str]) -> list[pa.Table]:
        check_files(root, paths)
        if root.is_near:
            return [load(path) for path in paths]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(load, paths))

    there = SMALL_FILES.rows(root, paths, load_all) if paths else schema.empty_table()
    if condition is None:
        return there
    steps = [
        acero.Declaration("table_source", acero.TableSourceNodeOptions(there)),
        acero.Declaration("filter", acero.FilterNodeOptions(condition)),
    ]
    return acero.Declaration.from_sequence(steps).to_table(use_threads=False)


def _load_all(load: Callable[[str], pa.Table], paths: Sequence[str]) -> pa.Table:
    if len(paths) == 1:
        return load(paths[0])  # most catalogue tables: threads would cost more than they spare
    with ThreadPoolExecutor(_THREADS) as pool:
        return pa.concat_tables(pool.map(load, paths))


def _condition(schema: pa.Schema, filters: Filters) -> ds.Expression | None:
    condition: ds.Expression | None = None
    for column, how, value in filters:
        field = ds.field(column)
        if how in _COMPARE:
            one = _COMPARE[how](field, value)
        else:
            # Typed, since none at all have no type of their own.
            one = field.isin(pa.array(list(value), schema.field(column).type))
            one = one if how == "in" else ~one
        condition = one if condition is None else condition & one
    return condition


def _evaluate(values: pa.ChunkedArray, how: str, value: Any) -> pa.ChunkedArray:  # noqa: ANN401
    if how in ("in", "not in"):
        found = pc.is_in(values, pa.array([str(v) for v in value], pa.string()))
        return found if how == "in" else pc.invert(found)
    names = {"=": "equal", "==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal",
             ">": "greater", ">=": "greater_equal"}  # fmt: skip
    return pc.call_function(names[how], [values, pa.scalar(str(value))])


def _may_hold(actions: pa.Table, column: str, how: str, value: Any) -> pa.ChunkedArray | None:  # noqa: ANN401
    """Whether a file may hold a value that meets the condition; null where it is not known."""
    if f"min.{column}" not in actions.column_names or how in ("!=", "not in"):
        return None
    low, high = actions[f"min.{column}"], actions[f"max.{column}"]
    if how == "in":
        values = list(value)
        if not values:
            return None
        return pc.and_(pc.less_equal(low, max(values)), pc.greater_equal(high, min(values)))
    if how in ("=", "=="):
        return pc.and_(pc.less_equal(low, value), pc.greater_equal(high, value))
    if how in ("<", "<="):
        return pc.less(low, value) if how == "<" else pc.less_equal(low, value)
    return pc.greater(high, value) if how == ">" else pc.greater_equal(high, value)
