"""Users' SQL: what the views hold, and what is refused."""

from __future__ import annotations

from collections import Counter

import duckdb
import pytest

from scopelake.errors import QueryError
from scopelake.names import ROLES
from scopelake.query.columns import VIEWS
from scopelake.query.describe import describe
from scopelake.query.sql import sql
from scopelake.query.views import DERIVED
from scopelake.store.layout import TABLES
from scopelake.store.run_states import INTERRUPTED, RUNNING
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND


def rows(built, query, params=None):
    return sql(built.connection, query, params).to_pylist()


def test_the_states_that_the_store_gives_a_run_are_told():
    told = VIEWS["runs"].columns["state"].replace(",", "").split()
    assert {RUNNING, INTERRUPTED} <= set(told)


def test_every_table_has_a_view_with_its_rows(built):
    for table in TABLES:
        stored = built.store.read(table, built.snapshot)
        (found,) = rows(built, f"SELECT count(*) AS n FROM {table}")
        # Files hold together more peaks and samples than are shown: each has all it may.
        most, n_keys = {"peaks": (PEAKS_DEPTH, 3), "samples": (SAMPLES_PER_BAND, 4)}.get(
            table, (stored.num_rows, 0)
        )
        groups = Counter(str(list(row.values())[:n_keys]) for row in stored.to_pylist())
        assert found == {"n": sum(min(n, most) for n in groups.values())}
        added = ["source"] if table in ("peaks", "features") else []
        found = sql(built.connection, f"FROM {table} LIMIT 0").column_names
        assert found == [*stored.column_names, *added]


def test_tokens_spell_their_contexts(built):
    found = rows(built, "SELECT * FROM tokens ORDER BY corpus, context, position")
    expected = [
        {"corpus": c.corpus, "context": c.context, "position": p, "token": c.shown[p],
         "role": ROLES[c.roles[p]], "turn": c.turns[p],
         "kind": ("content", "template", "bos", "generated")[c.kinds[p]], "document": c.document}
        for _, c in sorted(built.contexts.items())
        for p in range(len(c.pieces))
    ]  # fmt: skip
    for row in found:
        del row["token_id"]
    assert found == expected


def test_codes_and_postings_hold_the_firings_in_words(built):
    keys = ("sae", "corpus", "context", "position", "feature", "activation", "kind")
    expected = sorted(tuple(getattr(r, k) for k in keys) for r in built.rows)
    for table in ("codes", "postings"):
        found = rows(built, f"SELECT {', '.join(keys)} FROM {table} ORDER BY ALL")
        assert [tuple(r.values()) for r in found] == expected
    kinds = rows(built, "SELECT DISTINCT unnest(kinds) AS k, FROM contexts ORDER BY 1")
    assert [r["k"] for r in kinds] == ["bos", "content", "template"]


def test_parameters_are_bound(built):
    assert rows(built, "SELECT ? AS a", ["'; DROP VIEW codes; --"])[0]["a"].startswith("';")
    assert rows(built, "SELECT $x + 1 AS a", {"x": 2}) == [{"a": 3}]


def test_partition_columns_prune_files(built):
    query = (
        "EXPLAIN ANALYZE SELECT count(*) FROM postings WHERE corpus = 'chats' AND feature = 3 "
        "AND sae = 'gs-2/resid_post/layer_1_width_12'"
    )
    plan = rows(built, query)[0]["explain_value"]
    assert "Total Files Read: 1" in plan


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO labels VALUES ('a', 1, 'b', 'c')",
        "DELETE FROM labels",
        "DROP VIEW codes",
        "CREATE TABLE t AS SELECT 1",
        "ATTACH '/tmp/other.db'",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA enable_profiling",
        "SET enable_external_access = true",
        "CALL pragma_version()",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW codes",
        "",
        "-- nothing",
        "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "EXPLAIN (ANALYZE) DROP VIEW codes",
        "/* c */ EXPLAIN ANALYZE DROP VIEW codes",
        "SELEC 1",
        "SELECT * FROM no_such_view",
        "SELECT * FROM params",
        "SELECT * FROM query",
        "SELECT ?",
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT 1 / 'x'",
    ],
)
def test_what_is_not_one_query_of_the_lake_is_refused_in_one_line(built, query):
    with pytest.raises(QueryError) as caught:
        sql(built.connection, query)
    assert "\n" not in str(caught.value)
    assert rows(built, "SELECT 1 AS a") == [{"a": 1}]


def test_files_beside_the_lake_cannot_be_reached_through_it(built):
    outside = built.store.root.path.parent / "secret.txt"
    outside.write_text("secret")
    tables = str(built.store.root.path / "tables").replace("'", "''")
    for path in (f"{tables}/../../secret.txt", f"{tables}/../lake.json"):
        query = f"SELECT * FROM read_text('{path}')"
        with pytest.raises(QueryError, match="read_text"):
            sql(built.connection, query)
        with pytest.raises(duckdb.PermissionException):  # DuckDB itself would refuse it, too
            built.connection.execute(query)


def test_explain_writes_nothing_into_the_lake(built):
    target = built.store.root.path / "tables" / "out.csv"
    path = str(target).replace("'", "''")
    with pytest.raises(QueryError):
        sql(built.connection, f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{path}'")
    assert not target.exists()
    assert "explain_value" in sql(built.connection, "EXPLAIN SELECT 1").column_names


def test_every_column_of_every_view_is_described(built):
    views = {*TABLES, *DERIVED}
    assert set(VIEWS) == views
    for view in views:
        columns = sql(built.connection, f"FROM {view} LIMIT 0").column_names
        assert list(VIEWS[view].columns) == columns
    query = (
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE schema_name = 'main'"
    )
    comments = {(r["table_name"], r["column_name"]): r["comment"] for r in rows(built, query)}
    for view in views:
        for name, about in VIEWS[view].columns.items():
            assert comments[view, name] == about
            assert about[-1] != "."
    described = describe(built.connection).to_pylist()
    assert [r["about"] for r in described if r["column"]] == [
        about for text in VIEWS.values() for about in text.columns.values()
    ]
    types = {(r["view"], r["column"]): r["type"] for r in described}
    assert types["codes", "context"] == "BIGINT"
    assert types["contexts", "token_ids"] == "INTEGER[]"


def test_files_and_snapshots_are_those_of_the_snapshot(built):
    (files,) = rows(built, "SELECT count(*) AS n, sum(n_rows)::BIGINT AS rows FROM files "
                           "WHERE kind = 'codes'")  # fmt: skip
    assert files == {"n": 12, "rows": len(built.rows)}
    (last,) = rows(built, "SELECT max(snapshot) AS n FROM snapshots")
    assert last == {"n": built.snapshot.id}
