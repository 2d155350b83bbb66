"""Rows read straight from files are those of the query that says the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scopelake.errors import DamagedFileError
from scopelake.query.connect import connect
from scopelake.query.point_reads import point_query
from scopelake.store import parquet
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.writer import write_firings

COLUMNS = {
    "codes": ("sae", "corpus", "context", "position", "feature", "activation", "kind"),
    "postings": ("feature", "context", "position", "activation", "kind"),
    "peaks": ("corpus", "feature", "rank", "context", "position", "activation"),
}
FILTERS = [
    [],
    [("corpus", "=", "c")],
    [("corpus", "=", "nowhere")],
    [("sae", "=", "s2"), ("feature", "=", 3)],
    [("feature", "=", 0), ("context", "in", [4, 1, 900, -5])],
    [("context", "in", [])],
    [("context", "in", range(100))],
    [("context", "<", 3), ("feature", "=", 39)],
    [("context", "<", 0)],
    [("feature", "=", 4_000_000)],
    [("feature", "in", [0, 39]), ("corpus", "in", ["c", "d"]), ("context", "<", 7)],
]


@pytest.fixture(scope="module", params=["uncompacted", "compacted"])
def lake(request, tmp_path_factory):
    """Two coders on two corpora, three shards each, in row groups of 7 rows."""
    small = {name: replace(style, row_group=7, tokens=0) for name, style in parquet.STYLES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "STYLES", small)
        store = LakeStore.create(tmp_path_factory.mktemp("points") / "lake")
        with Writer(store) as writer:
            for seed, (sae, corpus, shard) in enumerate(
                (s, c, i) for s in ("s1", "s2") for c in ("c", "d") for i in range(3)
            ):
                receipts = write_firings(
                    store.root, firings(seed, shard), sae=sae, corpus=corpus, shard=shard,
                    run="r", bits=10,
                )  # fmt: skip
                writer.commit(receipts, transaction=str(seed), reason="shard")
            if request.param == "compacted":
                compact(writer)
    return store


def firings(seed: int, shard: int) -> Firings:
    """None in the second shard, otherwise 150, among them of features 0 and 39, and on BOS."""
    n = 0 if shard == 1 else 150
    rng = np.random.default_rng(seed)
    cell = rng.choice(5 * 16 * 40, n, replace=False)
    cell[:2] = [0, 39][: len(cell[:2])]
    cell = np.unique(cell)
    token, feature = np.divmod(cell, 40)
    context, position = np.divmod(token, 16)
    return Firings(
        (context + 5 * shard).astype(np.int64), position.astype(np.int32), feature.astype(np.int32),
        rng.choice([0.5, 1.0, 7.0], len(cell)).astype(np.float32),
        np.where(position == 0, 2, 0).astype(np.int8),
    )  # fmt: skip


@pytest.mark.parametrize("table", COLUMNS)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_they_are_the_rows_of_the_query(lake, table, filters):
    connection = connect(lake, lake.snapshot())
    filters = [f for f in filters if f[0] in COLUMNS[table] or f[0] in ("sae", "corpus")]
    found = connection.rows(table, COLUMNS[table], filters)
    query, params = point_query(table, COLUMNS[table], filters)
    expected = connection.execute(query, params).to_arrow_table()
    order = [(name, "ascending") for name in found.column_names]
    assert found.sort_by(order).to_pydict() == expected.sort_by(order).to_pydict()
    assert found.schema.types == expected.schema.types


def test_of_a_table_without_files_there_are_none(tmp_path):
    store = LakeStore.create(tmp_path / "lake")
    assert connect(store, store.snapshot()).rows("peaks", ("feature",), []).num_rows == 0


def test_a_flipped_bit_is_named_before_anything_is_read(tmp_path):
    store = LakeStore.create(tmp_path / "lake")
    with Writer(store) as writer:
        receipts = write_firings(
            store.root, firings(1, 0), sae="s", corpus="c", shard=0, run="r", bits=10
        )
        writer.commit(receipts, transaction="0", reason="shard")
    (path,) = [store.root.path / r.path for r in receipts if r.table == "postings"]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedFileError, match="postings"):
        connect(store, store.snapshot()).rows("postings", ("context",), [("feature", "=", 1)])
