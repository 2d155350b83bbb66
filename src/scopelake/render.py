"""Arrow tables as text in a terminal or a pipe, and as strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

_WIDE: Final = 1_000_000
"""Columns of a pipe, which has no edge to wrap at."""


def print_table(table: pa.Table, n_rows: int | None = None, file: IO[str] | None = None) -> None:
    """Print the rows of `table`, and of how many more they are the first.

    Control characters are shown as signs: text could command a terminal. Lines stay lines.

    Args:
        table: what is printed.
        n_rows: rows that there are; those of `table` if None.
        file: where to; stdout if None.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=_WIDE)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    shown = records(table)
    for name in distinct(table.column_names):
        grid.add_column(Text(_lines(name)), overflow="fold")
    for row in shown:
        grid.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(grid)
    if n_rows is not None and n_rows > table.num_rows:
        console.print(f"... and {n_rows - table.num_rows:,} more rows")


def to_json(value: Any) -> str:  # noqa: ANN401
    """Return a value as strict JSON, on one line.

    NaN and infinities are null, blobs hexadecimal text, times, dates, intervals and decimals with a
    fraction text.
    """
    return json.dumps(_plain(value), allow_nan=False)


def records(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of `table`; of columns with equal names all but the first get a number."""
    names = distinct(table.column_names)
    columns = [_values(column) for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """Return `names` with a number behind those that came before, as DuckDB does: a, a_1."""
    found: dict[str, None] = {}
    for name in names:
        free, n = name, 0
        while free in found or (n and free in names):
            n += 1
            free = f"{name}_{n}"
        found[free] = None
    return list(found)


def _values(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except OverflowError:
        # DuckDB's dates reach beyond Python's, and to infinity.
        values = column.cast(pa.string()).to_pylist()
    return values


def _plain(value: Any) -> Any:  # noqa: ANN401, PLR0911
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "nanoseconds") and hasattr(value, "months"):
        return f"{value.months} months {value.days} days {value.nanoseconds / 1e9:g} seconds"
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _cell(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    return _lines(str(value))


def _lines(text: str) -> str:
    from scopelake.names import visible

    return "\n".join(map(visible, text.split("\n")))
