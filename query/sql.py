"""Users' SQL: one query at a time, refused if it is anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from scopelake.errors import QueryError


def sql(
    connection: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any] | None = None
) -> pa.Table:
    """Run one query and return its rows.

    Args:
        connection: from `connect`.
        query: a single SELECT (also WITH, FROM, VALUES, DESCRIBE, SHOW) or EXPLAIN.
        params: values of its ``?`` placeholders.

    Raises:
        QueryError: it is something else or several statements, or DuckDB refuses it.
    """
    _check_single_query(query)
    return run(connection, query, params)


def run(
    connection: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any] | None = None
) -> pa.Table:
    """Run a query of this package's own making and return its rows.

    Raises:
        QueryError: DuckDB refuses it.
    """
    try:
        return connection.execute(query, list(params or ())).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {_one_line(error)}; check it") from error


def check_predicate(where: str) -> None:
    """Refuse a `where` that is not exactly one SQL expression.

    Raises:
        QueryError: it does not parse as one.
    """
    try:
        duckdb.SQLExpression(where)
    except duckdb.Error as error:
        raise QueryError(
            f"where {where!r} was asked for; it is not one SQL expression ({_one_line(error)}); "
            "give a predicate such as role = 'user'"
        ) from error


def _check_single_query(query: str) -> None:
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise QueryError(f"the query does not parse: {_one_line(error)}; mend it") from error
    if len(statements) != 1:
        raise QueryError(
            f"{len(statements)} statements were asked for; one query at a time; split them"
        )
    allowed = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
    if statements[0].type not in allowed:
        kind = str(statements[0].type).rsplit(".", 1)[-1]
        raise QueryError(
            f"a {kind} statement was asked for; the lake is read-only through SQL; use SELECT"
        )


def _one_line(error: duckdb.Error) -> str:
    """DuckDB's message without the echo of the query under it."""
    head = str(error).split("\n\nLINE ")[0]
    return " ".join(head.split())
