"""What users' SQL may be: one query of the lake's views, told from its parse tree.

Text can hide a name in many ways, and DuckDB's own lock has gaps (measured with 1.5.5: the delta
extension lists the files of any Delta log on the machine, `arrow_scan` takes addresses of memory,
and files of the lake can be read past the snapshot). So every table, table function and function of
the tree is looked at, at any depth, and tables and table functions must be known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import duckdb

from scopelake.errors import QueryError
from scopelake.names import shortened
from scopelake.query.columns import VIEWS
from scopelake.query.macros import MACROS
from scopelake.query.views import PRIVATE
from scopelake.store.layout import TABLES

_EXPLAIN: Final = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)
_IDENTIFIER: Final = re.compile(r"\w[\w ]*\Z")
"""A name that cannot be taken for a file's."""

_METADATA: Final = frozenset(
    ("duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types",
     "duckdb_views")
)  # fmt: skip
_SCHEMAS: Final = {
    "": frozenset(VIEWS) | _METADATA,
    "main": frozenset(VIEWS) | _METADATA,
    PRIVATE: frozenset(TABLES),
    "information_schema": frozenset(("columns", "schemata", "tables")),
}
"""Tables that may be read, by schema."""

_TABLE_FUNCTIONS: Final = (
    frozenset(("generate_series", "json_each", "json_tree", "range", "repeat", "unnest"))
    | _METADATA
    | {macro.name for macro in MACROS if macro.is_table}
)
_FORBIDDEN: Final = frozenset(
    ("current_setting", "get_delta_test_expression", "getenv", "getvariable", "write_log")
)
"""Functions that tell of the process or write; all others only compute."""

_OF_CHANCE: Final = frozenset(
    ("gen_random_uuid", "nextval", "random", "setseed", "uuid", "uuidv4", "uuidv7")
)

_SHOWN: Final = ("", '"tables"', "__show_tables_expanded")
"""What ``SHOW`` may show, but for a query or a view."""


def check_query(query: str) -> None:
    """Refuse what is not one query, or EXPLAIN of one, that reads only the lake's views.

    Raises:
        QueryError: then.
    """
    kinds = _statement_types(query)
    if len(kinds) != 1:
        raise QueryError(
            f"{len(kinds)} statements were asked for; one query is run at a time; give one SELECT"
        )
    # EXPLAIN ANALYZE carries out what it explains, so that must be a query too.
    if kinds[0] == duckdb.StatementType.EXPLAIN:
        explained = _EXPLAIN.match(query)
        query = query[explained.end() :] if explained else query
        kinds = _statement_types(query)
    if kinds != [duckdb.StatementType.SELECT]:
        kind = str(kinds[0]).rsplit(".", 1)[-1] if kinds else "none"
        raise QueryError(
            f"a statement of kind {kind} was asked for; SQL only reads a lake; use SELECT, or "
            "EXPLAIN SELECT"
        )
    check_tree(query)


def check_tree(query: str) -> None:
    """Refuse a SELECT that reads anything but the lake's views.

    Raises:
        QueryError: a table, table function or function of it may not be used.
    """
    nodes = list(_walk(_parsed(query)))
    named = {
        str(entry["key"]).lower()
        for node in nodes
        if isinstance(node.get("cte_map"), dict)
        for entry in node["cte_map"]["map"]
    }
    _check_named(named)
    for node in nodes:
        kind = node.get("type")
        if kind == "BASE_TABLE":
            _check_table(node, named)
        elif kind == "TABLE_FUNCTION" and "function" in node:
            name = str(node["function"].get("function_name", "")).lower()
            if name not in _TABLE_FUNCTIONS:
                raise _refused(f"table function {name!r}")
        elif kind == "SHOW_REF" and node.get("table_name") not in _SHOWN:
            raise _refused(f"SHOW {node.get('table_name')}")
        elif node.get("class") == "FUNCTION":
            name = str(node.get("function_name", "")).lower()
            if name in _FORBIDDEN:
                raise _refused(f"function {name!r}")


def check_fixed(expression: str) -> None:
    """Refuse an expression whose value is not its row's own: of other rows, or of chance.

    Raises:
        QueryError: then.
    """
    for node in _walk(_parsed(f"SELECT (\n{expression}\n)")):
        name = str(node.get("function_name", "")).lower()
        if node.get("class") == "WINDOW" or name in _OF_CHANCE:
            raise QueryError(
                f"{expression!r} was asked for; {name or 'a window'} gives a token another value "
                "each time, or by its place among others; use what is the token's own"
            )


def one_line(error: duckdb.Error) -> str:
    """Return DuckDB's message without the echo of the query under it, or where DuckDB failed."""
    head = str(error).split("\n\nLINE ")[0].split("Stack Trace")[0]
    return " ".join(head.split())


def _check_named(named: set[str]) -> None:
    """Refuse a name that elsewhere in the query, out of its scope, would read a system view."""
    for name in sorted(named & _system_views() if named else ()):
        raise QueryError(
            f"a WITH clause named {name!r} was asked for; DuckDB has a system view of that name, "
            "which a lake does not show; choose another name"
        )


def _check_table(node: dict[str, Any], named: set[str]) -> None:
    name = str(node.get("table_name", "")).lower()
    schema = str(node.get("schema_name") or "").lower()
    catalog = str(node.get("catalog_name") or "").lower()
    if not schema and not catalog and name in named and _IDENTIFIER.match(name):
        return
    if catalog not in ("", "memory") or name not in _SCHEMAS.get(schema, ()):
        full = ".".join(part for part in (catalog, schema, name) if part)
        raise QueryError(
            f"table {full!r} was asked for; a lake has the views {', '.join(VIEWS)}; choose one of "
            "them"
        )


def _refused(what: str) -> QueryError:
    allowed = shortened(sorted(macro.name for macro in MACROS), 9)
    return QueryError(
        f"{what} was asked for; SQL reads only a lake's views, by plain functions and {allowed}; "
        "leave it out"
    )


def _walk(tree: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _parsed(query: str) -> Any:  # noqa: ANN401
    """Return DuckDB's own tree of a query, which is parsed and neither bound nor run."""
    cursor = _parser().cursor()
    try:
        (text,) = cursor.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone() or ()
        tree = json.loads(text)
    except (duckdb.Error, ValueError, RecursionError) as error:
        found = one_line(error) if isinstance(error, duckdb.Error) else "it is too deep"
        raise QueryError(f"the query cannot be checked: {found}; simplify it") from error
    finally:
        cursor.close()
    if tree.get("error"):
        found = " ".join(str(tree.get("error_message")).split())
        raise QueryError(f"the query cannot be checked: {found}; write it as a plain SELECT")
    return tree


@cache
def _system_views() -> frozenset[str]:
    """Names that lead, with no schema before them, to system views that may not be read."""
    cursor = _parser().cursor()
    try:
        # information_schema is not on the search path: its names need the schema.
        rows = cursor.execute(
            "SELECT lower(view_name) FROM duckdb_views() WHERE internal "
            "AND schema_name <> 'information_schema'"
        ).fetchall()
    finally:
        cursor.close()
    return frozenset(name for (name,) in rows) - _SCHEMAS[""]


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection of its own, on nothing: what is not checked yet never meets the lake."""
    return duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "enable_external_access": False,
            "threads": 1,
        },
    )


def _statement_types(query: str) -> list[duckdb.StatementType]:
    try:
        return [statement.type for statement in duckdb.extract_statements(query)]
    except duckdb.Error as error:
        raise QueryError(f"the query does not parse: {one_line(error)}; mend it") from error
