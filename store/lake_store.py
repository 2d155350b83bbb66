"""A lake on disk: made, opened, and read at a snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable

from scopelake.errors import (
    DamagedFileError,
    FormatVersionError,
    InvalidArgumentError,
    LakeError,
    LakeExistsError,
    LakeNotFoundError,
    NotALakeError,
    SnapshotNotFoundError,
)
from scopelake.store import delta
from scopelake.store.layout import (
    FORMAT,
    FORMAT_VERSION,
    LAKE_FILE,
    READABLE_VERSIONS,
    TABLES,
    table_folder,
)
from scopelake.store.opened import OpenedTables, TableAt
from scopelake.store.reading import OPERATORS
from scopelake.store.root import Root, root_at
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table."""

    path: str
    """Relative to the lake."""
    partition: Mapping[str, str]
    n_rows: int


@dataclass(frozen=True)
class LakeStore:
    """A lake; make one with `create` or `open`."""

    root: Root
    _opened: OpenedTables = field(
        default_factory=OpenedTables, init=False, repr=False, compare=False
    )

    @classmethod
    def create(cls, path: str | Path) -> LakeStore:
        """Make an empty lake at `path`, a folder or ``s3://`` prefix that is absent or empty.

        Raises:
            LakeExistsError: a lake, a file or a folder that is not empty is there.
            InvalidArgumentError: the path has a ``%``, or is no place for a lake.
            ObjectStoreError: the object store refuses or does not answer.
        """
        root = root_at(path)
        if "%" in root.url:
            # Readers of Delta tables decode it in one place and not in another (measured: deltalake
            # 1.6 and DuckDB 1.5 look for files in a folder of another name).
            raise InvalidArgumentError(
                f"a new lake at {root.url} was asked for; the path has a '%', which Delta readers "
                "take for a code; choose a path without"
            )
        if not root.is_empty():
            found = "something" if root.size(LAKE_FILE) is None else "a lake"
            raise LakeExistsError(
                f"a new lake at {root.url} was asked for; {found} is there; open it or choose a "
                "new path"
            )
        root.make()
        for table in TABLES:
            delta.create_table(root, table)
        now = datetime.now(UTC)
        versions = dict.fromkeys(TABLES, 0) | {"snapshots": 1}
        first = Snapshot(1, now, "create", None, versions)
        opened = delta.open_table(root, "snapshots")
        delta.add_rows(opened, root, "snapshots", snapshot_rows(first), "create")
        # Last: what was made half is not a lake.
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "lake_id": str(uuid4()),
            "created_at": now.isoformat(),
        }
        root.put_new(LAKE_FILE, f"{json.dumps(head)}\n".encode())
        return cls(root)

    @classmethod
    def open(cls, path: str | Path) -> LakeStore:
        """Open the lake at `path`.

        Raises:
            LakeNotFoundError: nothing is there.
            NotALakeError: what is there is not a lake.
            DamagedFileError: it is one, and its lake.json is damaged or missing.
            FormatVersionError: it is a lake of another format version.
            ObjectStoreError: the object store refuses or does not answer.
        """
        root = root_at(path)
        if not root.exists():
            raise LakeNotFoundError(
                f"a lake at {root.url} was asked for; nothing is there; check the path or create it"
            )
        _readable_version(root)
        return cls(root)

    def snapshot(self, id: int | None = None) -> Snapshot:
        """Return a snapshot, the latest by default.

        Raises:
            SnapshotNotFoundError: the lake has no such snapshot; the message has the range.
        """
        at, kept = self._opened.newest(self.root, "snapshots"), self._opened.latest
        if id is None and kept is not None and kept[0] is at:
            return kept[1]
        files = at.files
        # The bounds in the Delta log spare reading every row of a long history.
        latest = max(files["max.snapshot"].to_pylist())
        wanted = latest if id is None else id
        filters = [("snapshot", "=", wanted)]
        rows = delta.read(self.root, "snapshots", files, filters=filters).to_pylist()
        if not rows:
            there = delta.read(self.root, "snapshots", files, ["snapshot"])
            why = "a vacuum removed it; " if 1 <= wanted <= latest else ""
            raise SnapshotNotFoundError(
                f"snapshot {wanted} was asked for; {why}the lake at {self.root.url} has "
                f"{_ranges(there['snapshot'].to_pylist())}; choose one of them"
            )
        found = to_snapshot(rows[0])
        if wanted == latest:
            self._opened.latest = at, found
        return found

    def version(self) -> int:
        """Return the format version of the lake.

        Raises:
            FormatVersionError: it has become one of a newer format since it was opened.
        """
        return _readable_version(self.root)

    def is_older(self) -> bool:
        """Whether the lake is of an older format than is written.

        Raises:
            FormatVersionError: as in `version`.
        """
        return self.version() != FORMAT_VERSION

    def set_version(self) -> None:
        """Say that the lake is of the format that is written."""
        head = json.loads(self.root.read(LAKE_FILE))
        with self.root.scratch() as folder:
            made = folder / LAKE_FILE
            made.write_text(f"{json.dumps(head | {'format_version': FORMAT_VERSION})}\n")
            self.root.put(LAKE_FILE, made)

    def snapshots(self) -> pa.Table:
        """Return every snapshot, oldest first, in the schema of the snapshots table."""
        files = self._opened.newest(self.root, "snapshots").files
        return delta.read(self.root, "snapshots", files).sort_by("snapshot")

    def read(
        self,
        table: str,
        snapshot: Snapshot,
        columns: Sequence[str] | None = None,
        filters: list[tuple[str, str, Any]] | None = None,
    ) -> pa.Table:
        """Read a table at a snapshot.

        Args:
            table: one of TABLES.
            snapshot: which version of the lake.
            columns: those to return, all by default.
            filters: (column, operator, value), all of which must hold; operators are
                ``= == != < > <= >= in``, ``not in``; what is null meets none.

        Returns:
            The rows in no promised order, in the types of SCHEMAS.

        Raises:
            InvalidArgumentError: there is no such table, column or operator.
            LakeError: the version cannot be read any more.
        """
        schema = _schema(table)
        names = list(schema.names if columns is None else columns)
        asked = {*names, *(column for column, _, _ in filters or [])}
        if unknown := sorted(asked - set(schema.names)):
            raise InvalidArgumentError(
                f"columns {unknown} of table {table} were asked for; it has "
                f"{', '.join(schema.names)}; choose among these"
            )
        if wrong := sorted({how for _, how, _ in filters or []} - set(OPERATORS)):
            raise InvalidArgumentError(
                f"operators {wrong} were asked for; there are {', '.join(OPERATORS)}; choose among "
                "these"
            )
        if table not in snapshot.versions:
            return schema.empty_table().select(names)
        files = self.table_at(table, snapshot.versions[table]).files
        return delta.read(self.root, table, files, names, filters or ())

    def table_at(self, table: str, version: int) -> TableAt:
        """Return what the log of a table says of one of its versions.

        Raises:
            LakeError: it cannot be read.
        """
        return self._opened.at(self.root, table, version)

    def borrow(self, table: str) -> DeltaTable:
        """Return a table for a writer of its own, perhaps at an older version than the newest.

        Raises:
            LakeError: it cannot be read.
        """
        return self._opened.borrow(self.root, table)

    def give_back(self, table: str, opened: DeltaTable) -> None:
        """Take a table that was borrowed: another writer may need it next."""
        self._opened.give_back(self.root, table, opened)

    def data_files(
        self, table: str, snapshot: Snapshot, sae: str | None = None, corpus: str | None = None
    ) -> list[DataFile]:
        """Return the Parquet files of a table at a snapshot, sorted by path.

        Args:
            table: one of TABLES.
            snapshot: which version of the lake.
            sae: only files of this coder.
            corpus: only files of this corpus.

        Raises:
            InvalidArgumentError: there is no such table, or it is not partitioned like that.
        """
        _schema(table)
        if table not in snapshot.versions:
            return []  # the lake was of an older format then
        at = self.table_at(table, snapshot.versions[table])
        partitions = list(at.partitions)
        wanted = {k: v for k, v in (("sae", sae), ("corpus", corpus)) if v is not None}
        if unknown := sorted(set(wanted) - set(partitions)):
            raise InvalidArgumentError(
                f"files of table {table} by {unknown} were asked for; it is partitioned by "
                f"{partitions}; filter by these"
            )
        found = []
        for row in at.files.to_pylist():
            partition = {name: row[f"partition.{name}"] for name in partitions}
            if all(partition[name] == value for name, value in wanted.items()):
                path = f"{table_folder(table)}/{row['path']}"
                found.append(DataFile(path, partition, row["num_records"]))
        return sorted(found, key=lambda file: file.path)

    def column_names(self, table: str, snapshot: Snapshot) -> list[str]:
        """Return the columns that a table had at a snapshot; none if there was no such table."""
        if table not in snapshot.versions:
            return []
        return list(self.table_at(table, snapshot.versions[table]).columns)

    def table_uri(self, table: str) -> str:
        """Return where the Delta table is, as Delta readers take it.

        Raises:
            InvalidArgumentError: there is no such table.
        """
        _schema(table)
        return delta.table_uri(self.root, table)


def snapshot_rows(snapshot: Snapshot) -> pa.Table:
    """Return a snapshot as its row of the snapshots table."""
    row = {
        "snapshot": snapshot.id,
        "created_at": snapshot.created_at,
        "reason": snapshot.reason,
        "run": snapshot.run,
        "versions": [
            {"table": table, "version": version} for table, version in snapshot.versions.items()
        ],
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["snapshots"])


def _ranges(numbers: list[int]) -> str:
    """Return numbers in words, runs of them as one: 1, 3 to 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def to_snapshot(row: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot of a row of the snapshots table."""
    versions = {entry["table"]: entry["version"] for entry in row["versions"]}
    return Snapshot(row["snapshot"], row["created_at"], row["reason"], row["run"], versions)


def _schema(table: str) -> pa.Schema:
    if table not in SCHEMAS:
        raise InvalidArgumentError(
            f"table {table!r} was asked for; a lake has {', '.join(TABLES)}; choose one of them"
        )
    return SCHEMAS[table]


def _readable_version(root: Root) -> int:
    """Return the lake's format version; refuse one that is not known."""
    version = _format_version(root)
    if version not in READABLE_VERSIONS:
        raise FormatVersionError(
            f"the lake at {root.url} has format version {version!r}; this package reads "
            f"{', '.join(map(str, READABLE_VERSIONS))}; install a newer scopelake to read it"
        )
    return version


def _format_version(root: Root) -> int:
    try:
        values = json.loads(root.read(LAKE_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_lake_file(root, f"it has no {LAKE_FILE}", "missing") from error
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise _no_lake_file(
            root, f"its {LAKE_FILE} is not that of a lake", "damaged (it is not that of a lake)"
        )
    version = values.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        found = "none" if version is None else repr(version)
        raise _damaged_lake_file(root, f"damaged (its format_version is {found})")
    return version


def _no_lake_file(root: Root, what: str, how: str) -> LakeError:
    """Return what is said of a folder without its file: full of tables, it is a lake."""
    if any(True for _ in root.list("tables")):
        return _damaged_lake_file(root, how)
    return NotALakeError(f"a lake at {root.url} was asked for; {what}; check the path")


def _damaged_lake_file(root: Root, how: str) -> DamagedFileError:
    return DamagedFileError(
        f"the lake at {root.url} was asked for; its {LAKE_FILE} is {how}; restore it from a copy, "
        f'or write it anew: {{"format": "{FORMAT}", "format_version": {FORMAT_VERSION}, "lake_id": '
        '"<a UUID>", "created_at": "<a time>"} (docs/format.md, Damage)'
    )
