"""Bytes a firing and rates by Parquet encoding, row group and page, for both orders.

    make bench-styles      8 million synthetic firings, and the tiny model's own

Each variant changes one thing of the style that the store writes. Reading is one feature's (or one
context's) rows out of the whole file, by row group, with DuckDB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from compaction import shard_firings
from record import Measure, write_results

import scopelake
from scopelake import tiny
from scopelake.store import parquet
from scopelake.store.firings import Firings
from scopelake.store.precision import round_mantissa
from scopelake.store.schema import file_schema

REPEATS, READS = 3, 15


def tiny_firings(folder: Path) -> Firings:
    """What the tiny model's residual coder of layer 3 gives on some source files."""
    lake = scopelake.create(folder / "tiny")
    lake.add_corpus("text", tiny.stdlib_files(held_out=True)[:12], tokenizer=tiny.MODEL_NAME,
                    context_length=256, shard_contexts=10_000)  # fmt: skip
    lake.ingest("text", model=tiny.MODEL_NAME, activation_bits=23, device="cpu",
                saes=[tiny.coders_path() / "resid_post_all/layer_3*"])  # fmt: skip
    columns = ("context", "position", "feature", "activation", "kind")
    rows = lake._store.read("codes", lake._store.snapshot(), columns)
    return Firings(*(rows[c].combine_chunks().to_numpy() for c in columns))


def variants(table: str) -> Iterator[tuple[str, parquet.Style]]:
    """Yield a name and a style for each thing that could be another."""
    own = parquet.STYLES[table]
    yield "as it is", own
    for column in ("position", "feature", "context"):
        encodings = {k: v for k, v in own.encodings.items() if k != column}
        others = tuple(c for c in own.dictionary if c != column)
        yield (
            f"{column} by dictionary",
            replace(own, dictionary=(*others, column), encodings=encodings),
        )
        yield (
            f"{column} by delta",
            replace(own, dictionary=others, encodings=encodings | {column: "DELTA_BINARY_PACKED"}),
        )
    for rows in (32_768, 131_072, 524_288):
        yield f"row groups of {rows:,}", replace(own, row_group=rows)
    for level in (3, 9):
        yield f"zstd {level}", replace(own, level=level)


def measure(
    table: str, firings: Firings, style: parquet.Style, folder: Path
) -> tuple[float, float, float]:
    """Return bytes a firing, million firings written a second, and ms to read one key."""
    schema = file_schema(table)
    rows = pa.table([pa.array(getattr(firings, c)) for c in schema.names], schema=schema)
    parquet.STYLES[table] = style
    path = folder / "rows.parquet"
    start = time.perf_counter()
    with path.open("wb") as file:
        parquet.write_rows(table, rows, file)
    seconds = time.perf_counter() - start
    key = "feature" if table == "postings" else "context"
    values = np.unique(getattr(firings, key))
    taken = []
    for value in values[np.linspace(0, len(values) - 1, READS).astype(int)]:
        start = time.perf_counter()
        duckdb.execute(f"SELECT * FROM '{path}' WHERE {key} = {value}").fetchnumpy()
        taken.append(time.perf_counter() - start)
    return path.stat().st_size / len(firings), len(firings) / seconds / 1e6, 1e3 * min(taken)


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", type=float, default=8e6)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    measures = []
    try:
        data = {"synthetic": shard_firings(0, int(arguments.firings)), "tiny": tiny_firings(folder)}
        for source, raw in data.items():
            for bits in (10, 7):
                firings = replace(raw, activation=round_mantissa(raw.activation, bits))
                for table in ("codes", "postings"):
                    ordered = firings.token_major()
                    ordered = ordered if table == "codes" else ordered.feature_major()
                    own = parquet.STYLES[table]
                    listed = list(variants(table)) if bits == 10 else [("as it is", own)]
                    for name, style in listed:
                        runs = [measure(table, ordered, style, folder) for _ in range(REPEATS)]
                        parquet.STYLES[table] = own
                        size, rate, read = (tuple(v) for v in zip(*runs, strict=True))
                        what = f"{source} {table} {bits} bits, {name}"
                        measures += [
                            Measure(f"{what}: size", size, "B/firing"),
                            Measure(f"{what}: write", rate, "M firings/s"),
                            Measure(f"{what}: read one", read, "ms"),
                        ]
        write_results(
            "parquet_styles", measures, f"{arguments.firings:.0f} synthetic firings; tiny model"
        )
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
