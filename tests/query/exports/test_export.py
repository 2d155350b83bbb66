"""What all exports have in common, and datasets, against rows that the tests know."""

import json
import shutil
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import scopelake
from scopelake.errors import (
    CorpusNotFoundError,
    DamagedFileError,
    FeatureNotFoundError,
    InvalidArgumentError,
    NotIngestedError,
    QueryError,
)
from scopelake.query import export as export_module
from scopelake.query.connect import connect
from scopelake.query.export import (
    EXPORTERS,
    corpus_to_export,
    export,
    exporter_of,
    features_to_export,
)
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import ExportOptions
from scopelake.query.resolve import Partial
from scopelake.store.folder_root import FolderRoot
from scopelake.store.lake_store import LakeStore

DATA = Path(__file__).resolve().parents[2] / "data"
WIDTH = 12
HALF = "gs-2/resid_post/half"
SILENT = 11
FORMATS = list(EXPORTERS)
LABELS = [(0, "b", "me"), (0, "c", "you"), (5, "a", "me")]


@pytest.mark.parametrize("features", [None, [0, 5], [SILENT]])
def test_a_dataset_has_firings_contexts_features_and_labels(known, source_of, tmp_path, features):
    from datasets import get_dataset_config_names, load_dataset

    export(source_of("plain", features), "datasets", tmp_path / "out", ExportOptions())

    def load(name):
        folder, cache = str(tmp_path / "out"), str(tmp_path / "cache")
        return load_dataset(folder, name, split="train", cache_dir=cache).to_list()

    wanted = set(range(WIDTH)) if features is None else set(features)
    rows = [
        (r.feature, r.context, r.position, r.activation, r.kind)
        for r in known.rows
        if (r.sae, r.corpus) == (known.sae.name, "plain") and r.feature in wanted
    ]
    labels = [row for row in LABELS if row[0] in wanted]
    readme = (tmp_path / "out" / "README.md").read_text()
    configs = {"contexts", "features"} | ({"firings"} if rows else set())
    configs |= {"labels"} if labels else set()
    assert set(get_dataset_config_names(str(tmp_path / "out"))) == configs
    loaded = {name for name in ("firings", "contexts", "features", "labels")
              if f'load_dataset(".", "{name}", split="train")' in readme}  # fmt: skip
    assert loaded == configs
    if rows:
        assert [tuple(r.values()) for r in load("firings")] == sorted(rows)
    if labels:
        assert [tuple(r.values()) for r in load("labels")] == labels
    assert {r["feature"] for r in load("features")} == wanted
    contexts = load("contexts")
    assert [r["text"] for r in contexts] == ["".join(c.pieces) for c in known.of_corpus("plain")]
    assert [r["roles"] for r in contexts] == [c.roles for c in known.of_corpus("plain")]
    (path,) = (tmp_path / "out" / "contexts").iterdir()
    facts = json.loads(pq.read_schema(path).metadata[b"scopelake"])
    assert (facts["sae"], facts["sae_digest"]) == (known.sae.name, "xxh3:abc")


@pytest.mark.parametrize("form", FORMATS)
def test_exports_are_the_same_whatever_is_read_at_once(source_of, tmp_path, form):
    small = source_of("plain", rows_at_once=300)
    sizes = [(len(chunk), len(chunk.features)) for chunk in small.chunks()]
    assert len(sizes) > 3
    assert all(n <= 300 or n_features == 1 for n, n_features in sizes)
    assert sum(n_features for _, n_features in sizes) == WIDTH
    export(small, form, tmp_path / "small", ExportOptions())
    export(source_of("plain"), form, tmp_path / "large", ExportOptions())
    files = sorted(p.relative_to(tmp_path / "large") for p in (tmp_path / "large").rglob("*.*"))
    assert files == sorted(
        p.relative_to(tmp_path / "small") for p in (tmp_path / "small").rglob("*.*")
    )
    for name in files:
        one, other = tmp_path / "small" / name, tmp_path / "large" / name
        if name.suffix == ".parquet":
            assert pq.read_table(one).equals(pq.read_table(other)), name
        elif one.is_file():
            assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_says_what_it_is_of_and_shows_progress(known, source_of, tmp_path, form):
    seen = defaultdict(list)
    done = export(
        source_of("chats", [0, 5]), form, tmp_path / "out", ExportOptions(),
        lambda what, n, of: seen[what].append((n, of)),
    )  # fmt: skip
    assert seen["features"]
    assert all(steps[-1][0] == steps[-1][1] and steps == sorted(steps) for steps in seen.values())
    manifest = json.loads((tmp_path / "out" / "scopelake.json").read_text())
    assert (manifest["format"], manifest["sae"]) == (form, known.sae.name)
    assert (manifest["sae_digest"], manifest["corpus"]) == ("xxh3:abc", "chats")
    assert (manifest["features"], manifest["snapshot"]) == ([0, 5], known.snapshot.id)
    oracle = known.expected("chats", [0, 5])
    of_all = sum(len(p) for cs in oracle.values() for p in cs.values())
    assert manifest["n_firings"] == of_all
    on_bos = [r for r in known.rows if (r.sae, r.corpus, r.kind) == (known.sae.name, "chats",
              "bos") and r.feature in (0, 5)]  # fmt: skip
    assert manifest["n_firings_on_bos"] == len(on_bos)
    assert manifest["left_out"] == list(done.left_out) != []
    readme = (tmp_path / "out" / "README.md").read_text()
    assert known.sae.name in readme
    assert "xxh3:abc" in readme
    assert all(f"- {one}\n" in readme for one in done.left_out)
    paths = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert (done.n_files, done.n_bytes) == (len(paths), sum(p.stat().st_size for p in paths))
    assert "left out: " in str(done)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing(source_of, tmp_path, monkeypatch, form):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_readme", fail)
    with pytest.raises(KeyboardInterrupt):
        export(source_of(), form, tmp_path / "out", ExportOptions())
    assert list(tmp_path.iterdir()) == []


def test_files_elsewhere_are_copied_once_to_count_and_once_to_read(
    source_of, tmp_path, monkeypatch
):
    copied, opened = [], []
    plain_open = FolderRoot.open

    @contextmanager
    def fetch(self, paths):
        folder = tmp_path / f"copies-{len(copied)}"
        for path in paths:
            copied.append(path)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.path / path, folder / path)
        yield FolderRoot(folder)

    def open_there(self, path):
        opened.append((self.path, path))
        return plain_open(self, path)

    monkeypatch.setattr(FolderRoot, "fetch", fetch)
    monkeypatch.setattr(FolderRoot, "open", open_there)
    source = source_of("plain", rows_at_once=300)
    assert len(list(source.chunks())) > 3
    lake = Path(source.store.root.url)
    assert not [path for at, path in opened if at == lake and "postings" in path]
    assert copied
    assert all(copied.count(path) == 2 for path in copied)


def test_damage_is_refused_and_nothing_is_left(known, tmp_path):
    store = LakeStore.open(shutil.copytree(known.store.root.url, tmp_path / "lake"))
    file = store.data_files("postings", store.snapshot(), known.sae.name, "plain")[0]
    path = tmp_path / "lake" / file.path
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    source = ExportSource(
        connect(store, store.snapshot()), store, store.snapshot(), lambda *_: None, known.sae,
        "plain",
    )  # fmt: skip
    for form in FORMATS:
        with pytest.raises(DamagedFileError):
            export(source, form, tmp_path / "out", ExportOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["lake"]


def test_targets_that_are_there_or_cannot_be_are_refused(source_of, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (taken, link):
        with pytest.raises(InvalidArgumentError, match="it is there already"):
            export(source_of(), "delphi", path, ExportOptions())
    with pytest.raises(InvalidArgumentError, match="is no folder; make it first"):
        export(source_of(), "delphi", tmp_path / "no" / "out", ExportOptions())
    with pytest.raises(InvalidArgumentError, match="a folder of this machine"):
        export(source_of(), "delphi", export_module.Path("s3://bucket/out"), ExportOptions())
    assert list(taken.iterdir()) == []


def test_options_belong_to_formats_and_have_ranges():
    for form, options, message in (
        ("delphi", ExportOptions(k=3), "k=3 .* as delphi; its options are n_splits"),
        ("datasets", ExportOptions(window="all"), "window=all .* its options are none"),
        ("neuronpedia", ExportOptions(n_splits=2), "its options are k, window"),
        ("neuronpedia", ExportOptions(k=0), "give 1 or more"),
        ("circuit-tracer", ExportOptions(window=-1), "give 0 or more"),
        ("delphi", ExportOptions(n_splits=0), "give 1 or more"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            options.check(exporter_of(form))
    with pytest.raises(InvalidArgumentError, match="formats are delphi, neuronpedia, circuit-tr"):
        exporter_of("sae_vis")


def test_what_is_not_whole_is_refused(known):
    connection, sae = known.connection, known.sae
    assert corpus_to_export(connection, sae, "plain") == "plain"
    with pytest.raises(InvalidArgumentError, match="it was run on chats, plain, and an export is"):
        corpus_to_export(connection, sae, None)
    with pytest.raises(CorpusNotFoundError):
        corpus_to_export(connection, sae, "none")
    half = replace(sae, name=HALF)
    with pytest.raises(NotIngestedError, match="incomplete, 1 of 3 shards"):
        corpus_to_export(connection, half, None)
    with pytest.raises(NotIngestedError, match="it was not run there"):
        corpus_to_export(connection, half, "chats")
    partial = replace(sae, partial={"plain": Partial(5)})
    with pytest.raises(QueryError, match="published examples only"):
        corpus_to_export(connection, partial, "plain")
    assert features_to_export(sae, None) is None
    assert features_to_export(sae, [5, 0, 5]) == [0, 5]
    for wrong in ([], [WIDTH], [-1]):
        with pytest.raises((FeatureNotFoundError, InvalidArgumentError)):
            features_to_export(sae, wrong)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_lakes_of_older_formats_are_exported(tmp_path, version):
    lake = scopelake.open(shutil.copytree(DATA / f"format-v{version}" / "lake", tmp_path / "lake"))
    rows = lake.sql("SELECT * FROM codes WHERE corpus = 'chats' AND sae LIKE '%layer_1_%'")
    sae = rows["sae"][0].as_py()
    n = len([r for r in rows.to_pylist() if r["sae"] == sae])
    for form in ("delphi", "datasets"):
        done = lake.export(form, tmp_path / form, sae=sae, corpus="chats")
        assert done.n_firings == n
    spoken = [r for r in rows.to_pylist() if r["sae"] == sae and r["kind"] != "bos"]
    done = lake.export(
        "neuronpedia", tmp_path / "np", sae=sae, corpus="chats", k="all", window="all"
    )
    assert done.n_firings == len(spoken)
    densities = lake.sql("SELECT feature, density FROM features WHERE corpus = 'chats' AND sae = ?",
                         [sae]).to_pylist()  # fmt: skip
    known = {r["feature"]: r["density"] for r in densities}
    batches = [json.loads(p.read_text()) for p in (tmp_path / "np").glob("batch-*.json")]
    found = {f["feature_index"]: f["frac_nonzero"] for b in batches for f in b["features"]}
    assert found == pytest.approx(known)
