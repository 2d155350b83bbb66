"""Rows of small files, kept in memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scopelake.errors import DamagedFileError
from scopelake.store.folder_root import FolderRoot
from scopelake.store.small_files import SmallFiles


@pytest.fixture
def files(store):
    """Write files of a row each; return (paths, load, list of paths that were loaded)."""
    paths, loaded = [], []
    for index in range(40):
        paths.append(f"{index}.parquet")
        pq.write_table(pa.table({"x": [index]}), f"{store.root.url}/{paths[-1]}")

    def load(wanted):
        loaded.extend(wanted)
        return [pq.read_table(f"{store.root.url}/{path}") for path in wanted]

    return paths, load, loaded


def test_rows_come_in_order_and_are_read_once(store, files):
    paths, load, loaded = files
    kept = SmallFiles()
    for n in (1, 3, 40, 3):
        rows = kept.rows(store.root, paths[:n], load)
        assert rows["x"].to_pylist() == list(range(n))
    assert loaded == paths


def test_lists_that_grow_are_not_all_kept(store, files):
    paths, load, _ = files
    kept = SmallFiles()
    for n in range(1, 41):  # as after each commit
        rows = kept.rows(store.root, paths[:n], load)
    assert rows["x"].to_pylist() == list(range(40))
    # The files and the last list, at 8 bytes a row and some bits; all lists have 819 rows.
    assert 8 * (40 + 40) <= kept.n_bytes < 8 * 100


def test_lists_of_other_files_stay(store, files):
    paths, load, _ = files
    kept = SmallFiles()
    some = [paths[at : at + 3] for at in range(12)]
    first = [kept.rows(store.root, one, load) for one in some]
    again = [kept.rows(store.root, one, load) for one in some]
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_no_more_bytes_are_kept_than_were_asked_for(store, files):
    paths, load, loaded = files
    most = 10 * load(paths[:1])[0].nbytes
    loaded.clear()
    kept = SmallFiles(most)
    for _ in range(2):
        assert kept.rows(store.root, paths, load)["x"].to_pylist() == list(range(40))
        assert kept.n_bytes <= most
    # Ten of them were still there, and all together were too much to keep.
    assert len(loaded) == 70


def test_a_file_that_is_gone_is_said(store, files):
    paths, load, _ = files
    with pytest.raises(DamagedFileError, match=r"gone\.parquet"):
        SmallFiles().rows(store.root, [paths[0], "gone.parquet"], load)


def test_small_files_are_bounded_and_loaded_once(tmp_path):
    root, loads = FolderRoot(tmp_path), []
    for name in "abc":
        (tmp_path / name).write_text(name)

    def load(paths):
        loads.extend(paths)
        return [pa.table({"x": [path] * 100}) for path in paths]

    one = pa.table({"x": ["a"] * 100}).nbytes
    kept = SmallFiles(most=5 * one)
    for _ in range(3):
        assert kept.rows(root, ["a", "b"], load)["x"].to_pylist() == ["a"] * 100 + ["b"] * 100
    assert loads == ["a", "b"]
    assert kept.rows(root, ["b", "a", "c"], load)["x"].to_pylist()[0] == "b"
    assert loads == ["a", "b", "c"]
    assert kept.n_bytes == sum(table.nbytes for table in kept._kept.values()) <= 5 * one
