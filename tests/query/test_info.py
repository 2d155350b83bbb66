"""What a lake holds, from its catalogue."""

from __future__ import annotations

import json

import pytest

from scopelake.query.info import info
from scopelake.store.lake_store import LakeStore


def test_it_counts_what_was_written(built):
    found = info(built.store, built.snapshot)
    assert found.snapshot == built.snapshot.id
    assert [(c.corpus, c.contexts) for c in found.corpora] == [("chats", 37), ("plain", 400)]
    assert found.corpora[0].tokens == sum(
        len(c.pieces) for c in built.contexts.values() if c.corpus == "chats"
    )
    assert found.firings == len(built.rows)
    assert len(found.codes) == 6
    assert [c.complete for c in found.codes].count(True) == 1
    files = built.store.root.path.glob("tables/codes/sae=*/**/*.parquet")
    on_disk = sum(f.stat().st_size for f in files)
    assert sum(c.codes_bytes for c in found.codes) == on_disk
    each = found.bytes_a_firing()
    assert each["codes"] == pytest.approx(on_disk / len(built.rows))
    assert each["both"] == pytest.approx(each["codes"] + each["postings"])
    assert found.models == ("tiny",)
    assert found.dense == ()


def test_it_shows_itself(built):
    found = info(built.store, built.snapshot)
    assert f"{len(built.rows):,} firings" in str(found)
    assert "(incomplete)" in found.to_text()
    assert "it&#x27;s a lake" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["firings"] == len(built.rows)


def test_an_empty_lake_is_no_error(tmp_path):
    store = LakeStore.create(tmp_path / "lake")
    found = info(store, store.snapshot())
    assert found.firings == 0
    assert found.bytes_a_firing()["both"] is None
    assert "snapshot 1" in found.to_text()
    assert json.dumps(found.to_dict())
