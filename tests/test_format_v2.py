"""A lake of format version 2 is read as it is, and written on: packed corpora, appends."""

import json
import shutil
from pathlib import Path

import pytest

import scopelake
from scopelake import tiny

DATA = Path(__file__).resolve().parent / "data" / "format-v2"
SAE = tiny.coders_path() / "resid_post_all/layer_1_width_1024_l0_small"


@pytest.fixture
def lake(tmp_path):
    return scopelake.open(shutil.copytree(DATA / "lake", tmp_path / "lake"))


@pytest.fixture(scope="module")
def firings():
    """{(corpus, context, position, feature)}, by the model's own arithmetic."""
    contexts = json.loads((DATA / "expected.json").read_text())["contexts"]
    return {(c["corpus"], c["context"], p, f) for c in contexts for p, f, _ in c["firings"]}


def found(lake):
    rows = lake.sql("SELECT corpus, context, position, feature FROM codes").to_pylist()
    return {tuple(row.values()) for row in rows}


def test_it_is_read(lake, firings):
    assert found(lake) == firings
    documents = lake.sql("SELECT DISTINCT corpus, document FROM tokens ORDER BY ALL").to_pylist()
    assert [d["document"] for d in documents] == ["ask", "push", "lake.txt"]
    row = lake.sql("SELECT * FROM corpora WHERE corpus = 'lake'").to_pylist()[0]
    assert (row["bos"], row["packing"], row["n_duplicates"], row["context_ends"]) == (None,) * 4
    assert lake.sql("SELECT * FROM contexts WHERE documents IS NOT NULL").num_rows == 0
    feature = next(iter(firings))[3]
    assert lake.top_contexts(feature, layer=1, where="document <> ''").table.num_rows
    assert lake.verify().is_whole
    assert json.loads((Path(lake.path) / "lake.json").read_text())["format_version"] == 2


def test_it_is_written_on(lake, firings, tmp_path):
    before = lake.snapshot
    (tmp_path / "more.txt").write_text("More rain fell on the hills than in any year before.\n" * 9)
    added = lake.append_corpus("lake", tmp_path / "more.txt")
    lake.add_corpus("packed", [tmp_path / "more.txt"], tokenizer=tiny.MODEL_NAME, packing=True)
    assert json.loads((Path(lake.path) / "lake.json").read_text())["format_version"] == 4
    assert found(lake) == firings
    lake.ingest("lake", model=tiny.MODEL_NAME, saes=[SAE], dense=[("resid_post", 1)], device="cpu")
    assert firings < found(lake)
    new = lake.sql("SELECT count(*) AS n FROM contexts WHERE document = 'more.txt'")
    assert new["n"][0].as_py() == added.n_contexts
    row = lake.sql("SELECT * FROM corpora WHERE corpus = 'lake'").to_pylist()[0]
    assert (row["bos"], row["packing"], row["n_duplicates"]) == ("each", False, 0)
    assert len(row["context_ends"]) == 2
    packed = lake.sql("SELECT documents FROM contexts WHERE corpus = 'packed' AND context = 0")
    assert packed["documents"][0].as_py()[0]["document"] == "more.txt"
    old = scopelake.open(lake.path, before)
    assert found(old) == firings
    assert old.sql("SELECT DISTINCT document FROM tokens").num_rows == 3
    assert old.activations(1, corpus="lake").shape[0] == row["context_ends"][0]
    assert lake.verify(all_snapshots=True).is_whole


def test_its_contexts_are_merged_with_later_ones(lake, tmp_path):
    (tmp_path / "more.txt").write_text("More rain.\n")
    lake.append_corpus("lake", tmp_path / "more.txt")
    query = "SELECT * FROM contexts ORDER BY corpus, context"
    before = lake.sql(query).to_pylist()
    lake.compact()
    assert lake.sql("SELECT * FROM files WHERE kind = 'contexts' AND corpus = 'lake'").num_rows == 1
    assert lake.sql(query).to_pylist() == before
    assert lake.verify().is_whole


def test_a_corpus_before_duplicates_were_counted_has_them_counted(lake, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"id": "x", "text": lake.sql(
            "SELECT string_agg(text, '' ORDER BY context) AS t FROM contexts WHERE corpus = 'lake'"
        )["t"][0].as_py()})
    )  # fmt: skip
    assert lake.append_corpus("lake", tmp_path / "a.jsonl").n_duplicates == 1


def test_plain_readers_read_what_is_written_on(lake, tmp_path):
    import polars as pl

    (tmp_path / "more.txt").write_text("More rain.\n")
    lake.append_corpus("lake", tmp_path / "more.txt")
    table = pl.read_delta(str(Path(lake.path) / "tables" / "contexts")).to_arrow()
    assert table.num_rows == lake.sql("SELECT * FROM contexts").num_rows
    ends = pl.read_delta(str(Path(lake.path) / "tables" / "corpora"))["context_ends"].to_list()
    assert sum(e is not None for e in ends) == 1
