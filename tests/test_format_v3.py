"""A lake of format version 3 is read as it is, and written on: neighbors, norms of encoders."""

import json
import shutil
from pathlib import Path

import pytest

import scopelake
from scopelake import tiny

DATA = Path(__file__).resolve().parent / "data" / "format-v3"
SAE = "gemma-scope-2-tiny/resid_post_all/layer_1_width_1024_l0_small"


@pytest.fixture
def lake(tmp_path):
    return scopelake.open(shutil.copytree(DATA / "lake", tmp_path / "lake"))


@pytest.fixture(scope="module")
def firings():
    """{(corpus, context, position, feature)}, by the model's own arithmetic."""
    contexts = json.loads((DATA / "expected.json").read_text())["contexts"]
    return {(c["corpus"], c["context"], p, f) for c in contexts for p, f, _ in c["firings"]}


def version(lake):
    return json.loads((Path(lake.path) / "lake.json").read_text())["format_version"]


def found(lake):
    rows = lake.sql("SELECT corpus, context, position, feature FROM codes").to_pylist()
    return {tuple(row.values()) for row in rows}


def test_it_is_read(lake, firings):
    assert found(lake) == firings
    assert lake.sql("SELECT * FROM neighbors").num_rows == 0
    rows = lake.sql("SELECT count(decoder_norm) AS d, count(encoder_norm) AS e FROM features")
    assert rows.to_pylist() == [{"d": 2048, "e": 0}]
    assert lake.verify().is_whole
    assert version(lake) == 3


def test_it_is_written_on(lake, firings, tmp_path):
    before = lake.snapshot
    assert lake.add_neighbors(SAE, k=2, device="cpu").n_rows == 2048
    assert version(lake) == 4
    (tmp_path / "more.txt").write_text("More rain fell on the hills than in any year before.\n" * 9)
    lake.add_corpus("more", tmp_path / "more.txt", tokenizer=tiny.MODEL_NAME)
    lake.ingest("more", model=tiny.MODEL_NAME, saes=SAE, device="cpu")
    assert firings < found(lake)
    rows = lake.sql(
        "SELECT corpus, count(encoder_norm) AS n FROM features GROUP BY corpus ORDER BY corpus"
    )
    assert [tuple(r.values()) for r in rows.to_pylist()] == [
        ("chats", 0), ("lake", 0), ("more", 1024),
    ]  # fmt: skip
    old = scopelake.open(lake.path, before)
    assert found(old) == firings
    assert old.sql("SELECT * FROM neighbors").num_rows == 0
    assert lake.verify(all_snapshots=True).is_whole
