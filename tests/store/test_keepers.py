"""Vacuum, compaction and repair beside writers at work, and killed: nothing lost, nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

import scopelake
from scopelake.errors import DamageWarning, InvalidArgumentError, LakeBusyError
from scopelake.ingest.look_back import LookBack, is_seen
from scopelake.store import vacuum as vacuum_module
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.dense import ensure_array, open_dense, write_shard
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.repair import repair
from scopelake.store.schema import SCHEMAS
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify
from scopelake.store.writer import write_examples, write_firings

HERE = Path(__file__).parent
N_SHARDS = 12


def start(script: str, *words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", str(HERE / script), *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(Path(scopelake.__file__).parents[1])},
    )


def check(store: LakeStore, saes: set[str]) -> None:
    snapshot = store.snapshot()
    for table in ("codes", "postings"):
        rows = store.read(table, snapshot, ["sae", "context", "feature"]).to_pylist()
        assert sorted(tuple(r.values()) for r in rows) == sorted(
            (sae, 40 * shard + i, i) for sae in saes for shard in range(N_SHARDS) for i in range(40)
        )
    peaks = store.read("peaks", snapshot, ["sae", "context", "feature"]).to_pylist()
    assert len({tuple(r.values()) for r in peaks}) == len(peaks) == 40 * N_SHARDS * len(saes)
    assert verify(store, snapshot).broken == ()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_keepers_and_writers_at_once_some_of_them_killed(store, tmp_path, seed):
    rng = np.random.default_rng(seed)
    root, stop = store.root.path, tmp_path / "stop"
    kinds = ["vacuum", "compact", "repair"]
    keepers = [start("keeper.py", root, kind, stop) for kind in kinds]
    writers = [start("concurrent_writer.py", root, i, sae, 0, N_SHARDS)
               for i, sae in enumerate(["s", "t"])]  # fmt: skip
    for _ in range(4):
        victim = int(rng.integers(len(keepers)))
        try:
            keepers[victim].wait(timeout=float(rng.uniform(0.3, 1.5)))
        except subprocess.TimeoutExpired:
            keepers[victim].kill()
            keepers[victim].wait()
        keepers[victim] = start("keeper.py", root, kinds[victim], stop)
    assert [writer.wait() for writer in writers] == [0, 0]
    stop.touch()
    assert [keeper.wait() for keeper in keepers] == [0] * len(keepers)
    check(store, {"s", "t"})


def put(
    writer: Writer, shard: int, strength: float = 1.0, transaction: str | None = None, **options
) -> list[Receipt]:
    n = 300
    firings = Firings(
        np.arange(n) + n * shard, np.ones(n, np.int32), np.zeros(n, np.int32),
        np.linspace(strength, 2 * strength, n, dtype=np.float32), np.zeros(n, np.int8),
    )  # fmt: skip
    receipts = write_firings(
        writer.store.root, firings, sae="s", corpus="c", shard=shard, run="r", bits=23, **options
    )
    name = transaction or os.urandom(8).hex()
    writer.commit(receipts, transaction=name, reason="shard")
    return receipts


def test_what_is_committed_during_a_vacuum_stays(store, monkeypatch):
    plain = vacuum_module._unneeded

    def slowly(store, kept, config):
        with Writer(store) as other:
            put(other, 7)
        return plain(store, kept, config)

    with Writer(store) as writer:
        put(writer, 0)
        monkeypatch.setattr(vacuum_module, "_unneeded", slowly)
        vacuum(writer, VacuumConfig(None, 1, timedelta(0)))
    assert verify(store, store.snapshot()).broken == ()
    assert store.read("codes", store.snapshot()).num_rows == 600


@pytest.mark.parametrize("step", ["pending", "postings", "files"])
def test_a_repair_that_is_interrupted_is_finished(store, step):
    with Writer(store) as writer:
        put(writer, 0)
        (lost, *_) = store.data_files("postings", store.snapshot())
        (store.root.path / lost.path).unlink()

    def interrupt(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    found = verify(store, store.snapshot())
    with pytest.raises(KeyboardInterrupt), Writer(store, on_step=interrupt) as writer:
        repair(writer, found)
    with Writer(store):
        pass
    assert verify(store, store.snapshot()).broken == ()
    assert store.read("postings", store.snapshot()).num_rows == 300


def test_what_changes_under_a_repair_stops_it_and_a_second_one_finds_nothing(store):
    with Writer(store) as writer:
        put(writer, 0)
        put(writer, 1)
        (lost, *_) = store.data_files("postings", store.snapshot())
        (store.root.path / lost.path).unlink()
        found = verify(store, store.snapshot())
        original = writer.commit

        def late(*words, **options):
            with Writer(store) as other:
                put(other, 2)
            return original(*words, **options)

        writer.commit = late  # type: ignore[method-assign]
        with pytest.raises(LakeBusyError, match="repair again"):
            repair(writer, found)
        writer.commit = original  # type: ignore[method-assign]
        again = verify(store, store.snapshot())
        assert repair(writer, again).n_files > 0
        assert repair(writer, again).n_files == 0
    assert store.read("postings", store.snapshot()).num_rows == 900
    assert verify(store, store.snapshot()).broken == ()


def test_peaks_of_a_shard_that_a_repair_took_out_hide_nothing(store):
    look_back = LookBack(store, "c", {"s": 1})
    with Writer(store) as writer:
        receipts = put(writer, 0, strength=100.0, running=look_back.of("s"))
        look_back.settle(store.snapshot(), 0, receipts)
        seen = {"s": frozenset(look_back.of("s").shards)}
        assert seen == {"s": frozenset({0})}
        assert is_seen(store, store.snapshot(), "c", seen)
        codes = next(r.path for r in receipts if r.table == "codes")
        (store.root.path / codes).unlink()
        repair(writer, verify(store, store.snapshot()))
        assert not is_seen(store, store.snapshot(), "c", seen)
        assert is_seen(store, store.snapshot(), "c", {"s": frozenset()})
        look_back.reset()
        put(writer, 1, running=look_back.of("s"))
    assert store.read("peaks", store.snapshot()).num_rows == 256


def test_what_another_writer_committed_is_not_looked_back_at(store):
    look_back = LookBack(store, "c", {"s": 1})
    with Writer(store) as writer:
        put(writer, 0, strength=1.0)
        mine = put(writer, 0, strength=50.0, running=look_back.of("s"))  # it came second
        look_back.settle(store.snapshot(), 0, mine)
        put(writer, 1, strength=1.0, running=look_back.of("s"))
    strongest = store.read("peaks", store.snapshot(), ["activation"])["activation"].to_pylist()
    assert sorted(strongest, reverse=True)[:2] == [2.0, 2.0]


def test_files_of_a_commit_that_is_compacted_away_stay_for_older_snapshots(store):
    with Writer(store) as writer:
        receipts = put(writer, 0, transaction="once")
        put(writer, 1)
        number = store.snapshot().id
        compact(writer)
        # The writer was away while others carried out its commit, and tries it again.
        writer.commit(receipts, transaction="once", reason="shard")
    assert verify(store, store.snapshot(number)).broken == ()


def dense_values(value: float, n: int = 4) -> np.ndarray:
    rng = np.random.default_rng(int(value))
    values = rng.standard_normal((n, 8, 16)) if value > 1 else np.full((n, 8, 16), value)
    return values.astype(ml_dtypes.bfloat16)


def put_dense(store: LakeStore, value: float, shard: int = 0) -> Receipt:
    return write_shard(
        store.root, "c", "m", "resid_post", 1, 4 * shard, dense_values(value), shard=shard, run="r"
    )


def test_two_dense_shards_of_other_bytes_block_nobody(store):
    ensure_array(store.root, "c", "m", "resid_post", 1, 8, 8, 16, 4)
    first = put_dense(store, 1.0)

    def overtake(name: str) -> None:
        if name == "pending":
            put_dense(store, 7.0)  # other bytes, and another number of them

    with Writer(store, on_step=overtake) as writer:
        writer.commit([first], transaction="a", reason="dense")
    assert verify(store, store.snapshot()).is_whole
    with Writer(store) as writer:
        put(writer, 0)


def test_dense_shards_that_a_snapshot_does_not_name_are_not_seen(store):
    ensure_array(store.root, "c", "m", "resid_post", 1, 8, 8, 16, 4)
    with Writer(store) as writer:
        writer.commit([put_dense(store, 1.0)], transaction="a", reason="dense")
    before = store.snapshot()
    orphan = put_dense(store, 7.0, shard=1)
    for snapshot in (before, store.snapshot()):
        seen = open_dense(store, snapshot, 1, "resid_post")
        assert np.all(seen[:4] == 1.0)
        assert np.all(seen[4:] == 0.0)
        assert seen[2, 3, :5].tolist() == [1.0] * 5
    with Writer(store) as writer:
        writer.commit([orphan], transaction="b", reason="dense")
    assert np.all(open_dense(store, before, 1, "resid_post")[4:] == 0.0)
    now = open_dense(store, store.snapshot(), 1, "resid_post")
    assert np.array_equal(now[4:], dense_values(7.0))


def test_a_dense_shard_that_is_put_anew_is_not_vacuumed(store, monkeypatch):
    ensure_array(store.root, "c", "m", "resid_post", 1, 8, 8, 16, 4)
    orphan = store.root.path / put_dense(store, 7.0).path
    os.utime(orphan, times=(1e9, 1e9))
    plain = vacuum_module._delete

    def late(store, files, limit):
        assert [entry.path for entry in files] == [orphan.relative_to(store.root.path).as_posix()]
        with Writer(store) as other:
            other.commit([put_dense(store, 1.0)], transaction="a", reason="dense")
        os.utime(orphan, times=(1e9, 1e9))
        plain(store, files, limit)

    monkeypatch.setattr(vacuum_module, "_delete", late)
    with Writer(store) as writer:
        vacuum(writer, VacuumConfig(None, 5, timedelta(days=1)))
    assert verify(store, store.snapshot()).is_whole


def test_a_commit_that_waits_for_a_lost_file_is_named(store):
    def stop(name: str) -> None:
        if name == "pending":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Writer(store, on_step=stop) as writer:
        put(writer, 0)
    for path in store.root.path.glob("tables/peaks/sae=*/**/*.parquet"):
        path.unlink()
    (finding,) = [f for f in verify(store, store.snapshot()).findings if f.problem == "damaged"]
    assert finding.path == "pending/000000000002.json"
    lake = scopelake.open(store.root.path)
    with (
        pytest.warns(DamageWarning, match="scopelake verify --repair"),
        pytest.raises(InvalidArgumentError, match="the lake is at 2; verify it again"),
    ):
        lake.repair(lake.verify())  # which carries out what waits
    lake.refresh()
    done = lake.repair(lake.verify())
    assert done.made_again == ("peaks of s on c", "samples of s on c")
    assert verify(store, store.snapshot()).broken == ()


def test_published_examples_are_never_merged_also_where_blocks_are_empty(store):
    """All are kept, several of one context too; merged peaks would keep the strongest alone."""
    n = 6
    whole = Firings(
        np.zeros(n, np.int64), np.arange(n, dtype=np.int32), np.zeros(n, np.int32),
        np.arange(1, n + 1, dtype=np.float32), np.zeros(n, np.int8),
    )  # fmt: skip
    blocks = [whole, whole.take(np.zeros(0, np.int64)), whole.take(np.zeros(0, np.int64))]
    run = {"run": "r", "corpus": "c", "saes": ["s"], "state": "imported", "config": '{"depth": 9}'}
    with Writer(store) as writer:
        receipts = [write_examples(store.root, b, sae="s", corpus="c", run="r") for b in blocks]
        rows = {"runs": pa.Table.from_pylist([run], schema=SCHEMAS["runs"])}
        writer.commit(receipts, transaction="import", reason="import", rows=rows)
        assert compact(writer).n_parts == 0
    assert store.read("peaks", store.snapshot()).num_rows == n


def test_a_repair_that_is_slow_deletes_no_dense_shard_that_was_put_anew(store):
    """The repair stalls when it is decided; another carries it out and the shard is made again."""
    ensure_array(store.root, "c", "m", "resid_post", 1, 8, 8, 16, 4)
    with Writer(store) as writer:
        receipt = put_dense(store, 1.0)
        writer.commit([receipt], transaction="a", reason="dense")
    (store.root.path / receipt.path).write_bytes(b"damaged")

    def stall(name: str) -> None:
        if name == "pending":
            with Writer(store) as other:
                other.commit([put_dense(store, 7.0)], transaction="b", reason="dense again")

    with Writer(store, on_step=stall) as writer:
        done = repair(writer, verify(store, store.snapshot()))
    assert len(done.ingest_again) == 1
    assert verify(store, store.snapshot()).is_whole
    now = open_dense(store, store.snapshot(), 1, "resid_post")
    assert np.array_equal(now[:4], dense_values(7.0))
