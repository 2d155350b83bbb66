"""Carrying out a commit: one Delta commit a table, each once, the snapshot last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from scopelake.errors import LakeError, ScopelakeError
from scopelake.store import delta
from scopelake.store.lake_store import LakeStore, snapshot_rows
from scopelake.store.layout import DENSE, TABLES
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

_MOST_TRIES: Final = 20


class Applier:
    """Carries out commits that were decided on; several may be at the same one.

    Args:
        store: the lake.
        on_step: called after each step with the table's name.
    """

    def __init__(self, store: LakeStore, on_step: Callable[[str], None]) -> None:
        self.store, self._on_step = store, on_step
        self._tables: dict[str, DeltaTable] = {}

    def apply(self, number: int, commit: Commit) -> None:
        """Do each step of the commit that makes snapshot `number` and is not done yet."""
        name = commit.transaction
        for path in commit.drop:
            # The place of a dense shard is fixed: somebody may have put it anew.
            if path.startswith("tables/"):
                self.store.root.delete(path)
        gone = (*commit.retire, *commit.drop)
        files = _by_table(commit.receipts, gone)
        for table, (receipts, paths) in files.items():
            change = partial(
                delta.change_files, table=table, receipts=receipts, gone=paths, transaction=name
            )
            self._once(table, name, change)
        remove = {**commit.remove, **({"files": ("path", gone)} if gone else {})}
        for table, (column, values) in remove.items():
            self._remove_rows(table, column, values, f"{name}:remove")
        rows = dict(commit.rows)
        if commit.receipts:
            rows["files"] = _file_rows([self.as_is(receipt) for receipt in commit.receipts])
        for table, added in rows.items():
            self._add_rows(table, added, name, commit.replace.get(table))
        self._add_snapshot(number, commit, {*files, *remove, *rows})

    def as_is(self, receipt: Receipt) -> Receipt:
        """Return a dense shard's receipt as it lies there: another writer may have put it anew."""
        if receipt.table != DENSE:
            return receipt
        root, path = self.store.root, receipt.path
        n_bytes = root.size(path)
        if n_bytes is None:
            return receipt
        return replace(receipt, n_bytes=n_bytes, checksum=root.checksum(path))

    def is_done(self, transaction: str) -> bool:
        """Whether the lake has a snapshot of this commit."""
        return delta.has_transaction(self._table("snapshots"), transaction)

    def forget(self) -> None:
        """Let go of the open tables."""
        while self._tables:
            # That they stay open spares time; what was done is done without.
            with suppress(LakeError, OSError):
                self.store.give_back(*self._tables.popitem())

    def _add_snapshot(self, number: int, commit: Commit, touched: set[str]) -> None:
        name = commit.transaction
        if self.is_done(name):
            return
        # Nobody else commits to a table between two snapshots: the others are as they were, and
        # these as the step left them.
        before = self.store.snapshot(number - 1).versions
        versions = {
            table: self._tables[table].version() if table in touched
            else before[table] if table in before else self._table(table).version()
            for table in TABLES
        }  # fmt: skip
        versions["snapshots"] = self._table("snapshots").version() + 1
        snapshot = Snapshot(number, commit.created_at, commit.reason, commit.run, versions)
        self._add_rows("snapshots", snapshot_rows(snapshot), name, None)

    def _add_rows(
        self, table: str, rows: pa.Table, transaction: str, key: Sequence[str] | None
    ) -> None:
        add = partial(
            delta.add_rows,
            root=self.store.root,
            table=table,
            rows=rows,
            transaction=transaction,
            key=key,
        )
        self._once(table, transaction, add)

    def _remove_rows(
        self, table: str, column: str, values: Sequence[Any], transaction: str
    ) -> None:
        remove = partial(
            delta.remove_rows,
            root=self.store.root,
            table=table,
            column=column,
            values=values,
            transaction=transaction,
        )
        self._once(table, transaction, remove)

    def _once(self, table: str, transaction: str, act: Callable[[DeltaTable], None]) -> None:
        """Do one step unless its table has it; another writer may do it at the same time."""
        for _ in range(_MOST_TRIES):
            opened = self._table(table)
            if delta.has_transaction(opened, transaction):
                return
            try:
                act(opened)
            except CommitFailedError as error:
                # Another writer's commit came first: most often it was this very step.
                del self._tables[table]
                failed = error
                continue
            except (DeltaError, OSError) as error:
                if isinstance(error, ScopelakeError):
                    raise
                raise LakeError(
                    f"a commit to table {table} was asked for; it failed "
                    f"({delta.describe(self.store.root, error)}); check "
                    f"{self.store.table_uri(table)}, its permissions and room; the next writer "
                    "goes on with it"
                ) from error
            self._on_step(table)
            return
        raise LakeError(
            f"a commit to table {table} was tried {_MOST_TRIES} times; it failed "
            f"({delta.describe(self.store.root, failed)}); check {self.store.table_uri(table)}"
        ) from failed

    def _table(self, table: str) -> DeltaTable:
        """Return the table at its newest version."""
        if table not in self._tables:
            self._tables[table] = self.store.borrow(table)
        self._tables[table].update_incremental()
        return self._tables[table]


def _by_table(
    receipts: Sequence[Receipt], gone: Sequence[str]
) -> dict[str, tuple[list[Receipt], list[str]]]:
    """Return, by Delta table, the files that come and those that go."""
    found: dict[str, tuple[list[Receipt], list[str]]] = {}
    for receipt in receipts:
        if receipt.table != DENSE:
            found.setdefault(receipt.table, ([], []))[0].append(receipt)
    for path in gone:
        if path.startswith("tables/"):
            found.setdefault(path.split("/")[1], ([], []))[1].append(path)
    return found


def _file_rows(receipts: Sequence[Receipt]) -> pa.Table:
    """Return the rows of the files table for `receipts`."""
    schema = SCHEMAS["files"]
    rows = [{**r.to_dict(), "kind": r.table} for r in receipts]
    return pa.Table.from_pylist([{c: row[c] for c in schema.names} for row in rows], schema=schema)
