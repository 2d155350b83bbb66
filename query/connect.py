"""A DuckDB connection on a snapshot: its views, and nothing outside the lake."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from typing import Any, Final

import duckdb

from scopelake.errors import LakeError, MissingDependencyError
from scopelake.query.snapshot_files import Reads, SnapshotFiles, whole_tables
from scopelake.query.sql import one_line
from scopelake.query.views import literal, view_statements
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # A misspelt view must not become a variable of ours that has that name.
    "python_enable_replacements": False,
}


class Connection:
    """A DuckDB connection on a snapshot that hashes files before it reads them."""

    def __init__(
        self, raw: duckdb.DuckDBPyConnection, store: LakeStore, snapshot: Snapshot
    ) -> None:
        self._raw, self._files = raw, SnapshotFiles(store, snapshot)

    def execute(
        self,
        query: str,
        params: Any = None,  # noqa: ANN401
        reads: Reads | None = None,
    ) -> duckdb.DuckDBPyConnection:
        """Run a query.

        Args:
            query: one statement.
            params: of its placeholders.
            reads: by table, which rows it reads: only the files that may hold them are hashed.
                By default all files of the tables that are named in the query.

        Raises:
            DamagedFileError: a file that it may read is not what was written.
        """
        for table, filters in (whole_tables(query) if reads is None else reads).items():
            self._files.check(table, filters)
        return self._raw.execute(query, params)

    def close(self) -> None:
        """Close it."""
        self._raw.close()


def connect(store: LakeStore, snapshot: Snapshot) -> Connection:
    """Return a connection whose views are `snapshot`'s tables and which reads only the lake.

    It is in memory, loads no extension but ``delta``, opens no file outside the lake's tables,
    and its settings are locked.

    Raises:
        MissingDependencyError: DuckDB's delta extension is not installed.
        LakeError: a table cannot be read at the snapshot's version.
    """
    connection = duckdb.connect(":memory:", config=_CONFIG)
    connection.execute(f"LOAD {literal(_delta_extension())}")
    try:
        for statement in view_statements(store, snapshot):
            connection.execute(statement)
    except duckdb.Error as error:
        raise LakeError(
            f"the views of snapshot {snapshot.id} of {store.root} were asked for; a table cannot "
            f"be read ({one_line(error)}); check the folder"
        ) from error
    tables = literal(f"{store.root / 'tables'}/")
    connection.execute(f"SET allowed_directories = [{tables}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return Connection(connection, store, snapshot)


def init_sql(store: LakeStore, snapshot: Snapshot) -> str:
    """Return SQL that makes the views of `snapshot` in any DuckDB client that has ``delta``."""
    lines = [
        f"-- scopelake: the views of snapshot {snapshot.id}",
        "LOAD delta;  -- once before, with internet: INSTALL delta",
        *(f"{statement};" for statement in view_statements(store, snapshot)),
    ]
    return "\n".join(lines) + "\n"


def _delta_extension() -> str:
    """The extension comes as a wheel, so that no download happens at run time."""
    try:
        listed = files("duckdb-extension-delta") or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.suffix == ".duckdb_extension" and f"v{duckdb.__version__}" in file.parts:
            return str(file.locate())
    raise MissingDependencyError(
        f"DuckDB {duckdb.__version__} needs its delta extension; the package "
        "duckdb-extension-delta of that version is not installed; run pip install "
        f"duckdb-extension-delta=={duckdb.__version__}"
    )
