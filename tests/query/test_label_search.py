"""Labels by their words: found, ranked, and not found."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from scopelake.cli import main
from scopelake.errors import InvalidArgumentError
from scopelake.lake import Lake
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.parquet import write_parquet
from scopelake.store.schema import file_schema

LABELS = [
    ("m/r/a", 1, "mentions of cats and dogs", "hand"),
    ("m/r/a", 2, "a cat sleeps; the cat sleeps again", "hand"),
    ("m/r/a", 3, "numbers in code", "model"),
    ("m/r/b", 1, "cat", "model"),
    ("m/r/b", 7, "refusals, \x1b[31m; DROP TABLE labels", "model"),
    ("m/r/b", 8, "the of and", "model"),
]


@pytest.fixture
def lake(tmp_path):
    store = LakeStore.create(tmp_path / "lake")
    add(store, LABELS)
    return Lake.open(store.root.url)


def add(store, labels):
    with Writer(store) as writer:
        for sae in sorted({row[0] for row in labels}):
            rows = [dict(zip(file_schema("labels").names, row[1:], strict=True))
                    for row in labels if row[0] == sae]  # fmt: skip
            table = pa.Table.from_pylist(rows, schema=file_schema("labels"))
            receipt = write_parquet(store.root, "labels", table, {"sae": sae}, run="labels")
            writer.commit([receipt], transaction=f"{sae}:{len(labels)}", reason="labels")


def found(lake, words, **options):
    rows = lake.search_labels(words, **options).table.to_pylist()
    return [(row["sae"], row["feature"]) for row in rows]


def test_words_are_found_in_any_form(lake):
    assert set(found(lake, "CAT")) == {("m/r/a", 1), ("m/r/a", 2), ("m/r/b", 1)}
    assert found(lake, "sleeping") == [("m/r/a", 2)]
    assert found(lake, "refusal") == [("m/r/b", 7)]
    assert found(lake, "nothing of that kind") == []


def test_the_best_come_first(lake):
    # BM25: a word that is the whole of a short label says more than one of many words.
    assert found(lake, "cat")[0] == ("m/r/b", 1)
    assert found(lake, "dogs numbers cat")[0] in {("m/r/a", 1), ("m/r/a", 3)}
    rows = lake.search_labels("cat", k=2).table.to_pylist()
    assert len(rows) == 2
    assert rows[0]["score"] >= rows[1]["score"] > 0


def test_numbers_and_other_scripts_are_words(lake):
    add(
        lake._store,
        [("m/r/c", 1, "the year 2023", "hand"), ("m/r/c", 2, "日本 und Straße", "hand")],
    )
    lake.refresh()
    assert found(lake, "2023") == [("m/r/c", 1)]
    assert found(lake, "日本") == found(lake, "straße") == [("m/r/c", 2)]


def test_what_is_not_looked_for_is_said(lake):
    assert lake.search_labels("the cat").note == "not looked for, as too common: the"
    assert lake.search_labels("the of").table.num_rows == 0
    assert "(not looked for, as too common: of, the)" in lake.search_labels("The of").to_text()
    assert lake.search_labels("cat").note == ""


def test_words_are_no_sql(lake):
    assert found(lake, "'; DROP TABLE labels; --") == [("m/r/b", 7)]
    assert lake.search_labels("cat").n_labels == len(LABELS)


def test_what_cannot_be_searched_is_refused(lake, tmp_path):
    with pytest.raises(InvalidArgumentError, match="no words"):
        lake.search_labels(" ")
    with pytest.raises(InvalidArgumentError, match="k=0"):
        lake.search_labels("cat", k=0)
    with pytest.raises(InvalidArgumentError, match="the lake has none; add labels first"):
        Lake.create(tmp_path / "empty").search_labels("cat")


def test_new_labels_are_found_once_the_lake_is_refreshed(lake):
    assert found(lake, "zebra") == []
    add(lake._store, [("m/r/b", 9, "zebras", "hand")])
    assert found(lake, "zebra") == []
    lake.refresh()
    assert found(lake, "zebra") == [("m/r/b", 9)]


def test_the_verb(lake, capsys):
    assert main(["search-labels", str(lake.path), "refusal"]) == 0
    said = capsys.readouterr().out
    assert "1 label of 6" in said
    assert "\x1b" not in said
    assert main(["search-labels", str(lake.path), "cat", "--json", "-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["feature"] == 1
    assert main(["search-labels", str(lake.path), "cat", "--sae", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert "refusals" in lake.search_labels("refusal")._repr_html_()
