"""Questions to lakes of 10 million to 1,000 million firings, and what a plain scan takes.

    make bench-query                1e7, 1e8 and 1e9 firings of one coder (an hour, 10 GB of disk)

The lakes are those of query_lake.py. Each question is put to 40 features of a class of density,
drawn at random; warm are its repeats in one process, cold is the first question of a lake that was
just opened, its files out of the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
from query_lake import LENGTH, SAE, build
from record import Measure, write_results

import scopelake
from scopelake.lake import Lake
from scopelake.store.lake_store import LakeStore

CLASSES: Final = {
    "rare": (0, 1e-5),
    "median": (1e-5, 1e-3),
    "common": (1e-3, 1e-2),
    "dense": (1e-2, 1.0),
}
"""Features by density, from and to."""

QUESTIONS, COLD = 40, 8

_START: Final = """
import sys, time
start = time.perf_counter()
import scopelake
scopelake.open(sys.argv[1]).top_contexts(int(sys.argv[2]))
print(time.perf_counter() - start)
"""


def milliseconds(ask: Callable[[int], object], features: list[int]) -> tuple[float, ...]:
    """How long each question takes."""
    taken = []
    for feature in features:
        start = time.perf_counter()
        ask(feature)
        taken.append(1e3 * (time.perf_counter() - start))
    return tuple(taken)


def features_of(lake: Lake) -> dict[str, list[int]]:
    """Features of each class of density that fire, at random."""
    rows = lake.sql("SELECT feature, density FROM features WHERE firings > 0")
    feature, density = rows["feature"].to_numpy(), rows["density"].to_numpy()
    rng = np.random.default_rng(0)
    return {
        name: rng.choice(feature[(density >= low) & (density < high)], QUESTIONS).tolist()
        for name, (low, high) in CLASSES.items()
    }


def forget(root: Path) -> None:
    """Drop the lake's files from the page cache."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(lake: Lake, what: str) -> list[Measure]:
    """Every question in one process."""
    n_contexts = int(lake.sql("SELECT n_contexts FROM corpora")["n_contexts"][0].as_py())
    rng = np.random.default_rng(1)
    of_class = features_of(lake)
    questions: dict[str, Callable[[int], object]] = {
        "top 20 contexts": lambda f: lake.top_contexts(f),
        "top 1,000 contexts": lambda f: lake.top_contexts(f, k=1000),
        "top 20, where role = 'user'": lambda f: lake.top_contexts(f, where="role = 'user'"),
        "top 20, by document's language": lambda f: lake.top_contexts(
            f, where="metadata ->> 'language' = 'de'"
        ),
        "card": lambda f: lake.feature(f, sae=SAE),
    }
    found = []
    for name, features in of_class.items():
        for question, ask in questions.items():
            ask(features[0])
            taken = milliseconds(ask, features)
            found.append(Measure(f"{what}: {question}, {name}", taken, "ms"))
    every = [f for features in of_class.values() for f in features]
    taken = milliseconds(questions["top 20 contexts"], rng.permutation(every).tolist())
    found.append(Measure(f"{what}: top 20 contexts, all classes", taken, "ms"))
    contexts = rng.integers(0, n_contexts, QUESTIONS).tolist()
    for question, ask in {
        "what fired at a token": lambda c: lake.features_at(c, int(rng.integers(LENGTH))),
        "the same by surprise": lambda c: lake.features_at(c, 100, by="surprise"),
        "what fired in a context, by surprise": lambda c: lake.features_at(
            c, whole=True, by="surprise"
        ),
    }.items():
        found.append(Measure(f"{what}: {question}", milliseconds(ask, contexts), "ms"))
    return found


def cold(root: Path, what: str, of_class: dict[str, list[int]]) -> list[Measure]:
    """The first question of a lake that was just opened, its files not in memory."""
    found = []
    for name, features in of_class.items():
        taken = []
        for feature in features[:COLD]:
            forget(root)
            start = time.perf_counter()
            scopelake.open(root).top_contexts(feature)
            taken.append(1e3 * (time.perf_counter() - start))
        found.append(Measure(f"{what}: open and top 20 contexts, cold, {name}", tuple(taken), "ms"))
    taken = []
    for feature in of_class["median"][:COLD]:
        done = subprocess.run(
            [sys.executable, "-c", _START, str(root), str(feature)], check=True, text=True,
            capture_output=True,
        )  # fmt: skip
        taken.append(float(done.stdout))
    found.append(Measure(f"{what}: new process to first answer", tuple(taken), "s"))
    return found


def scan(store: LakeStore, what: str, of_class: dict[str, list[int]]) -> list[Measure]:
    """The 20 strongest contexts from token-major files, as others keep them, by DuckDB."""
    files = [str(store.root.path / f.path) for f in store.data_files("codes", store.snapshot())]
    connection = duckdb.connect()

    def ask(feature: int) -> object:
        return connection.execute(
            "SELECT context, max(activation) AS activation FROM read_parquet(?, "
            "hive_partitioning = false) WHERE feature = ? GROUP BY context "
            "ORDER BY activation DESC, context LIMIT 20",
            [files, feature],
        ).fetchall()

    features = of_class["median"][:COLD]
    ask(features[0])
    question = "top 20 contexts without text, DuckDB over token-major files"
    return [Measure(f"{what}: {question}", milliseconds(ask, features), "ms")]


def measure(root: Path, n_firings: float) -> list[Measure]:
    """Build a lake of so many firings, unless it is there, and put all questions to it."""
    if not root.exists():
        build(root, int(n_firings))
    store = LakeStore.open(root)
    what = f"{n_firings:.0e}"
    n = sum(f.n_rows for f in store.data_files("postings", store.snapshot()))
    n_bytes = sum(p.stat().st_size for p in root.rglob("*.parquet"))
    lake = scopelake.open(root)
    of_class = features_of(lake)
    return [
        Measure(f"{what}: firings", (n,), "firings"),
        Measure(f"{what}: all files, old ones and texts included", (n_bytes / n,), "B/firing"),
        *warm(lake, what),
        *cold(root, what, of_class),
        *scan(store, what, of_class),
    ]


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", type=float, nargs="+", default=[1e7, 1e8, 1e9])
    parser.add_argument("--keep", type=Path, help="folder of the lakes, which are kept there")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    if arguments.one:
        found = measure(folder / f"{arguments.one:.0e}", arguments.one)
        print(json.dumps([[m.name, m.values, m.unit] for m in found]))
        return 0
    measures = []
    try:
        for n_firings in arguments.firings:
            # A process of its own, so that no lake is warm from the one before.
            command = [sys.executable, __file__, "--one", str(n_firings), "--keep", str(folder)]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
            measures += [Measure(n, tuple(v), u) for n, v, u in json.loads(done.stdout)]
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    write_results("query", measures, f"synthetic firings and chats, {SAE}, 10 bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
