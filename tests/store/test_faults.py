"""What file systems do to a lake: full disks, read-only folders, files that vanish."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scopelake.cli import main
from scopelake.errors import DamagedFileError, LakeError
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"mounting a tmpfs needs root and was refused: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def firings_of(shard: int, n: int = 20_000) -> Firings:
    rng = np.random.default_rng(shard)
    return Firings(
        np.arange(n) + shard * n, np.ones(n, np.int32), rng.integers(0, 999, n).astype(np.int32),
        rng.random(n).astype(np.float32) + 1, np.zeros(n, np.int8),
    )  # fmt: skip


def put(store: LakeStore, shard: int) -> None:
    with Writer(store) as writer:
        receipts = write_firings(
            store.root, firings_of(shard), sae="s", corpus="c", shard=shard, run="r", bits=23
        )
        writer.commit(receipts, transaction=f"{shard} {os.urandom(4).hex()}", reason="shard")


def contexts_of(store: LakeStore) -> list[int]:
    return sorted(store.read("codes", store.snapshot(), ["context"])["context"].to_pylist())


def put_until_full(store: LakeStore) -> int:
    """Return the number of the shard for which there was no room."""
    for shard in range(50):
        try:
            put(store, shard)
        except (OSError, LakeError) as error:
            assert "space" in str(error).lower()  # noqa: PT017
            return shard
    raise AssertionError("the disk is never full")


def test_a_full_disk_loses_nothing_and_the_lake_goes_on_with_room(small_disk):
    store = LakeStore.create(small_disk / "lake")
    done = put_until_full(store)
    assert done > 1
    kept = [n for shard in range(done) for n in firings_of(shard).context.tolist()]
    assert contexts_of(LakeStore.open(small_disk / "lake")) == kept
    assert not list((small_disk / "lake").rglob("rows.parquet"))
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    put(store, done)
    assert contexts_of(store) == kept + firings_of(done).context.tolist()
    assert verify(store, store.snapshot()).broken == ()


@pytest.mark.parametrize("kilobytes", range(1, 120, 9))
def test_a_disk_that_is_full_in_the_middle_of_a_commit(small_disk, kilobytes):
    """Files, log, any table's commit or the snapshot: the commit is whole, later, or not there."""
    store = LakeStore.create(small_disk / "lake")
    put(store, 0)
    with Writer(store) as writer:
        receipts = write_firings(
            store.root, firings_of(1), sae="s", corpus="c", shard=1, run="r", bits=23
        )
        free = os.statvfs(small_disk)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * max(free.f_bavail * free.f_frsize - 1024 * kilobytes, 0))
        try:
            writer.commit(receipts, transaction="second", reason="second")
        except (OSError, LakeError) as error:
            assert "space" in str(error).lower() or "write" in str(error).lower()  # noqa: PT017
        first, second = firings_of(0).context.tolist(), firings_of(1).context.tolist()
        assert contexts_of(store) in (first, first + second)
        ballast.unlink()
    put(store, 2)
    third = firings_of(2).context.tolist()
    assert contexts_of(store) in (first + third, first + second + third)
    assert verify(store, store.snapshot()).broken == ()
    put(store, 1)  # if it was not there it is now, and once
    assert contexts_of(store) == first + second + third


def test_a_read_only_lake_is_read_and_every_write_is_one_line(small_disk, capsys):
    store = LakeStore.create(small_disk / "lake")
    put(store, 0)
    path = str(small_disk / "lake")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert contexts_of(LakeStore.open(path)) == firings_of(0).context.tolist()
    assert main(["verify", path]) == 0
    assert main(["sql", path, "SELECT count(*) AS n FROM codes"]) == 0
    capsys.readouterr()
    (small_disk.parent / "a.txt").write_text("x = 1\n")
    corpus = ["add-corpus", path, "new", str(small_disk.parent / "a.txt"), "--tokenizer",
              "scopelake/gemma-3-tiny"]  # fmt: skip
    for words in (corpus, ["create", f"{small_disk}/other"], ["vacuum", path, "--keep", "0s"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "ead-only" in error
    assert contexts_of(LakeStore.open(path)) == firings_of(0).context.tolist()


@pytest.mark.parametrize("table", ["codes", "postings", "files"])
def test_a_file_that_vanishes_is_named(store, table):
    put(store, 0)
    put(store, 1)
    before = store.snapshot()
    gone = [f.path for f in store.data_files(table, before)]
    (store.root.path / gone[0]).unlink()
    with pytest.raises(DamagedFileError, match="not there"):
        store.read(table, before)
    if table != "files":
        (finding,) = verify(store, before).findings
        assert (finding.problem, finding.path) == ("missing", gone[0])


def test_a_file_that_vanishes_before_its_commit_is_refused(store):
    put(store, 0)
    with Writer(store) as writer:
        receipts = write_firings(
            store.root, firings_of(1), sae="s", corpus="c", shard=1, run="r", bits=23
        )
        (store.root.path / receipts[1].path).unlink()
        with pytest.raises(LakeError, match="found no file"):
            writer.commit(receipts, transaction="x", reason="x")
    assert contexts_of(store) == firings_of(0).context.tolist()
    put(store, 1)
    assert verify(store, store.snapshot()).broken == ()


def test_a_file_that_vanishes_under_a_compaction_leaves_the_lake_as_it_was(store):
    for shard in range(3):
        put(store, shard)
    lost = store.data_files("postings", store.snapshot())[1].path
    (store.root.path / lost).rename(store.root.path / "elsewhere")
    before = store.snapshot().id
    with Writer(store) as writer, pytest.raises(DamagedFileError, match="not there"):
        compact(writer)
    assert store.snapshot().id == before
    (store.root.path / "elsewhere").rename(store.root.path / lost)
    with Writer(store) as writer:
        assert compact(writer).n_parts == 4
    assert verify(store, store.snapshot()).is_whole
