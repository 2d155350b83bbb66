"""Damage: every kind is found and named, answers no query, and is mended by ingesting again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import DamagedFileError, InvalidArgumentError
from scopelake.store.layout import TABLES

SAES = [tiny.coders_path() / "resid_post_all/layer_0*", tiny.coders_path() / "mlp_out_all/*"]
QUERIES = {
    "codes": "SELECT sum(hash(codes)) FROM codes",
    "postings": "SELECT sum(hash(postings)) FROM postings",
    "peaks": "SELECT sum(hash(peaks)) FROM peaks",
    "samples": "SELECT sum(hash(samples)) FROM samples",
    "features": "SELECT sum(hash(features)) FROM features",
    "contexts": "SELECT sum(hash(contexts)) FROM contexts",
    "tokens": "SELECT sum(hash(tokens)) FROM tokens",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A lake with two coders and a dense site on 4 shards."""
    root = tmp_path_factory.mktemp("verify")
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    (root / "a.txt").write_text(text[:3000])
    lake = scopelake.create(root / "whole")
    lake.add_corpus("text", root / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64,
                    shard_contexts=4)  # fmt: skip
    ingest(lake)
    lake.add_neighbors([name for name in SAES if "resid_post" in str(name)], k=2)
    return lake


@pytest.fixture
def lake(whole, tmp_path):
    return scopelake.open(shutil.copytree(whole.path, tmp_path / "lake"))


def ingest(lake):
    return lake.ingest("text", model=tiny.MODEL_NAME, saes=SAES, dense=[("resid_post", 0)],
                       device="cpu")  # fmt: skip


def answers(lake):
    found = {name: lake.sql(query) for name, query in QUERIES.items()}
    return found, lake.activations(0)[:].tobytes()


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def data_files(lake, table):
    return sorted((lake.path / "tables" / table).rglob("*.parquet"))


def test_a_whole_lake_is_whole(lake):
    found = lake.verify()
    assert found.is_whole
    assert found.n_files > 20
    assert "is whole" in found.to_text()


@pytest.mark.parametrize(
    "table", [t for t in TABLES if t not in ("labels", "evaluations", "merged", "tallies")]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_found_and_answers_nothing(lake, table, seed):
    rng = np.random.default_rng(seed)
    live = {Path(f.path).name for f in lake._store.data_files(table, lake._snapshot)}
    files = [f for f in data_files(lake, table) if f.name in live]
    damaged = files[int(rng.integers(len(files)))]
    flip(damaged, rng)
    try:
        opened = scopelake.open(lake.path)
    except DamagedFileError as error:
        # The latest snapshot cannot be opened if its own row is damaged.
        assert table == "snapshots"  # noqa: PT017
        assert damaged.name in str(error)  # noqa: PT017
        return
    found = opened.verify()
    (finding,) = found.findings
    assert (finding.problem, finding.table) == ("damaged", table)
    assert bool(found.unchecked) == (table == "files")
    assert finding.path.endswith(damaged.name)
    with pytest.raises(DamagedFileError, match=damaged.name):
        opened.sql(f"SELECT * FROM {table}")


def test_the_verbs_of_the_library_refuse_damage_too(lake):
    feature = lake.sql("SELECT feature FROM peaks WHERE sae LIKE '%resid_post%' LIMIT 1")
    number = feature["feature"][0].as_py()
    rng = np.random.default_rng(0)
    for table in ("peaks", "postings", "codes", "contexts"):
        fresh = scopelake.open(shutil.copytree(lake.path, lake.path.with_name(table)))
        for file in data_files(fresh, table):
            flip(file, rng)
        with pytest.raises(DamagedFileError):
            fresh.features_at(0) if table == "codes" else fresh.top_contexts(
                number, layer=0, site="resid_post"
            )


def test_a_flipped_bit_of_a_dense_shard_is_found(lake):
    rng = np.random.default_rng(1)
    shards = sorted((lake.path / "activations").rglob("c/*/0/0"))
    whole = lake.activations(0)[:].tobytes()
    for shard in shards:
        good = shard.read_bytes()
        flip(shard, rng)
        (finding,) = lake.verify().findings
        assert (finding.table, finding.site, finding.layer) == ("dense", "resid_post", 0)
        assert reads_as(lake) in (None, whole)
        shard.write_bytes(good)


def reads_as(lake):
    """The dense activations, or None if their own checksums refuse them."""
    try:
        return lake.activations(0)[:].tobytes()
    except (ValueError, RuntimeError):
        return None


@pytest.mark.parametrize("table", ["codes", "postings", "peaks", "samples", "features", "dense"])
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_repair_and_an_ingest_bring_back_the_same_lake(lake, whole, table, how):
    before = answers(whole)
    if table == "dense":
        file = sorted((lake.path / "activations").rglob("c/*/0/0"))[1]
    else:
        file = data_files(lake, table)[1]
    if how == "damaged":
        flip(file, np.random.default_rng(3))
    else:
        file.unlink()
    found = lake.verify()
    assert [f.problem for f in found.findings] == [how]
    done = lake.repair(found)
    assert done.beyond == ()
    assert lake.verify().broken == ()
    # A shard goes when its codes are lost; postings follow from codes, peaks from postings.
    again = {"codes": 2, "features": 1, "dense": 1}.get(table, 0)
    assert len(done.ingest_again) == again
    assert bool(done.made_again) == (table in ("codes", "postings", "peaks", "samples"))
    if table in ("postings", "peaks", "samples"):
        assert answers(lake) == before
    assert ingest(lake).n_shards == (1 if table in ("codes", "dense") else 0)
    assert answers(lake) == before
    assert lake.verify().is_whole
    assert ingest(lake).already_complete


def test_what_cannot_be_made_again_is_said_to_be_so(lake):
    (file,) = data_files(lake, "contexts")
    file.unlink()
    done = lake.repair(lake.verify())
    assert [f.table for f in done.beyond] == ["contexts"]
    assert done.n_files == 0
    assert "restore it from a copy" in done.to_text()
    assert not lake.verify().is_whole


def test_files_that_no_snapshot_names_are_listed(lake):
    (lake.path / "tables" / "codes" / "stray.parquet").write_bytes(b"x")
    shard = sorted((lake.path / "activations").rglob("c/*/0/0"))[0]
    stray = shard.parent.parent.parent / "99" / "0" / "0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x")
    found = lake.verify()
    assert [(f.problem, f.table) for f in found.findings] == [
        ("unexpected", "dense"), ("unexpected", "codes"),
    ]  # fmt: skip
    assert found.broken == ()


def test_a_finding_of_an_older_snapshot_is_not_repaired(lake, tmp_path):
    found = lake.verify()
    (tmp_path / "b.txt").write_text("x = 1\n")
    lake.add_corpus("more", tmp_path / "b.txt", tokenizer=tiny.MODEL_NAME)
    with pytest.raises(InvalidArgumentError, match="verify it again"):
        lake.repair(found)


def test_the_command_line(lake, capsys):
    assert main(["verify", str(lake.path)]) == 0
    assert "is whole" in capsys.readouterr().out
    data_files(lake, "codes")[0].unlink()
    assert main(["verify", str(lake.path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["problem"] == "missing"
    assert main(["verify", str(lake.path), "--repair"]) == 1
    assert "ingest again: shard" in capsys.readouterr().out
    assert main(["verify", str(lake.path)]) == 0


def test_shards_of_later_snapshots_are_not_unexpected(lake):
    for number in lake.snapshots()["snapshot"].to_pylist():
        assert scopelake.open(lake.path, snapshot=number).verify().is_whole


def test_what_waits_and_is_no_commit_is_named(lake, capsys):
    junk = lake.path / "pending" / f"{lake.snapshot + 1:012d}.json"
    junk.write_text("junk")
    (finding,) = lake.verify().findings
    assert (finding.problem, finding.path) == ("damaged", f"pending/{junk.name}")
    for words in (["compact", str(lake.path)], ["vacuum", str(lake.path)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert junk.name in error
    junk.unlink()
    assert main(["compact", str(lake.path)]) == 0


def test_a_flipped_bit_of_the_log_is_found_or_changes_nothing(lake, whole):
    """Of every table: its bounds hide rows from readers, who skip files by them."""
    rng = np.random.default_rng(5)
    before, n_found = answers(whole), 0
    for table in ("codes", "postings", "peaks", "features", "contexts"):
        logs = sorted((lake.path / "tables" / table / "_delta_log").glob("*.json"))[1:]
        for _ in range(12):
            log = logs[int(rng.integers(len(logs)))]
            good = log.read_bytes()
            flip(log, rng)
            is_whole = scopelake.open(lake.path).verify().is_whole
            n_found += not is_whole
            if is_whole:
                assert answers(scopelake.open(lake.path)) == before
            log.write_bytes(good)
    assert n_found > 15


@pytest.mark.parametrize("what", [("fill_value", 7), ("shape", [99, 64, 128]), ("node_type", "x")])
def test_metadata_of_an_array_that_is_not_as_written_is_named(lake, what):
    (path,) = (lake.path / "activations").rglob("layer_0/zarr.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | dict([what])))
    (finding,) = lake.verify().findings
    assert finding.path.endswith("layer_0/zarr.json")
    assert "metadata" in finding.detail
