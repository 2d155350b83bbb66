"""How near a plan comes: bytes, firings, time and memory, guessed and piloted, against the ingest.

    make bench-plan            the demo's corpus and all coders; bytes a firing by width and bits

Plan, pilot and ingest run one after the other, each repeat in a new lake. Memory, and what is
stored with ``--keep``, are of ingests by the command line, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import Measure, write_results

import scopelake
from scopelake import tiny
from scopelake.demo import add_demo_corpora
from scopelake.ingest.cost_plan import CostPlan
from scopelake.lake import Lake
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.writer import write_firings

CORPUS = "stdlib"
TABLES = ("codes", "postings", "peaks", "samples", "dense")
WIDTHS = ((4_096, 40), (16_384, 20), (16_384, 60), (65_536, 60), (262_144, 60), (1_048_576, 60))
"""Features and L0 of synthetic coders."""
BITS = (7, 10, 16, 23)
CONTEXTS, LENGTH = 64, 1_024
KEEPS = ("all", "peaks", "sample:0.1")

INGEST = """
import json, sys
from record import peak_mib
from scopelake import cli
status = cli.main(["ingest", *sys.argv[1:]])
print(json.dumps({"peak": peak_mib(), "status": status}))
"""


def near(folder: Path) -> dict[str, float]:
    """Make a plan, one with a pilot and the ingest; return plans over truth."""
    lake = empty(folder / "lake")
    asked = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path()], "dense": ["resid_post/3"]}
    start = time.perf_counter()
    plain = lake.plan(CORPUS, **asked)
    planned = time.perf_counter() - start
    pilot = lake.plan(CORPUS, pilot=True, **asked)
    piloted = time.perf_counter() - start - planned
    start = time.perf_counter()
    done = lake.ingest(CORPUS, **asked)
    took = time.perf_counter() - start
    # Another behind it: neighbours on the machine slow the one or the other.
    after = empty(folder / "again").plan(CORPUS, pilot=True, **asked)
    rows = lake.sql("SELECT kind, sum(n_bytes)::BIGINT AS n FROM files GROUP BY kind").to_pylist()
    stored = {row["kind"]: row["n"] for row in rows}
    found = {"seconds of a plan": planned, "seconds of a pilot": piloted, "seconds, ingest": took}
    for name, plan in (("plan", plain), ("pilot", pilot)):
        found |= ratios(name, plan, stored, done.firings, took)
    both = (pilot.seconds.value + after.seconds.value) / 2
    return found | {"pilot over ingest: time, pilots before and behind": both / took}


def kept(folder: Path, keep: str) -> dict[str, float]:
    """Make a plan and the ingest in a process of its own; return the plan over what came."""
    lake = empty(folder / "lake")
    plan = lake.plan(
        CORPUS, model=tiny.MODEL_NAME, saes=[tiny.coders_path()], dense=["resid_post/3"], keep=keep
    )
    done = subprocess.run(
        [sys.executable, "-c", INGEST, str(lake.path), CORPUS, "--model", tiny.MODEL_NAME, "--sae",
         str(tiny.coders_path()), "--dense", "resid_post/3", "--keep", keep],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    ran = json.loads(done.stdout.splitlines()[-1])
    if ran["status"]:
        raise SystemExit(done.stderr)
    lake.refresh()
    rows = lake.sql("SELECT kind, sum(n_bytes)::BIGINT AS n FROM files GROUP BY kind").to_pylist()
    memory = sum(part.n_bytes for part in plan.host_memory) / 2**20
    found = {f"keep {keep}: host memory": memory / ran["peak"]}
    for row in rows:
        if plan.table(row["kind"]).n_bytes:
            found[f"keep {keep}: {row['kind']}, bytes"] = plan.table(row["kind"]).n_bytes / row["n"]
    return found


def empty(path: Path) -> Lake:
    """A lake with the demo's corpora and no firings."""
    lake = scopelake.create(path)
    add_demo_corpora(lake)
    return lake


def ratios(
    name: str, plan: CostPlan, stored: dict[str, int], firings: int, took: float
) -> dict[str, float]:
    """What a plan foretells over what came."""
    found = {
        f"{name} over ingest: time": plan.seconds.value / took,
        f"{name} over ingest: firings": plan.firings.value / firings,
    }
    for table in TABLES:
        found[f"{name} over ingest: {table}, bytes"] = plan.table(table).n_bytes / stored[table]
    return found


def synthetic(width: int, l0: int) -> Firings:
    """Firings of one shard, skewed within bands of features, each address once."""
    rng = np.random.default_rng(width + l0)
    n_tokens, step = CONTEXTS * LENGTH, width // l0
    offset = (step * rng.random((n_tokens, l0)) ** 3).astype(np.int32)
    feature = (np.arange(l0, dtype=np.int32) * step + offset).ravel()
    token = np.repeat(np.arange(n_tokens, dtype=np.int64), l0)
    return Firings(
        token // LENGTH, (token % LENGTH).astype(np.int32), feature,
        rng.gamma(2.0, 5.0, len(feature)).astype(np.float32), np.zeros(len(feature), np.int8),
    )  # fmt: skip


def bytes_a_firing(folder: Path, width: int, l0: int, bits: int) -> list[Measure]:
    """What codes and postings take of a synthetic coder."""
    store = LakeStore.create(folder / f"{width}-{l0}-{bits}")
    firings = synthetic(width, l0)
    receipts = write_firings(store.root, firings, sae="s", corpus="c", shard=0, run="r", bits=bits)
    what = f"{width} features, L0 {l0}, {bits} bits"
    return [
        Measure(f"{what}: {r.table}", (r.n_bytes / len(firings),), "B/firing")
        for r in receipts
        if r.table in ("codes", "postings")
    ]


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            found = near(Path(folder))
        for keep in KEEPS:
            with tempfile.TemporaryDirectory() as folder:
                of_keep = kept(Path(folder), keep)
            found |= {f"plan over ingest, {what}": ratio for what, ratio in of_keep.items()}
        runs.append(found)
    measures = [
        Measure(name, tuple(run[name] for run in runs), "s" if "seconds" in name else "ratio")
        for name in runs[0]
    ]
    with tempfile.TemporaryDirectory() as folder:
        for width, l0 in WIDTHS:
            measures += bytes_a_firing(Path(folder), width, l0, 10)
        for bits in BITS:
            if bits != 10:
                measures += bytes_a_firing(Path(folder), 16_384, 60, bits)
    write_results("plan", measures, f"tiny model, 14 coders, the demo's corpus {CORPUS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
