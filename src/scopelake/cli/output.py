"""Rows of a query to a terminal, a pipe or a file, batch by batch."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from scopelake.errors import InvalidArgumentError
from scopelake.render import distinct, print_table, records, to_json
from scopelake.store.outside import check_outside

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 200
"""Rows of a table in a terminal or a pipe."""


def check_output(form: str, output: str | None, *, overwrite: bool) -> None:
    """Refuse, before a query runs, where its rows cannot go.

    Raises:
        InvalidArgumentError: the file is there or in a lake, its folder is not there, or a pipe
            cannot take the form.
    """
    if output in (None, "-"):
        if form == "parquet":
            raise InvalidArgumentError(
                "--format parquet was asked for on stdout; a Parquet file ends with its index, so "
                "a pipe cannot take it; give --output FILE, or --format arrow"
            )
        if form == "arrow" and sys.stdout.isatty():
            raise InvalidArgumentError(
                "--format arrow was asked for in a terminal; it is not text; give --output FILE"
            )
        return
    assert output is not None
    path = check_outside(output)
    if path.is_dir() or not path.parent.is_dir():
        found = "it is a folder" if path.is_dir() else "its folder is not there"
        raise InvalidArgumentError(f"{output} was to be written; {found}; choose another file")
    check_new(path, overwrite=overwrite)


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there, unless it may be overwritten.

    Raises:
        InvalidArgumentError: it is there.
    """
    if path.exists() and not overwrite:
        raise InvalidArgumentError(
            f"{path} was to be written; it is there already; give --overwrite, or another file"
        )


def write(reader: pa.RecordBatchReader, form: str, output: str | None) -> None:
    """Write rows as they come; a file is there whole or not at all.

    Args:
        reader: the rows.
        form: table, csv, json (one list), jsonl (one object a line), parquet or arrow (IPC stream).
        output: of the file; None or ``-`` is stdout.
    """
    if output in (None, "-"):
        _WRITERS[form](reader, sys.stdout)
        sys.stdout.flush()
        return
    assert output is not None
    with _placed(Path(output)) as made, made.open("w", encoding="utf-8", newline="") as file:
        _WRITERS[form](reader, file)


@contextmanager
def _placed(path: Path) -> Iterator[Path]:
    made = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield made
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)


def _table(reader: pa.RecordBatchReader, file: IO[str]) -> None:
    """In a file all rows; in a terminal or a pipe the first, and how many more there are."""
    import pyarrow as pa

    most = SHOWN_ROWS if file is sys.stdout else None
    kept, n_kept, n_rows = [], 0, 0
    for batch in reader:
        n_rows += batch.num_rows
        if most is None or n_kept < most:
            kept.append(batch if most is None else batch.slice(0, most - n_kept))
            n_kept += kept[-1].num_rows
    print_table(pa.Table.from_batches(kept, reader.schema), n_rows=n_rows, file=file)


def _csv(reader: pa.RecordBatchReader, file: IO[str]) -> None:
    """RFC 4180, but for lines that end in a newline; NULL is empty, lists and structs are JSON."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(distinct(reader.schema.names))
    for batch in reader:
        writer.writerows([_csv_cell(v) for v in row.values()] for row in _rows(batch))


def _csv_cell(value: Any) -> Any:  # noqa: ANN401
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    text = to_json(value)
    return text[1:-1] if text.startswith('"') else text


def _json(reader: pa.RecordBatchReader, file: IO[str]) -> None:
    file.write("[")
    before = "\n"
    for batch in reader:
        for row in _rows(batch):
            file.write(f"{before}{to_json(row)}")
            before = ",\n"
    file.write("\n]\n")


def _jsonl(reader: pa.RecordBatchReader, file: IO[str]) -> None:
    for batch in reader:
        for row in _rows(batch):
            file.write(f"{to_json(row)}\n")


def _parquet(reader: pa.RecordBatchReader, file: IO[str]) -> None:
    import pyarrow.parquet as pq

    schema = _distinct_schema(reader.schema)
    with pq.ParquetWriter(_bytes(file), schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.rename_columns(schema.names))


def _arrow(reader: pa.RecordBatchReader, file: IO[str]) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(_bytes(file), reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _distinct_schema(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    names = distinct(schema.names)
    return pa.schema([f.with_name(n) for f, n in zip(schema, names, strict=True)])


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    import pyarrow as pa

    return records(pa.Table.from_batches([batch]))


def _bytes(file: IO[str]) -> IO[bytes]:
    file.flush()
    return file.buffer  # type: ignore[attr-defined, no-any-return]


_WRITERS = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "arrow": _arrow,
}
