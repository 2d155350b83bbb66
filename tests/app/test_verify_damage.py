"""What verify says of a damaged catalogue, of strays and of all snapshots."""

import json
import shutil
import uuid

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import DamagedFileError, InvalidArgumentError
from scopelake.store.layout import TABLES, new_data_name

SAES = [tiny.coders_path() / "resid_post_all/layer_0*"]
CATALOGUE = ("saes", "models", "corpora", "runs", "files", "merged", "snapshots")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A lake with a coder and a dense site on 3 shards."""
    root = tmp_path_factory.mktemp("damage")
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    (root / "a.txt").write_text(text[:2000])
    lake = scopelake.create(root / "whole")
    lake.add_corpus("text", root / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64,
                    shard_contexts=4)  # fmt: skip
    ingest(lake)
    return lake


@pytest.fixture
def lake(whole, tmp_path):
    return scopelake.open(shutil.copytree(whole.path, tmp_path / "lake"))


def ingest(lake):
    return lake.ingest("text", model=tiny.MODEL_NAME, saes=SAES, dense=[("resid_post", 0)],
                       device="cpu")  # fmt: skip


def live(lake, table):
    return [lake.path / f.path for f in lake._store.data_files(table, lake._store.snapshot())]


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def log_of(lake, table):
    return sorted((lake.path / "tables" / table / "_delta_log").glob("*.json"))


def told(capsys, *words):
    """Exit status and lines of the command line's verify."""
    status = main(["verify", *map(str, words)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out.splitlines(), printed.err


def test_left_over_files_are_shown_and_harmless(lake, capsys):
    partition = data_folder = live(lake, "codes")[0].parent
    left = [
        partition / new_data_name(f"xxh3:{'0' * 32}"),
        lake.path / "tables/runs" / new_data_name(f"xxh3:{'1' * 32}"),
        lake.path / "pending" / f"scratch-{uuid.uuid4().hex}" / "codes.parquet",
        lake.path / "pending" / f"{uuid.uuid4().hex}.tmp",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = lake.verify()
    assert found.is_whole
    assert {lake.path / f.path for f in found.left_over} == set(left)
    assert {f.problem for f in found.left_over} == {"left over"}
    status, lines, _ = told(capsys, lake.path)
    assert status == 0
    assert [line.startswith("left over: ") for line in lines] == [True] * 4 + [False] * 2
    assert "scopelake vacuum" in lines[4]
    assert lines[5].endswith("; 4 left over")
    status, lines, _ = told(capsys, lake.path, "--json")
    values = json.loads(lines[0])
    assert (status, values["is_whole"], len(values["left_over"])) == (0, True, 4)
    # Another name, or the right name in a wrong place, is nobody's.
    odd = [
        data_folder / "copy.parquet",
        lake.path / "tables" / "codes" / left[0].name,
        lake.path / "tables" / "mine" / left[0].name,
        lake.path / "pending" / "notes.txt",
        lake.path / "activations" / "notes.txt",
    ]
    for path in odd:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = lake.verify()
    assert {lake.path / f.path for f in found.findings} == set(odd)
    assert {f.problem for f in found.findings} == {"unexpected"}
    assert told(capsys, lake.path)[0] == 1


def test_a_dense_shard_that_a_repair_took_out_is_left_over(lake):
    shard = sorted((lake.path / "activations").rglob("c/*/0/0"))[1]
    damage(shard)
    found = lake.verify()
    done = lake.repair(found)
    assert found.to_text().splitlines()[-1].startswith(f"snapshot {found.snapshot}: 1 damaged; ")
    assert done.to_text().splitlines()[-1].startswith("1 file taken out (snapshot ")
    found = lake.verify()
    assert found.is_whole
    assert [lake.path / f.path for f in found.left_over] == [shard]
    ingest(lake)
    assert lake.verify().left_over == ()


@pytest.mark.parametrize("how", ["damaged", "missing"])
@pytest.mark.parametrize("table", [t for t in CATALOGUE if t != "merged"])
def test_a_file_of_the_catalogue_is_a_finding_and_the_rest_is_checked(lake, table, how, capsys):
    codes = live(lake, "codes")[0]
    damage(codes)
    file = live(lake, table)[-1]
    if how == "damaged":
        damage(file)
    else:
        file.unlink()
    status, lines, _ = told(capsys, lake.path)
    assert status == 1
    assert any(line.startswith(how) and file.name in line for line in lines)
    assert any(line.startswith("damaged") and codes.name in line for line in lines)
    unchecked = [line for line in lines if line.startswith("could not be checked: ")]
    assert len(unchecked) == (table == "files")
    assert "is whole" not in lines[-1]


def test_the_latest_snapshot_that_cannot_be_read(lake, capsys):
    """Neither default nor all snapshots present what they read as the whole."""
    codes = live(lake, "codes")[0]
    n_files = lake.verify().n_files
    file = next(f for f in live(lake, "snapshots") if is_last(lake, f))
    damage(file)
    damage(codes)
    with pytest.raises(DamagedFileError):
        scopelake.open(lake.path)
    for words in ([], ["--all-snapshots"]):
        status, lines, _ = told(capsys, lake.path, *words)
        assert status == 1
        assert any(file.name in line for line in lines)
        assert any(codes.name in line for line in lines)
        assert any("newest version of each table" in line for line in lines)
        assert scopelake.verify(lake.path, all_snapshots=bool(words)).n_files >= n_files
    status, lines, _ = told(capsys, lake.path, "--repair")
    assert status == 1
    assert lines[-1].startswith("nothing was mended (1 file might be): ")
    assert any(line.startswith("beyond repair, ") and file.name in line for line in lines)


def is_last(lake, file):
    """Whether a file of the snapshots table has the latest row."""
    import pyarrow.parquet as pq

    return lake.snapshot in pq.read_table(file)["snapshot"].to_pylist()


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "missing", "folder"])
@pytest.mark.parametrize("table", ["codes", "contexts", *CATALOGUE])
def test_damage_of_a_delta_log_is_named(lake, table, how, capsys):
    codes, log = live(lake, "codes")[0], log_of(lake, table)[-1]
    if how == "missing" and table == "snapshots":
        log = log_of(lake, table)[1]  # without its last entry the lake is as it was before
    if how == "folder" or (how == "missing" and table == "merged"):  # which has one entry
        shutil.rmtree(lake.path / "tables" / table)
        log = lake.path / "tables" / table
    elif how == "missing":
        log.unlink()
    else:
        text = log.read_text()
        odd = {"truncated": text[:-9], "empty": "", "flipped": text.replace('"', "&", 1)}
        log.write_text(odd[how])
    if codes.exists():
        damage(codes)
    status, lines, _ = told(capsys, lake.path)
    problem = "missing" if how in ("missing", "folder") else "damaged"
    name = log.relative_to(lake.path).as_posix()
    assert status == 1
    assert any(line.startswith(f"{problem}: {name}:") or line == f"{problem}: {name}"
               for line in lines), lines  # fmt: skip
    assert any(codes.name in line for line in lines)
    assert len([line for line in lines if line.startswith("could not be checked: ")]) == 1
    status, lines, _ = told(capsys, lake.path, "--repair")
    assert status == 1
    assert any(line.startswith("beyond repair") and name in line for line in lines)
    is_stopped = table in ("codes", "files", "merged", "snapshots")
    assert lines[-1].startswith("nothing was mended") == is_stopped


@pytest.mark.parametrize("table", ["runs", "saes", "models", "corpora"])
def test_a_repair_mends_beside_a_damaged_catalogue(lake, table, capsys):
    file = live(lake, table)[-1]
    good = file.read_bytes()
    damage(file)
    damage(live(lake, "peaks")[0])
    status, lines, _ = told(capsys, lake.path, "--repair")
    assert status == 1
    assert any(line.startswith("made again: peaks") for line in lines)
    assert any(line.startswith("beyond repair, restore it from a copy: damaged") and
               file.name in line for line in lines)  # fmt: skip
    file.write_bytes(good)
    assert scopelake.open(lake.path).verify().is_whole


@pytest.mark.parametrize("table", ["files", "merged"])
def test_a_repair_without_what_it_needs_changes_nothing(lake, table, capsys):
    peaks = live(lake, "peaks")[0]
    damage(peaks)
    file = live(lake, table)[0] if table == "files" else log_of(lake, table)[-1]
    good = file.read_bytes()
    file.write_bytes(good[:-5])
    status, lines, _ = told(capsys, lake.path, "--repair")
    assert (status, lines[-1].startswith("nothing was mended (1 file might be)")) == (1, True)
    file.write_bytes(good)
    assert scopelake.open(lake.path).snapshot == lake.snapshot
    assert told(capsys, lake.path, "--repair")[1][-1].startswith("6 files taken out")


def test_all_snapshots_reads_what_any_of_them_names(lake, capsys):
    first = lake.snapshot
    lake.compact()
    retired = next(lake.path / f.path
                   for f in lake._store.data_files("codes", lake._store.snapshot(first))
                   if f not in lake._store.data_files("codes", lake._store.snapshot()))  # fmt: skip
    everything = lake.verify(all_snapshots=True)
    assert everything.is_whole
    assert everything.n_files > lake.verify().n_files
    assert f"{lake.snapshot} snapshots up to {lake.snapshot} are whole" in str(everything)
    damage(retired)
    assert told(capsys, lake.path)[0] == 0
    status, lines, _ = told(capsys, lake.path, "--all-snapshots")
    (line,) = [line for line in lines if retired.name in line]
    (finding,) = lake.verify(all_snapshots=True).findings
    first_needs, last_needs = finding.snapshots
    assert (status, last_needs < lake.snapshot) == (1, True)
    assert line.endswith(f"; needed by snapshots {first_needs} to {last_needs}")
    for number in range(1, lake.snapshot + 1):
        at = scopelake.open(lake.path, snapshot=number).verify()
        assert at.is_whole != (first_needs <= number <= last_needs)


def test_all_snapshots_after_a_vacuum_are_whole(lake):
    lake.compact()
    lake.vacuum(None, keep_snapshots=2)
    assert lake.verify(all_snapshots=True).is_whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--snapshot", "2", "--repair"], "--repair and --snapshot 2 "),
        (["--all-snapshots", "--repair"], "--repair and --all-snapshots "),
        (["--all-snapshots", "--snapshot", "2"], "--all-snapshots and --snapshot 2 "),
    ],
)
def test_what_cannot_be_asked_together_is_refused_at_once(tmp_path, words, said, capsys):
    # Before anything is read: there is no lake.
    status, lines, error = told(capsys, tmp_path / "nothing", *words)
    assert (status, lines, error.count("\n")) == (2, [], 1)
    assert said in error


def test_findings_of_all_snapshots_are_not_repaired(lake):
    with pytest.raises(InvalidArgumentError, match="all snapshots"):
        lake.repair(lake.verify(all_snapshots=True))
    with pytest.raises(InvalidArgumentError, match="open the lake without a snapshot"):
        scopelake.open(lake.path, snapshot=2).verify(all_snapshots=True)


def test_every_table_without_a_log_is_one_report(lake):
    for table in TABLES:
        shutil.rmtree(lake.path / "tables" / table / "_delta_log")
    found = scopelake.verify(lake.path)
    assert len([f for f in found.findings if f.problem == "missing"]) == len(TABLES)
    assert not found.is_whole
    assert np.isfinite(found.seconds)


def test_what_is_committed_meanwhile_is_not_left_over(lake, tmp_path):
    (tmp_path / "b.txt").write_text("x = 1")
    other = scopelake.open(lake.path)

    def commit(done, total):
        if done == total:
            other.add_corpus("more", tmp_path / "b.txt", tokenizer=tiny.MODEL_NAME)

    found = lake.verify(commit)
    assert other.snapshot > lake.snapshot
    assert (found.findings, found.left_over) == ((), ())


@pytest.mark.parametrize("table", ["codes", "contexts"])
def test_a_checkpoint_without_a_file_answers_nothing(lake, table):
    """As Parquet it is whole, and no file that it names is damaged."""
    path = lake.path / "tables" / table
    DeltaTable(str(path)).create_checkpoint()
    (checkpoint,) = (path / "_delta_log").glob("*.checkpoint.parquet")
    assert scopelake.open(lake.path).sql(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py()
    rows = pq.read_table(checkpoint)
    first = rows["add"].combine_chunks().is_valid().to_pylist().index(True)
    pq.write_table(rows.filter([i != first for i in range(len(rows))]), checkpoint)
    with pytest.raises(DamagedFileError, match="lists other files"):
        scopelake.open(lake.path).sql(f"SELECT count(*) FROM {table}")
    assert "names other files than the log" in str(lake.verify())
