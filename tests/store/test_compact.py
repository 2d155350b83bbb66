"""Compaction: fewer files, the same rows, at every snapshot and under every writer."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest

import scopelake
from scopelake.cli import main
from scopelake.errors import DamagedFileError, InvalidArgumentError, LakeBusyError
from scopelake.store import compact as compact_module
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings, peaks
from scopelake.store.running import PEAKS_DEPTH
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings

SIZES = [700, 0, 1, 63, 1023]
SAES = ("repo/resid_post/s", "t")


def put(writer, firings, shard, sae=SAES[0]):
    receipts = write_firings(
        writer.store.root, firings, sae=sae, corpus="c", shard=shard, run="r", bits=23
    )
    return writer.commit(receipts, transaction=f"{sae}{shard}", reason="x", run="r")


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


@pytest.mark.parametrize("rows_per_file", [1, 100, 10_000])
def test_rows_are_the_same_and_files_do_not_overlap(filled, rows_per_file):
    store, firings = filled
    before = {t: rows(store, t) for t in ("codes", "postings")}
    done = run(store, rows_per_file=rows_per_file)
    assert done.n_parts == (6 if rows_per_file == 1 else 8)
    assert {t: rows(store, t) for t in before} == before
    strongest = peaks(firings, PEAKS_DEPTH).to_pylist()
    found = store.read("peaks", store.snapshot(), filters=[("sae", "=", SAES[0])]).to_pylist()
    found.sort(key=lambda r: (r["feature"], r["rank"]))
    assert [{k: r[k] for k in strongest[0]} for r in found] == strongest
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
    on_disk = list((store.root.path / "tables" / "postings").rglob("*.parquet"))
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
