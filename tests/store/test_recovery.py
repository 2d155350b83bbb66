"""A writer that is killed: the next one finishes what was decided, exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import scopelake
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS

KILLED_WRITER = """
import os, signal, sys
import numpy as np, pyarrow as pa
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_firings

def kill(step):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

store = LakeStore.open(sys.argv[1])
n = 63
firings = Firings(
    np.arange(n), np.ones(n, np.int32), np.arange(n, dtype=np.int32),
    np.ones(n, np.float32), np.zeros(n, np.int8),
)
with Writer(store, on_step=kill) as writer:
    receipts = write_firings(store.root, firings, sae="s", corpus="c", shard=0, run="r", bits=10)
    kill("files written")
    run = pa.Table.from_pylist([{"run": "r", "state": "complete"}], schema=SCHEMAS["runs"])
    writer.commit(
        receipts, transaction="r:0", reason="test", run="r",
        rows={"runs": run}, replace={"runs": ("run",)},
    )
"""


def run_until(store: LakeStore, step: str) -> None:
    path = [str(Path(scopelake.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED_WRITER, str(store.root.path), step],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr


def check_committed_once(store: LakeStore) -> None:
    snapshot = store.snapshot()
    assert (snapshot.id, snapshot.run) == (2, "r")
    for table in ("codes", "postings", "peaks", "samples"):
        found = store.read(table, snapshot)
        assert sorted(found["feature"].to_pylist()) == list(range(63))
        assert snapshot.versions[table] == 1
    assert store.read("files", snapshot).num_rows == 4
    assert store.read("runs", snapshot)["state"].to_pylist() == ["complete"]
    assert list((store.root.path / "pending").iterdir()) == []


@pytest.mark.parametrize(
    "step", ["pending", "codes", "peaks", "samples", "runs", "files", "snapshots"]
)
def test_a_killed_commit_is_finished_once(store, step):
    run_until(store, step)
    before = store.snapshot()
    if step != "snapshots":
        assert before.id == 1
        assert store.read("codes", before).num_rows == 0
        assert store.read("runs", before).num_rows == 0
    with Writer(store):
        pass
    check_committed_once(store)
    with Writer(store):
        pass
    check_committed_once(store)


def test_files_without_a_commit_stay_invisible(store):
    run_until(store, "files written")
    assert len(list(store.root.path.glob("tables/codes/sae=*/**/*.parquet"))) == 1
    with Writer(store):
        pass
    assert store.snapshot().id == 1
    assert store.read("codes", store.snapshot()).num_rows == 0


def test_a_commit_that_failed_is_finished_by_the_next_one(store):
    rows = {"models": pa.Table.from_pylist([{"model": "m"}], schema=SCHEMAS["models"])}

    def fail(step: str) -> None:
        if step == "models" and not failed:
            failed.append(step)
            raise OSError("disk full")

    failed: list[str] = []
    with Writer(store, on_step=fail) as writer:
        with pytest.raises(OSError, match="disk full"):
            writer.commit([], transaction="a", reason="first", rows=rows)
        snapshot = writer.commit([], transaction="b", reason="second")
    assert snapshot.id == 3
    assert store.snapshots()["reason"].to_pylist() == ["create", "first", "second"]
    assert store.read("models", snapshot)["model"].to_pylist() == ["m"]
