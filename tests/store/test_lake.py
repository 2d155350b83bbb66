"""Making, opening and reading a lake; snapshots; the one writer."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from scopelake.errors import (
    DamagedFileError,
    FormatVersionError,
    InvalidArgumentError,
    LakeError,
    LakeExistsError,
    LakeNotFoundError,
    NotALakeError,
    SnapshotNotFoundError,
)
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import TABLES
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_firings


def run_rows(state: str, run: str = "r1") -> pa.Table:
    row = {
        "run": run,
        "state": state,
        "saes": ["a", "b"],
        "started_at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["runs"])


def test_a_new_lake_is_empty_and_at_snapshot_1(store):
    snapshot = LakeStore.open(store.root.path).snapshot()
    assert (snapshot.id, snapshot.reason, snapshot.run) == (1, "create", None)
    assert set(snapshot.versions) == set(TABLES)
    for table in TABLES:
        found = store.read(table, snapshot)
        assert found.schema == SCHEMAS[table]
        assert found.num_rows == (table == "snapshots")
        assert len(store.data_files(table, snapshot)) == (table == "snapshots")


def test_paths_that_are_not_lakes(tmp_path, store):
    with pytest.raises(LakeNotFoundError):
        LakeStore.open(tmp_path / "nothing")
    with pytest.raises(NotALakeError):
        LakeStore.open(tmp_path)
    with pytest.raises(LakeExistsError, match="a lake"):
        LakeStore.create(store.root.path)
    with pytest.raises(LakeExistsError, match="something"):
        LakeStore.create(tmp_path)
    marker = store.root.path / "lake.json"
    values = json.loads(marker.read_text())
    marker.write_text(json.dumps(values | {"format_version": 5}))
    with pytest.raises(FormatVersionError, match="3.*newer scopelake"):
        LakeStore.open(store.root.path)
    marker.write_text("{")
    with pytest.raises(DamagedFileError, match=r"lake\.json is damaged"):
        LakeStore.open(store.root.path)


@pytest.mark.parametrize("name", ["a b", "é", "a#b?c", "a=b&c"])
def test_a_path_may_hold_odd_characters(tmp_path, name):
    store = LakeStore.create(tmp_path / name)
    assert LakeStore.open(tmp_path / name).snapshots().num_rows == 1
    assert store.read("codes", store.snapshot()).num_rows == 0


def test_a_path_with_a_percent_sign_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="without"):
        LakeStore.create(tmp_path / "a%20b")
    assert list(tmp_path.iterdir()) == []


def test_snapshots_keep_what_they_named(store):
    with Writer(store) as writer:
        first = writer.commit([], transaction="a", reason="one", rows={"runs": run_rows("running")})
        second = writer.commit(
            [],
            transaction="b",
            reason="two",
            run="r1",
            rows={"runs": run_rows("complete")},
            replace={"runs": ("run",)},
        )
        writer.commit([], transaction="c", reason="x", rows={"runs": run_rows("running", "r2")})
    assert (first.id, second.id) == (2, 3)
    assert store.read("runs", first).equals(run_rows("running"))
    assert store.read("runs", second).equals(run_rows("complete"))
    assert store.read("runs", store.snapshot()).num_rows == 2
    assert store.snapshot(2) == first
    assert store.snapshots()["snapshot"].to_pylist() == [1, 2, 3, 4]
    assert sorted(store.read("snapshots", second)["snapshot"].to_pylist()) == [1, 2, 3]
    for wrong in (0, 5, -1):
        with pytest.raises(SnapshotNotFoundError, match="1 to 4"):
            store.snapshot(wrong)


def test_a_commit_is_done_once(store, make_firings):
    with Writer(store) as writer:
        for _ in range(2):
            receipts = write_firings(
                store.root, make_firings(63), sae="s", corpus="c", shard=0, run="r", bits=10
            )
            snapshot = writer.commit(receipts, transaction="r:0", reason="x")
    assert snapshot.id == 2
    assert store.read("codes", snapshot).num_rows == 63
    assert store.read("files", snapshot).num_rows == 4


def test_commits_that_cannot_be_are_refused(store, make_firings):
    receipts = write_firings(
        store.root, make_firings(3), sae="s", corpus="c", shard=0, run="r", bits=10
    )
    with Writer(store) as writer:
        for rows in ({"codes": pa.table({})}, {"files": pa.table({})}, {"unknown": pa.table({})}):
            with pytest.raises(InvalidArgumentError, match="rows for table"):
                writer.commit(receipts, transaction="a", reason="x", rows=rows)
        with pytest.raises(InvalidArgumentError, match="give exactly these"):
            writer.commit([], transaction="a", reason="x", rows={"runs": pa.table({"run": ["r"]})})
        (store.root.path / receipts[1].path).unlink()
        with pytest.raises(LakeError, match="no file"):
            writer.commit(receipts, transaction="a", reason="x")
    assert store.snapshot().id == 1
    assert list((store.root.path / "pending").iterdir()) == []


def test_reads_that_cannot_be_are_refused(store):
    snapshot = store.snapshot()
    with pytest.raises(InvalidArgumentError, match="table 'nope'"):
        store.read("nope", snapshot)
    with pytest.raises(InvalidArgumentError, match="'nope'"):
        store.read("codes", snapshot, columns=["nope"])
    with pytest.raises(InvalidArgumentError, match="partitioned by"):
        store.data_files("contexts", snapshot, sae="s")


def test_tables_are_read_without_a_python_file_system(store, monkeypatch):
    def refuse(*_):
        # Arrow's threads would drop it while the interpreter exits, and abort the process.
        raise AssertionError("a Python file system was made")

    monkeypatch.setattr("pyarrow.fs.PyFileSystem", refuse)
    snapshot = store.snapshot()
    assert store.snapshots().num_rows == 1
    assert store.read("codes", snapshot).num_rows == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "missing"),
        ("", "not that of a lake"),
        ('{"format": "scopela', "not that of a lake"),
        ('["scopelake"]', "not that of a lake"),
        ('{"format": "scopelake"}', "format_version is none"),
        ('{"format": "scopelake", "format_version": "2"}', "format_version is '2'"),
        ('{"format": "scopelake", "format_version": 2.0}', r"format_version is 2\.0"),
        ('{"format": "scopelake", "format_version": true}', "format_version is True"),
        ('{"format": "scopelake", "format_version": 0}', "format_version is 0"),
    ],
)
def test_a_damaged_lake_file_is_said_to_be_so(store, text, said):
    marker = store.root.path / "lake.json"
    whole = marker.read_text()
    marker.unlink()
    if text is not None:
        marker.write_text(text)
    with pytest.raises(DamagedFileError, match=said) as error:
        LakeStore.open(store.root.path)
    assert "check the path" not in str(error.value)
    # What the message tells to write is a lake again.
    told = str(error.value).split("write it anew: ")[1].split(" (docs")[0]
    marker.write_text(told)
    assert LakeStore.open(store.root.path).snapshot() == store.snapshot()
    assert set(json.loads(told)) == set(json.loads(whole))


def test_errors_of_delta_carry_no_backtrace(store):
    log = store.root.path / "tables" / "runs" / "_delta_log" / f"{0:020d}.json"
    log.write_text("{")
    code = (
        "import sys; from scopelake.store import delta; from scopelake.store.root import root_at\n"
        "try: delta.open_table(root_at(sys.argv[1]), 'runs')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root.path)],
        env=os.environ | {"RUST_BACKTRACE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cannot be read (Kernel error: Json error: Truncated" in done.stdout
    assert "unknown" not in done.stdout
    assert "0: " not in done.stdout
    assert done.stdout.count("\n") == 1
