"""Checkpoints of Delta logs: they come by themselves, are checked, and the lake can do without."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scopelake.cli import main
from scopelake.errors import ScopelakeError
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import TABLES
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify_at
from scopelake.store.writer import write_firings

N_SHARDS = 23


def add_shards(store, make_firings, shards):
    with Writer(store) as writer:
        for shard in shards:
            firings = make_firings(20, seed=shard, first_context=100 * shard)
            receipts = write_firings(
                store.root, firings, sae="s", corpus="c", shard=shard, run="r", bits=10
            )
            writer.commit(receipts, transaction=f"t{shard}", reason="x")


@pytest.fixture(scope="module")
def filled(tmp_path_factory, make_firings):
    """A lake of which every table of firings has two checkpoints."""
    store = LakeStore.create(tmp_path_factory.mktemp("checkpoints") / "lake")
    add_shards(store, make_firings, range(N_SHARDS))
    return store


@pytest.fixture
def store(filled, tmp_path):
    return LakeStore.open(shutil.copytree(filled.root.path, tmp_path / "lake"))


def contents(store):
    opened = LakeStore.open(store.root.path)
    return {t: opened.read(t, opened.snapshot()).to_pylist() for t in TABLES}


def log(store, table):
    return store.root.path / "tables" / table / "_delta_log"


def newest(store, table):
    return sorted(log(store, table).glob("*.checkpoint.parquet"))[-1]


def findings(store):
    return verify_at(LakeStore.open(store.root.path)).findings


@pytest.mark.parametrize("table", ["codes", "postings", "files", "snapshots"])
def test_a_log_has_a_checkpoint_every_ten_versions(store, table):
    numbers = [int(p.name[:20]) for p in sorted(log(store, table).glob("*.checkpoint.parquet"))]
    assert len(numbers) == 2
    assert numbers[1] - numbers[0] == 10
    assert json.loads((log(store, table) / "_last_checkpoint").read_text())["version"] == numbers[1]
    assert not findings(store)


def test_a_flipped_bit_of_a_checkpoint_is_named_or_changes_nothing(store):
    rng, before, n_found = np.random.default_rng(3), contents(store), 0
    for table in ("codes", "postings", "files", "snapshots"):
        path = newest(store, table)
        good = path.read_bytes()
        for _ in range(12):
            data = bytearray(good)
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            found = findings(store)
            if found:
                assert path.name in {f.path.rpartition("/")[2] for f in found}
                n_found += 1
            else:
                assert contents(store) == before
        path.write_bytes(good)
    assert n_found > 10


def drop_a_file(path):
    """A checkpoint that is whole as Parquet, and one file short."""
    table = pq.read_table(path)
    has_add = table["add"].combine_chunks().is_valid().to_pylist()
    first = has_add.index(True)
    pq.write_table(table.filter([i != first for i in range(len(table))]), path)


def drop_a_transaction(path):
    table = pq.read_table(path)
    pq.write_table(table.filter(table["txn"].combine_chunks().is_null()), path)


def repeat_a_file(path):
    table = pq.read_table(path)
    first = table["add"].combine_chunks().is_valid().to_pylist().index(True)
    pq.write_table(pa.concat_tables([table, table.slice(first, 1)]), path)


def overwrite(path):
    path.write_bytes(b"no checkpoint")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("table", ["codes", "files", "snapshots"])
@pytest.mark.parametrize("how", [drop_a_file, drop_a_transaction, repeat_a_file, overwrite, remove])
def test_a_wrong_checkpoint_is_named_and_a_repair_does_without(store, table, how, capsys):
    before, path = contents(store), newest(store, table)
    how(path)
    lake = str(store.root.path)
    assert main(["verify", lake]) == 1
    named = capsys.readouterr().out
    assert ("_last_checkpoint: names" if how is remove else f"{path.name}: ") in named
    assert main(["verify", lake, "--repair"]) == 1
    assert "verify again" in capsys.readouterr().out
    assert main(["verify", lake]) == 0
    assert contents(store) == before


def test_an_older_checkpoint_is_mended_too(store, capsys):
    lake, path = str(store.root.path), sorted(log(store, "codes").glob("*.checkpoint.parquet"))[0]
    overwrite(path)
    assert main(["verify", lake]) == 0
    assert main(["verify", lake, "--all-snapshots"]) == 1
    assert main(["verify", lake, "--repair"]) == 0
    assert path.name in capsys.readouterr().out
    assert main(["verify", lake, "--all-snapshots"]) == 0


def test_a_vacuum_leaves_the_newest_two(store, make_firings):
    add_shards(store, make_firings, range(N_SHARDS, N_SHARDS + 20))
    before = contents(store)
    numbers = sorted(p.name for p in log(store, "codes").glob("*.checkpoint.parquet"))
    assert len(numbers) == 4
    with Writer(store) as writer:
        vacuum(writer, VacuumConfig(keep=timedelta(days=9), grace=timedelta(0)))
    left = sorted(p.name for p in log(store, "codes").glob("*.checkpoint.parquet"))
    assert left == numbers[-2:]
    assert contents(store) == before
    assert not verify_at(LakeStore.open(store.root.path), all_snapshots=True).findings


def test_writers_go_on_after_a_repair(store, make_firings, capsys):
    for table in ("postings", "snapshots"):
        overwrite(newest(store, table))
    with pytest.raises(ScopelakeError), Writer(LakeStore.open(store.root.path)):
        pass
    main(["verify", str(store.root.path), "--repair"])
    capsys.readouterr()
    store = LakeStore.open(store.root.path)
    add_shards(store, make_firings, range(N_SHARDS, N_SHARDS + 10))
    with Writer(store) as writer:
        # An earlier commit by its name is still known, though the checkpoint is another.
        n = store.snapshot().id
        assert writer.commit([], transaction="t3", reason="x").id == n
    assert not findings(store)
    assert int(newest(store, "postings").name[:20]) > N_SHARDS
