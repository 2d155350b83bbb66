"""One durable Parquet file: encodings by table, statistics for Delta, and its receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scopelake.store.layout import data_folder, new_data_name
from scopelake.store.number_file import takes, write_numbers
from scopelake.store.receipts import Hashed, Receipt
from scopelake.store.root import Root
from scopelake.store.schema import PARTITIONS, SORTED_BY, file_schema


@dataclass(frozen=True)
class Style:
    """How a table's columns are encoded, by Parquet column path; others are plain."""

    row_group: int
    dictionary: tuple[str, ...]
    encodings: Mapping[str, str]
    level: int = 1
    """Of zstd."""
    tokens: int = 0
    """Row groups of contexts that are short have more rows, up to so many tokens."""


_ACTIVATION: Final = {"activation": "BYTE_STREAM_SPLIT"}

# Chosen by measurement: benchmarks/parquet_styles.py changes one thing at a time.
STYLES: Final[dict[str, Style]] = {
    "contexts": Style(
        16,
        ("document", "metadata", "token_ids.list.element", "roles.list.element",
         "turns.list.element", "kinds.list.element"),
        {"context": "DELTA_BINARY_PACKED", "token_starts.list.element": "DELTA_BINARY_PACKED"},
        tokens=8_192,
    ),
    "codes": Style(
        65_536,
        ("position", "kind"),
        {"context": "DELTA_BINARY_PACKED", "feature": "DELTA_BINARY_PACKED", **_ACTIVATION},
    ),
    "postings": Style(
        65_536,
        ("position", "feature", "kind"),
        {"context": "DELTA_BINARY_PACKED", **_ACTIVATION},
    ),
    "peaks": Style(
        32_768,
        ("feature", "position"),
        {"rank": "DELTA_BINARY_PACKED", "context": "DELTA_BINARY_PACKED", **_ACTIVATION},
    ),
    "samples": Style(
        32_768,
        ("position", "band"),
        {"feature": "DELTA_BINARY_PACKED", "context": "DELTA_BINARY_PACKED", **_ACTIVATION},
    ),
    "tallies": Style(
        16_384,
        ("bins.list.element", "counts.list.element"),
        {"feature": "DELTA_BINARY_PACKED"},
    ),
    "features": Style(4_096, ("histogram.list.element",), {"feature": "DELTA_BINARY_PACKED"}),
    "neighbors": Style(
        16_384,
        ("rank",),
        {"feature": "DELTA_BINARY_PACKED", "cosine": "BYTE_STREAM_SPLIT"},
    ),
}  # fmt: skip

_NARROW: Final = 4_096
"""Features of a coder up to which a row group's dictionary of them is small against its rows."""

_CATALOGUE: Final = Style(131_072, (), {})

_ROWS_PER_PAGE: Final = 131_072
"""A page of each column in a row group: smaller pages cost a tenth of the bytes."""


def write_parquet(
    root: Root,
    table: str,
    rows: pa.Table,
    partition: dict[str, str],
    *,
    run: str,
    shard: int | None = None,
    stats: str | None = None,
    scratch: Path | None = None,
) -> Receipt:
    """Write rows of one partition to a fresh, durable file that no reader sees yet.

    Args:
        root: the lake's.
        table: one of TABLES.
        rows: in the table's order and file schema (no partition columns), 0 or more.
        partition: value of each partition column.
        run: the run that wrote it.
        shard: the shard of the corpus, where it is of one.
        stats: what `delta_stats` says of the rows, if it is known.
        scratch: a folder of `root.scratch` that others use too; where many small files are
            written, most of the time is spent on making and removing folders.
    """
    folder = data_folder(table, {c: partition[c] for c in PARTITIONS[table]})
    with nullcontext(scratch) if scratch is not None else root.scratch() as place:
        made = place / f"{uuid4().hex}.parquet"
        try:
            with made.open("xb") as file:
                written = Hashed(file)
                write_rows(table, rows, written)
            digest, n_bytes = written.checksum, written.n_bytes
            path = str(folder / new_data_name(digest))
            root.put(path, made)
        finally:
            made.unlink(missing_ok=True)
    return Receipt(
        table=table,
        path=path,
        run=run,
        n_rows=rows.num_rows,
        n_bytes=n_bytes,
        checksum=digest,
        partition=partition,
        stats=delta_stats(rows) if stats is None else stats,
        shard=shard,
        sae=partition.get("sae"),
        corpus=partition.get("corpus"),
    )


def delta_stats(rows: pa.Table) -> str:
    """Return Delta's file statistics, JSON: rows, and bounds of the numeric columns."""
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for name in rows.column_names:
        column = rows[name]
        if not _is_number(column.type):
            continue
        nulls[name] = column.null_count
        if column.null_count < len(column):
            lowest[name], highest[name] = _bounds(column)
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": lowest,
            "maxValues": highest,
            "nullCount": nulls,
        }
    )


def _bounds(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """Return the least and the greatest number of a column that has one."""
    if column.num_chunks == 1 and column.null_count == 0:
        values = column.chunk(0).to_numpy()  # numpy's are five times as fast as Arrow's
        if not np.isnan(low := values.min()):
            return low.item(), values.max().item()
    bounds = pc.min_max(column)
    return bounds["min"].as_py(), bounds["max"].as_py()


def write_rows(table: str, rows: pa.Table, file: BinaryIO | Hashed) -> None:
    """Write rows, in the table's order and file schema, as Parquet."""
    style = _style(table, rows)
    encodings = {**dict.fromkeys(style.dictionary, "RLE_DICTIONARY"), **style.encodings}
    if takes(rows, encodings):
        write_numbers(
            rows,
            encodings,
            SORTED_BY.get(table, ()),
            file,
            row_group=style.row_group,
            level=style.level,
        )
        return
    schema = _without_nulls(table, rows)
    sorting = pq.SortingColumn.from_ordering(
        schema, [(name, "ascending") for name in SORTED_BY.get(table, ())]
    )
    writer = pq.ParquetWriter(
        file,
        schema,
        version="2.6",
        compression="zstd",
        compression_level=style.level,
        use_dictionary=list(style.dictionary),
        column_encoding=dict(style.encodings),
        max_rows_per_page=_ROWS_PER_PAGE,
        write_page_checksum=True,
        sorting_columns=sorting,
    )
    with writer:
        writer.write_table(rows.cast(schema), row_group_size=style.row_group)


def _without_nulls(table: str, rows: pa.Table) -> pa.Schema:
    """Return the file's schema, where a column that has no nulls cannot have any: that is a
    seventh of the time of writing firings."""
    return pa.schema(
        [
            f.with_nullable(rows[f.name].null_count > 0) if _is_number(f.type) else f
            for f in file_schema(table)
        ]
    )


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _style(table: str, rows: pa.Table) -> Style:
    style = STYLES.get(table, _CATALOGUE)
    if style.tokens and rows.num_rows:
        fitting = int(style.tokens // max(1, pc.mean(rows["n_tokens"]).as_py()))
        return replace(style, row_group=max(style.row_group, fitting))
    if table != "codes" or (pc.max(rows["feature"]).as_py() or 0) >= _NARROW:
        return style
    encodings = {k: v for k, v in style.encodings.items() if k != "feature"}
    return replace(style, dictionary=(*style.dictionary, "feature"), encodings=encodings)
