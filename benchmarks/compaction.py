"""Compaction of synthetic firings: seconds, memory, bytes, and top contexts before and after.

    make bench-compact          100 million firings of one coder in 50 shards

Firings are random: 16,384 features of skewed frequency, 60 a token, gamma-distributed activations.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import Measure, write_results

from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings

WIDTH, L0, LENGTH = 16_384, 60, 1_024


def shard_firings(shard: int, n: int) -> Firings:
    """n firings of one shard, token-major, each address once."""
    rng = np.random.default_rng(shard)
    n_tokens = n // L0
    step = WIDTH // L0
    # One feature from each of L0 bands, skewed towards the start of the band: no address twice.
    offset = (step * rng.random((n_tokens, L0)) ** 3).astype(np.int32)
    feature = (np.arange(L0, dtype=np.int32) * step + offset).ravel()
    token = np.repeat(np.arange(n_tokens, dtype=np.int64), L0)
    context = shard * (n_tokens // LENGTH + 1) + token // LENGTH
    return Firings(
        context,
        (token % LENGTH).astype(np.int32),
        feature,
        rng.gamma(2.0, 5.0, len(feature)).astype(np.float32),
        np.zeros(len(feature), np.int8),
    )


def build(root: Path, n_firings: int, n_shards: int) -> float:
    """Make the lake; return seconds."""
    start = time.perf_counter()
    store = LakeStore.create(root)
    with Writer(store) as writer:
        for shard in range(n_shards):
            receipts = write_firings(
                store.root, shard_firings(shard, n_firings // n_shards), sae="s", corpus="c",
                shard=shard, run="r", bits=10,
            )  # fmt: skip
            writer.commit(receipts, transaction=str(shard), reason="shard")
    return time.perf_counter() - start


def compact_alone(root: Path) -> dict[str, float]:
    """Compact in a process of its own, so that its peak memory is known."""
    code = (
        "import compaction, json, pathlib, sys;"
        "print(json.dumps(compaction.compact_here(pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compact_here(root: Path) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    with Writer(LakeStore.open(root)) as writer:
        done = compact(writer)
    return {
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "files": done.files_after,
    }


def live_bytes(store: LakeStore, table: str) -> int:
    return sum(
        (store.root.path / f.path).stat().st_size for f in store.data_files(table, store.snapshot())
    )


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", type=float, default=1e8)
    parser.add_argument("--shards", type=int, default=50)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        root, n = folder / "lake", int(arguments.firings)
        written = build(root, n, arguments.shards)
        store = LakeStore.open(root)
        n = sum(f.n_rows for f in store.data_files("postings", store.snapshot()))
        sizes = {t: live_bytes(store, t) for t in ("codes", "postings", "peaks")}
        found = compact_alone(root)
        after = {t: live_bytes(store, t) for t in ("codes", "postings", "peaks")}
        verified = verify(store, store.snapshot())
        measures = [
            Measure("write and commit", (n / written,), "firings/s"),
            Measure("compaction", (n / found["seconds"],), "firings/s"),
            Measure("memory before", (found["before"],), "MiB"),
            Measure("peak memory of compaction", (found["peak"],), "MiB"),
            Measure("files of postings and peaks after", (found["files"],), "files"),
            *(Measure(f"{t} before", (sizes[t] / n,), "B/firing") for t in sizes),
            *(Measure(f"{t} after", (after[t] / n,), "B/firing") for t in after),
            Measure("verify", (verified.n_bytes / verified.seconds / 1e6,), "MB/s"),
        ]
        config = f"{n} synthetic firings, {arguments.shards} shards, width {WIDTH}, L0 {L0}"
        write_results("compaction", measures, config)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
