"""A DuckDB connection on a snapshot: its views, and nothing outside the lake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, files
from os import environ
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir
from threading import Lock
from typing import Any, Final
from uuid import uuid4

import duckdb
import pyarrow as pa

from scopelake.errors import LakeError, MissingDependencyError
from scopelake.names import parse_bytes
from scopelake.query.columns import comment_statements
from scopelake.query.coverage import Coverage
from scopelake.query.facts import gather
from scopelake.query.limits import Watch
from scopelake.query.literals import literal
from scopelake.query.macros import macro_statements
from scopelake.query.point_reads import PointReads, point_query
from scopelake.query.refusals import one_line
from scopelake.query.snapshot_files import Reads, SnapshotFiles, whole_tables
from scopelake.query.views import PRIVATE, view_statements
from scopelake.store.folder_root import FolderRoot
from scopelake.store.lake_store import LakeStore
from scopelake.store.reading import Filters
from scopelake.store.root import S3
from scopelake.store.snapshot import Snapshot

_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # A misspelt view must not become a variable of ours that has that name.
    "python_enable_replacements": False,
}

_ENVIRONMENT: Final = {
    "KEY_ID": "AWS_ACCESS_KEY_ID",
    "SECRET": "AWS_SECRET_ACCESS_KEY",
    "SESSION_TOKEN": "AWS_SESSION_TOKEN",
    "REGION": "AWS_REGION",
}
"""Parts of DuckDB's secret by the variables that have them."""

_SPELLS: Final = re.compile(r"\b(vocabulary|decode)\b", re.IGNORECASE)
"""Names that lead to the vocabulary, in a query."""

_OBJECTS_INIT: Final = (
    "LOAD httpfs;  -- once before, with internet: INSTALL httpfs",
    "-- and a secret of your own: CREATE SECRET (TYPE s3, PROVIDER credential_chain);",
)


class Connection:
    """Queries of a snapshot, which hash files before they read them.

    DuckDB is begun, and every view planned, when a query is first run: rows of a few keys do
    without.

    Args:
        store: the lake.
        snapshot: what of it is read.
        memory: as in `connect`.
    """

    def __init__(
        self, store: LakeStore, snapshot: Snapshot, memory: str | int | None = None
    ) -> None:
        self._store, self._snapshot, self._memory = store, snapshot, memory
        self._files = SnapshotFiles(store, snapshot)
        is_folder = isinstance(store.root, FolderRoot)
        self._points = PointReads(store.root, self._files) if is_folder else None
        self.coverage = Coverage(store, snapshot)
        self._lock, self._beginning = Lock(), Lock()
        self._has_macros = self._has_vocabulary = False

    @cached_property
    def _raw(self) -> duckdb.DuckDBPyConnection:
        return _begin(self._store, self._snapshot, self._memory)

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a cursor of its own: other threads may have rows of theirs to fetch."""
        with self._beginning:
            try:
                cursor = self._raw.cursor()
                cursor.execute("SELECT 1")
            except duckdb.FatalException:
                # An error within DuckDB, in a query before, made it give up the database.
                self.__dict__.pop("_raw", None)
                self._has_macros = self._has_vocabulary = False
                return self._raw.cursor()
            return cursor

    def execute(
        self,
        query: str,
        params: Any = None,  # noqa: ANN401
        reads: Reads | None = None,
        tables: Mapping[str, pa.Table] | None = None,
    ) -> duckdb.DuckDBPyConnection:
        """Run a query.

        Args:
            query: one statement.
            params: of its placeholders.
            reads: by table, which rows it reads: only the files that may hold them are hashed.
                By default all files of the tables that are named in the query.
            tables: by name, rows that it may read besides.

        Raises:
            DamagedFileError: a file that it may read is not what was written.
            MissingDependencyError: DuckDB's delta extension is not installed.
            LakeError: a table cannot be read at the snapshot's version.
        """
        for table, filters in (whole_tables(query) if reads is None else reads).items():
            self._files.check(table, filters)
        cursor = self._cursor()
        for name, rows in (tables or {}).items():
            cursor.register(name, rows)
        return cursor.execute(query, params)

    def session(self, reads: Reads) -> duckdb.DuckDBPyConnection:
        """Return a cursor that keeps temporary tables of its own until it is closed.

        Args:
            reads: by table, which rows its queries will read.

        Raises:
            DamagedFileError: a file that they may read is not what was written.
        """
        for table, filters in reads.items():
            self._files.check(table, filters)
        return self._cursor()

    def rows(self, table: str, columns: Sequence[str], filters: Filters) -> pa.Table:
        """Return rows of a few keys, in no particular order.

        Files of a folder are read directly, those of an object store by a query.

        Args:
            table: as it is stored.
            columns: those to return.
            filters: of ``=``, ``in`` and ``<``, on partition columns or whole numbers.

        Raises:
            DamagedFileError: a file that may hold them is not what was written.
        """
        if self._points is not None:
            return self._points.rows(table, columns, filters)
        query, params = point_query(table, columns, filters)
        return self.execute(query, params, {table: filters}).to_arrow_table()

    def close(self) -> None:
        """Close it."""
        if "_raw" in self.__dict__:
            self._raw.close()

    @property
    def url(self) -> str:
        """Where the lake is."""
        return self._store.root.url

    def files(self, table: str, filters: Filters) -> tuple[pa.Table, Mapping[str, str]]:
        """Return the files that may hold rows that meet `filters`, not read yet.

        Returns:
            path, partition.<column>, min.<column>, max.<column>; and checksums by name of those
            whose name does not carry it.

        Raises:
            DamagedFileError: a log lists other files than the catalogue.
        """
        found = self._files.matching(table, filters)
        assert found is not None, f"every lake has {table}"
        return found, self._files.checksums(found["path"].to_pylist())

    def cursor_for(self, query: str, watch: Watch) -> duckdb.DuckDBPyConnection:
        """Return a cursor for one query of a user, once all that it may read has been hashed.

        It has its own state: that one query is interrupted, or read slowly, is nothing to others.

        Args:
            query: what it is for.
            watch: of its time, that of the cursor's query included.

        Raises:
            DamagedFileError: a file that it may read is not what was written.
            QueryError: there is no time for what comes before the query.
            duckdb.OutOfMemoryException: there is no memory for it.
        """
        with self._lock:
            self._cursor()  # which begins the database anew where it has to
            watch.runs(self._raw)
            self._make_macros()
            for table, filters in whole_tables(query).items():
                self._files.check(table, filters, watch.check)
            if _SPELLS.search(query):
                self._spell_once()
            cursor = self._raw.cursor()
            watch.runs(cursor)
            return cursor

    def make_macros(self) -> None:
        """Make macros, which a user's predicate may ask."""
        with self._lock:
            self._make_macros()

    def _make_macros(self) -> None:
        """Make macros and comments when a user first asks: the verbs need neither."""
        if self._has_macros:
            return
        facts = gather(self._store, self._snapshot, self.coverage)
        for statement in (*comment_statements(), *macro_statements(facts)):
            self._raw.execute(statement)
        self._has_macros = True

    def _spell_once(self) -> None:
        """Keep the vocabulary in memory: to find it, every token of the lake is looked at."""
        if self._has_vocabulary:
            return
        # One that ran out of memory between the statements left the table.
        table = f"{PRIVATE}.vocabulary"
        self._raw.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM main.vocabulary")
        self._raw.execute(f"CREATE OR REPLACE VIEW main.vocabulary AS FROM {table}")
        for statement in comment_statements("vocabulary"):
            self._raw.execute(statement)
        self._has_vocabulary = True


def connect(store: LakeStore, snapshot: Snapshot, memory: str | int | None = None) -> Connection:
    """Return a connection whose views are `snapshot`'s tables and which reads only the lake.

    It is in memory, loads no extension but ``delta`` (and ``httpfs`` for an object store), opens
    no file outside the lake's tables but temporary ones, and its settings are locked. What does not
    fit into memory goes to a folder for temporary files (`TMPDIR`), at most half of what is free
    there, and is deleted with the connection.

    Args:
        store: the lake.
        snapshot: what of it is read.
        memory: most memory that DuckDB may take, such as ``2GB``, or bytes; None: four fifths of
            the machine.
    """
    return Connection(store, snapshot, memory)


def _begin(
    store: LakeStore, snapshot: Snapshot, memory: str | int | None
) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config=_CONFIG)
    # In a notebook or at a prompt DuckDB would draw bars of its own into what is printed.
    connection.execute("SET enable_progress_bar = false")
    connection.execute(f"LOAD {literal(extension('delta'))}")
    if store.root.url.startswith(S3):
        _reach_objects(connection, store.root.url)
    try:
        for statement in view_statements(store, snapshot):
            connection.execute(statement)
    except duckdb.Error as error:
        raise LakeError(
            f"the views of snapshot {snapshot.id} of {store.root.url} were asked for; a table "
            f"cannot be read ({one_line(error)}); check it"
        ) from error
    tables = literal(f"{store.root.url}/tables/")
    connection.execute(f"SET allowed_directories = [{tables}]")
    _limit(connection, memory)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def init_sql(store: LakeStore, snapshot: Snapshot) -> str:
    """Return SQL that makes the views of `snapshot` in any DuckDB client that has ``delta``.

    It makes the macros and the comments on views and columns too.
    """
    facts = gather(store, snapshot, Coverage(store, snapshot))
    lines = [
        f"-- scopelake: views and macros of snapshot {snapshot.id}",
        "LOAD delta;  -- once before, with internet: INSTALL delta",
        *(_OBJECTS_INIT if store.root.url.startswith(S3) else ()),
        *(f"{statement};" for statement in view_statements(store, snapshot)),
        *(f"{statement};" for statement in comment_statements()),
        *(f"{statement};" for statement in macro_statements(facts)),
    ]
    return "\n".join(lines) + "\n"


def _limit(connection: duckdb.DuckDBPyConnection, memory: str | int | None) -> None:
    """Bound what queries take of memory and of the disk, outside the lake."""
    if memory is not None:
        connection.execute(f"SET memory_limit = '{parse_bytes('memory', memory)}B'")
    folder = Path(gettempdir()) / f"scopelake-{uuid4().hex}"
    # DuckDB makes it when it first needs it, and deletes it.
    connection.execute(f"SET temp_directory = {literal(str(folder))}")
    spare = disk_usage(folder.parent).free // 2
    connection.execute(f"SET max_temp_directory_size = '{spare}B'")


def _reach_objects(connection: duckdb.DuckDBPyConnection, url: str) -> None:
    """Give DuckDB what the environment says about the object store, for this lake alone."""
    connection.execute(f"LOAD {literal(extension('httpfs'))}")
    connection.execute("SET allow_persistent_secrets = false")
    # The extension copies the environment into settings, which any query can read.
    for name in ("s3_access_key_id", "s3_secret_access_key", "s3_session_token"):
        # For every cursor, not this one alone.
        connection.execute(f"SET GLOBAL {name} = ''")
    connection.execute("SET GLOBAL http_retries = 10")
    settings = {"SCOPE": f"{url}/"}
    settings |= {key: value for key, name in _ENVIRONMENT.items() if (value := environ.get(name))}
    if endpoint := environ.get("AWS_ENDPOINT_URL"):
        scheme, _, host = endpoint.rstrip("/").partition("://")
        settings |= {"ENDPOINT": host, "URL_STYLE": "path"}
        settings["USE_SSL"] = "false" if scheme == "http" else "true"
    listed = ", ".join(f"{key} {literal(value)}" for key, value in settings.items())
    connection.execute(f"CREATE SECRET lake (TYPE s3, {listed})")


def extension(name: str) -> str:
    """Return where an extension of DuckDB is; it comes as a wheel, so that nothing is downloaded.

    Raises:
        MissingDependencyError: it is not installed.
    """
    package = f"duckdb-extension-{name}"
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.suffix == ".duckdb_extension" and f"v{duckdb.__version__}" in file.parts:
            return str(file.locate())
    raise MissingDependencyError(
        f"DuckDB {duckdb.__version__} needs its {name} extension; the package {package} of that "
        f"version is not installed; run pip install {package}=={duckdb.__version__}"
    )
