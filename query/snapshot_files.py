"""The files of a snapshot that a query may read, hashed before it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Final

import pyarrow as pa

from scopelake.errors import DamagedFileError
from scopelake.query.macros import MACROS
from scopelake.store.integrity import check_files
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import TABLES, checksum_in_name, table_folder
from scopelake.store.reading import Filters, matching_files
from scopelake.store.snapshot import Snapshot

Reads = Mapping[str, Filters]
"""By table, conditions that all rows meet that a query reads."""

_LISTED: Final = (
    "codes", "postings", "peaks", "samples", "tallies", "features", "contexts",
    "neighbors", "labels",
)  # fmt: skip
"""Tables whose files are in the catalogue."""

_WORD: Final = re.compile(r"[a-z_]+")
_VIEWS: Final = {
    "tokens": ("contexts",),
    "peaks": ("peaks", "runs"),
    "features": ("features", "runs"),
    "vocabulary": ("contexts", "corpora"),
    **{macro.name: macro.tables for macro in MACROS},
}
"""Tables behind the views that are more than a table of the same name, and behind the macros."""


def whole_tables(query: str) -> Reads:
    """Return the tables that a query may read, whole: those whose names are in its text."""
    words = set(_WORD.findall(query.lower())) & {*TABLES, *_VIEWS}
    return {table: () for word in words for table in _VIEWS.get(word, (word,))}


class SnapshotFiles:
    """The files of every table at a snapshot."""

    def __init__(self, store: LakeStore, snapshot: Snapshot) -> None:
        self._store, self._snapshot = store, snapshot
        self._actions: dict[str, pa.Table] = {}

    def check(
        self, table: str, filters: Filters, before_each: Callable[[], None] | None = None
    ) -> None:
        """Hash the files that may hold rows that meet `filters`, those that were not yet.

        Args:
            table: its name.
            filters: conditions on its rows.
            before_each: called before each file, in any thread; what it raises ends the work.

        Raises:
            DamagedFileError: one is not what was written.
        """
        self.checked(table, filters, before_each)

    def checked(
        self, table: str, filters: Filters, before_each: Callable[[], None] | None = None
    ) -> pa.Table:
        """Return the files that may hold rows that meet `filters`, once all of them are hashed.

        Args:
            table: as in `check`, as are the others.
            filters: see table.
            before_each: see table.

        Returns:
            As `matching`; none if there is no such table.

        Raises:
            DamagedFileError: one is not what was written.
        """
        found = self.matching(table, filters)
        if found is None:
            return pa.table({"path": pa.array([], pa.string())})
        names = found["path"].to_pylist()
        paths = [f"{table_folder(table)}/{name}" for name in names]
        check_files(self._store.root, paths, self.checksums(names), before_each)
        return found

    def matching(self, table: str, filters: Filters) -> pa.Table | None:
        """Return the files that may hold rows that meet `filters`, as the log has them, unread.

        Returns:
            path, partition.<column>, min.<column>, max.<column>; None if there is no such table.

        Raises:
            DamagedFileError: the log lists other files than the catalogue.
        """
        version = self._snapshot.versions.get(table)
        if version is None:
            return None
        if table not in self._actions:
            actions = self._store.table_at(table, version).files
            self._check_listed(table, actions)
            self._actions[table] = actions
        return matching_files(self._actions[table], filters)

    def checksums(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return checksums by file name, if some of `names` do not carry theirs."""
        return self._known if any(checksum_in_name(name) is None for name in names) else {}

    def _check_listed(self, table: str, actions: pa.Table) -> None:
        """Refuse a table whose log, or its checkpoint, lists other files than the catalogue.

        Logs carry no checksum: a flipped bit there may drop a file, or name another one twice.
        """
        if table not in _LISTED:
            return
        folder = table_folder(table)
        names = [f"{folder}/{name}" for name in actions["path"].to_pylist()]
        found = sorted(zip(names, actions["num_records"].to_pylist(), strict=True))
        if found != self._listed.get(table, []):
            raise DamagedFileError(
                f"table {table} was to be read; its log at {self._store.table_uri(table)} lists "
                f"other files, or other numbers of rows, than the catalogue; run scopelake verify"
            )

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, int]]]:
        """By table, path and rows of its files, sorted."""
        rows = self._store.read("files", self._snapshot, ["kind", "path", "n_rows"])
        found: dict[str, list[tuple[str, int]]] = {}
        columns = (rows[c].to_pylist() for c in ("kind", "path", "n_rows"))
        for kind, path, n_rows in zip(*columns, strict=True):
            found.setdefault(kind, []).append((path, n_rows))
        return {kind: sorted(files) for kind, files in found.items()}

    @cached_property
    def _known(self) -> dict[str, str]:
        """Checksums by file name, which the names in the first lakes do not carry."""
        rows = self._store.read("files", self._snapshot, ["path", "checksum"])
        paths, sums = rows["path"].to_pylist(), rows["checksum"].to_pylist()
        return {path.rsplit("/", 1)[-1]: sum_ for path, sum_ in zip(paths, sums, strict=True)}
