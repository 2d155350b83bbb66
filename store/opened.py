"""What Delta logs say of tables at versions, read once: no version ever changes."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary

import pyarrow as pa
from deltalake import DeltaTable

from scopelake.store import delta
from scopelake.store.layout import table_folder
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot

_STEPS: Final = 4
"""Versions that a table is followed by before it is opened anew."""


@dataclass(frozen=True)
class TableAt:
    """A table at a version."""

    version: int
    files: pa.Table
    """As `delta.added_files` has them."""
    partitions: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, opened: DeltaTable) -> TableAt:
        """Return what the log says of a table that was opened."""
        return cls(
            opened.version(),
            delta.added_files(opened),
            tuple(opened.metadata().partition_columns),
            tuple(field.name for field in opened.schema().fields),
        )


class OpenedTables:
    """The tables of one lake as each was last asked for; several threads may use it.

    One version of each table is kept: that is what opening it takes, and no more for a lake that
    grows. It holds as long as the version's entry in the log is the one that was read.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, TableAt]] = {}
        self._open: WeakValueDictionary[str, DeltaTable] = WeakValueDictionary()
        """Of writers, which move them on."""
        self.latest: tuple[TableAt, Snapshot] | None = None
        """The latest snapshot as of a version of its table."""
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[OpenedTables], tuple[()]]:
        # Another process reads for itself.
        return OpenedTables, ()

    def lend(self, table: str, opened: DeltaTable) -> None:
        """Let what a writer has open be looked at, as long as it keeps it."""
        with self._lock:
            self._open[table] = opened

    def at(self, root: Root, table: str, version: int) -> TableAt:
        """Return a table at a version.

        Raises:
            LakeError: it cannot be read.
        """
        put = root.modified(_entry(table, version))
        found = self._find(table, put)
        if found is not None and found.version == version:
            return found
        found = self._lent(table, version) or TableAt.of(delta.open_table(root, table, version))
        return self._keep(table, put, found)

    def newest(self, root: Root, table: str) -> TableAt:
        """Return a table at its newest version.

        Raises:
            LakeError: it cannot be read.
        """
        with self._lock:
            kept = self._kept.get(table)
        if kept is not None:
            put, found = kept
            if root.modified(_entry(table, found.version)) == put:
                for version in range(found.version, found.version + _STEPS):
                    # Versions have no gaps: where the next one is missing there is no newer one.
                    if root.modified(_entry(table, version + 1)) is None:
                        return self.at(root, table, version)
        found = TableAt.of(delta.open_table(root, table))
        return self._keep(table, root.modified(_entry(table, found.version)), found)

    def _find(self, table: str, put: float | None) -> TableAt | None:
        with self._lock:
            kept = self._kept.get(table)
        return kept[1] if kept is not None and kept[0] == put else None

    def _lent(self, table: str, version: int) -> TableAt | None:
        with self._lock:
            opened = self._open.get(table)
        if opened is None or opened.version() != version:
            return None
        found = TableAt.of(opened)
        # The writer may have moved it on meanwhile; it never moves back.
        return found if opened.version() == version else None

    def _keep(self, table: str, put: float | None, found: TableAt) -> TableAt:
        if put is not None:  # a log without this entry is damaged, and read anew each time
            with self._lock:
                self._kept[table] = (put, found)
        return found


def _entry(table: str, version: int) -> str:
    """Return the path of a version's entry in the log of a table."""
    return f"{table_folder(table)}/_delta_log/{version:020d}.json"
