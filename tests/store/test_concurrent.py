"""Several writers at once: every commit is a snapshot of its own, nothing is lost or twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scopelake
from scopelake.errors import LakeBusyError
from scopelake.store import commit as commit_module
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array, open_array, write_shard
from scopelake.store.intents import put_intent, waiting_intents
from scopelake.store.lake_store import LakeStore

N_WRITERS, N_SHARDS = 4, 6
WORKER = Path(__file__).with_name("concurrent_writer.py")


def work(root: Path, saes: list[str], kill_after: int = 0) -> list[int]:
    """Run a writer for each SAE at once; all but the first are killed after so many steps."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(root), str(i), sae,
             str(kill_after if i else 0), str(N_SHARDS)],
            env=os.environ | {"PYTHONPATH": str(Path(scopelake.__file__).parents[1])},
        )
        for i, sae in enumerate(saes)
    ]  # fmt: skip
    return [worker.wait() for worker in workers]


def check(store: LakeStore, saes: set[str]) -> None:
    """Every shard of every SAE is there once, files are none too many, snapshots have no gaps."""
    snapshot = store.snapshot()
    for table in ("codes", "postings"):
        rows = store.read(table, snapshot, ["sae", "context", "feature", "activation"]).to_pylist()
        found = sorted((r["sae"], r["context"], r["feature"], r["activation"]) for r in rows)
        assert found == sorted(
            (sae, 40 * shard + i, i, shard + 1.0)
            for sae in saes
            for shard in range(N_SHARDS)
            for i in range(40)
        )
    assert store.read("files", snapshot).num_rows == 4 * N_SHARDS * len(saes)
    runs = store.read("runs", snapshot)["run"].to_pylist()
    assert sorted(runs) == sorted(f"{sae}-{shard}" for sae in saes for shard in range(N_SHARDS))
    ids = store.snapshots()["snapshot"].to_pylist()
    assert ids == list(range(1, len(ids) + 1))
    assert waiting_intents(store.root) == []


@pytest.mark.slow
def test_writers_of_different_shards_all_succeed(store):
    saes = [f"s{i}" for i in range(N_WRITERS)]
    assert work(store.root.path, saes) == [0] * N_WRITERS
    check(store, set(saes))
    assert store.snapshot().id == 1 + N_WRITERS * N_SHARDS
    on_disk = list(store.root.path.glob("tables/codes/sae=*/**/*.parquet"))
    assert len(on_disk) == N_WRITERS * N_SHARDS


@pytest.mark.slow
def test_writers_of_the_same_shards_write_each_once(store):
    assert work(store.root.path, ["s"] * N_WRITERS) == [0] * N_WRITERS
    check(store, {"s"})
    # What came second is deleted, not left behind.
    assert len(list(store.root.path.glob("tables/codes/sae=*/**/*.parquet"))) == N_SHARDS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_writers_that_are_killed_hinder_nobody(store, seed):
    kill_after = int(np.random.default_rng(seed).integers(1, 2 * N_SHARDS))
    codes = work(store.root.path, ["s", "t", "t"], kill_after)
    assert codes[0] == 0
    # Of two at the same shards one may find all of them done before its time has come.
    assert -9 in codes[1:]
    work(store.root.path, ["s", "t", "t"])
    check(store, {"s", "t"})


def test_a_number_that_is_taken_late_is_not_carried_out(store):
    """A writer that was away puts a commit under a number that was done and removed."""
    with Writer(store) as writer:
        late = _intent_of(writer, "late")
        writer.commit([], transaction="first", reason="first")
        assert put_intent(store.root, 2, late)
        snapshot = writer.commit([], transaction="second", reason="second")
    assert store.snapshots()["reason"].to_pylist() == ["create", "first", "second"]
    assert snapshot.id == 3
    assert waiting_intents(store.root) == []


def _intent_of(writer: Writer, name: str) -> str:
    """What a commit of that name would put into the log."""
    taken: list[str] = []

    def take(root: Path, number: int, text: str) -> bool:
        taken.append(text)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_module, "put_intent", take)
        with pytest.raises(InterruptedError):
            writer.commit([], transaction=name, reason=name)
    return taken[0]


def test_the_next_number_is_carried_out_by_whoever_finds_it(store):
    with Writer(store) as writer:
        assert put_intent(store.root, 2, _intent_of(writer, "found"))
        assert not put_intent(store.root, 2, "another")
        writer.commit([], transaction="own", reason="own")
    assert store.snapshots()["reason"].to_pylist() == ["create", "found", "own"]


def test_a_clock_that_jumps_back_makes_no_older_snapshot(store, monkeypatch):
    with Writer(store) as writer:
        first = writer.commit([], transaction="a", reason="a")

        class Earlier(commit_module.datetime):
            @classmethod
            def now(cls, tz=None):
                return super().now(tz).replace(year=2001)

        monkeypatch.setattr(commit_module, "datetime", Earlier)
        second = writer.commit([], transaction="b", reason="b")
    assert second.created_at == first.created_at


def test_a_writer_that_never_gets_its_turn_says_so(store, monkeypatch):
    monkeypatch.setattr(commit_module, "put_intent", lambda root, number, text: False)
    monkeypatch.setattr(commit_module, "_MOST_TRIES", 3)
    with Writer(store) as writer, pytest.raises(LakeBusyError, match="other writers came first"):
        writer.commit([], transaction="a", reason="a")


def test_what_revise_raises_ends_a_commit_before_it_is_decided(store):
    def refuse(commit, snapshot):
        raise ValueError(f"not on top of {snapshot.id}")

    with Writer(store) as writer, pytest.raises(ValueError, match="not on top of 1"):
        writer.commit([], transaction="a", reason="a", revise=refuse)
    assert store.snapshot().id == 1
    with Writer(store) as writer:
        same = writer.commit([], transaction="a", reason="a", revise=lambda c, s: None)
    assert same.id == 1


def test_two_writers_of_a_dense_shard_leave_one_whole_and_its_checksum(store):
    """The place of a dense shard is fixed: what lies there at the end is what the lake says."""
    import ml_dtypes

    from scopelake.store.receipts import checksum

    ensure_array(store.root, "c", "m", "resid_post", 1, 4, 8, 16, 4)
    made = []
    with Writer(store) as one, Writer(store) as two:
        for value in (1.0, 2.0):
            values = np.full((4, 8, 16), value, dtype=ml_dtypes.bfloat16)
            made.append(
                write_shard(store.root, "c", "m", "resid_post", 1, 0, values, shard=0, run="r")
            )
        for writer, receipt in zip((one, two), made, strict=True):
            writer.commit([receipt], transaction=receipt.checksum, reason="dense")
    (row,) = store.read("files", store.snapshot()).to_pylist()
    assert row["checksum"] == checksum(store.root.path / row["path"]) == made[1].checksum
    assert np.all(open_array(store.root, "c", "m", "resid_post", 1)[:] == 2.0)
