"""Delta tables: how a lake's tables are made, opened and added to."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
    write_deltalake,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from scopelake.errors import LakeError
from scopelake.store.layout import TABLES, table_path
from scopelake.store.receipts import Receipt
from scopelake.store.schema import PARTITIONS, SCHEMAS

_HOOKS: Final = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)

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
    columns: list[str] | None = None,
    filters: list[tuple[str, str, Any]] | None = None,
) -> pa.Table:
    """Return the table's rows that meet all `filters` (column, operator, value)."""
    # deltalake's own file system is a Python object. Arrow's scanner may drop its last reference in
    # a worker thread while the interpreter exits, which aborts the process.
    local = SubTreeFileSystem(url2pathname(urlparse(opened.table_uri).path), LocalFileSystem())
    # deltalake takes an empty list of conditions for a malformed one.
    return opened.to_pyarrow_table(columns=columns, filesystem=local, filters=filters or None)


def has_transaction(opened: DeltaTable, transaction: str) -> bool:
    """Whether the table already carries this application transaction."""
    return opened.transaction_version(transaction) is not None


def add_files(
    opened: DeltaTable, table: str, receipts: Sequence[Receipt], transaction: str
) -> None:
    """Add files to a table in one Delta commit that carries `transaction`."""
    prefix = f"tables/{table}/"
    now = int(time.time() * 1000)
    actions = [
        AddAction(r.path.removeprefix(prefix), r.n_bytes, r.partition, now, True, r.stats)
        for r in receipts
    ]
    opened.create_write_transaction(
        list(actions),
        mode="append",
        schema=SCHEMAS[table],
        partition_by=list(PARTITIONS[table]),
        commit_properties=_properties(transaction),
        post_commithook_properties=_HOOKS,
    )
    opened.update_incremental()


def add_rows(
    opened: DeltaTable, rows: pa.Table, transaction: str, predicate: str | None = None
) -> None:
    """Append rows in one Delta commit, replacing those that `predicate` selects, if given."""
    if predicate is None:
        write_deltalake(
            opened,
            rows,
            mode="append",
            commit_properties=_properties(transaction),
            post_commithook_properties=_HOOKS,
        )
    else:
        write_deltalake(
            opened,
            rows,
            mode="overwrite",
            predicate=predicate,
            commit_properties=_properties(transaction),
            post_commithook_properties=_HOOKS,
        )
    opened.update_incremental()


def added_files(opened: DeltaTable) -> pa.Table:
    """Return path (relative to the table), num_records and partition.<column> of each file."""
    actions = pa.table(opened.get_add_actions(flatten=True))
    # The log's paths are URLs.
    paths = [unquote(path) for path in actions["path"].to_pylist()]
    return actions.set_column(
        actions.column_names.index("path"), "path", pa.array(paths, pa.string())
    )


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
