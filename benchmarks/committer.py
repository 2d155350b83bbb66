"""How fast one committer takes shards in, and what its catalogue and logs grow by.

    make bench-committer       shards of 1, 14 and 104 coders, one and ten of them in a commit

Data files are links to four small ones: what is measured is the committer, not their writing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import duckdb
import numpy as np
from record import Measure, write_results

from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.writer import write_firings

TABLES = ("codes", "postings", "peaks", "samples")
RUNS = ((1, 1, 120), (14, 1, 120), (104, 1, 60), (104, 10, 60))
"""Coders, shards in a commit, commits."""


def template(store: LakeStore) -> list[Receipt]:
    """Four small files, which the others are links to."""
    n = 2_000
    firings = Firings(
        np.arange(n, dtype=np.int64) // 20, np.arange(n, dtype=np.int32) % 20,
        np.arange(n, dtype=np.int32) % 997, np.ones(n, np.float32), np.zeros(n, np.int8),
    )  # fmt: skip
    return write_firings(
        store.root, firings, sae="template", corpus="c", shard=0, run="r", bits=10
    )  # fmt: skip


def shard_files(path: Path, files: Sequence[Receipt], shard: int, n_coders: int) -> list[Receipt]:
    """Files of one shard of every coder."""
    made = []
    for coder in range(n_coders):
        # A name as long as the published ones.
        sae = f"gemma-scope-2-1b-it/resid_post_all/layer_{coder}_width_16k_l0_small"
        for file in files:
            folder = f"tables/{file.table}/sae={sae.replace('/', '%2F')}/corpus=c"
            digest = uuid4().hex  # nobody reads the files, and real ones differ
            name = f"{folder}/{uuid4().hex}-{digest}.parquet"
            (path / folder).mkdir(parents=True, exist_ok=True)
            os.link(path / file.path, path / name)
            partition = {"sae": sae, "corpus": "c"}
            made.append(
                replace(file, path=name, sae=sae, shard=shard, partition=partition,
                        checksum=f"xxh3:{digest}")
            )  # fmt: skip
    return made


def log_bytes(path: Path, table: str, end: str) -> list[int]:
    """Sizes of the files of a log whose names end so, by version."""
    return [f.stat().st_size for f in sorted((path / f"tables/{table}/_delta_log").glob(f"*{end}"))]


def measure(n_coders: int, per_commit: int, n_commits: int) -> list[Measure]:
    """Commit so many times, and measure what it takes early and late."""
    folder = Path(tempfile.mkdtemp())
    try:
        store = LakeStore.create(folder / "lake")
        path, seconds = folder / "lake", []
        files = template(store)
        with Writer(store) as writer:
            for commit in range(n_commits):
                receipts = [
                    receipt
                    for shard in range(commit * per_commit, (commit + 1) * per_commit)
                    for receipt in shard_files(path, files, shard, n_coders)
                ]
                start = time.perf_counter()
                writer.commit(receipts, transaction=str(commit), reason="shard", run="r")
                seconds.append((time.perf_counter() - start) / per_commit)
        return [*timings(n_coders, per_commit, seconds), *sizes(path, store, n_coders, per_commit)]
    finally:
        shutil.rmtree(folder)


def timings(n_coders: int, per_commit: int, seconds: list[float]) -> list[Measure]:
    """Seconds for a shard in the first and the last of the commits."""
    what = f"{n_coders} coders, {per_commit} a commit"
    part = max(1, len(seconds) // 6)
    files = len(seconds) * per_commit * n_coders
    return [
        Measure(f"{what}: a shard, first", tuple(seconds[1 : 1 + part]), "s"),
        Measure(f"{what}: a shard, {files:,} files a table", tuple(seconds[-part:]), "s"),
    ]


def sizes(path: Path, store: LakeStore, n_coders: int, per_commit: int) -> list[Measure]:
    """Bytes of what grows with files, and what reading it takes."""
    what = f"{n_coders} coders, {per_commit} a commit"
    rows = store.read("files", store.snapshot(), ["n_rows"]).num_rows
    entries = rows // len(TABLES)
    logs = sum(log_bytes(path, "codes", ".json"))
    checkpoints = log_bytes(path, "codes", ".checkpoint.parquet")
    # One is written with every version whose number ends in 9; version 0 made the table.
    listed = (10 * len(checkpoints) - 1) * per_commit * n_coders
    live = [f.path for f in store.data_files("files", store.snapshot())]
    row = sum((path / p).stat().st_size for p in live) / rows
    found = [
        Measure(f"{what}: log", (logs / entries,), "B/file"),
        Measure(f"{what}: files table", (row,), "B/row"),
        Measure(f"{what}: open a snapshot's files", read_times(store, "files"), "s"),
        Measure(f"{what}: one coder of codes, DuckDB", scan_times(path, store), "s"),
    ]
    if checkpoints:
        found.append(Measure(f"{what}: checkpoint", (checkpoints[-1] / listed,), "B/file"))
    return found


def read_times(store: LakeStore, table: str) -> tuple[float, ...]:
    """Seconds of reading a catalogue table whole."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        store.read(table, store.snapshot(), ["path"])
        times.append(time.perf_counter() - start)
    return tuple(times)


def scan_times(path: Path, store: LakeStore) -> tuple[float, ...]:
    """Seconds until DuckDB has planned and run a query of one coder's first context."""
    import duckdb_extensions

    duckdb_extensions.import_extension("delta")
    version = store.snapshot().versions["codes"]
    sae = "gemma-scope-2-1b-it/resid_post_all/layer_0_width_16k_l0_small"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        db = duckdb.connect()
        db.execute("LOAD delta")
        db.execute(
            f"SELECT count(*) FROM delta_scan('{path}/tables/codes', version => {version}) "
            f"WHERE sae = '{sae}' AND context = 0"
        ).fetchall()
        times.append(time.perf_counter() - start)
    return tuple(times)


def main() -> int:
    """Measure and write the CSV."""
    measures = [one for run in RUNS for one in measure(*run)]
    write_results("committer", measures, "four files for each coder and shard, a local disk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
