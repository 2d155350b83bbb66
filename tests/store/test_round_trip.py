"""Firings, contexts and features: written, committed, read by this package and by others."""

from __future__ import annotations

import dataclasses

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from duckdb_extensions import import_extension

from scopelake.errors import InvalidArgumentError
from scopelake.store.catalog import committed_dense_shards, committed_shards
from scopelake.store.commit import Writer
from scopelake.store.firings import peaks
from scopelake.store.precision import round_mantissa
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts, write_features, write_firings

SAE = "some-repo/resid_post/layer_12_width_16k"
ADDRESS = {"sae": SAE, "corpus": "web.v1", "run": "r1", "bits": 10}
KEY = [("context", "ascending"), ("position", "ascending"), ("feature", "ascending")]


def commit(store, receipts, name):
    with Writer(store) as writer:
        return writer.commit(receipts, transaction=name, reason="test", run="r1")


@pytest.mark.parametrize("n", [0, 1, 63, 1023])
def test_firings_come_back_in_both_orders(store, make_firings, n):
    firings = make_firings(n)
    snapshot = commit(store, write_firings(store.root, firings, shard=0, **ADDRESS), "r1:0")
    ordered = firings.token_major()
    for table in ("codes", "postings"):
        found = store.read(table, snapshot).sort_by(KEY)
        assert found.schema == SCHEMAS[table]
        for column in ("context", "position", "feature", "kind"):
            assert found[column].to_pylist() == getattr(ordered, column).tolist()
        assert (found["activation"].to_numpy() == round_mantissa(ordered.activation, 10)).all()
    rounded = dataclasses.replace(firings, activation=round_mantissa(firings.activation, 10))
    columns = ["feature", "rank", "context", "position", "activation"]
    found = store.read("peaks", snapshot, columns).sort_by(
        [("feature", "ascending"), ("rank", "ascending")]
    )
    assert found.to_pydict() == peaks(rounded, 256).to_pydict()
    assert committed_shards(store, snapshot, "web.v1") == {(SAE, 0)}
    assert committed_dense_shards(store, snapshot, "web.v1", "m") == set()


def test_files_have_the_promised_encodings_order_and_checksums(store, make_firings):
    receipts = write_firings(store.root, make_firings(1023), shard=0, **ADDRESS)
    encodings = {
        "context": "DELTA_BINARY_PACKED",
        "position": "RLE_DICTIONARY",
        "feature": "RLE_DICTIONARY",
        "kind": "RLE_DICTIONARY",
        "activation": "BYTE_STREAM_SPLIT",
    }
    for receipt in receipts[:2]:
        path = store.root.path / receipt.path
        assert receipt.n_bytes == path.stat().st_size
        assert receipt.checksum == f"xxh3:{xxhash.xxh3_128_hexdigest(path.read_bytes())}"
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            group = file.metadata.row_group(0)
            assert file.schema_arrow.names == SCHEMAS[receipt.table].names[2:]
            rows = file.read()
        for index in range(group.num_columns):
            column = group.column(index)
            assert encodings[column.path_in_schema] in column.encodings
            assert column.compression in ("ZSTD", "UNCOMPRESSED")
            assert column.statistics.has_min_max
        key = KEY if receipt.table == "codes" else [KEY[2], KEY[0], KEY[1]]
        assert rows.equals(rows.sort_by(key))


def test_a_damaged_page_is_noticed(store, make_firings):
    path = (
        store.root.path / write_firings(store.root, make_firings(1023), shard=0, **ADDRESS)[0].path
    )
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(3)
        at = column.data_page_offset + column.total_compressed_size - 2
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_other_readers_see_the_same_rows(store, make_firings, tmp_path):
    for shard in range(2):
        firings = make_firings(200, first_context=100 * shard)
        receipts = write_firings(store.root, firings, shard=shard, **ADDRESS)
        snapshot = commit(store, receipts, f"r1:{shard}")
    uri = store.table_uri("postings")
    columns = SCHEMAS["postings"].names
    feature = 7
    want = store.read("postings", snapshot, filters=[("feature", "=", feature)]).sort_by(KEY)
    frame = pl.scan_delta(uri, version=snapshot.versions["postings"])
    found = frame.filter((pl.col("feature") == feature) & (pl.col("sae") == SAE)).collect()
    assert found.select(columns).sort("context", "position").rows() == [
        tuple(r.values()) for r in want.to_pylist()
    ]
    connection = duckdb.connect(config={"extension_directory": str(tmp_path / "extensions")})
    import_extension("delta", con=connection)
    connection.execute("LOAD delta")
    sql = (
        f"SELECT {', '.join(columns)} FROM delta_scan('{uri}', version => ?) "
        "WHERE feature = ? AND sae = ? ORDER BY context, position"
    )
    at_version = sql.replace("?", str(snapshot.versions["postings"]), 1)
    assert connection.execute(at_version, [feature, SAE]).fetchall() == [
        tuple(r.values()) for r in want.to_pylist()
    ]
    before = connection.execute(sql.replace("?", "1", 1), [feature, SAE]).fetchall()
    assert before
    assert all(row[columns.index("context")] < 100 for row in before)


def test_each_file_tells_delta_its_feature_range(store, make_firings):
    from deltalake import DeltaTable

    commit(store, write_firings(store.root, make_firings(63), shard=0, **ADDRESS), "r1:0")
    commit(store, write_firings(store.root, make_firings(0), shard=1, **ADDRESS), "r1:1")
    actions = pa.table(DeltaTable(store.table_uri("postings")).get_add_actions(flatten=True))
    by_rows = {r["num_records"]: r for r in actions.to_pylist()}
    firings = make_firings(63)
    assert by_rows[63]["min.feature"] == firings.feature.min()
    assert by_rows[63]["max.feature"] == firings.feature.max()
    assert by_rows[63]["null_count.feature"] == 0
    assert by_rows[0]["min.feature"] is None


def context_rows(contexts: list[int], corpus: str = "web.v1", n_tokens: int = 4) -> pa.Table:
    row = {
        "corpus": corpus, "document": "d", "document_index": 0, "part": 0, "char_start": 0,
        "char_end": 5, "text": "a b c", "n_tokens": n_tokens,
        "token_ids": [2, 5, 6, 7] * (n_tokens // 4),
        "token_starts": [0, 0, 1, 3] * (n_tokens // 4), "roles": [0] * n_tokens,
        "turns": [-1, 0, 0, 0] * (n_tokens // 4), "kinds": [2, 0, 0, 0] * (n_tokens // 4),
        "metadata": '{"a": 1}',
    }  # fmt: skip
    rows = [{**row, "context": c} for c in contexts]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["contexts"])


@pytest.mark.parametrize(
    ("n_tokens", "expected"),
    [(1024, [16] * 8 + [2]), (512, [16] * 8 + [2]), (128, [64, 64, 2]), (48, [130]), (0, [130])],
)
def test_contexts_come_back_and_have_small_row_groups(store, n_tokens, expected):
    """Of 16 contexts, and of more if they have no more than 8,192 tokens together."""
    table = context_rows(list(range(130)), n_tokens=n_tokens)
    receipts = write_contexts(store.root, table, "web.v1", "corpus:web.v1")
    with pq.ParquetFile(store.root.path / receipts[0].path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == expected
    snapshot = commit(store, receipts, "corpus:web.v1")
    assert store.read("contexts", snapshot).sort_by("context").equals(table)
    assert pl.scan_delta(store.table_uri("contexts")).collect().height == 130


def test_rows_that_do_not_fit_are_refused(store, make_firings):
    root = store.root
    with pytest.raises(InvalidArgumentError, match="not in order"):
        write_contexts(root, context_rows([2, 1]), "web.v1", "r")
    with pytest.raises(InvalidArgumentError, match="'other'"):
        write_contexts(root, context_rows([1]), "other", "r")
    with pytest.raises(InvalidArgumentError, match="lack"):
        write_features(root, context_rows([1]), SAE, "web.v1", "r")
    with pytest.raises(InvalidArgumentError, match="corpus name"):
        write_firings(root, make_firings(1), shard=0, **(ADDRESS | {"corpus": "a/b"}))
    with pytest.raises(InvalidArgumentError, match="mantissa"):
        write_firings(root, make_firings(1), shard=0, **(ADDRESS | {"bits": 30}))
    assert not list(root.path.glob("tables/codes/sae=*/**/*.parquet"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_refused(store, make_firings, bad):
    firings = make_firings(63)
    firings.activation[5] = bad
    with pytest.raises(InvalidArgumentError, match="1 of 63 activations"):
        write_firings(store.root, firings, shard=0, **ADDRESS)


def test_repeated_and_negative_addresses_are_refused(store, make_firings):
    firings = make_firings(63)
    with pytest.raises(InvalidArgumentError, match="fires twice"):
        write_firings(store.root, firings.concat([firings, firings]), shard=0, **ADDRESS)
    firings.feature[3] = -1
    with pytest.raises(InvalidArgumentError, match="feature -1"):
        write_firings(store.root, firings, shard=0, **ADDRESS)
