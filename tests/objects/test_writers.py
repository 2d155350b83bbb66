"""Commits to a lake on S3: by several writers, with faults, and with writers that are killed."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import scopelake
from scopelake.store import object_root
from scopelake.store.commit import Writer
from scopelake.store.intents import put_intent, waiting_intents
from scopelake.store.lake_store import LakeStore
from scopelake.store.object_root import ObjectRoot
from scopelake.store.verify import verify

N_SHARDS = 3
WORKER = Path(__file__).parents[1] / "store" / "concurrent_writer.py"


def work(url, saes, kill_after=0):
    """Run a writer for each SAE at once; all but the first are killed after so many steps."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", str(WORKER), url, str(i), sae, str(kill_after if i else 0),
             str(N_SHARDS)],
            env=os.environ | {"PYTHONPATH": str(Path(scopelake.__file__).parents[1])},
        )
        for i, sae in enumerate(saes)
    ]  # fmt: skip
    return [worker.wait() for worker in workers]


def check(url, saes):
    store = LakeStore.open(url)
    snapshot = store.snapshot()
    for table in ("codes", "postings"):
        rows = store.read(table, snapshot, ["sae", "context", "feature"]).to_pylist()
        assert sorted(tuple(r.values()) for r in rows) == sorted(
            (sae, 40 * shard + i, i) for sae in saes for shard in range(N_SHARDS) for i in range(40)
        )
    assert store.read("files", snapshot).num_rows == 4 * N_SHARDS * len(saes)
    ids = store.snapshots()["snapshot"].to_pylist()
    assert ids == list(range(1, len(ids) + 1))
    assert waiting_intents(store.root) == []
    return store


@pytest.mark.slow
def test_writers_at_once_write_each_shard_once(url):
    LakeStore.create(url)
    assert work(url, ["s", "s", "t"]) == [0, 0, 0]
    store = check(url, {"s", "t"})
    assert verify(store, store.snapshot()).broken == ()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_writers_that_are_killed_hinder_nobody(url, seed):
    LakeStore.create(url)
    kill_after = int(np.random.default_rng(seed).integers(2, 2 * N_SHARDS))
    codes = work(url, ["s", "t"], kill_after)
    assert codes == [0, -9]
    assert work(url, ["s", "t"]) == [0, 0]
    check(url, {"s", "t"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"methods": ["GET", "PUT", "HEAD", "DELETE"], "refuse": 0.2},
        {"methods": ["PUT"], "lose": 0.2},
    ],
    ids=["refused", "answers lost"],
)
def test_requests_that_fail_are_tried_again(server, url, faults):
    LakeStore.create(url)
    server.fail(**faults)
    codes = work(url, ["s", "t"])
    counts = server.fail()
    assert codes == [0, 0]
    assert counts["failed"] > 5
    store = check(url, {"s", "t"})
    assert verify(store, store.snapshot()).broken == ()


def test_a_request_that_hangs_is_tried_again(server, url, monkeypatch):
    monkeypatch.setattr(object_root, "_TIMEOUT", timedelta(seconds=1))
    root = ObjectRoot.at(url)
    server.fail(methods=["PUT"], hang=1, seconds=4.0)
    assert put_intent(root, 1, "mine")
    assert root.read("pending/000000000001.json") == b"mine"
    assert server.fail()["failed"] == 1


def test_a_number_is_taken_once_also_when_the_answer_is_lost(server, url):
    root = ObjectRoot.at(url)
    server.fail(methods=["PUT"], lose=0.6)
    for number in range(1, 9):
        assert put_intent(root, number, f"mine {number}")
        assert not put_intent(root, number, "another's")
    assert server.fail()["failed"] > 4
    assert waiting_intents(root) == list(range(1, 9))


def test_a_commit_whose_first_answer_was_lost_keeps_its_files(server, url):
    """The try that follows finds the commit done with these very files; they are not orphans."""
    from scopelake.store.firings import Firings
    from scopelake.store.writer import write_firings

    store = LakeStore.create(url)
    n = 7
    firings = Firings(
        np.arange(n), np.ones(n, np.int32), np.arange(n, dtype=np.int32),
        np.ones(n, np.float32), np.zeros(n, np.int8),
    )  # fmt: skip
    receipts = write_firings(store.root, firings, sae="s", corpus="c", shard=0, run="r", bits=23)
    with Writer(store) as writer:
        writer.commit(receipts, transaction="once", reason="first")
        writer.commit(receipts, transaction="once", reason="again")
    assert store.snapshot().id == 2
    assert verify(store, store.snapshot()).broken == ()


def test_a_commit_that_hangs_is_carried_out_once(server, url, monkeypatch):
    monkeypatch.setattr(object_root, "_TIMEOUT", timedelta(seconds=1))
    store = LakeStore.create(url)
    with Writer(store) as writer:
        server.fail(methods=["PUT"], hang=3, seconds=3.0)
        writer.commit([], transaction="a", reason="first")
        assert server.fail()["failed"] == 3
        server.fail(methods=["GET"], hang=3, seconds=3.0)
        writer.commit([], transaction="b", reason="second")
    assert store.snapshots()["reason"].to_pylist() == ["create", "first", "second"]
