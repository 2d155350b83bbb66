"""The one writer: it makes files part of the lake, all or nothing, exactly once.

A commit is written ahead to ``pending/``; from then on it will happen. Every Delta table it
touches carries the commit's name as an application transaction, so that doing it again after a
crash skips what was done. The row in ``snapshots`` comes last: until it is there, no reader that
opens a snapshot sees any of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
from deltalake import DeltaTable

from scopelake.errors import InvalidArgumentError, LakeBusyError, LakeError
from scopelake.store import delta
from scopelake.store.lake_store import LakeStore, snapshot_rows
from scopelake.store.layout import DENSE, TABLES, lock_file, pending_dir
from scopelake.store.parquet import fsync_folder
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class _Pending:
    """A commit that was decided on."""

    transaction: str
    reason: str
    run: str | None
    created_at: datetime
    receipts: tuple[Receipt, ...]
    rows: Mapping[str, pa.Table]
    replace: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps(
            {
                "transaction": self.transaction,
                "reason": self.reason,
                "run": self.run,
                "created_at": self.created_at.isoformat(),
                "receipts": [r.to_dict() for r in self.receipts],
                "rows": {table: delta.rows_json(rows) for table, rows in self.rows.items()},
                "replace": dict(self.replace),
            }
        )

    @staticmethod
    def from_json(text: str) -> _Pending:
        values: dict[str, Any] = json.loads(text)
        return _Pending(
            values["transaction"],
            values["reason"],
            values["run"],
            datetime.fromisoformat(values["created_at"]),
            tuple(Receipt.from_dict(r) for r in values["receipts"]),
            {table: delta.rows_from_json(table, rows) for table, rows in values["rows"].items()},
            values["replace"],
        )


def equals(column: str, *values: str) -> str:
    """Return the predicate that a column has one of `values`, for `Writer.commit`."""
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({listed})"


class Writer:
    """The lake's only writer while it is entered; finishes what a killed writer began.

    Args:
        store: the lake.
        on_step: called after each step of a commit with ``pending``, a table's name, or ``done``.

    Raises (on entering):
        LakeBusyError: another writer, in this process or another, is at work.
    """

    def __init__(self, store: LakeStore, on_step: Callable[[str], None] | None = None) -> None:
        self.store = store
        self._on_step = on_step or (lambda step: None)
        self._lock: IO[bytes] | None = None
        self._tables: dict[str, DeltaTable] = {}

    def __enter__(self) -> Self:
        lock = lock_file(self.store.root).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise LakeBusyError(
                f"a write to the lake at {self.store.root} was asked for; another writer holds it; "
                "wait until it has finished"
            ) from error
        self._lock = lock
        try:
            self._recover()
            delta.create_missing_tables(self.store.root)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def commit(
        self,
        receipts: Sequence[Receipt],
        *,
        transaction: str,
        reason: str,
        run: str | None = None,
        rows: Mapping[str, pa.Table] | None = None,
        replace: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make files and catalogue rows part of the lake, as one snapshot.

        A `transaction` that the lake has already changes nothing.

        Args:
            receipts: of files written for this commit.
            transaction: name of the commit, the same when it is tried again.
            reason: what it is for, in words.
            run: the run that it belongs to.
            rows: rows by table (not tables that `receipts` add files to).
            replace: by table of `rows`, a SQL predicate whose rows they replace; the new rows must
                satisfy it.

        Returns:
            The lake's latest snapshot, which holds the commit.

        Raises:
            InvalidArgumentError: the rows do not fit their tables.
            LakeError: a receipt's file is not there, or the writer is not entered.
        """
        if self._lock is None:
            raise LakeError(
                "a commit was asked for; the lock is not held; use `with Writer(store)`"
            )
        self._recover()
        if delta.has_transaction(self._table("snapshots"), transaction):
            return self.store.snapshot()
        pending = _Pending(
            transaction,
            reason,
            run,
            datetime.now(UTC),
            tuple(receipts),
            _checked_rows(receipts, rows or {}, replace or {}),
            dict(replace or {}),
        )
        self._check_files(pending)
        path = self._write_pending(pending)
        self._on_step("pending")
        self._apply(pending)
        path.unlink()
        self._on_step("done")
        return self.store.snapshot()

    def _recover(self) -> None:
        """Carry out the commits that were decided on and not finished."""
        folder = pending_dir(self.store.root)
        for unfinished in folder.glob("*.tmp"):
            unfinished.unlink()
        for path in sorted(folder.glob("*.json")):
            # A failed step may have left these at versions that the log has passed.
            self._tables.clear()
            pending = _Pending.from_json(path.read_text())
            self._check_files(pending)
            self._apply(pending)
            path.unlink()

    def _apply(self, pending: _Pending) -> None:
        """Do each step of a commit that its table does not carry already."""
        name = pending.transaction
        by_table: dict[str, list[Receipt]] = {}
        for receipt in pending.receipts:
            by_table.setdefault(receipt.table, []).append(receipt)
        by_table.pop(DENSE, None)
        for table, receipts in by_table.items():
            if not delta.has_transaction(self._table(table), name):
                delta.add_files(self._table(table), table, receipts, name)
                self._on_step(table)
        rows = dict(pending.rows)
        if pending.receipts:
            rows["files"] = _file_rows(pending.receipts)
        for table, added in rows.items():
            if not delta.has_transaction(self._table(table), name):
                delta.add_rows(self._table(table), added, name, pending.replace.get(table))
                self._on_step(table)
        self._add_snapshot(pending)

    def _add_snapshot(self, pending: _Pending) -> None:
        if delta.has_transaction(self._table("snapshots"), pending.transaction):
            return
        versions = {table: self._table(table).version() for table in TABLES}
        versions["snapshots"] += 1
        snapshot = Snapshot(
            self.store.snapshot().id + 1,
            pending.created_at,
            pending.reason,
            pending.run,
            versions,
        )
        delta.add_rows(self._table("snapshots"), snapshot_rows(snapshot), pending.transaction)
        self._on_step("snapshots")

    def _table(self, table: str) -> DeltaTable:
        if table not in self._tables:
            self._tables[table] = delta.open_table(self.store.root, table)
        return self._tables[table]

    def _check_files(self, pending: _Pending) -> None:
        for receipt in pending.receipts:
            path = self.store.root / receipt.path
            found = path.stat().st_size if path.is_file() else None
            if found != receipt.n_bytes:
                raise LakeError(
                    f"commit {pending.transaction} names {receipt.path} of {receipt.n_bytes} "
                    f"bytes; found {'no file' if found is None else f'{found} bytes'}; restore it "
                    "or write it again"
                )

    def _write_pending(self, pending: _Pending) -> Path:
        folder = pending_dir(self.store.root)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", pending.transaction)
        path, temporary = folder / f"{name}.json", folder / f"{name}.tmp"
        folder.mkdir(exist_ok=True)  # a copy of a lake may have lost its empty folders
        with temporary.open("w", encoding="utf-8") as file:
            file.write(pending.to_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        fsync_folder(folder)
        return path

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None
        self._tables.clear()


def _file_rows(receipts: Sequence[Receipt]) -> pa.Table:
    """Return the rows of the files table for `receipts`."""
    schema = SCHEMAS["files"]
    rows = [{**r.to_dict(), "kind": r.table} for r in receipts]
    return pa.Table.from_pylist([{c: row[c] for c in schema.names} for row in rows], schema=schema)


def _checked_rows(
    receipts: Sequence[Receipt], rows: Mapping[str, pa.Table], replace: Mapping[str, str]
) -> dict[str, pa.Table]:
    """Return `rows` in the types of their tables."""
    own = {"files", "snapshots"} | {r.table for r in receipts}
    for table in {*rows, *replace}:
        if table not in SCHEMAS or table in own or table not in rows:
            raise InvalidArgumentError(
                f"rows for table {table!r} were given; a commit takes rows for tables that it adds "
                "no files to and that it does not write itself; check `rows` and `replace`"
            )
    checked = {}
    for table, given in rows.items():
        schema = SCHEMAS[table]
        if set(given.column_names) != set(schema.names):
            raise InvalidArgumentError(
                f"rows for table {table} have columns {given.column_names}; it has {schema.names}; "
                "give exactly these"
            )
        checked[table] = given.select(schema.names).cast(schema)
    return checked
