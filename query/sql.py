"""Users' SQL: one query at a time, refused if it is anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.names import check_text
from scopelake.query.limits import NO_LIMITS, Limits, limited
from scopelake.query.refusals import check_query, check_tree, one_line

if TYPE_CHECKING:
    from scopelake.query.connect import Connection
    from scopelake.query.snapshot_files import Reads

Params = Sequence[Any] | Mapping[str, Any]
Values = list[Any] | dict[str, Any]

BATCH_ROWS: Final = 65_536
"""Rows of a batch, if nothing else is asked for."""

_OUT_OF_MEMORY: Final = "Out of Memory Error"
"""How DuckDB begins to say so."""


def sql(
    connection: Connection, query: str, params: Params | None = None, limits: Limits = NO_LIMITS
) -> pa.Table:
    """Run one query and return its rows.

    Args:
        connection: from `connect`, with the limit of memory.
        query: a single SELECT (also WITH, FROM, VALUES, DESCRIBE, SHOW), or EXPLAIN of one.
        params: values of its ``?`` placeholders in order, or of its ``$name`` ones by name.
        limits: seconds that it may take, with what comes before it; memory is only named in the
            refusal.

    Raises:
        QueryError: it is something else or several statements, meets a limit, or DuckDB refuses it.
        InvalidArgumentError: it is no text.
        DamagedFileError: a file that it may read is not what was written.
    """
    check_query(check_text("query", query))
    with limited(limits) as watch, closing(connection.cursor_for(query, watch)) as cursor:
        return cursor.execute(query, _values(params)).to_arrow_table()


def sql_batches(
    connection: Connection,
    query: str,
    params: Params | None = None,
    limits: Limits = NO_LIMITS,
    batch_rows: int = BATCH_ROWS,
) -> pa.RecordBatchReader:
    """Run one query and return its rows as they come, so that they are never all in memory.

    Args:
        connection: as in `sql`.
        query: as in `sql`.
        params: as in `sql`.
        limits: as in `sql`; the time runs until the last batch is read.
        batch_rows: most rows of a batch, 1 or more.

    Raises:
        QueryError, InvalidArgumentError, DamagedFileError: as in `sql`; also while it is read.
    """
    if batch_rows < 1:
        raise InvalidArgumentError(
            f"batch_rows={batch_rows} was asked for; a batch is a number of rows; give 1 or more"
        )
    check_query(check_text("query", query))
    stream = _stream(connection, query, _values(params), limits, batch_rows)
    schema = next(stream)
    assert isinstance(schema, pa.Schema)
    return pa.RecordBatchReader.from_batches(schema, stream)


def _stream(
    connection: Connection,
    query: str,
    values: Values,
    limits: Limits,
    batch_rows: int,
) -> Iterator[Any]:
    """Yield the schema, then the batches."""
    with limited(limits) as watch, closing(connection.cursor_for(query, watch)) as cursor:
        reader = cursor.execute(query, values).to_arrow_reader(batch_rows)
        yield reader.schema
        try:
            yield from reader
        except (OSError, pa.ArrowException) as error:
            # What DuckDB says while it is read comes through Arrow, as text alone.
            is_memory = _OUT_OF_MEMORY in str(error)
            raise (duckdb.OutOfMemoryException if is_memory else duckdb.Error)(
                str(error)
            ) from error


def run(
    connection: Connection,
    query: str,
    params: Params | None = None,
    reads: Reads | None = None,
    tables: Mapping[str, pa.Table] | None = None,
) -> pa.Table:
    """Run a query that needs no check, because this package made it or checked it.

    Args:
        connection: from `connect`.
        query: one query.
        params: of its placeholders.
        reads: by table, which rows it reads; all of the tables that it names if None.
        tables: by name, rows that it may read besides.

    Raises:
        QueryError: DuckDB refuses it.
        DamagedFileError: a file that it may read is not what was written.
    """
    try:
        return connection.execute(query, _values(params), reads, tables).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {one_line(error)}; check it") from error


def check_predicate(where: str) -> None:
    """Refuse a `where` that is not exactly one SQL expression over the lake.

    What passes has balanced parentheses, so that it stays a predicate inside ``WHERE (...)``.

    Raises:
        QueryError: it does not parse as one, or reads something else.
    """
    query = f"SELECT 1 FROM codes WHERE (\n{where}\n)"
    try:
        duckdb.SQLExpression(where)
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise _not_a_predicate(where, one_line(error)) from error
    if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
        raise _not_a_predicate(where, f"{len(statements)} statements")
    if statements[0].named_parameters:
        raise _not_a_predicate(where, "it has placeholders")
    check_tree(query)


def _values(params: Params | None) -> Values:
    return dict(params) if isinstance(params, Mapping) else list(params or ())


def _not_a_predicate(where: str, found: str) -> QueryError:
    return QueryError(
        f"where {where!r} was asked for; it is not one SQL expression ({found}); give a predicate "
        "such as role = 'user'"
    )
