"""Delta tables: how a lake's tables are made, opened and added to."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from scopelake.errors import LakeError
from scopelake.store.layout import TABLES, table_path
from scopelake.store.parquet import write_parquet
from scopelake.store.reading import Filters, matching_files, read_files
from scopelake.store.receipts import Receipt
from scopelake.store.schema import PARTITIONS, SCHEMAS

_HOOKS: Final = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)

_MOST_FILES: Final = 64
"""Files of a table without partitions, before its rows are written as one again."""

# Old versions must stay readable until a vacuum removes them on purpose.
_CONFIGURATION: Final = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 5200 weeks",
    "delta.deletedFileRetentionDuration": "interval 5200 weeks",
    "delta.setTransactionRetentionDuration": "interval 5200 weeks",
}


def create_table(root: Path, table: str) -> None:
    """Create one of the lake's Delta tables, empty."""
    DeltaTable.create(
        table_path(root, table),
        SCHEMAS[table],
        partition_by=list(PARTITIONS[table]) or None,
        configuration=_CONFIGURATION,
    )


def create_missing_tables(root: Path) -> None:
    """Create, empty, the tables that a lake of an older version lacks."""
    for table in TABLES:
        if not DeltaTable.is_deltatable(table_path(root, table)):
            try:
                create_table(root, table)
            except DeltaError:
                # Another writer may have made it in this moment; if not, this says why.
                open_table(root, table)


def open_table(root: Path, table: str, version: int | None = None) -> DeltaTable:
    """Open a Delta table, the latest version by default.

    Raises:
        LakeError: the table or that version of it cannot be read.
    """
    try:
        return DeltaTable(table_path(root, table), version=version)
    except (DeltaError, OSError) as error:
        what = "its latest version" if version is None else f"version {version}"
        reason = " ".join(str(error).split())
        raise LakeError(
            f"{what} of table {table} was asked for; it cannot be read ({reason}); check the "
            f"folder {table_path(root, table)}"
        ) from error


def read(
    opened: DeltaTable,
    table: str,
    columns: Sequence[str] | None = None,
    filters: Filters = (),
) -> pa.Table:
    """Return the table's rows that meet all `filters`, in the types of its schema.

    Raises:
        DamagedFileError: a file that may hold such rows is not what was written.
    """
    # deltalake's own reader takes a column without bounds for one without values, and its file
    # system, a Python object, may be dropped by a thread of Arrow's while the interpreter exits.
    folder = Path(url2pathname(urlparse(opened.table_uri).path))
    files = matching_files(added_files(opened), filters)
    return read_files(
        folder, table, files, SCHEMAS[table].names if columns is None else columns, filters
    )


def has_transaction(opened: DeltaTable, transaction: str) -> bool:
    """Whether the table already carries this application transaction."""
    return opened.transaction_version(transaction) is not None


def change_files(
    opened: DeltaTable,
    table: str,
    receipts: Sequence[Receipt],
    gone: Sequence[str],
    transaction: str,
) -> None:
    """Add files to a table and take others out, in one Delta commit.

    Args:
        opened: the table.
        table: its name.
        receipts: of files to add.
        gone: paths of files to take out, relative to the lake; those that are out are left alone.
        transaction: what the Delta commit carries.
    """
    prefix, now = f"tables/{table}/", int(time.time() * 1000)
    names = {path.removeprefix(prefix) for path in gone}
    live = added_files(opened).to_pylist() if names else []
    removes = [
        RemoveAction(
            row["path"],
            True,
            now,
            row["size_bytes"],
            {column: row[f"partition.{column}"] for column in PARTITIONS[table]},
        )
        for row in live
        if row["path"] in names
    ]
    opened.create_write_transaction(
        [*(_action(table, receipt) for receipt in receipts), *removes],
        mode="append",
        schema=SCHEMAS[table],
        partition_by=list(PARTITIONS[table]),
        commit_properties=_properties(transaction),
        post_commithook_properties=_HOOKS,
    )
    opened.update_incremental()


def add_rows(
    opened: DeltaTable,
    root: Path,
    table: str,
    rows: pa.Table,
    transaction: str,
    key: Sequence[str] | None = None,
) -> None:
    """Add rows to a table without partitions in one Delta commit.

    Args:
        opened: the table.
        root: the lake's folder.
        table: its name.
        rows: in its schema.
        transaction: what the Delta commit carries.
        key: columns; rows whose values in them are those of a new row are replaced.
    """
    merge = key is not None or len(opened.file_uris()) >= _MOST_FILES
    if merge:
        there = read(opened, table).select(rows.column_names).cast(rows.schema)
        if key is not None:
            there = there.filter(pa.array(_is_other(there, rows, key), pa.bool_()))
        rows = pa.concat_tables([there, rows]).combine_chunks()
    receipt = write_parquet(root, table, rows, {}, run="")
    opened.create_write_transaction(
        [_action(table, receipt)],
        mode="overwrite" if merge else "append",
        schema=SCHEMAS[table],
        partition_by=None,
        commit_properties=_properties(transaction),
        post_commithook_properties=_HOOKS,
    )
    opened.update_incremental()


def remove_rows(
    opened: DeltaTable, root: Path, table: str, column: str, values: Sequence[Any], transaction: str
) -> None:
    """Take the rows whose `column` has one of `values` out of a table, in one Delta commit."""
    there = read(opened, table)
    gone = pc.is_in(there[column], pa.array(list(values), there[column].type))
    receipt = write_parquet(root, table, there.filter(pc.invert(gone)), {}, run="")
    opened.create_write_transaction(
        [_action(table, receipt)],
        mode="overwrite",
        schema=SCHEMAS[table],
        partition_by=None,
        commit_properties=_properties(transaction),
        post_commithook_properties=_HOOKS,
    )
    opened.update_incremental()


def _is_other(there: pa.Table, rows: pa.Table, key: Sequence[str]) -> list[bool]:
    """Whether a row there has another key than each of `rows`."""
    new = set(zip(*(rows[c].to_pylist() for c in key), strict=True))
    return [k not in new for k in zip(*(there[c].to_pylist() for c in key), strict=True)]


def _action(table: str, receipt: Receipt) -> AddAction:
    path = receipt.path.removeprefix(f"tables/{table}/")
    now = int(time.time() * 1000)
    return AddAction(path, receipt.n_bytes, receipt.partition, now, True, receipt.stats)


def added_files(opened: DeltaTable) -> pa.Table:
    """Return path (relative to the table), num_records and partition.<column> of each file."""
    actions = pa.table(opened.get_add_actions(flatten=True))
    # The log's paths are URLs.
    paths = [unquote(path) for path in actions["path"].to_pylist()]
    return actions.set_column(
        actions.column_names.index("path"), "path", pa.array(paths, pa.string())
    )


def file_lives(folder: Path) -> dict[str, tuple[int, float]]:
    """Return, by file of a table's folder, the versions [first, end) that have had it.

    The log is kept whole, so that even files that a snapshot lost are known; the end of those that
    the newest version has is infinite.
    """
    lives: dict[str, tuple[int, float]] = {}
    for log in sorted(folder.glob("_delta_log/*.json")):
        version = int(log.stem)
        for line in log.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if "add" in action:
                lives[unquote(action["add"]["path"])] = (version, math.inf)
            elif "remove" in action:
                name = unquote(action["remove"]["path"])
                lives[name] = (lives[name][0], version)
    return lives


def rows_json(rows: pa.Table) -> str:
    """Return rows as JSON that `rows_from_json` reads back exactly."""
    plain = rows.cast(_with_plain_times(rows.schema))
    return json.dumps(plain.to_pylist())


def rows_from_json(table: str, text: str) -> pa.Table:
    """Return the rows of `table` that `rows_json` made `text` of."""
    schema = SCHEMAS[table]
    return pa.Table.from_pylist(json.loads(text), schema=_with_plain_times(schema)).cast(schema)


def _with_plain_times(schema: pa.Schema) -> pa.Schema:
    """Return the schema with microseconds, int64, in place of timestamps."""
    return pa.schema(
        [pa.field(f.name, pa.int64()) if pa.types.is_timestamp(f.type) else f for f in schema]
    )


def _properties(transaction: str) -> CommitProperties:
    return CommitProperties(app_transactions=[Transaction(transaction, 1)])
