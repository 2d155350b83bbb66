"""A lake for a while is an empty lake like any other, and nothing of it stays."""

import os

import pyarrow as pa
import pytest

from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.throwaway import EmptyLakes
from scopelake.store.verify import verify


def test_each_is_empty_whole_and_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    plain, lakes = LakeStore.create(tmp_path / "plain"), EmptyLakes()
    for _ in range(2):
        with lakes.lake() as one, lakes.lake() as other:
            assert one.root.path != other.root.path
            for store in (one, other):
                assert store.snapshot().versions == plain.snapshot().versions
                assert store.version() == plain.version()
                assert verify(store, store.snapshot()).findings == ()
            rows = pa.Table.from_pylist([{"corpus": "c"}], schema=SCHEMAS["corpora"])
            with Writer(one) as writer:
                made = writer.commit([], transaction="t", reason="x", rows={"corpora": rows})
            assert LakeStore.open(one.root.path).read("corpora", made).num_rows == 1
            assert other.read("corpora", other.snapshot()).num_rows == 0
        assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(RuntimeError), lakes.lake():
        raise RuntimeError
    assert list((tmp_path / "temporary").iterdir()) == []


def test_only_what_stays_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    rows = pa.Table.from_pylist([{"corpus": "c"}], schema=SCHEMAS["corpora"])

    def commit(store):
        synced.clear()
        with Writer(store) as writer:
            writer.commit([], transaction="t", reason="x", rows={"corpora": rows})
        return len(synced)

    with EmptyLakes().lake() as store:
        assert commit(store) == 0
    # Rows and the snapshot, each bytes and name, and the intent's.
    assert commit(LakeStore.create(tmp_path / "lake")) == 6
