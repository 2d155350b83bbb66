"""Compaction: fewer files, the same rows, at every snapshot and under every writer."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scopelake
from scopelake.cli import main
from scopelake.errors import DamagedFileError, InvalidArgumentError, LakeBusyError
from scopelake.store import compact as compact_module
from scopelake.store import merge as merge_module
from scopelake.store.catalog import committed_shards
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings, peaks, samples
from scopelake.store.repair import repair
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND
from scopelake.store.schema import SCHEMAS
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify
from scopelake.store.writer import write_contexts, write_firings

SIZES = [700, 0, 1, 63, 1023]
SAES = ("repo/resid_post/s", "t")


def put(writer, firings, shard, sae=SAES[0], attempt=0):
    receipts = write_firings(
        writer.store.root, firings, sae=sae, corpus="c", shard=shard, run="r", bits=23
    )
    return writer.commit(receipts, transaction=f"{sae}{shard}{attempt}", reason="x", run="r")


@pytest.fixture
def filled(store, make_firings):
    """Two coders of five shards, one of them empty; the firings of each."""
    shards = [make_firings(n, seed=n, first_context=1000 * i) for i, n in enumerate(SIZES)]
    with Writer(store) as writer:
        for sae in SAES:
            for shard, firings in enumerate(shards):
                put(writer, firings, shard, sae)
    return store, Firings.concat(shards)


def rows(store, table, number=None, sae=SAES[0]):
    found = store.read(table, store.snapshot(number), filters=[("sae", "=", sae)])
    return sorted(found.to_pylist(), key=lambda r: [str(v) for v in r.values()])


def files(store, table, sae=SAES[0]):
    found = store.data_files(table, store.snapshot(), sae=sae)
    return [store.root.path / f.path for f in found]


def run(store, **options):
    with Writer(store) as writer:
        return compact(writer, **options)


@pytest.mark.parametrize("at_once", [2, 3, 64], ids="{} files at once".format)
@pytest.mark.parametrize("rows_per_file", [1, 100, 10_000])
def test_rows_are_the_same_and_files_do_not_overlap(filled, rows_per_file, at_once, monkeypatch):
    monkeypatch.setattr(merge_module, "_AT_ONCE", at_once)  # 2: in three steps, 3: in two
    monkeypatch.setattr(merge_module, "_OFTEN", -1)
    steps = []
    at_once_of = merge_module._at_once
    monkeypatch.setattr(
        merge_module, "_at_once", lambda *args: steps.append(args[0]) or at_once_of(*args)
    )
    store, firings = filled
    before = {t: rows(store, t) for t in ("codes", "postings")}
    done = run(store, rows_per_file=rows_per_file)
    assert done.n_parts == (6 if rows_per_file == 1 else 8)
    # Of each coder's postings, peaks and samples: lots of five files, then of what came of them.
    assert len(steps) == 2 * 3 * {2: 3 + 2 + 1, 3: 2 + 1, 64: 1}[at_once]
    assert {t: rows(store, t) for t in before} == before
    strongest = peaks(firings, PEAKS_DEPTH).to_pylist()
    found = store.read("peaks", store.snapshot(), filters=[("sae", "=", SAES[0])]).to_pylist()
    found.sort(key=lambda r: (r["feature"], r["rank"]))
    assert [{k: r[k] for k in strongest[0]} for r in found] == strongest
    drawn = samples(firings.feature_major(), SAMPLES_PER_BAND)
    found = store.read("samples", store.snapshot(), filters=[("sae", "=", SAES[0])])
    keys = [(name, "ascending") for name in ("feature", "band", "priority", "context", "position")]
    assert found.select(drawn.column_names).sort_by(keys).equals(drawn.sort_by(keys))
    assert not list(store.root.path.glob("pending/scratch-*"))  # what lay between is gone
    for table in ("postings", "peaks"):
        ranges = []
        for path in files(store, table):
            feature = pq.read_table(path, partitioning=None)["feature"].to_numpy()
            assert (np.diff(feature) >= 0).all()
            ranges.append((int(feature.min()), int(feature.max())))
        ranges.sort()
        assert all(a[1] < b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    assert (len(files(store, "postings")) == 1) == (rows_per_file == 10_000)


def test_a_second_run_does_nothing(filled):
    store, _ = filled
    first = run(store)
    assert "compacted" in first.to_text()
    second = run(store)
    assert (second.n_parts, second.snapshot) == (0, first.snapshot)
    assert "nothing to compact" in second.to_text()


def test_older_snapshots_read_as_before_until_a_vacuum(filled):
    store, _ = filled
    number = store.snapshot().id
    before = {t: rows(store, t, number) for t in ("postings", "peaks", "files")}
    run(store)
    assert {t: rows(store, t, number) for t in before} == before
    assert verify(store, store.snapshot()).is_whole
    now = {t: rows(store, t) for t in before}
    with Writer(store) as writer:
        vacuum(writer, VacuumConfig(keep=None, grace=timedelta(0)))
    assert {t: rows(store, t) for t in before} == now
    assert verify(store, store.snapshot()).is_whole
    on_disk = list((store.root.path / "tables" / "postings").glob("sae=*/**/*.parquet"))
    assert sorted(on_disk) == sorted([*files(store, "postings"), *files(store, "postings", "t")])


def test_ingest_goes_on_after_it_and_shards_stay_done(filled, make_firings):
    store, _ = filled
    run(store)
    n = store.read("postings", store.snapshot()).num_rows
    with Writer(store) as writer:
        # The same shard again, by another run: it is there, in whatever files.
        put(writer, make_firings(63, seed=63, first_context=3000), 3)
        receipts = write_firings(
            store.root, make_firings(63, seed=9, first_context=3000), sae=SAES[0], corpus="c",
            shard=3, run="other", bits=23,
        )  # fmt: skip
        writer.commit(receipts, transaction="other", reason="x")
        assert store.read("postings", store.snapshot()).num_rows == n
        put(writer, make_firings(50, seed=8, first_context=9000), 5)
    assert store.read("postings", store.snapshot()).num_rows == n + 50
    again = run(store)
    assert again.n_parts == 4
    assert store.read("postings", store.snapshot()).num_rows == n + 50


def test_a_shard_that_comes_in_between_stays(filled, make_firings, monkeypatch):
    store, _ = filled
    n = len(rows(store, "postings"))
    plain = compact_module.merge

    def slowly(root, part, rows_per_file):
        yield from plain(root, part, rows_per_file)
        if part.table == "postings" and part.sae == SAES[0]:
            with Writer(store) as other:
                put(other, make_firings(40, seed=1, first_context=9000), 7)

    monkeypatch.setattr(compact_module, "merge", slowly)
    run(store)
    assert len(rows(store, "postings")) == n + 40
    assert verify(store, store.snapshot()).is_whole


def test_two_compactions_at_once_do_not_double(filled, monkeypatch):
    store, _ = filled
    before = rows(store, "postings")
    plain = compact_module.merge

    def slowly(root, part, rows_per_file):
        yield from plain(root, part, rows_per_file)
        if part.table == "peaks":
            monkeypatch.setattr(compact_module, "merge", plain)
            run(store)

    monkeypatch.setattr(compact_module, "merge", slowly)
    with pytest.raises(LakeBusyError, match="compact again"):
        run(store)
    assert rows(store, "postings") == before
    assert verify(store, store.snapshot()).is_whole


@pytest.mark.parametrize("step", ["pending", "postings", "peaks", "files", "snapshots"])
def test_one_that_stops_halfway_is_finished(filled, step):
    store, _ = filled
    before = rows(store, "postings")

    def stop(name):
        if name == step:
            raise InterruptedError

    with pytest.raises(InterruptedError), Writer(store, on_step=stop) as writer:
        compact(writer)
    assert rows(store, "postings") == before
    run(store)
    assert rows(store, "postings") == before
    assert len(files(store, "postings")) == len(files(store, "postings", "t")) == 1
    assert verify(store, store.snapshot()).is_whole


def test_damage_is_not_merged(filled):
    store, _ = filled
    path = files(store, "postings")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = store.snapshot().id
    with pytest.raises(DamagedFileError, match=path.name):
        run(store)
    assert store.snapshot().id == before


def test_settings_out_of_range_are_refused(store):
    with pytest.raises(InvalidArgumentError, match="rows_per_file=0"):
        run(store, rows_per_file=0)


def test_the_command_line(filled, capsys):
    store, _ = filled
    assert main(["compact", str(store.root.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_parts"] == 8
    assert main(["compact", str(store.root.path)]) == 0
    assert "nothing to compact" in capsys.readouterr().out
    assert scopelake.open(store.root.path).verify().is_whole


def context_rows(numbers):
    empty = {"document": "d", "document_index": 0, "part": 0, "char_start": 0, "char_end": 1,
             "text": "x", "n_tokens": 1, "token_ids": [1], "token_starts": [0], "roles": [0],
             "turns": [0], "kinds": [0], "metadata": "{}"}  # fmt: skip
    rows = [{"corpus": "c", "context": number, **empty} for number in numbers]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["contexts"])


def test_contexts_become_files_in_sequence(store, monkeypatch):
    monkeypatch.setattr(merge_module, "CONTEXTS_PER_FILE", 10)
    with Writer(store) as writer:
        for start in (0, 3, 6, 9, 12, 20):
            receipts = write_contexts(store.root, context_rows(range(start, start + 3)), "c", "r")
            writer.commit(receipts, transaction=str(start), reason="contexts")
    before = store.read("contexts", store.snapshot()).sort_by("context")
    assert run(store).n_parts == 2
    found = store.data_files("contexts", store.snapshot())
    assert sorted(file.n_rows for file in found) == [9, 9]
    assert store.read("contexts", store.snapshot()).sort_by("context").equals(before)
    assert run(store).n_parts == 0


def test_shards_of_merged_codes_are_known_and_late_ones_are_sorted_in(store, make_firings):
    def shard(number):
        return make_firings(200, seed=number, first_context=1000 * number)

    with Writer(store) as writer:
        for number in (0, 2, 3):
            put(writer, shard(number), number)
    run(store)
    assert len(files(store, "codes")) == 1
    assert committed_shards(store, store.snapshot(), "c") == {(SAES[0], n) for n in (0, 2, 3)}
    with Writer(store) as writer:
        put(writer, shard(2), 2)  # there already
        put(writer, shard(1), 1)  # between those that are merged
    run(store)
    (path,) = files(store, "codes")
    rows = pq.read_table(path, partitioning=None)
    keys = list(
        zip(*(rows[c].to_pylist() for c in ("context", "position", "feature")), strict=True)
    )
    assert keys == sorted(keys)
    assert len(keys) == 800
    assert committed_shards(store, store.snapshot(), "c") == {(SAES[0], n) for n in range(4)}
    merged = store.read("merged", store.snapshot()).to_pylist()
    assert sorted(row["shard"] for row in merged) == [0, 1, 2, 3]
    assert {row["path"] for row in merged} == {path.relative_to(store.root.path).as_posix()}
    assert run(store).n_parts == 0


@pytest.mark.parametrize("table", ["codes", "postings", "peaks", "samples"])
def test_what_is_lost_after_a_compaction_is_made_again_or_its_shards_are(
    store, make_firings, table
):
    with Writer(store) as writer:
        for number in range(3):
            put(writer, make_firings(200, seed=number, first_context=1000 * number), number)
    run(store)
    with Writer(store) as writer:
        put(writer, make_firings(200, seed=3, first_context=3000), 3)
    names = ("codes", "postings")
    before = {name: rows(store, name) for name in names}
    lost = max(files(store, table), key=lambda path: path.stat().st_size)
    lost.unlink()
    with Writer(store) as writer:
        done = repair(writer, verify(store, store.snapshot()))
    assert verify(store, store.snapshot()).broken == ()
    if table != "codes":
        assert done.ingest_again == ()
        run(store)
        assert {name: rows(store, name) for name in names} == before
        return
    assert len(done.ingest_again) == 4  # three shards, and the statistics
    assert committed_shards(store, store.snapshot(), "c") == {(SAES[0], 3)}
    assert {row["context"] // 1000 for row in rows(store, "codes")} == {3}
    assert {row["context"] // 1000 for row in rows(store, "postings")} == {3}
    with Writer(store) as writer:
        for number in range(3):
            firings = make_firings(200, seed=number, first_context=1000 * number)
            put(writer, firings, number, attempt=1)
    run(store)
    assert {name: rows(store, name) for name in names} == before


@pytest.mark.slow
def test_merges_run_as_tasks_of_a_dask_cluster(filled):
    from distributed import Client, LocalCluster

    from scopelake.ingest.distribute import Cluster

    store, _ = filled
    names = ("codes", "postings")
    before = {name: rows(store, name) for name in names}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                     host="127.0.0.1") as cluster,
        Client(cluster) as client,
        Cluster(client) as runner,
    ):  # fmt: skip
        assert run(store, runner=runner).n_parts == 8
        assert scopelake.open(store.root.path).compact(scheduler=cluster.scheduler_address)
    assert {name: rows(store, name) for name in names} == before
    assert verify(store, store.snapshot()).is_whole


def test_a_scheduler_that_is_not_there_is_refused(filled, monkeypatch):
    from scopelake.ingest import distribute

    store, _ = filled
    monkeypatch.setattr(distribute, "_TIMEOUT", "1s")
    before = store.snapshot().id
    with pytest.raises(InvalidArgumentError, match="does not answer"):
        scopelake.open(store.root.path).compact(scheduler="tcp://127.0.0.1:1")
    assert store.snapshot().id == before
