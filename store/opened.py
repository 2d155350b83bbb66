"""What Delta logs say of tables at versions, read once: no version ever changes."""

from __future__ import annotations

from collections import OrderedDict
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

_FEW_FILES: Final = 256
"""Files up to which several versions of a table are kept, and the table stays open."""

_VERSIONS: Final = 4


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

    @property
    def is_small(self) -> bool:
        """Whether to keep it costs nothing."""
        return int(self.files.num_rows) <= _FEW_FILES


class OpenedTables:
    """The tables of one lake as they were last asked for; several threads may use it.

    One version of each table is kept, which is what opening it takes, or some of a small one. Each
    holds as long as the version's entry in the log is the one that was read.
    """

    def __init__(self) -> None:
        self._kept: dict[str, OrderedDict[int, tuple[float, TableAt]]] = {}
        self._open: WeakValueDictionary[str, DeltaTable] = WeakValueDictionary()
        """Of writers, which move them on."""
        self._idle: dict[str, tuple[float, DeltaTable]] = {}
        """Of writers that are done."""
        self._lock = Lock()
        self.latest: tuple[TableAt, Snapshot] | None = None
        """The latest snapshot as of a version of its table."""

    def __reduce__(self) -> tuple[type[OpenedTables], tuple[()]]:
        # Another process reads for itself.
        return OpenedTables, ()

    def borrow(self, root: Root, table: str) -> DeltaTable:
        """Return a table to write to; nobody else moves it on, and it can be looked at here.

        It may be at an older version than the newest.

        Raises:
            LakeError: it cannot be read.
        """
        with self._lock:
            idle = self._idle.pop(table, None)
        if idle is not None and root.modified(_entry(table, idle[1].version())) == idle[0]:
            opened = idle[1]
        else:
            opened = delta.open_table(root, table)
        with self._lock:
            self._open[table] = opened
        return opened

    def give_back(self, root: Root, table: str, opened: DeltaTable) -> None:
        """Take a table that was borrowed; it stays open if it is small."""
        put = root.modified(_entry(table, opened.version()))
        is_small = put is not None and self.at(root, table, opened.version()).is_small
        with self._lock:
            if self._open.get(table) is opened:
                del self._open[table]  # who replaces the lake need not tell
            if put is not None and is_small:
                self._idle[table] = put, opened

    def at(self, root: Root, table: str, version: int) -> TableAt:
        """Return a table at a version.

        Raises:
            LakeError: it cannot be read.
        """
        put = root.modified(_entry(table, version))
        with self._lock:
            kept = self._kept[table].get(version) if table in self._kept else None
        if kept is not None and kept[0] == put:
            return kept[1]
        found = self._lent(table, version) or TableAt.of(delta.open_table(root, table, version))
        self._keep(table, put, found)
        return found

    def newest(self, root: Root, table: str) -> TableAt:
        """Return a table at its newest version.

        Raises:
            LakeError: it cannot be read.
        """
        with self._lock:
            kept = [(version, put) for version, (put, _) in self._kept.get(table, {}).items()]
        version, put = max(kept, default=(-1, 0.0))
        if kept and root.modified(_entry(table, version)) == put:
            for at in range(version, version + _STEPS):
                # Versions have no gaps: where the next one is missing there is no newer one.
                if root.modified(_entry(table, at + 1)) is None:
                    return self.at(root, table, at)
        found = TableAt.of(delta.open_table(root, table))
        self._keep(table, root.modified(_entry(table, found.version)), found)
        return found

    def _lent(self, table: str, version: int) -> TableAt | None:
        """Return what a writer's table says, if it is at this version."""
        with self._lock:
            opened = self._open.get(table)
        if opened is None or opened.version() != version:
            return None
        found = TableAt.of(opened)
        # The writer may have moved it on meanwhile; it never moves back.
        return found if opened.version() == version else None

    def _keep(self, table: str, put: float | None, found: TableAt) -> None:
        if put is None:  # a log without this entry is damaged, and read anew each time
            return
        with self._lock:
            kept = self._kept.setdefault(table, OrderedDict())
            kept[found.version] = put, found
            kept.move_to_end(found.version)
            most = _VERSIONS if all(one.is_small for _, one in kept.values()) else 1
            while len(kept) > most:
                kept.popitem(last=False)


def _entry(table: str, version: int) -> str:
    """Return the path of a version's entry in the log of a table."""
    return f"{table_folder(table)}/_delta_log/{version:020d}.json"
