"""Users' SQL: one query at a time, refused if it is anything else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from scopelake.errors import QueryError
from scopelake.names import check_text

if TYPE_CHECKING:
    from scopelake.query.connect import Connection
    from scopelake.query.snapshot_files import Reads

Params = Sequence[Any] | Mapping[str, Any]

_SECRETS: Final = re.compile(r"duckdb_secrets|which_secret", re.IGNORECASE)
_EXPLAIN: Final = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)


def sql(connection: Connection, query: str, params: Params | None = None) -> pa.Table:
    """Run one query and return its rows.

    Args:
        connection: from `connect`.
        query: a single SELECT (also WITH, FROM, VALUES, DESCRIBE, SHOW), or EXPLAIN of one.
        params: values of its ``?`` placeholders in order, or of its ``$name`` ones by name.

    Raises:
        QueryError: it is something else or several statements, or DuckDB refuses it.
        InvalidArgumentError: it is no text.
    """
    _check_single_query(check_text("query", query))
    return run(connection, query, params)


def run(
    connection: Connection, query: str, params: Params | None = None, reads: Reads | None = None
) -> pa.Table:
    """Run a query that needs no check, because this package made it or checked it.

    Args:
        connection: from `connect`.
        query: one query.
        params: of its placeholders.
        reads: by table, which rows it reads; all of the tables that it names if None.

    Raises:
        QueryError: DuckDB refuses it.
        DamagedFileError: a file that it may read is not what was written.
    """
    values = dict(params) if isinstance(params, Mapping) else list(params or ())
    try:
        return connection.execute(query, values, reads).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {one_line(error)}; check it") from error


def check_predicate(where: str) -> None:
    """Refuse a `where` that is not exactly one SQL expression.

    What passes has balanced parentheses, so that it stays a predicate inside ``WHERE (...)``.

    Raises:
        QueryError: it does not parse as one.
    """
    _check_no_secrets(where)
    try:
        duckdb.SQLExpression(where)
        statements = duckdb.extract_statements(f"SELECT 1 FROM t WHERE (\n{where}\n)")
    except duckdb.Error as error:
        raise _not_a_predicate(where, one_line(error)) from error
    if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
        raise _not_a_predicate(where, f"{len(statements)} statements")
    if statements[0].named_parameters:
        raise _not_a_predicate(where, "it has placeholders")


def one_line(error: duckdb.Error) -> str:
    """Return DuckDB's message without the echo of the query under it."""
    head = str(error).split("\n\nLINE ")[0]
    return " ".join(head.split())


def _not_a_predicate(where: str, found: str) -> QueryError:
    return QueryError(
        f"where {where!r} was asked for; it is not one SQL expression ({found}); give a predicate "
        "such as role = 'user'"
    )


def _check_no_secrets(text: str) -> None:
    """DuckDB shows a secret's key id, though not the secret itself."""
    if _SECRETS.search(text):
        raise QueryError(
            "the credentials of an object store were asked for; SQL reads a lake's views; see the "
            "environment for credentials"
        )


def _check_single_query(query: str) -> None:
    _check_no_secrets(query)
    kinds = _statement_types(query)
    if len(kinds) != 1:
        raise QueryError(
            f"{len(kinds)} statements were asked for; one query is run at a time; give one SELECT"
        )
    # EXPLAIN ANALYZE carries out what it explains, so that must be a query too.
    if kinds[0] == duckdb.StatementType.EXPLAIN:
        explained = _EXPLAIN.match(query)
        if explained and _statement_types(query[explained.end() :]) == [
            duckdb.StatementType.SELECT
        ]:
            return
    if kinds[0] != duckdb.StatementType.SELECT:
        kind = str(kinds[0]).rsplit(".", 1)[-1]
        raise QueryError(
            f"a statement of kind {kind} was asked for; SQL only reads a lake; use SELECT, or "
            "EXPLAIN SELECT"
        )


def _statement_types(query: str) -> list[duckdb.StatementType]:
    try:
        return [statement.type for statement in duckdb.extract_statements(query)]
    except duckdb.Error as error:
        raise QueryError(f"the query does not parse: {one_line(error)}; mend it") from error
