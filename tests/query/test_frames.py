"""Tables as dask dataframes, and a job on them that answers as SQL does."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scopelake
from scopelake.errors import (
    AmbiguousSaeError,
    CorpusNotFoundError,
    DamagedFileError,
    InvalidArgumentError,
    MissingDependencyError,
    QueryError,
)
from scopelake.store.commit import Writer
from scopelake.store.integrity import _checked
from scopelake.store.lake_store import LakeStore

ONE = "gs-2/resid_post/layer_1_width_12"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "coactivation.py"


@pytest.fixture
def lake(built):
    return scopelake.open(built.store.root.path)


def of_corpus(built, corpus):
    return [r for r in built.rows if r.sae == ONE and corpus in (None, r.corpus)]


@pytest.mark.parametrize("corpus", ["plain", "chats", None])
@pytest.mark.parametrize("table", ["codes", "postings"])
def test_firings_are_those_of_the_lake(built, lake, table, corpus):
    frame = getattr(lake, table)(layer=1, corpus=corpus)
    index = {"codes": "context", "postings": "feature"}[table]
    found = frame.compute()
    assert found.index.name == index
    keys = ["sae", "corpus", "context", "position", "feature", "activation", "kind"]
    rows = found.reset_index()[keys].astype({"sae": str, "corpus": str, "kind": str})
    expected = sorted(tuple(getattr(r, k) for k in keys) for r in of_corpus(built, corpus))
    assert sorted(rows.itertuples(index=False, name=None)) == expected
    assert dict(frame.dtypes) == dict(found.dtypes)


def test_partitions_are_files_whose_divisions_are_known_where_they_follow(lake):
    codes = lake.codes(layer=1, corpus="plain")
    assert codes.npartitions == 3
    assert codes.known_divisions
    for i, (low, high) in enumerate(zip(codes.divisions, codes.divisions[1:], strict=False)):
        contexts = codes.partitions[i].compute().index
        assert contexts.is_monotonic_increasing
        assert contexts[0] == low
        assert contexts[-1] < high or i == 2
    one = codes.loc[200:203].compute()
    assert set(one.index) <= set(range(200, 204))
    assert not lake.codes(layer=1).known_divisions
    # Each shard has all features, until they are merged.
    assert not lake.postings(layer=1, corpus="plain").known_divisions
    assert lake.contexts(corpus="plain").known_divisions


def test_merged_postings_have_known_divisions(built, tmp_path):
    path = tmp_path / "lake"
    shutil.copytree(built.store.root.path, path)
    lake = scopelake.open(path)
    pinned = scopelake.open(path, snapshot=lake.snapshot)
    lake.compact()
    merged = lake.postings(layer=1, corpus="plain")
    assert merged.known_divisions
    before = pinned.postings(layer=1, corpus="plain")
    assert before.npartitions == 3
    keys = ["feature", "context", "position"]
    sorted_rows = [
        f.compute().reset_index().sort_values(keys).reset_index(drop=True) for f in (merged, before)
    ]
    pd.testing.assert_frame_equal(*sorted_rows)


def test_contexts_have_their_columns(built, lake):
    found = lake.contexts(corpus="chats").compute()
    assert list(found.index) == sorted(c for n, c in built.contexts if n == "chats")
    for context, row in found.iterrows():
        there = built.contexts["chats", context]
        assert row["text"] == "".join(there.pieces)
        assert list(row["kinds"]) == [("content", "template", "bos")[k] for k in there.kinds]
        assert list(row["roles"]) == [("none", "user", "model")[r] for r in there.roles]
    few = lake.contexts(columns=["n_tokens"]).compute()
    assert list(few.columns) == ["n_tokens"]
    assert len(few) == len(built.contexts)


def test_what_does_not_fit_is_refused(lake, monkeypatch):
    with pytest.raises(AmbiguousSaeError):
        lake.codes(layer=2)
    with pytest.raises(CorpusNotFoundError):
        lake.postings(layer=1, corpus="x")
    with pytest.raises(CorpusNotFoundError):
        lake.contexts(corpus="x")
    for columns in (["x"], "feature"):
        with pytest.raises(InvalidArgumentError, match="it has sae, corpus, context"):
            lake.codes(layer=1, columns=columns)
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    with pytest.raises(MissingDependencyError, match=r"scopelake\[dask\]"):
        lake.codes(layer=1)


@pytest.mark.parametrize("table", ["codes", "postings"])
def test_an_incomplete_ingest_is_no_answer(built, tmp_path, table):
    path = tmp_path / "lake"
    shutil.copytree(built.store.root.path, path)
    store = LakeStore.open(path)
    gone = [
        row["path"]
        for row in store.read(
            "files", store.snapshot(), ["path", "sae", "corpus", "shard"]
        ).to_pylist()
        if (row["sae"], row["corpus"], row["shard"]) == (ONE, "plain", 1)
    ]
    with Writer(store) as writer:
        writer.commit([], transaction="take out", reason="a shard", retire=gone)
    lake = scopelake.open(path)
    for corpus in ("plain", None):
        with pytest.raises(QueryError, match="incomplete, 2 of 3 shards ingested; ingest again"):
            getattr(lake, table)(layer=1, corpus=corpus)
    assert len(getattr(lake, table)(layer=1, corpus="chats")) == len(of_corpus(built, "chats"))


def test_a_damaged_file_does_not_answer(built, tmp_path):
    path = tmp_path / "lake"
    shutil.copytree(built.store.root.path, path)
    lake = scopelake.open(path)
    codes = lake.codes(layer=1, corpus="chats")
    (file,) = path.glob("tables/codes/*layer_1*/corpus=chats/*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    _checked.clear()
    with pytest.raises(DamagedFileError, match="verify"):
        codes.compute()


def test_a_task_travels(lake):
    codes = lake.codes(layer=1, corpus="plain", columns=["feature"])
    assert len(pickle.loads(pickle.dumps(codes)).compute()) == len(codes.compute())


def test_the_coactivation_job_answers_as_sql_does(built, lake, tmp_path):
    out = tmp_path / "pairs.npz"
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLE, built.store.root.path, "layer_1_width_12", "plain", out],
        check=True, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    found = np.load(out)
    told = set(zip(*(found[name].tolist() for name in ("one", "other", "n")), strict=True))
    query = (
        "SELECT a.feature, b.feature, count(*) FROM codes a JOIN codes b "
        "USING (sae, corpus, context, position) WHERE sae = ? AND corpus = 'plain' "
        "AND a.kind <> 'bos' AND a.feature <= b.feature GROUP BY ALL"
    )
    asked = lake.sql(query, [ONE])
    assert told == set(zip(*(c.to_pylist() for c in asked.columns), strict=True))
    assert f"{len(told)} pairs" in done.stdout
    of_three = lake.sql(f"FROM coactive('{ONE}', 3, k := NULL, corpus := 'plain')").to_pylist()
    for row in of_three:
        pair = sorted((3, row["other_feature"]))
        assert (*pair, row["n_both"]) in told
