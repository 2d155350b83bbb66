"""Delta tables: how a lake's tables are made, opened and added to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Schema,
    Transaction,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from scopelake.errors import DamagedFileError, LakeError
from scopelake.store.delta_log import read_log
from scopelake.store.layout import TABLES, table_folder
from scopelake.store.parquet import write_parquet
from scopelake.store.reading import Filters, matching_files, read_files
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.schema import PARTITIONS, SCHEMAS

_HOOKS: Final = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)

_BACKTRACE: Final = re.compile(r"\s*\n\s*(?:(?:stack )?backtrace:|0: )", re.IGNORECASE)

_MOST_FILES: Final = 64
"""Files of a table without partitions, before its rows are written as one again."""

_MOST_TRIES: Final = 20
"""Of adding columns, which other writers may do at the same time."""

_CHECKPOINT_INTERVAL: Final = 10
"""Versions of a table from one checkpoint to the next: what opening it costs grows with them."""

# Old versions must stay readable until a vacuum removes them on purpose.
_CONFIGURATION: Final = {
    "delta.checkpointInterval": str(_CHECKPOINT_INTERVAL),
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 5200 weeks",
    "delta.deletedFileRetentionDuration": "interval 5200 weeks",
    "delta.setTransactionRetentionDuration": "interval 5200 weeks",
}


def create_table(root: Root, table: str) -> None:
    """Create one of the lake's Delta tables, empty.

    Raises:
        LakeError: it cannot be written there.
    """
    try:
        DeltaTable.create(
            table_uri(root, table),
            SCHEMAS[table],
            partition_by=list(PARTITIONS[table]) or None,
            configuration=_CONFIGURATION,
            storage_options=root.delta_options,
        )
    except OSError as error:
        raise LakeError(
            f"table {table} was to be made; it failed ({describe(root, error)}); check "
            f"{table_uri(root, table)}, its permissions and room"
        ) from error


def create_missing_tables(root: Root) -> None:
    """Create, empty, the tables that a lake of an older version lacks, and add columns to others.

    Raises:
        LakeError: a table cannot be written.
    """
    for table in TABLES:
        if not DeltaTable.is_deltatable(table_uri(root, table), root.delta_options):
            try:
                create_table(root, table)
            except DeltaError:
                # Another writer may have made it in this moment; if not, this says why.
                open_table(root, table)
        _add_missing_columns(root, table)


def _add_missing_columns(root: Root, table: str) -> None:
    """Add to a table the columns that its schema has since; rows that are there have null."""
    for _ in range(_MOST_TRIES):
        opened = open_table(root, table)
        there = {field.name for field in opened.schema().fields}
        missing = pa.schema([field for field in SCHEMAS[table] if field.name not in there])
        if not missing.names:
            return
        try:
            opened.alter.add_columns(list(Schema.from_arrow(missing).fields))
        except (DeltaError, OSError) as error:  # another writer may have added them meanwhile
            failed = error
    raise LakeError(
        f"columns {', '.join(missing.names)} were to be added to table {table}; it failed "
        f"({describe(root, failed)}); check {table_uri(root, table)}, its permissions and room"
    ) from failed


def open_table(root: Root, table: str, version: int | None = None) -> DeltaTable:
    """Open a Delta table, the latest version by default.

    Raises:
        LakeError: the table or that version of it cannot be read.
    """
    try:
        return DeltaTable(
            table_uri(root, table), version=version, storage_options=root.delta_options
        )
    except (DeltaError, OSError) as error:
        what = "its latest version" if version is None else f"version {version}"
        raise LakeError(
            f"{what} of table {table} was asked for; it cannot be read ({describe(root, error)}); "
            f"check {table_uri(root, table)}"
        ) from error


def table_uri(root: Root, table: str) -> str:
    """Return where a Delta table is, as Delta readers take it."""
    return f"{root.url}/{table_folder(table)}"


def read(
    root: Root,
    table: str,
    files: pa.Table,
    columns: Sequence[str] | None = None,
    filters: Filters = (),
) -> pa.Table:
    """Return the rows of a table's files that meet all `filters`, in the types of its schema.

    Args:
        root: the lake's.
        table: its name.
        files: from `added_files`.
        columns: those to return, all by default.
        filters: conditions.

    Raises:
        DamagedFileError: a file that may hold such rows is not what was written.
    """
    # deltalake's own reader takes a column without bounds for one without values, and its file
    # system, a Python object, may be dropped by a thread of Arrow's while the interpreter exits.
    files = matching_files(files, filters)
    return read_files(
        root, table, files, SCHEMAS[table].names if columns is None else columns, filters
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
    root: Root,
    table: str,
    rows: pa.Table,
    transaction: str,
    key: Sequence[str] | None = None,
) -> None:
    """Add rows to a table without partitions in one Delta commit.

    Args:
        opened: the table.
        root: the lake's.
        table: its name.
        rows: in its schema.
        transaction: what the Delta commit carries.
        key: columns; rows whose values in them are those of a new row are replaced.
    """
    merge = key is not None or len(opened.file_uris()) >= _MOST_FILES
    if merge:
        there = read(root, table, added_files(opened)).select(rows.column_names).cast(rows.schema)
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
    opened: DeltaTable, root: Root, table: str, column: str, values: Sequence[Any], transaction: str
) -> None:
    """Take the rows whose `column` has one of `values` out of a table, in one Delta commit."""
    there = read(root, table, added_files(opened))
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


def file_lives(root: Root, table: str) -> Mapping[str, tuple[int, float]]:
    """Return, by file of a table, the versions [first, end) that have had it.

    The log is kept whole, so that even files that a snapshot lost are known; the end of those that
    the newest version has is infinite.

    Raises:
        DamagedFileError: an entry of the log is damaged or missing.
    """
    log = read_log(root, table)
    for one in log.wrong:
        raise DamagedFileError(
            f"the log of table {table} was to be read; {root.url}/{one.path} is {one.problem}"
            f"{': ' + one.detail if one.detail else ''}; restore it from a copy"
        )
    return log.lives


def describe(root: Root, error: Exception) -> str:
    """Return an error of deltalake on one line, without the backtrace that RUST_BACKTRACE adds."""
    return root.describe(LakeError(_BACKTRACE.split(str(error), maxsplit=1)[0]))


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
