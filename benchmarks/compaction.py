"""Compaction of synthetic firings: seconds, memory, bytes, and top contexts before and after.

    make bench-compact          10 million, 100 million and 1,000 million firings of one coder

Firings are random: 16,384 features of skewed frequency, 60 a token, gamma-distributed activations.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import Measure, peak_mib, write_results

from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.running import Running
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings

WIDTH, L0, LENGTH = 16_384, 60, 1_024
SHARD_FIRINGS = 256 * LENGTH * L0
"""Of the default shard, 256 contexts; smaller lakes are cut into 50 shards all the same."""

TABLES = ("codes", "postings", "peaks", "samples")


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
    """Make the lake as an ingest would; return the seconds that writing took."""
    store = LakeStore.create(root)
    seconds, running = 0.0, Running(WIDTH)
    with Writer(store) as writer:
        for shard in range(n_shards):
            firings = shard_firings(shard, n_firings // n_shards)
            start = time.perf_counter()
            receipts = write_firings(
                store.root, firings, sae="s", corpus="c", shard=shard, run="r", bits=10,
                running=running,
            )  # fmt: skip
            writer.commit(receipts, transaction=str(shard), reason="shard")
            running.accept()
            seconds += time.perf_counter() - start
    return seconds


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
    before = peak_mib()
    start = time.perf_counter()
    with Writer(LakeStore.open(root)) as writer:
        done = compact(writer)
    return {
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": peak_mib(),
        "files": done.files_after,
    }


def live_bytes(store: LakeStore, table: str) -> int:
    return sum(
        (store.root.path / f.path).stat().st_size for f in store.data_files(table, store.snapshot())
    )


def measure(n_firings: int) -> list[Measure]:
    """Build a lake of so many firings, compact it, and measure what that takes."""
    folder = Path(tempfile.mkdtemp())
    try:
        root, n_shards = folder / "lake", max(50, n_firings // SHARD_FIRINGS)
        written = build(root, n_firings, n_shards)
        store = LakeStore.open(root)
        n = sum(f.n_rows for f in store.data_files("postings", store.snapshot()))
        n_files = sum(len(store.data_files(t, store.snapshot())) for t in TABLES)
        sizes = {t: live_bytes(store, t) / n for t in TABLES}
        found = compact_alone(root)
        after = {t: live_bytes(store, t) / n for t in TABLES}
        verified = verify(store, store.snapshot())
    finally:
        shutil.rmtree(folder)
    derived = [(s["peaks"] + s["samples"]) / sum(s.values()) for s in (sizes, after)]
    what = f"{n_firings:.0e} firings"
    return [
        Measure(f"{what}: write and commit", (n / written,), "firings/s"),
        Measure(f"{what}: compaction", (n / found["seconds"],), "firings/s"),
        Measure(f"{what}: memory before compaction", (found["before"],), "MiB"),
        Measure(f"{what}: peak memory of compaction", (found["peak"],), "MiB"),
        Measure(f"{what}: files before", (n_files,), "files"),
        Measure(f"{what}: files after", (found["files"],), "files"),
        *(Measure(f"{what}: {t} before", (sizes[t],), "B/firing") for t in TABLES),
        *(Measure(f"{what}: {t} after", (after[t],), "B/firing") for t in TABLES),
        Measure(f"{what}: peaks and samples before", (derived[0],), "of bytes"),
        Measure(f"{what}: peaks and samples after", (derived[1],), "of bytes"),
        Measure(f"{what}: verify", (verified.n_bytes / verified.seconds / 1e6,), "MB/s"),
    ]


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", type=float, nargs="+", default=[1e7, 1e8, 1e9])
    arguments = parser.parse_args()
    measures = [m for n in arguments.firings for m in measure(int(n))]
    write_results("compaction", measures, f"synthetic firings, width {WIDTH}, L0 {L0}, 10 bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
