"""Limits of a query's time and memory, and rows that come as they are made."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest

import scopelake
from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.query.connect import connect
from scopelake.query.limits import Limits
from scopelake.query.sql import sql, sql_batches

ENDLESS = "SELECT sum(a.range * b.range) FROM range(10_000_000) a, range(10_000_000) b"
MANY = "SELECT a.range * b.range AS x FROM range(10_000_000) a, range(10_000_000) b"


@pytest.mark.parametrize("read", [sql, lambda *a, **k: sql_batches(*a, **k).read_all()])
def test_a_query_over_its_time_is_stopped_and_the_connection_lives(built, read):
    began = time.monotonic()
    with pytest.raises(QueryError, match=r"within timeout=0.2 seconds .* stopped") as caught:
        read(built.connection, ENDLESS, limits=Limits(timeout=0.2))
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    assert sql(built.connection, "SELECT 1 AS a").to_pylist() == [{"a": 1}]


def test_the_time_also_ends_a_result_that_is_being_read(built):
    reader = sql_batches(built.connection, MANY, limits=Limits(timeout=1))
    with pytest.raises(QueryError, match="within timeout"):
        for _ in reader:
            pass


def test_one_query_that_is_stopped_stops_no_other(built):
    reader = sql_batches(built.connection, "FROM range(1_000_000)", batch_rows=1000)
    reader.read_next_batch()
    with pytest.raises(QueryError):
        sql(built.connection, ENDLESS, limits=Limits(timeout=0.1))
    assert sum(batch.num_rows for batch in reader) == 999_000


def test_a_query_over_its_memory_is_stopped_and_spills_outside_the_lake(
    built, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("scopelake.query.connect.disk_usage", lambda _: Usage(64 << 20))
    before = sorted(built.store.root.path.rglob("*"))
    seen = set()
    connection = connect(built.store, built.snapshot, "50MB")
    done = threading.Event()

    def watch():
        while not done.wait(0.005):
            seen.update(path.name for path in tmp_path.iterdir())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(QueryError, match="within memory=50MB was asked for; it needs more"):
        sql(connection, "SELECT range, random() AS r FROM range(30_000_000) ORDER BY r",
            limits=Limits(memory="50MB"))  # fmt: skip
    done.set()
    watcher.join()
    assert sql(connection, "SELECT count(*) AS n FROM saes").to_pylist() == [{"n": 3}]
    connection.close()
    assert any(name.startswith("scopelake-") for name in seen)
    assert list(tmp_path.iterdir()) == []
    assert sorted(built.store.root.path.rglob("*")) == before


class EndsLate:
    """A connection whose query needs more memory than there is once a part of it was read."""

    schema = pa.schema([("n", pa.int64())])

    def cursor_for(self, query, watch):
        return self

    def execute(self, query, values):
        return self

    def to_arrow_reader(self, batch_rows):
        return self

    def close(self):
        pass

    def __iter__(self):
        yield pa.RecordBatch.from_pylist([{"n": 1}], schema=self.schema)
        raise OSError("Out of Memory Error: failed to allocate data of size 128.0 MiB")


def test_memory_that_ends_while_batches_are_read_is_said():
    reader = sql_batches(EndsLate(), "SELECT 1", limits=Limits(memory="40MB"))
    assert reader.read_next_batch().num_rows == 1
    with pytest.raises(QueryError, match="within memory=40MB was asked for; it needs more"):
        reader.read_next_batch()


@pytest.mark.parametrize("stage", ["hashing", "macros", "vocabulary"])
def test_what_comes_before_a_query_is_within_its_time(built, monkeypatch, stage):
    """Each stage is made endless, and is stopped."""
    connection = connect(built.store, built.snapshot)
    over = threading.Event()
    if stage == "hashing":
        monkeypatch.setattr("scopelake.store.integrity._checked", set())
        monkeypatch.setattr("scopelake.store.integrity._check", lambda *_: over.wait(0.5))
        asked = "SELECT count(*) FROM codes"
    elif stage == "macros":
        monkeypatch.setattr("scopelake.query.connect.comment_statements", lambda: [ENDLESS])
        asked = "SELECT 1"
    else:
        sql(connection, "SELECT 1")
        connection._raw.execute(f"CREATE OR REPLACE VIEW main.vocabulary AS {ENDLESS}")
        asked = "FROM vocabulary"
    began = time.monotonic()
    for read in (sql, sql_batches):
        with pytest.raises(QueryError, match=r"within timeout=0.2 seconds .* has been stopped"):
            read(connection, asked, limits=Limits(timeout=0.2))
    assert time.monotonic() - began < 30
    monkeypatch.undo()
    assert sql(connection, "SELECT 1 AS a").to_pylist() == [{"a": 1}]
    connection.close()


def test_a_time_too_short_for_anything_is_met(built):
    for _ in range(20):
        with pytest.raises(QueryError, match="within timeout"):
            sql(built.connection, ENDLESS, limits=Limits(timeout=1e-9))


@pytest.mark.parametrize("memory", ["1B", 1000, "100KB", "1M"])
@pytest.mark.parametrize("read", [sql, sql_batches])
def test_too_little_memory_for_what_comes_before_a_query_is_said(built, memory, read):
    connection = connect(built.store, built.snapshot, memory)
    # The second time too: what was half made is no obstacle.
    for _ in range(2):
        with pytest.raises(QueryError, match=f"within memory={memory} was asked for") as caught:
            read(connection, "FROM vocabulary", limits=Limits(memory=memory))
        assert "\n" not in str(caught.value)
    connection.close()


class Usage:
    def __init__(self, free):
        self.free = free


@pytest.mark.parametrize(
    "limits",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": "1"},
        {"memory": "much"},
        {"memory": 0},
        {"memory": "0GB"},
        {"memory": 1.5},
        {"memory": "-1GB"},
        {"memory": "1GB'; SELECT 1; --"},
    ],
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(InvalidArgumentError, match="was asked for"):
        Limits(**limits)


def test_batches_hold_the_rows_in_order(built):
    query = "SELECT range AS i FROM range(10_001) ORDER BY i"
    for batch_rows in (1, 7, 2048, 10_001, 1_000_000):
        if batch_rows == 1:
            query = "SELECT range AS i FROM range(30)"
        reader = sql_batches(built.connection, query, batch_rows=batch_rows)
        batches = list(reader)
        assert all(b.num_rows <= batch_rows for b in batches)
        assert pa.Table.from_batches(batches) == sql(built.connection, query)
    empty = sql_batches(built.connection, "FROM codes WHERE false").read_all()
    assert empty.schema == sql(built.connection, "FROM codes WHERE false").schema
    with pytest.raises(InvalidArgumentError, match="batch_rows=0"):
        sql_batches(built.connection, "SELECT 1", batch_rows=0)
    with pytest.raises(QueryError, match="Conversion"):
        sql_batches(
            built.connection, "SELECT CAST('x' || range AS INTEGER) FROM range(9)"
        ).read_all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(built):
    code = (
        "import resource, sys, scopelake\n"
        "lake = scopelake.open(sys.argv[1])\n"
        "query = 'SELECT range, range::VARCHAR AS text FROM range(?)'\n"
        "n = sum(b.num_rows for b in lake.sql_batches(query, [int(sys.argv[2])]))\n"
        "assert n == int(sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    few, many = (
        int(subprocess.run(
            [sys.executable, "-P", "-c", code, str(built.store.root.path), str(n)],
            check=True, capture_output=True, text=True, env=os.environ,
        ).stdout)
        for n in (1_000_000, 20_000_000)
    )  # fmt: skip
    # KiB: whole, the many rows take some 700 MiB.
    assert many < few + 150 * 1024


def test_a_lake_takes_limits_and_says_what_sql_can_read(built):
    lake = scopelake.open(built.store.root.path)
    with pytest.raises(QueryError, match="within timeout"):
        lake.sql(ENDLESS, timeout=0.2)
    found = lake.sql("SELECT count(*) AS n FROM codes", memory="200MB", timeout=60)
    assert found.to_pylist() == [{"n": len(built.rows)}]
    assert lake.sql_batches("FROM codes", batch_rows=100).read_next_batch().num_rows <= 100
    views = lake.views().to_pylist()
    assert {row["view"] for row in views if row["type"] == "view"} >= {"codes", "vocabulary"}
    assert all(row["about"] for row in views)
