"""The firings and texts of a lake for its peers, and the simplest: DuckDB over unsorted Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.store.lake_store import LakeStore

K: Final = 20
WINDOW: Final = 16
"""Tokens on either side of a peak."""

Top = list[tuple[float, list[str] | None]]
"""Of each of the strongest contexts, strongest first: its activation and the texts of the tokens
around its peak; None of those who keep no text."""


def around(peak: int) -> slice:
    """The window of a peak."""
    return slice(max(0, peak - WINDOW), peak + WINDOW + 1)


def parts(store: LakeStore, table: str, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a table of the lake, file by file."""
    for file in store.data_files(table, store.snapshot()):
        yield pq.ParquetFile(store.root.path / file.path).read(columns)


def token_texts(store: LakeStore) -> Iterator[tuple[int, list[str]]]:
    """Every context with the text of each of its tokens, the BOS as ``<bos>``."""
    for rows in parts(store, "contexts", ["context", "text", "token_starts"]):
        columns = (rows[c].to_pylist() for c in rows.column_names)
        for context, text, starts in zip(*columns, strict=True):
            ends = [*starts[1:], len(text)]
            yield context, [text[a:b] or "<bos>" for a, b in zip(starts, ends, strict=True)]


class UnsortedParquet:
    """Firings in random order, a file for each of the lake's; no text, and no window."""

    name = "DuckDB over unsorted Parquet, without text"
    slow = True

    def __init__(self, folder: Path, store: LakeStore) -> None:
        self.folder = folder
        rng = np.random.default_rng(3)
        columns = ["context", "position", "feature", "activation"]
        for i, rows in enumerate(parts(store, "codes", columns)):
            pq.write_table(
                rows.take(rng.permutation(len(rows))), folder / f"{i}.parquet", compression="zstd"
            )
        self._connection = duckdb.connect()

    def top(self, feature: int) -> Top:
        """The strongest contexts, without text."""
        rows = self._connection.execute(
            "SELECT context, max(activation) AS activation FROM read_parquet(?) WHERE feature = ? "
            "GROUP BY context ORDER BY activation DESC, context LIMIT ?",
            [str(self.folder / "*.parquet"), feature, K],
        ).fetchall()
        return [(activation, None) for _, activation in rows]
