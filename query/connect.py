"""A DuckDB connection on a snapshot: its views, and nothing outside the lake."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from os import environ
from typing import Any, Final

import duckdb
import pyarrow as pa

from scopelake.errors import LakeError, MissingDependencyError
from scopelake.query.coverage import Coverage
from scopelake.query.point_reads import PointReads, point_query
from scopelake.query.snapshot_files import Reads, SnapshotFiles, whole_tables
from scopelake.query.sql import one_line
from scopelake.query.views import literal, view_statements
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

_OBJECTS_INIT: Final = (
    "LOAD httpfs;  -- once before, with internet: INSTALL httpfs",
    "-- and a secret of your own: CREATE SECRET (TYPE s3, PROVIDER credential_chain);",
)


class Connection:
    """A DuckDB connection on a snapshot that hashes files before it reads them."""

    def __init__(
        self, raw: duckdb.DuckDBPyConnection, store: LakeStore, snapshot: Snapshot
    ) -> None:
        self._raw, self._files = raw, SnapshotFiles(store, snapshot)
        is_folder = isinstance(store.root, FolderRoot)
        self._points = PointReads(store.root, self._files) if is_folder else None
        self.coverage = Coverage(store, snapshot)

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
        self._raw.close()


def connect(store: LakeStore, snapshot: Snapshot) -> Connection:
    """Return a connection whose views are `snapshot`'s tables and which reads only the lake.

    It is in memory, loads no extension but ``delta`` (and ``httpfs`` for an object store), opens
    no file outside the lake's tables, and its settings are locked.

    Raises:
        MissingDependencyError: DuckDB's delta extension is not installed.
        LakeError: a table cannot be read at the snapshot's version.
    """
    connection = duckdb.connect(":memory:", config=_CONFIG)
    connection.execute(f"LOAD {literal(_extension('delta'))}")
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
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return Connection(connection, store, snapshot)


def init_sql(store: LakeStore, snapshot: Snapshot) -> str:
    """Return SQL that makes the views of `snapshot` in any DuckDB client that has ``delta``."""
    lines = [
        f"-- scopelake: the views of snapshot {snapshot.id}",
        "LOAD delta;  -- once before, with internet: INSTALL delta",
        *(_OBJECTS_INIT if store.root.url.startswith(S3) else ()),
        *(f"{statement};" for statement in view_statements(store, snapshot)),
    ]
    return "\n".join(lines) + "\n"


def _reach_objects(connection: duckdb.DuckDBPyConnection, url: str) -> None:
    """Give DuckDB what the environment says about the object store, for this lake alone."""
    connection.execute(f"LOAD {literal(_extension('httpfs'))}")
    connection.execute("SET allow_persistent_secrets = false")
    # The extension copies the environment into settings, which any query can read.
    for name in ("s3_access_key_id", "s3_secret_access_key", "s3_session_token"):
        connection.execute(f"SET {name} = ''")
    connection.execute("SET http_retries = 10")
    settings = {"SCOPE": f"{url}/"}
    settings |= {key: value for key, name in _ENVIRONMENT.items() if (value := environ.get(name))}
    if endpoint := environ.get("AWS_ENDPOINT_URL"):
        scheme, _, host = endpoint.rstrip("/").partition("://")
        settings |= {"ENDPOINT": host, "URL_STYLE": "path"}
        settings["USE_SSL"] = "false" if scheme == "http" else "true"
    listed = ", ".join(f"{key} {literal(value)}" for key, value in settings.items())
    connection.execute(f"CREATE SECRET lake (TYPE s3, {listed})")


def _extension(name: str) -> str:
    """An extension comes as a wheel, so that no download happens at run time."""
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
