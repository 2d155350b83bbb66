"""Vacuum: what kept snapshots need stays, the rest goes, writers at work are left alone."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from scopelake.cli import main
from scopelake.errors import DamageWarning, InvalidArgumentError, SnapshotNotFoundError
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array, write_shard
from scopelake.store.repair import repair
from scopelake.store.schema import SCHEMAS
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings

NOW = {"keep": None, "grace": timedelta(0)}


def fill(store, make_firings, n=4):
    """n commits of a shard each, the run replaced every time."""
    with Writer(store) as writer:
        for shard in range(n):
            receipts = write_firings(
                store.root, make_firings(20, seed=shard, first_context=100 * shard), sae="s",
                corpus="c", shard=shard, run="r", bits=10,
            )  # fmt: skip
            row = {"run": "r", "state": "running", "n_shards": shard}
            writer.commit(
                receipts, transaction=f"t{shard}", reason="x",
                rows={"runs": pa.Table.from_pylist([row], schema=SCHEMAS["runs"])},
                replace={"runs": ("run",)},
            )  # fmt: skip


def contents(store, number):
    snapshot = store.snapshot(number)
    return [store.read(t, snapshot).to_pylist() for t in ("codes", "postings", "runs", "files")]


def run(store, **options):
    with Writer(store) as writer:
        return vacuum(writer, VacuumConfig(**options))


def test_the_latest_is_as_it_was_and_the_others_say_what_happened(store, make_firings):
    fill(store, make_firings)
    before = contents(store, 5)
    dry = run(store, dry_run=True, **NOW)
    assert contents(store, 2)
    done = run(store, **NOW)
    assert (done.n_snapshots, done.n_files) == (4, dry.n_files)
    assert done.n_bytes == dry.n_bytes > 0
    assert "would delete" in dry.to_text()
    assert contents(store, 5) == before
    assert store.snapshot().id == done.snapshot == 6
    assert store.snapshots()["snapshot"].to_pylist() == [5, 6]
    for gone in (1, 4):
        with pytest.raises(SnapshotNotFoundError, match="a vacuum removed it; .* has 5 to 6"):
            store.snapshot(gone)
    assert verify(store, store.snapshot()).is_whole
    again = run(store, **NOW)
    assert again.n_snapshots == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_the_latest_n_stay_readable(store, make_firings, n):
    fill(store, make_firings)
    before = {number: contents(store, number) for number in range(1, 6)}
    done = run(store, keep=None, keep_snapshots=n, grace=timedelta(0))
    assert done.n_snapshots == max(0, 5 - n)
    for number in range(max(1, 6 - n), 6):
        assert contents(store, number) == before[number]


def test_young_snapshots_are_kept(store, make_firings):
    fill(store, make_firings)
    done = run(store, keep=timedelta(hours=1))
    assert (done.n_snapshots, done.n_files) == (0, 0)
    assert store.snapshot().id == 5


def test_files_that_no_snapshot_names_go_when_they_are_old(store, make_firings):
    fill(store, make_firings, 1)
    orphans = write_firings(
        store.root, make_firings(5), sae="s", corpus="c", shard=9, run="r", bits=10
    )
    ensure_array(store.root, "c", "m", "resid_post", 1, 4, 8, 16, 4)
    orphans.append(
        write_shard(
            store.root,
            "c",
            "m",
            "resid_post",
            1,
            0,
            np.zeros((4, 8, 16), dtype="bfloat16"),
            shard=0,
            run="r",
        )  # fmt: skip
    )
    leftover = store.root.path / "pending" / "x.tmp"
    leftover.write_text("x")
    assert run(store, keep=timedelta(days=1)).n_files == 0
    for path in [*(store.root.path / r.path for r in orphans), leftover]:
        os.utime(path, times=(time.time() - 2 * 86_400,) * 2)
    done = run(store, keep=timedelta(days=1))
    assert (done.n_files, done.n_snapshots) == (6, 0)
    assert not any((store.root.path / r.path).exists() for r in orphans)
    assert store.read("codes", store.snapshot()).num_rows == 20


def test_a_writer_at_work_commits_after_a_vacuum(store, make_firings):
    fill(store, make_firings)
    receipts = write_firings(
        store.root, make_firings(5, first_context=900), sae="s", corpus="c", shard=9, run="r",
        bits=10,
    )  # fmt: skip
    with Writer(store) as writer:
        run(store, keep=None)
        writer.commit(receipts, transaction="late", reason="late")
    assert store.read("codes", store.snapshot()).num_rows == 85
    assert verify(store, store.snapshot()).is_whole


@pytest.mark.parametrize("options", [{"keep_snapshots": 0}, {"keep": timedelta(-1)},
                                     {"grace": timedelta(-1)}])  # fmt: skip
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InvalidArgumentError, match="was asked for"):
        VacuumConfig(**options)


def test_the_command_line(store, make_firings, capsys):
    fill(store, make_firings)
    path = str(store.root.path)
    assert main(["vacuum", path, "--keep", "0s", "--dry-run"]) == 0
    assert "would delete" in capsys.readouterr().out
    assert main(["vacuum", path, "--keep", "0s", "--keep-snapshots", "2", "--grace", "0s",
                 "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["n_snapshots"] == 3
    assert main(["vacuum", path]) == 0
    for wrong in (["--keep", "x"], ["--keep", "3"]):
        with pytest.raises(SystemExit):
            main(["vacuum", path, *wrong])
    assert main(["vacuum", path, "--keep-snapshots", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def write_late(store, make_firings):
    """Write the files of a shard that is yet to be committed."""
    return write_firings(
        store.root, make_firings(20, seed=9, first_context=900), sae="s", corpus="c", shard=9,
        run="r", bits=10,
    )  # fmt: skip


def test_files_that_a_waiting_commit_names_stay(store, make_firings, monkeypatch):
    """A writer takes a number while a vacuum without a grace has listed its files."""
    from scopelake.store import vacuum as module

    fill(store, make_firings, n=1)
    receipts = write_late(store, make_firings)
    plain = module._delete

    def late(store, files, limit):
        def stop(step):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), Writer(store, on_step=stop) as other:
            other.commit(receipts, transaction="late", reason="late")
        plain(store, files, limit)

    monkeypatch.setattr(module, "_delete", late)
    run(store, **NOW)
    with Writer(store):
        pass
    assert store.read("codes", store.snapshot()).num_rows == 40
    assert verify(store, store.snapshot()).is_whole


def test_a_commit_whose_files_were_taken_holds_up_nobody_and_is_mended(store, make_firings):
    fill(store, make_firings, n=1)
    receipts = write_late(store, make_firings)

    def lose(step):
        if step == "pending":
            (store.root.path / receipts[1].path).unlink()

    with Writer(store, on_step=lose) as writer, pytest.warns(DamageWarning, match="--grace"):
        writer.commit(receipts, transaction="late", reason="late")
    with Writer(store) as writer:  # nobody is held up
        writer.commit([], transaction="next", reason="next")
        found = verify(store, store.snapshot())
        assert [f.path for f in found.broken] == [receipts[1].path]
        assert repair(writer, found).n_files > 0
    assert verify(store, store.snapshot()).broken == ()
    assert store.read("codes", store.snapshot()).num_rows == 40  # postings follow from codes


def test_what_is_committed_after_it_was_listed_stays(store, make_firings, monkeypatch):
    from scopelake.store import vacuum as module

    fill(store, make_firings, n=1)
    ensure_array(store.root, "c", "m", "resid_post", 1, 8, 8, 16, 4)
    receipts = write_late(store, make_firings)
    plain = module._delete

    def late(store, files, limit):
        assert {r.path for r in receipts} <= {entry.path for entry in files}
        with Writer(store) as other:
            other.commit(receipts, transaction="late", reason="late")
        plain(store, files, limit)

    monkeypatch.setattr(module, "_delete", late)
    run(store, **NOW)
    assert store.read("codes", store.snapshot()).num_rows == 40
    assert verify(store, store.snapshot()).is_whole


def test_times_and_numbers_add_up_in_what_is_kept(store, make_firings, capsys):
    fill(store, make_firings, n=3)
    path = str(store.root.path)
    assert main(["vacuum", path, "--keep-snapshots", "2", "--dry-run"]) == 0
    assert "0 snapshots" in capsys.readouterr().out  # all are younger than 30 days
    assert main(["vacuum", path, "--keep", "0s", "--keep-snapshots", "2", "--dry-run"]) == 0
    assert "2 snapshots" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["vacuum", path, "--keep", "99999999999d"])
    assert "longer than any lake is old" in capsys.readouterr().err
    with pytest.raises(SnapshotNotFoundError, match="has 1 to 4; choose"):
        store.snapshot(5)
