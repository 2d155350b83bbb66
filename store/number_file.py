"""Parquet files of numbers without nulls, written by our own encoder.

Firings are most of what an ingest writes, and Arrow's writer takes longer for the same encodings
(docs/performance.md), whose dictionaries it finds by hashing. That writer has every other
table, and these too where nothing could be compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa

from scopelake.store import pages
from scopelake.store.pages import PHYSICAL, Chunk, ColumnWriter
from scopelake.store.receipts import Hashed
from scopelake.store.thrift import Struct

_MAGIC: Final = b"PAR1"
_VERSION: Final = 2
_REQUIRED: Final = 0
_INT_8: Final = 15


def takes(rows: pa.Table, encodings: Mapping[str, str]) -> bool:
    """Return whether rows can be written: the encoder is built, and has these types so encoded.

    Args:
        rows: any.
        encodings: as in `write_numbers`.
    """
    return pages.WHY_NOT is None and all(
        rows[name].null_count == 0
        and ColumnWriter.takes(rows[name].type, encodings.get(name, "PLAIN"))
        for name in rows.column_names
    )


def write_numbers(
    rows: pa.Table,
    encodings: Mapping[str, str],
    sorted_by: Sequence[str],
    file: BinaryIO | Hashed,
    *,
    row_group: int,
    level: int,
) -> None:
    """Write rows as a Parquet file: a page of each column in each row group, with CRC and bounds.

    Args:
        rows: that `takes` says can be written.
        encodings: of columns, as in `ColumnWriter`; others are plain.
        sorted_by: columns by which the rows are sorted, ascending.
        file: to write to, from its beginning.
        row_group: most rows in one.
        level: of zstd; a column whose first row group hardly gets smaller is not compressed.
    """
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    writers = {
        name: ColumnWriter(rows[name].type, encodings.get(name, "PLAIN"), level) for name in columns
    }
    by = [rows.column_names.index(name) for name in sorted_by]
    at = file.write(_MAGIC)
    groups: list[Struct] = []
    for start in range(0, rows.num_rows, row_group):
        chunks: dict[str, Chunk] = {}
        for name, values in columns.items():
            part = np.ascontiguousarray(values[start : start + row_group])
            chunks[name] = writers[name].chunk(part)
            file.writelines(chunks[name].pages)
        groups.append(_group(chunks, writers, at, by))
        at += sum(chunk.n_bytes for chunk in chunks.values())
    footer = _footer(rows, groups)
    file.write(footer + len(footer).to_bytes(4, "little") + _MAGIC)


def _footer(rows: pa.Table, groups: Sequence[Struct]) -> bytes:
    made = Struct().i32(1, _VERSION).structs(2, _schema(rows.schema)).i64(3, rows.num_rows)
    made.structs(4, groups).binary(6, _created_by())
    # Bounds are by the order of the type: readers do not use them unless they are told so.
    return made.structs(7, [Struct().struct(1, Struct()) for _ in rows.column_names]).to_bytes()


@cache
def _created_by() -> bytes:
    return f"scopelake version {version('scopelake')}".encode()


def _schema(schema: pa.Schema) -> list[Struct]:
    leaves = []
    for field in schema:
        leaf = Struct().i32(1, PHYSICAL[str(field.type)]).i32(3, _REQUIRED)
        leaf.binary(4, field.name.encode())
        if field.type == pa.int8():
            leaf.i32(6, _INT_8).struct(10, Struct().struct(10, Struct().i8(1, 8).boolean(2, True)))
        leaves.append(leaf)
    return [Struct().binary(4, b"schema").i32(5, len(leaves)), *leaves]


def _group(
    chunks: Mapping[str, Chunk],
    writers: Mapping[str, ColumnWriter],
    start: int,
    sorted_by: Sequence[int],
) -> Struct:
    """Return a RowGroup that begins at byte `start`."""
    held, at = [], start
    for name, chunk in chunks.items():
        # file_offset is deprecated: nothing of the chunk is elsewhere.
        held.append(Struct().i64(2, 0).struct(3, _chunk(name, writers[name], chunk, at)))
        at += chunk.n_bytes
    (n_rows,) = {chunk.n_rows for chunk in chunks.values()}
    made = Struct().structs(1, held).i64(2, sum(chunk.n_plain for chunk in chunks.values()))
    made.i64(3, n_rows)
    made.structs(4, [Struct().i32(1, i).boolean(2, False).boolean(3, False) for i in sorted_by])
    return made.i64(5, start).i64(6, at - start)


def _chunk(name: str, writer: ColumnWriter, chunk: Chunk, at: int) -> Struct:
    """Return a ColumnMetaData of a chunk that begins at byte `at`."""
    made = Struct().i32(1, writer.physical).i32s(2, chunk.encodings).strings(3, [name])
    made.i32(4, writer.codec).i64(5, chunk.n_rows).i64(6, chunk.n_plain).i64(7, chunk.n_bytes)
    made.i64(9, at + chunk.n_before)
    if chunk.n_before:
        made.i64(11, at)
    if chunk.bounds is not None:
        low, high = chunk.bounds
        made.struct(12, Struct().i64(3, 0).binary(5, high).binary(6, low))
    return made
