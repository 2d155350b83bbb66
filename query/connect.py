"""A DuckDB connection on a snapshot: its views, and nothing outside the lake."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files

import duckdb

from scopelake.errors import MissingDependencyError
from scopelake.query.views import literal, view_statements
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot


def connect(store: LakeStore, snapshot: Snapshot) -> duckdb.DuckDBPyConnection:
    """Return a connection whose views are `snapshot`'s tables and which reads only the lake.

    Raises:
        MissingDependencyError: DuckDB's delta extension is not installed.
    """
    connection = duckdb.connect(
        ":memory:",
        config={"autoinstall_known_extensions": False, "autoload_known_extensions": False},
    )
    connection.execute(f"LOAD {literal(_delta_extension())}")
    for statement in view_statements(store, snapshot):
        connection.execute(statement)
    connection.execute(f"SET allowed_directories = [{literal(f'{store.root}/')}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


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
