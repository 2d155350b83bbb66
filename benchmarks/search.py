"""Search of text: how long a phrase or an expression takes over a corpus of many tokens.

    make bench-search          1e8 tokens of random chats, and DuckDB over plain Parquet beside it

The lake has contexts only, written through the store's writers. The other side is what a user
would do without it: one Parquet file of the same texts, in row groups of DuckDB's own size.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb
from query_lake import CORPUS, LENGTH, SHARD, catalogue, shard_contexts, vocabulary
from record import Measure, write_results

import scopelake
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.writer import write_contexts

REPEATS: Final = 5


def build(root: Path, n_tokens: int) -> None:
    """Make a lake of about so many tokens, without firings."""
    store, words = LakeStore.create(root), vocabulary()
    n_contexts = max(1, n_tokens // LENGTH)
    with Writer(store) as writer:
        for shard, at in enumerate(range(0, n_contexts, SHARD)):
            rows = shard_contexts(shard, min(SHARD, n_contexts - at), words)
            receipts = write_contexts(store.root, rows, CORPUS, "run")
            writer.commit(receipts, transaction=f"shard-{shard}", reason="shard")
        writer.commit([], transaction="catalogue", reason="start", rows=catalogue(n_contexts))


def plain(lake: scopelake.Lake, path: Path) -> None:
    """Write the texts as one Parquet file."""
    files = [
        str(lake.path / f)
        for f in lake.sql("SELECT path FROM files WHERE kind = 'contexts' ORDER BY path")[
            "path"
        ].to_pylist()
    ]
    duckdb.connect().execute(
        f"COPY (SELECT context, text FROM read_parquet({files})) TO '{path}' (COMPRESSION zstd)"
    )


def asked(words: list[str]) -> dict[str, tuple[str, bool]]:
    """By what it is, a pattern and whether it is an expression."""
    rare = words[-1].strip() + words[-2] + words[-3]
    return {
        "a phrase that is nowhere": ("nothing like this", False),
        "a rare phrase": (rare, False),
        "a common word": (words[3], False),
        "an expression, rare": (rf"\b{words[-1].strip()}\s+\w+\s+{words[-2].strip()}\b", True),
        "an expression, in every context": (rf"\b{words[0].strip()}\w*\b", True),
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e8)
    parser.add_argument("--keep", type=Path, help="folder of the lake, which is kept there")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        root = folder / f"{arguments.tokens:.0e}"
        if not root.exists():
            build(root, int(arguments.tokens))
        lake = scopelake.open(root)
        other = folder / f"{arguments.tokens:.0e}.parquet"
        if not other.exists():
            plain(lake, other)
        measures, plain_duckdb = [], duckdb.connect()
        for name, (pattern, regex) in asked(vocabulary()).items():
            test = "regexp_matches(text, $1)" if regex else "contains(text, $1)"
            query = f"SELECT count(*) FROM '{other}' WHERE {test}"
            ours, theirs = [], []
            found = lake.search(pattern, regex=regex)
            for _ in range(REPEATS):
                ours.append(seconds(lambda p=pattern, r=regex: lake.search(p, regex=r)))
                theirs.append(
                    seconds(lambda q=query, p=pattern: plain_duckdb.execute(q, [p]).fetchall())
                )
            (n,) = plain_duckdb.execute(query, [pattern]).fetchall()[0]
            assert n == found.n_contexts, (name, n, found.n_contexts)
            measures += [
                Measure(f"{name}: search", tuple(ours), "s"),
                Measure(f"{name}: contexts counted by DuckDB", tuple(theirs), "s"),
                Measure(f"{name}: matches", (float(found.n_matches),), "matches"),
            ]
        write_results("search", measures, f"{arguments.tokens:.0e} tokens of synthetic chats")
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
