"""Arrow tables as text in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def print_table(table: pa.Table, max_rows: int = 200) -> None:
    """Print up to `max_rows` rows of `table`, and how many more there are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in table.column_names:
        grid.add_column(name, overflow="fold")
    for row in table.slice(0, max_rows).to_pylist():
        grid.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(grid)
    if table.num_rows > max_rows:
        console.print(f"... and {table.num_rows - max_rows:,} more rows")


def _cell(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
