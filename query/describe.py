"""What SQL can read, as a table: views, their columns, and macros, each with what it means."""

from __future__ import annotations

import pyarrow as pa

from scopelake.errors import QueryError
from scopelake.query.columns import VIEWS
from scopelake.query.connect import Connection
from scopelake.query.macros import MACROS


def describe(connection: Connection) -> pa.Table:
    """Return a row for each view, under it one for each column, and then one for each macro.

    Returns:
        view, column (null for a view or macro itself), type (DuckDB's; view; or macro), about.
    """
    rows: list[tuple[str, str | None, str, str]] = []
    for view, text in VIEWS.items():
        rows.append((view, None, "view", text.about))
        found = connection.execute(f"SELECT * FROM main.{view} LIMIT 0", reads={}).description
        rows += [(view, name, str(type_), text.columns[name]) for name, type_, *_ in found]
    rows += [(macro.call, None, "macro", macro.about) for macro in MACROS]
    columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
    return pa.table(columns, names=["view", "column", "type", "about"])


def described(connection: Connection, name: str) -> pa.Table:
    """Return what `describe` says of one view or macro.

    Raises:
        QueryError: there is none of this name.
    """
    found = describe(connection)
    names = [call.split("(")[0] for call in found["view"].to_pylist()]
    if name not in names:
        raise QueryError(
            f"view {name!r} was asked for; there are {', '.join(dict.fromkeys(names))}; choose one "
            "of them"
        )
    return found.filter(pa.array([there == name for there in names]))
