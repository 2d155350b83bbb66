"""Files of our own encoder are read by Arrow, DuckDB and Polars, and say what Arrow's would."""

from __future__ import annotations

import dataclasses
import io

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopelake.store import _pages, pages, parquet
from scopelake.store.number_file import takes, write_numbers

ROW_GROUP = 65_536
SIZES = [0, 1, 7, 8, 9, 63, 128, 129, 130, 1023, ROW_GROUP, ROW_GROUP + 1, 200_000]
DTYPES = {"int8": np.int8, "int32": np.int32, "int64": np.int64, "float": np.float32}
ENCODINGS = {
    "int8": ["RLE_DICTIONARY", "DELTA_BINARY_PACKED", "PLAIN"],
    "int32": ["RLE_DICTIONARY", "DELTA_BINARY_PACKED", "PLAIN"],
    "int64": ["DELTA_BINARY_PACKED", "PLAIN"],
    "float": ["BYTE_STREAM_SPLIT", "PLAIN"],
}


def shapes(dtype, n):
    """Columns of a type that are awkward to encode."""
    rng = np.random.default_rng(n)
    if dtype is np.float32:
        odd = np.array([0.0, -0.0, 1e-45, -1.5, 3.4e38, np.inf, -np.inf, 1.0], np.float32)
        yield rng.lognormal(size=n).astype(dtype)
        yield rng.choice(odd, n)
        yield rng.choice(np.append(odd, np.float32(np.nan)), n)
        yield np.zeros(n, dtype)
        return
    info = np.iinfo(dtype)
    yield rng.integers(info.min, info.max, n, dtype, endpoint=True)
    yield rng.choice(np.array([info.min, info.max], dtype), n)
    yield np.full(n, info.max, dtype)
    yield np.arange(n).astype(dtype)
    yield np.sort(rng.integers(0, min(info.max, 5000), n).astype(dtype))
    # Runs about the length from which they are no longer packed in groups.
    yield np.repeat(np.arange(n) % 100, rng.integers(1, 18, n))[:n].astype(dtype)


def written(rows, encodings, sorted_by=(), row_group=ROW_GROUP):
    assert takes(rows, encodings)
    file = io.BytesIO()
    write_numbers(rows, encodings, sorted_by, file, row_group=row_group, level=1)
    return file.getvalue()


def same(found, expected):
    """Bit for bit."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


CASES = [(t, e) for t, encodings in ENCODINGS.items() for e in encodings]


@pytest.mark.parametrize(("type_", "encoding"), CASES)
@pytest.mark.parametrize("n", SIZES)
def test_every_reader_gets_what_was_written(type_, encoding, n, tmp_path):
    columns = {f"c{i}": column for i, column in enumerate(shapes(DTYPES[type_], n))}
    raw = written(pa.table(columns), dict.fromkeys(columns, encoding))
    path = tmp_path / "rows.parquet"
    path.write_bytes(raw)
    arrow = pq.ParquetFile(path, page_checksum_verification=True).read()
    duck = duckdb.sql(f"SELECT * FROM '{path}'").fetchnumpy()
    frame = pl.read_parquet(path)
    for name, column in columns.items():
        same(arrow[name].to_numpy(), column)
        same(np.ma.getdata(duck[name]), column)
        same(frame[name].to_numpy(), column)


@pytest.mark.parametrize(("type_", "encoding"), CASES)
@pytest.mark.parametrize("n", [1, 1023, ROW_GROUP + 1])
def test_the_footer_says_what_that_of_arrow_does(type_, encoding, n):
    columns = {f"c{i}": column for i, column in enumerate(shapes(DTYPES[type_], n))}
    rows = pa.table(columns)
    ours = pq.read_metadata(
        io.BytesIO(written(rows, dict.fromkeys(columns, encoding), sorted_by=["c3"]))
    )
    file = io.BytesIO()
    schema = pa.schema([field.with_nullable(False) for field in rows.schema])
    pq.write_table(
        rows.cast(schema), file, version="2.6", row_group_size=ROW_GROUP,
        sorting_columns=[pq.SortingColumn(3)],
    )  # fmt: skip
    arrows = pq.read_metadata(file)
    assert ours.num_rows == arrows.num_rows
    assert ours.num_row_groups == arrows.num_row_groups
    assert ours.schema.equals(arrows.schema)
    assert ours.schema.to_arrow_schema().remove_metadata() == schema
    for g in range(ours.num_row_groups):
        assert ours.row_group(g).sorting_columns == arrows.row_group(g).sorting_columns
        for c in range(ours.num_columns):
            one, other = ours.row_group(g).column(c), arrows.row_group(g).column(c)
            assert one.num_values == other.num_values
            if not np.isnan(columns[f"c{c}"]).any():  # of these Arrow says bounds, we none
                assert one.statistics.to_dict() == other.statistics.to_dict()


def test_a_nan_has_no_bounds():
    raw = written(pa.table({"a": pa.array([1.0, np.nan], pa.float32())}), {})
    assert pq.read_metadata(io.BytesIO(raw)).row_group(0).column(0).statistics is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(0, 3)).flatmap(
            lambda v: st.integers(1, 20).map(lambda times: [v] * times)
        ),
        max_size=40,
    ),
    st.sampled_from(["RLE_DICTIONARY", "DELTA_BINARY_PACKED", "PLAIN"]),
    st.integers(1, 50),
)
def test_runs_of_any_values_and_lengths(runs, encoding, row_group):
    values = np.array([v for run in runs for v in run], np.int32)
    raw = written(pa.table({"a": values}), {"a": encoding}, row_group=row_group)
    found = pq.ParquetFile(io.BytesIO(raw), page_checksum_verification=True).read()
    same(found["a"].to_numpy(), values)


def test_what_does_not_compress_is_not_compressed():
    rng = np.random.default_rng(0)
    rows = pa.table({"a": rng.integers(0, 1 << 16, 50_000).astype(np.int32), "b": np.zeros(50_000)})
    assert not takes(rows, {})  # of doubles
    raw = written(rows.select(["a"]), {"a": "RLE_DICTIONARY"}, row_group=10_000)
    metadata = pq.read_metadata(io.BytesIO(raw))
    for g in range(5):
        column = metadata.row_group(g).column(0)
        assert column.compression == "UNCOMPRESSED"
        assert column.total_compressed_size == column.total_uncompressed_size


def test_what_is_not_a_number_or_is_missing_is_not_taken():
    assert not takes(pa.table({"a": ["text"]}), {})
    assert not takes(pa.table({"a": pa.array([1, None], pa.int32())}), {})
    assert takes(pa.table({"a": pa.array([], pa.int32())}), {})


def test_an_encoding_that_is_not_ours_is_left_to_arrow(make_firings, monkeypatch):
    own = parquet.STYLES["codes"]
    style = dataclasses.replace(own, dictionary=(*own.dictionary, "context"), encodings={})
    monkeypatch.setitem(parquet.STYLES, "codes", style)
    schema, ordered = parquet.file_schema("codes"), make_firings(63).token_major()
    rows = pa.table([pa.array(getattr(ordered, c)) for c in schema.names], schema=schema)
    file = io.BytesIO()
    parquet.write_rows("codes", rows, file)
    found = pq.ParquetFile(file)
    assert "arrow" in found.metadata.created_by
    assert found.read().to_pydict() == rows.to_pydict()


def test_a_table_that_is_a_slice_or_of_many_chunks():
    one = pa.table({"a": np.arange(100, dtype=np.int32)})
    rows = pa.concat_tables([one.slice(7, 50), one.slice(1, 9), one.slice(0, 0)])
    raw = written(rows, {"a": "RLE_DICTIONARY"})
    same(pq.read_table(io.BytesIO(raw))["a"].to_numpy(), rows["a"].to_numpy())


@pytest.mark.parametrize("table", ["codes", "postings"])
def test_arrow_writes_the_same_rows_where_nothing_is_compiled(make_firings, monkeypatch, table):
    firings = make_firings(1023)
    ordered = firings.token_major() if table == "codes" else firings.feature_major()
    schema = parquet.file_schema(table)
    rows = pa.table([pa.array(getattr(ordered, c)) for c in schema.names], schema=schema)
    files = []
    for why_not in (None, "the test has none"):
        monkeypatch.setattr(pages, "WHY_NOT", why_not)
        files.append(io.BytesIO())
        parquet.write_rows(table, rows, files[-1])
    ours, arrows = map(pq.ParquetFile, files)
    assert "scopelake" in ours.metadata.created_by
    assert "arrow" in arrows.metadata.created_by
    assert ours.read().equals(arrows.read())
    assert ours.schema_arrow.equals(arrows.schema_arrow)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (_pages.delta, (b"123", 4)),
        (_pages.delta, (b"1234", 2)),
        (_pages.dictionary, (np.array([1, 5], np.int32), 4, 1, 4)),
        (_pages.dictionary, (np.array([1, 5], np.int32), 4, 2, 5)),
        (_pages.dictionary, (np.array([1, 5], np.int32), 4, 5, 1)),
        (_pages.dictionary, (np.array([], np.int32), 4, 0, 1)),
        (_pages.dictionary, (np.array([1, 5]), 8, 1, 5)),
        (_pages.split, (b"12345",)),
    ],
)
def test_what_is_not_such_a_column_is_refused(function, arguments):
    with pytest.raises(ValueError, match=r"these are not|beyond the bounds"):
        function(*arguments)


def test_it_is_built_here():
    assert pages.WHY_NOT is None


@pytest.mark.parametrize(
    ("type_", "encoding"), [(pa.int64(), "RLE_DICTIONARY"), (pa.float32(), "RLE_DICTIONARY"),
                            (pa.float32(), "DELTA_BINARY_PACKED"), (pa.int8(), "BYTE_STREAM_SPLIT")]
)  # fmt: skip
def test_an_encoding_of_another_type_is_refused(type_, encoding):
    with pytest.raises(ValueError, match=f"not {encoding}"):
        pages.ColumnWriter(type_, encoding, 1)
