"""Labels: files of several kinds come into the lake in one commit, or not at all."""

import csv
import gzip
import json
import shutil
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scopelake
from scopelake.cli import main
from scopelake.errors import (
    AmbiguousSaeError,
    CoderMismatchError,
    FeatureNotFoundError,
    InvalidArgumentError,
    LabelSourceError,
    LakeBusyError,
    SaeNotFoundError,
)
from scopelake.ingest import labels as labels_module
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS

WIDTH = 8
ONE, TWO, CLT = "gs/resid_post/layer_12", "gs/resid_post/layer_13", "gs/clt/layer_0_1"
CODERS = {
    ONE: ([12], WIDTH, "google/gemma-3-1b-pt"),
    TWO: ([13], WIDTH, None),
    CLT: ([0, 1], WIDTH // 2, "google/gemma-3-1b-pt"),
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A lake that has three coders, and nothing else."""
    path = tmp_path_factory.mktemp("labels") / "lake"
    store = LakeStore.create(path)
    rows = [
        dict.fromkeys(SCHEMAS["saes"].names)
        | {"sae": sae, "site": "resid_post", "layer": layers[0], "layers": layers, "width": WIDTH,
           "features_per_layer": n, "model": model}
        for sae, (layers, n, model) in CODERS.items()
    ]  # fmt: skip
    with Writer(store) as writer:
        table = pa.Table.from_pylist(rows, schema=SCHEMAS["saes"])
        writer.commit([], transaction="saes", reason="saes", rows={"saes": table})
    return path


@pytest.fixture
def lake(empty, tmp_path):
    return scopelake.open(shutil.copytree(empty, tmp_path / "lake"))


def there(lake):
    columns = ("sae", "feature", "label", "source")
    return sorted(tuple(r[c] for c in columns) for r in lake.sql("FROM labels").to_pylist())


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def explanation(**changed):
    """A row of explanations, as Neuronpedia's export-data.py writes it."""
    return {
        "id": "cm1", "modelId": "gemma-3-1b", "layer": "12-gemmascope-2-res-16k", "index": "3",
        "authorId": "clkht", "description": "words about lakes", "embedding": "[0.1,0.2]",
        "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini", "umap_x": 0.0,
        "umap_y": 0.0, "umap_cluster": 0, "umap_log_feature_sparsity": 0.0,
    } | changed  # fmt: skip


def test_csv_is_read_with_quotes_newlines_and_any_script(lake, tmp_path):
    rows = [(0, 'a "quoted", label'), (7, "two\nlines"), (" 3 ", "日本 🙂")]
    path = write_csv(tmp_path / "mine.csv", ("feature", "label"), rows)
    path.write_text("\ufeff" + path.read_text())  # a byte order mark
    added = lake.add_labels(path, sae=ONE)
    assert (added.n_labels, added.n_features, added.sources) == (3, 3, ("mine",))
    expected = [(ONE, int(feature), label, "mine") for feature, label in rows]
    assert there(lake) == sorted(expected)


@pytest.mark.parametrize("names", [("feature", "label"), ("index", "description")])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "jsonl.gz", "parquet"])
def test_every_kind_of_file_says_the_same(lake, tmp_path, kind, names):
    rows = [(1, "one", ONE, "me"), (2, "two", TWO, None), (2, "zwei", TWO, "")]
    header = (*names, "sae", "source")
    path = tmp_path / f"named.{kind}"
    if kind == "csv":
        write_csv(path, header, rows)
    elif kind == "parquet":
        table = pa.table(
            {n: list(c) for n, c in zip(header, zip(*rows, strict=True), strict=True)}
            | {"embedding": [[0.5] * 4] * 3}
        )
        pq.write_table(table, path)
    else:
        write_lines(path, [dict(zip(header, row, strict=True)) for row in rows])
    lake.add_labels(path)
    assert there(lake) == [
        (ONE, 1, "one", "me"), (TWO, 2, "two", "named"), (TWO, 2, "zwei", "named"),
    ]  # fmt: skip


def test_neuronpedia_explanations_are_read_by_folder_and_pattern(lake, tmp_path):
    folder = tmp_path / "explanations"
    folder.mkdir()
    write_lines(folder / "batch-0.jsonl.gz", [explanation(), explanation(index="4", typeName=None)])
    write_lines(folder / "batch-1.jsonl.gz", [explanation(index="5", explanationModelName=None)])
    added = lake.add_labels(folder, layer=12)
    assert (added.n_labels, added.n_repeated) == (3, 0)
    again = lake.add_labels(str(folder / "batch-*.jsonl.gz"), sae=ONE)
    assert (again.n_labels, again.n_already, again.snapshot) == (0, 3, added.snapshot)
    label = "words about lakes"
    assert there(lake) == [
        (ONE, 3, label, "neuronpedia/oai_token-act-pair/gpt-4o-mini"),
        (ONE, 4, label, "neuronpedia/gpt-4o-mini"),
        (ONE, 5, label, "neuronpedia/oai_token-act-pair"),
    ]


def test_features_of_a_clt_count_anew_in_each_layer(lake, tmp_path):
    rows = [explanation(layer=f"{layer}-clt-hp", index=3) for layer in (0, 1)]
    lake.add_labels(write_lines(tmp_path / "a.jsonl", rows), sae=CLT)
    assert [row[1] for row in there(lake)] == [3, 7]
    beyond = write_lines(tmp_path / "b.jsonl", [explanation(layer="1-clt-hp", index=4)])
    with pytest.raises(FeatureNotFoundError, match="feature 4; .* 0 to 3 in each layer"):
        lake.add_labels(beyond, sae=CLT)


def test_repeated_rows_are_taken_once_and_counted(lake, tmp_path):
    rows = [(1, "one"), (1, "one"), (1, "uno"), (1, "one")]
    path = write_csv(tmp_path / "a.csv", ("feature", "label"), rows)
    added = lake.add_labels(path, sae=ONE)
    assert (added.n_labels, added.n_features, added.n_repeated) == (2, 1, 2)
    assert "2 given more than once" in str(added)
    assert len(there(lake)) == 2


def test_labels_are_added_or_replaced_by_source_and_coder(lake, tmp_path):
    def give(rows, **asked):
        return lake.add_labels(write_csv(tmp_path / "a.csv", ("feature", "label"), rows), **asked)

    give([(1, "one"), (2, "two")], sae=ONE, name="me")
    give([(1, "eins")], sae=ONE, name="you")
    give([(1, "of two")], sae=TWO, name="me")
    before = lake.snapshot
    assert give([(3, "three")], sae=ONE, name="me").n_labels == 1
    assert len(there(lake)) == 5
    replaced = give([(2, "two"), (4, "four")], sae=ONE, name="me", replace=True)
    assert (replaced.n_labels, replaced.n_already, replaced.n_replaced) == (1, 1, 2)
    assert there(lake) == [
        (ONE, 1, "eins", "you"), (ONE, 2, "two", "me"), (ONE, 4, "four", "me"),
        (TWO, 1, "of two", "me"),
    ]  # fmt: skip
    assert len(there(scopelake.open(lake.path, before))) == 4
    assert lake.verify().is_whole


def test_labels_are_removed_by_source_of_all_coders_or_one(lake, tmp_path):
    rows = [(1, "a", ONE, "me"), (1, "b", TWO, "me"), (1, "c", ONE, "you")]
    lake.add_labels(write_csv(tmp_path / "a.csv", ("feature", "label", "sae", "source"), rows))
    before = lake.snapshot
    removed = lake.remove_labels("me", sae="layer_13")
    assert (removed.n_labels, removed.saes) == (1, (TWO,))
    assert lake.remove_labels("me").n_labels == 1
    assert there(lake) == [(ONE, 1, "c", "you")]
    with pytest.raises(InvalidArgumentError, match="'me' were to be removed; .* those of you"):
        lake.remove_labels("me")
    lake.remove_labels("you")
    assert there(lake) == []
    assert len(there(scopelake.open(lake.path, before))) == 3
    lake.vacuum(keep=None)
    assert lake.verify().is_whole


REFUSED = {
    "a.csv: feature,label\n1,\n": (LabelSourceError, "a.csv line 2 .* 'label' is ''"),
    "a.csv: feature,label\n1,  \n": (LabelSourceError, "'label' is '  '"),
    "a.csv: feature,label\n1\n": (LabelSourceError, "'label' is None"),
    "a.csv: feature,label\n1,a,b\n": (LabelSourceError, "more fields than the header"),
    "a.csv: feature,label\none,a\n": (LabelSourceError, "'feature' is 'one'"),
    "a.csv: feature,label\n1.5,a\n": (LabelSourceError, "'feature' is '1.5'"),
    f"a.csv: feature,label\n{'9' * 5_000},a\n": (
        LabelSourceError,
        "'feature' is '9+\\.\\.\\., which",
    ),
    f"a.csv: feature,label\n{'9' * 18},a\n": (FeatureNotFoundError, "feature 9{18}; gs.* 0 to 7"),
    f'a.jsonl: {{"feature": {"9" * 5_000}, "label": "a"}}\n': (LabelSourceError, "is no JSON"),
    "a.csv: feature,text\n1,a\n": (LabelSourceError, "has feature, text, but no 'label' or 'desc"),
    "a.csv: label\na\n": (LabelSourceError, "has label, but no 'feature' or 'index'"),
    "a.csv: feature,label\n": (LabelSourceError, "it has none"),
    "a.csv: ": (LabelSourceError, "it has none"),
    'a.csv: feature,label\n1,"a\n': (LabelSourceError, "cannot be read"),
    "a.csv: feature,label\n8,a\n": (FeatureNotFoundError, "feature 8; gs.* 0 to 7"),
    "a.csv: feature,label\n-1,a\n": (FeatureNotFoundError, "feature -1"),
    "a.csv: feature,label,sae\n1,a,gs/other\n": (CoderMismatchError, "is of gs/other"),
    "a.jsonl: {]\n": (LabelSourceError, "line 1 .* no JSON"),
    "a.jsonl: [1]\n": (LabelSourceError, "no object but of type list"),
    'a.jsonl: {"feature": true, "label": "a"}\n': (LabelSourceError, "is True"),
    'a.jsonl: {"feature": 1, "label": "\\ud800"}\n': (LabelSourceError, "which is no label"),
    'a.jsonl: {"feature": 1, "label": "a", "source": 3}\n': (LabelSourceError, "'source' is 3"),
    "a.jsonl.gz: no gzip": (LabelSourceError, "not a whole .gz file"),
    "a.parquet: no parquet": (LabelSourceError, "cannot be read"),
    "a.parquet.gz: no parquet": (LabelSourceError, "compressed inside"),
    "a.txt: 1 a": (LabelSourceError, "suffix is '.txt'"),
}


@pytest.mark.parametrize("given", REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_refused_and_the_lake_is_as_it_was(lake, tmp_path, given):
    name, _, text = given.partition(": ")
    (tmp_path / name).write_text(text)
    good = write_csv(tmp_path / "good.csv", ("feature", "label"), [(1, "good")])
    error, message = REFUSED[given]
    with pytest.raises(error, match=message) as refused:
        lake.add_labels([good, tmp_path / name], sae=ONE)
    assert "\n" not in str(refused.value)
    assert there(lake) == []
    assert scopelake.open(lake.path).snapshot == lake.snapshot
    assert not list(lake.path.glob("tables/labels/**/*.parquet"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modelId": "gemma-2-2b"}, "of model google/gemma-3-1b-pt, .* is of model gemma-2-2b"),
        ({"layer": "13-gemmascope-2-res-16k"}, "of layer 12, .* is of 13-gemmascope-2-res-16k"),
    ],
)
def test_explanations_of_another_model_or_layer_are_refused(lake, tmp_path, changed, message):
    path = write_lines(tmp_path / "a.jsonl", [explanation(), explanation(**changed)])
    with pytest.raises(CoderMismatchError, match=message):
        lake.add_labels(path, sae=ONE)
    assert there(lake) == []


def test_explanations_must_name_a_layer_and_an_sae_is_needed(lake, tmp_path):
    for layer in ("res-jb", f"{'9' * 5_000}-res"):
        path = write_lines(tmp_path / "a.jsonl", [explanation(layer=layer)])
        with pytest.raises(LabelSourceError, match="'12-gemmascope-res-16k'"):
            lake.add_labels(path, sae=ONE)
    path = write_lines(tmp_path / "b.jsonl", [explanation()])
    with pytest.raises(LabelSourceError, match="names no SAE; give sae="):
        lake.add_labels(path)


def test_unknown_coders_and_files_are_refused(lake, tmp_path):
    path = write_csv(tmp_path / "a.csv", ("feature", "label", "sae"), [(1, "a", "gs/none")])
    with pytest.raises(SaeNotFoundError, match="'gs/none'; the lake has gs/clt"):
        lake.add_labels(path)
    with pytest.raises(SaeNotFoundError):
        lake.add_labels(path, sae="other")
    with pytest.raises(AmbiguousSaeError):
        lake.add_labels(path, site="resid_post")
    with pytest.raises(LabelSourceError, match="matches no files"):
        lake.add_labels(tmp_path / "none" / "*.csv", sae=ONE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelSourceError, match="a folder without"):
        lake.add_labels(tmp_path / "empty", sae=ONE)
    with pytest.raises(LabelSourceError, match="no files are named"):
        lake.add_labels([], sae=ONE)
    with pytest.raises(InvalidArgumentError, match="who gave the labels"):
        lake.add_labels(path, name=" ")
    with pytest.raises(InvalidArgumentError, match="pinned"):
        scopelake.open(lake.path, 1).add_labels(path)


def test_labels_that_changed_meanwhile_are_not_overwritten(lake, tmp_path, monkeypatch):
    mine = write_csv(tmp_path / "mine.csv", ("feature", "label"), [(1, "mine")])
    yours = write_csv(tmp_path / "yours.csv", ("feature", "label"), [(1, "yours")])
    write = labels_module.write_labels
    first = threading.Event()

    def write_late(*given):
        if not first.is_set():
            first.set()
            scopelake.open(lake.path).add_labels(yours, sae=ONE)
        return write(*given)

    monkeypatch.setattr(labels_module, "write_labels", write_late)
    with pytest.raises(LakeBusyError, match="another writer has changed them meanwhile"):
        lake.add_labels(mine, sae=ONE)
    lake.refresh()
    assert there(lake) == [(ONE, 1, "yours", "yours")]
    lake.add_labels(mine, sae=ONE)
    assert len(there(lake)) == 2
    assert not lake.verify().left_over


def test_the_shell_adds_and_removes(lake, tmp_path, capsys):
    path = str(write_csv(tmp_path / "a.csv", ("feature", "label"), [(1, "one")]))
    assert main(["label", str(lake.path), path, "--layer", "12", "--name", "me"]) == 0
    assert "1 label of 1 feature; source me" in capsys.readouterr().out
    assert main(["label", str(lake.path), path]) == 2
    assert "names no SAE; give --sae" in capsys.readouterr().err
    assert main(["label", str(lake.path), "--remove", "me", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_labels"] == 1
    assert main(["label", str(lake.path)]) == 2
    assert main(["label", str(lake.path), "--remove", "me", "--replace"]) == 2
    assert "one or the other" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_column_that_comes_twice_is_refused(lake, tmp_path, suffix):
    path = tmp_path / f"twice.{suffix}"
    if suffix == "csv":
        path.write_text("feature,label,feature\n1,a,2\n")
    elif suffix == "jsonl":
        path.write_text('{"feature": 1, "label": "a", "feature": 2}\n')
    else:
        columns = [pa.array([1]), pa.array(["a"]), pa.array([2])]
        pq.write_table(pa.table(columns, names=["feature", "label", "feature"]), path)
    with pytest.raises(LabelSourceError, match="has 'feature' more than once; give each"):
        lake.add_labels(path, sae=ONE)
    assert not there(lake)
