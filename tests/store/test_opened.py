"""Logs that are kept in memory say what the logs on disk say, whoever writes meanwhile."""

import pickle
import shutil

import pyarrow as pa
import pytest

from scopelake.errors import DamagedFileError, LakeError
from scopelake.store import delta, opened
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_firings


def add(store, name, **options):
    rows = pa.Table.from_pylist([{"corpus": name}], schema=SCHEMAS["corpora"])
    with Writer(store) as writer:
        return writer.commit([], transaction=name, reason=name, rows={"corpora": rows}, **options)


def corpora(store, snapshot):
    return sorted(store.read("corpora", snapshot, ["corpus"])["corpus"].to_pylist())


def test_another_writers_snapshots_are_seen_at_once(store):
    other = LakeStore.open(store.root.path)
    names = []
    for i in range(12):  # past a checkpoint, and past the versions that are kept
        names.append(f"c{i:02}")
        made = add((store, other)[i % 2], names[-1])
        for reader in (store, other, LakeStore.open(store.root.path)):
            assert reader.snapshot() == made
            assert corpora(reader, made) == names
    for back in range(1, 12):
        assert corpora(store, store.snapshot(made.id - back)) == names[: 12 - back]
    assert corpora(store, made) == names


def test_one_far_behind_comes_to_the_newest(store):
    other = LakeStore.open(store.root.path)
    assert corpora(other, other.snapshot()) == []
    for i in range(25):
        made = add(store, f"c{i}")
    assert other.snapshot() == made
    assert len(corpora(other, other.snapshot())) == 25
    add(other, "last")
    assert len(corpora(store, store.snapshot())) == 26


def test_what_is_unchanged_is_opened_once(store, make_firings, monkeypatch):
    receipts = write_firings(store.root, make_firings(50), sae="s", corpus="c", shard=0, run="r",
                             bits=10)  # fmt: skip
    with Writer(store) as writer:
        snapshot = writer.commit(receipts, transaction="t", reason="x")
    expected = LakeStore.open(store.root.path).data_files("codes", snapshot)
    monkeypatch.setattr(delta, "open_table", None)
    # What the writer had open is known without opening it again.
    assert store.data_files("codes", snapshot) == expected
    assert store.snapshot() == snapshot
    assert store.read("files", snapshot).num_rows == 4


def test_a_lake_that_was_put_in_its_place_is_read_anew(store, tmp_path):
    add(store, "old")
    assert corpora(store, store.snapshot()) == ["old"]
    other = LakeStore.create(tmp_path / "other")
    add(other, "new")
    shutil.rmtree(store.root.path)
    shutil.copytree(tmp_path / "other", store.root.path)
    assert corpora(store, store.snapshot()) == ["new"]
    add(store, "newer")
    assert corpora(store, store.snapshot()) == ["new", "newer"]
    assert corpora(LakeStore.open(store.root.path), store.snapshot()) == ["new", "newer"]


def test_a_lake_that_is_gone_is_not_answered_from_memory(store):
    add(store, "old")
    snapshot = store.snapshot()
    assert corpora(store, snapshot) == ["old"]
    shutil.rmtree(store.root.path)
    with pytest.raises(LakeError):
        store.snapshot()
    with pytest.raises(LakeError):
        store.read("corpora", snapshot)


def test_of_a_large_table_one_version_is_kept(store, make_firings, monkeypatch):
    monkeypatch.setattr(opened, "_FEW_FILES", 1)
    snapshots = []
    for shard in range(3):
        receipts = write_firings(store.root, make_firings(50, seed=shard), sae="s", corpus="c",
                                 shard=shard, run="r", bits=10)  # fmt: skip
        with Writer(store) as writer:
            snapshots.append(writer.commit(receipts, transaction=f"{shard}", reason="x"))
    for snapshot in (*snapshots, *reversed(snapshots)):
        assert len(store.data_files("codes", snapshot)) == snapshots.index(snapshot) + 1
    assert len(store._opened._kept["codes"]) == 1
    assert "codes" not in store._opened._idle


def test_another_process_reads_for_itself(store):
    add(store, "c")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again._opened._kept == {}
    assert corpora(again, again.snapshot()) == ["c"]


def test_a_catalogue_file_that_changes_is_read_again(store):
    add(store, "c")
    snapshot = store.snapshot()
    assert corpora(store, snapshot) == ["c"]
    (path,) = [file.path for file in store.data_files("corpora", snapshot)]
    full = store.root.path / path
    data = bytearray(full.read_bytes())
    data[len(data) // 2] ^= 1
    full.write_bytes(data)
    with pytest.raises(DamagedFileError, match="checksum"):
        store.read("corpora", snapshot)
    full.unlink()
    with pytest.raises(DamagedFileError, match="not there"):
        store.read("corpora", snapshot)
