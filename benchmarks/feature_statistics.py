"""Statistics of the features of a coder, against DuckDB's quantiles of the same files.

    make bench-statistics

Firings are synthetic, of skewed frequency, in few large files and in many small ones.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
from feeding import make_codes
from record import Measure, write_results

import scopelake
from scopelake.store.root import Root
from scopelake.store.running import Running
from scopelake.store.summary import feature_statistics
from scopelake.store.writing import WriteJob

WIDTH, CONTEXTS, REPEATS = 16_384, 1_024, 3
LAYOUTS = {"16 files": 64, "256 files": 4}
"""Contexts of 1,024 tokens in a file."""

SQL = """
SELECT feature, count(*), avg(activation), max(activation),
       quantile_cont(activation, [0.1, 0.5, 0.9, 0.99])
FROM read_parquet($files) WHERE kind <> 2 GROUP BY feature
"""


def write(folder: Path, contexts: int) -> tuple[Root, list[str], int]:
    """Write a coder's firings; return the lake's root, its postings and how many firings."""
    root = scopelake.create(folder)._store.root  # noqa: SLF001
    running, paths, n = Running(WIDTH), [], 0
    with root.scratch() as scratch:
        for shard in range(CONTEXTS // contexts):
            codes = make_codes(contexts, seed=shard)
            job = WriteJob(root, codes, "a/b", "c", shard, "r", 10, None, scratch)
            for receipt in job.write(running):
                if receipt.table == "postings":
                    paths.append(receipt.path)
                    n += receipt.n_rows
    return root, paths, n


def seconds(act: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor seconds."""
    used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    act()
    now = resource.getrusage(resource.RUSAGE_SELF)
    took = time.perf_counter() - start
    return took, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def ours(root: Root, paths: list[str], threads: int) -> object:
    return feature_statistics(root, paths, WIDTH, CONTEXTS * 1_023, threads=threads)


def theirs(root: Root, paths: list[str]) -> object:
    files = [f"{root.url}/{path}" for path in paths]
    return duckdb.execute(SQL, {"files": files}).to_arrow_table()


def check(root: Root, paths: list[str]) -> None:
    """Compare both, to what float32 leaves: DuckDB interpolates in it."""
    found = feature_statistics(root, paths, WIDTH, CONTEXTS * 1_023, threads=2)
    other = theirs(root, paths).sort_by("feature")  # type: ignore[attr-defined]
    at = other["feature"].to_numpy()
    assert np.array_equal(found["firings"].to_numpy()[at], other[1].to_numpy())
    assert found["firings"].to_numpy().sum() == other[1].to_numpy().sum()
    quantiles = np.array(other[4].to_pylist())
    of = {"mean": other[2].to_numpy(), "max": other[3].to_numpy()}
    of |= dict(zip(("p10", "p50", "p90", "p99"), quantiles.T, strict=True))
    for name, expected in of.items():
        np.testing.assert_allclose(found[name].to_numpy()[at], expected, rtol=1e-6)


def peak(root: Root, paths: list[str]) -> float:
    """Return the peak memory, MiB, of a process that does nothing else."""
    code = (
        "import sys, record\nfrom pathlib import Path\n"
        "from scopelake.store.folder_root import FolderRoot\n"
        "root = FolderRoot(Path(sys.argv[1]))\n"
        "before = record.peak_mib()\n"
        "import scopelake.store.summary as s\n"
        f"s.feature_statistics(root, sys.argv[2:], {WIDTH}, 1, threads=2)\n"
        "print(record.peak_mib() - before)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(root.url), *paths], check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    return float(made.stdout)


def main() -> None:
    measures = []
    for layout, contexts in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as place:
            root, paths, n = write(Path(place) / "lake", contexts)
            check(root, paths)
            rounds: dict[str, list[float]] = {}
            for _ in range(REPEATS):
                for name, act in (
                    ("one thread", lambda: ours(root, paths, 1)),  # noqa: B023
                    ("two threads", lambda: ours(root, paths, 2)),  # noqa: B023
                    ("DuckDB, two threads", lambda: theirs(root, paths)),  # noqa: B023
                ):
                    wall, processor = seconds(act)
                    rounds.setdefault(name, []).append(wall / n * 1e9)
                    rounds.setdefault(f"{name}, processor", []).append(processor / n * 1e9)
            measures += [
                Measure(f"{layout}: {name}", tuple(values), "ns a firing")
                for name, values in rounds.items()
            ]
            measures.append(Measure(f"{layout}: memory", (peak(root, paths),), "MiB"))
    write_results(
        "feature_statistics", measures, f"{n} firings of {WIDTH} features, 10 mantissa bits"
    )


if __name__ == "__main__":
    main()
