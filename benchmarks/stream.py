"""Training reads against a sequential read of the same files.

    make bench-stream         shuffled batches of a dense site, and its shards read in order

Synthetic activations (normal, bfloat16) of the size of Gemma 3 1B's residual stream: contexts of
1,024 tokens, 1,152 wide. Sequential is zarr reading shard after shard, all threads; and the bare
bytes of the files. Files are in the page cache for all of them, which is the hardest case: a disk
would slow all alike.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
from record import Measure, write_results

import scopelake
from scopelake.names import KINDS
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array, write_shard
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts

LENGTH, WIDTH, SHARD = 1_024, 1_152, 32
SITE = ("synthetic", "model", "resid_post", 3)


def build(path: Path, n_contexts: int) -> None:
    """Write a lake with one dense site."""
    store, rng = LakeStore.create(path), np.random.default_rng(0)
    kinds = [KINDS.index("bos"), *[KINDS.index("content")] * (LENGTH - 1)]
    rows = [
        {"corpus": SITE[0], "context": i, "kinds": kinds, "n_tokens": LENGTH}
        for i in range(n_contexts)
    ]
    corpus = {"corpus": SITE[0], "n_contexts": n_contexts, "shard_contexts": SHARD,
              "context_length": LENGTH}  # fmt: skip
    ensure_array(store.root, *SITE, n_contexts, LENGTH, WIDTH, SHARD)
    contexts = pa.Table.from_pylist(rows, schema=SCHEMAS["contexts"])
    receipts = write_contexts(store.root, contexts, corpus=SITE[0], run="r")
    for shard in range(n_contexts // SHARD):
        values = rng.standard_normal((SHARD, LENGTH, WIDTH), np.float32).astype(ml_dtypes.bfloat16)
        start = shard * SHARD
        receipts.append(write_shard(store.root, *SITE, start, values, shard=shard, run="r"))
    with Writer(store) as writer:
        table = pa.Table.from_pylist([corpus], schema=SCHEMAS["corpora"])
        writer.commit(receipts, transaction="t", reason="x", rows={"corpora": table})


def timed(act: Callable[[], int]) -> float:
    """Gigabytes of activations a second."""
    start = time.perf_counter()
    n_bytes = act()
    return n_bytes / (time.perf_counter() - start) / 1e9


def main() -> int:
    """Measure the three in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        build(folder / "lake", args.contexts)
        measures = compare(folder / "lake", args.repeats)
    finally:
        shutil.rmtree(folder)
    config = f"{args.contexts} contexts of {LENGTH} x {WIDTH}, batches of 4096, blocks of 131072"
    write_results("stream", measures, config)
    return 0


def compare(path: Path, repeats: int) -> list[Measure]:
    """Time the three in turn."""
    lake = scopelake.open(path)
    array, files = lake.activations(3), sorted(path.rglob("c/*/0/0"))
    stream = lake.stream(3)

    def shuffled() -> int:
        return sum(batch.numel() * 2 for batch in stream)

    def in_order() -> int:
        return sum(array[start : start + SHARD].nbytes for start in range(0, array.shape[0], SHARD))

    def bare() -> int:
        return sum(len(file.read_bytes()) for file in files)

    found: dict[str, list[float]] = {"shuffled": [], "in order": [], "bare": []}
    for repeat in range(repeats + 1):
        for name, act in (("shuffled", shuffled), ("in order", in_order), ("bare", bare)):
            rate = timed(act)
            if repeat:
                found[name].append(rate)
    ratio = [a / b for a, b in zip(found["shuffled"], found["in order"], strict=True)]
    return [
        Measure("shuffled batches", tuple(found["shuffled"]), "GB/s"),
        Measure("shards in order", tuple(found["in order"]), "GB/s"),
        Measure("bytes of the files, compressed", tuple(found["bare"]), "GB/s"),
        Measure("shuffled over in order", tuple(ratio), ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
