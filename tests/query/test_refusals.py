"""Ways out of the lake through SQL, a predicate, a macro's arguments or a name: all refused."""

from __future__ import annotations

import os

import pytest

from scopelake.errors import QueryError, ScopelakeError
from scopelake.query.contexts import top_contexts
from scopelake.query.rank_contexts import Ranking
from scopelake.query.sql import sql, sql_batches

TABLES = "{tables}"
"""Stands for the lake's own folder of tables, as a SQL string."""

STATEMENTS = (
    "INSERT INTO labels VALUES ('a', 1, 'b', 'c')",
    "UPDATE labels SET label = 'x'",
    "DELETE FROM labels",
    "MERGE INTO labels USING labels AS l ON false WHEN NOT MATCHED THEN INSERT",
    "TRUNCATE labels",
    "CREATE OR REPLACE VIEW codes AS SELECT 1",
    "CREATE OR REPLACE MACRO main.decode(x) AS 'y'",
    "CREATE TEMP TABLE t AS FROM codes",
    "CREATE SECRET s (TYPE s3)",
    "DROP MACRO TABLE top_contexts",
    "ALTER VIEW codes RENAME TO c",
    "COMMENT ON VIEW codes IS 'x'",
    "ATTACH ':memory:' AS other",
    "DETACH memory",
    "USE main",
    "COPY codes TO '/tmp/out.parquet'",
    "EXPORT DATABASE '/tmp/out'",
    "IMPORT DATABASE '/tmp/out'",
    "INSTALL json",
    "LOAD json",
    "SET memory_limit = '1TB'",
    "RESET ALL",
    "SET VARIABLE x = 1",
    "PRAGMA database_list",
    "CALL duckdb_settings()",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE INSERT INTO labels VALUES ('a', 1, 'b', 'c')",
    "EXPLAIN (FORMAT json) COPY codes TO '/tmp/out'",
    "EXPLAIN ANALYZE EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "SELECT 1; COPY codes TO '/tmp/out'",
    "SELECT 1 /* ; */ ; ATTACH ':memory:'",
    "WITH x AS (DELETE FROM labels RETURNING *) FROM x",
)
READS = (
    "read_csv('/etc/passwd')",
    "read_text({tables} || '/../lake.json')",
    "read_blob('/etc/passwd')",
    "read_json('/etc/passwd')",
    "READ_PARQUET({tables} || '/codes/**/*.parquet')",
    "\"read_parquet\"({tables} || '/codes/**/*.parquet')",
    "system.main.read_text('/etc/passwd')",
    "parquet_scan({tables} || '/codes/**/*.parquet')",
    "parquet_metadata({tables} || '/codes/**/*.parquet')",
    "sniff_csv('/etc/passwd')",
    "glob('/etc/*')",
    "delta_scan({tables} || '/codes')",
    "delta_scan({tables} || '/../../other/tables/codes')",
    "delta_list_files({tables} || '/codes')",
    "delta_filter_pushdown_log()",
    "query('SELECT * FROM co' || 'des')",
    "query_table('co' || 'des')",
    "json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "arrow_scan(1, 1, 1)",
    "duckdb_secrets()",
    "which_secret('s3://a/b', 's3')",
    "duckdb_settings()",
    "duckdb_extensions()",
    "duckdb_databases()",
    "duckdb_logs()",
    "enable_logging()",
    "pragma_database_list()",
    "'/etc/passwd'",
    "'/etc/hosts.csv'",
    '"{plain}/codes/x.parquet"',
    "'lake.json'",
    "duckdb_secrets",
    "pg_catalog.pg_settings",
    "sqlite_master",
    "memory.main.duckdb_settings",
    "system.main.duckdb_settings",
    "no_such_view",
    "params",
)
CALLS = (
    "getenv('HOME')",
    "current_setting('s3_secret_access_key')",
    "getvariable('x')",
    "write_log('x')",
    "\"current_setting\"('temp_directory')",
)
WRAPS = (
    "SELECT * FROM {x}",
    "FROM {x}",
    "EXPLAIN SELECT * FROM {x}",
    "EXPLAIN ANALYZE SELECT * FROM {x}",
    "DESCRIBE SELECT * FROM {x}",
    "SUMMARIZE SELECT * FROM {x}",
    "WITH codes AS (SELECT * FROM {x}) SELECT * FROM codes",
    "WITH RECURSIVE a AS (SELECT 1 UNION ALL SELECT 1 FROM {x}) FROM a",
    "SELECT (SELECT count(*) FROM {x})",
    "SELECT 1 WHERE EXISTS (FROM {x})",
    "SELECT * FROM codes, LATERAL (SELECT * FROM {x}) AS l",
    "SELECT * FROM codes SEMI JOIN {x} ON true",
    "SELECT 1 UNION ALL SELECT 1 FROM {x}",
    "SELECT list_transform([1], lambda i: (SELECT count(*) FROM {x}))",
    "SELECT * FROM top_contexts(1, (SELECT count(*) FROM {x}))",
    "SELECT decode((SELECT [1] FROM {x}))",
    "PIVOT (SELECT * FROM {x}) ON a IN (1) USING count(*)",
    "SELECT count(*) FILTER (WHERE EXISTS (FROM {x})) OVER (ORDER BY 1)",
    "SELECT 1 ORDER BY (SELECT count(*) FROM {x})",
    "SELECT 1 LIMIT (SELECT count(*) FROM {x})",
)


def placed(built, query):
    plain = str(built.store.root.path / "tables")
    quoted = "'" + plain.replace("'", "''") + "'"
    return query.replace("{tables}", quoted).replace("{plain}", plain)


def refused(built, query):
    """Whether it was refused before DuckDB saw it: by the tree, and in one line."""
    with pytest.raises(QueryError) as caught:
        sql(built.connection, query)
    said = str(caught.value)
    assert "\n" not in said
    assert "the query failed" not in said, said


@pytest.mark.parametrize("query", STATEMENTS)
def test_statements_that_are_no_query_are_refused(built, query):
    refused(built, query)
    assert sql(built.connection, "SELECT count(*) AS n FROM labels").to_pylist() == [{"n": 0}]


@pytest.mark.parametrize("read", READS)
def test_tables_that_are_no_view_are_refused(built, read):
    refused(built, placed(built, f"SELECT * FROM {read}"))


@pytest.mark.parametrize("wrap", WRAPS)
def test_no_clause_hides_a_table(built, wrap):
    for read in ("read_text('/etc/passwd')", "'/etc/passwd'", "query_table('codes')"):
        refused(built, wrap.replace("{x}", read))


@pytest.mark.parametrize("call", CALLS)
def test_functions_that_tell_of_the_process_are_refused(built, call):
    for query in (f"SELECT {call}", f"FROM codes WHERE activation > len({call})",
                  f"SELECT list_transform([1], lambda i: {call})",
                  f"FROM top_contexts_of({call}, 3)"):  # fmt: skip
        refused(built, query)


@pytest.mark.parametrize("name", ["/etc/passwd", "/etc/hosts.csv", "a.parquet", "x.json"])
def test_the_name_of_a_subquery_is_no_pass_for_a_file(built, name):
    refused(built, f'WITH a AS (WITH "{name}" AS (SELECT 1) FROM "{name}") FROM \'{name}\'')


@pytest.mark.parametrize(
    "name",
    ["pg_settings", "PG_Settings", "duckdb_databases", "sqlite_master", "pragma_database_list",
     "duckdb_logs"],
)  # fmt: skip
def test_the_name_of_a_subquery_is_no_pass_for_a_system_view(built, name):
    for query in (
        f"SELECT * FROM (WITH {name} AS (SELECT 1) FROM {name}) a, {name} b",
        f'SELECT (WITH "{name}" AS (SELECT 1 AS x) SELECT x FROM {name}) FROM {name}',
        f"WITH a AS (WITH {name} AS (SELECT 1) FROM {name}), b AS (FROM {name}) FROM a, b",
    ):
        refused(built, query)
        with pytest.raises(QueryError, match=f"named '{name.lower()}' was asked for; DuckDB has"):
            sql_batches(built.connection, query)


def test_every_system_view_of_a_lakes_connection_is_known(built):
    rows = built.connection.execute(
        "SELECT schema_name, view_name FROM duckdb_views() WHERE internal", reads={}
    ).fetchall()
    names = {name for schema, name in rows if schema != "information_schema"}
    assert len(names) > 20
    for name in names:
        within = f"SELECT * FROM (WITH {name} AS (SELECT 1) FROM {name}) a, {name} b"
        if name in ("duckdb_columns", "duckdb_tables", "duckdb_types", "duckdb_views"):
            assert sql(built.connection, within).num_columns > 1
        else:
            refused(built, within)


@pytest.mark.parametrize(
    "where",
    [
        "true) UNION ALL SELECT 1, 2, 3, 4 FROM read_text('/etc/passwd') WHERE (true",
        "context IN (SELECT 1 FROM read_text('/etc/passwd'))",
        "EXISTS (FROM '/etc/passwd')",
        "len(current_setting('temp_directory')) > 0",
        "true; DROP VIEW codes",
        "true /*",
        "(SELECT true",
        "activation > ?",
        "1 = (SELECT count(*) FROM duckdb_secrets())",
        "",
    ],
)
def test_a_predicate_is_no_way_out(built, where):
    with pytest.raises(QueryError) as caught:
        top_contexts(built.connection, Ranking(built.sae(), 3, where=where))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["'; DROP VIEW codes; --", "x' OR '1'='1", '"', "\\", "../..", ""])
def test_names_are_data(built, name):
    for query in ("FROM top_contexts_of(?, 3)", "FROM feature_card(?, 3)", "FROM coactive(?, 3)"):
        with pytest.raises(QueryError, match="was asked for"):
            sql(built.connection, query, [name])
    with pytest.raises(QueryError, match="was asked for"):
        sql(built.connection, "FROM top_contexts(1, 3, corpus := ?)", [name])
    found = sql(built.connection, "SELECT count(*) AS n FROM codes WHERE sae = ?", [name])
    assert found.to_pylist() == [{"n": 0}]


def test_links_inside_the_lake_lead_nowhere(built):
    link = built.store.root.path / "tables" / "linked"
    os.symlink("/etc", link)
    try:
        with pytest.raises(Exception, match="Permission"):
            built.connection.execute(
                placed(built, "SELECT * FROM read_text({tables} || '/linked/hostname')"), reads={}
            )
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "query",
    [
        "WITH a AS (FROM codes LIMIT 3), b AS (FROM a) SELECT * FROM b JOIN a USING (feature)",
        "WITH codes AS (FROM codes LIMIT 3), tables AS (SELECT 1) FROM codes, tables",
        'FROM "codes" AS "/etc/passwd" LIMIT 1',
        "FROM MAIN.Codes LIMIT 1",
        "FROM memory.main.codes LIMIT 1",
        "FROM stored.codes LIMIT 1",
        "SELECT unnest([1, 2]), 'read_text' AS \"FROM 'x.csv'\" FROM range(3)",
        "DESCRIBE codes",
        "SUMMARIZE saes",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "VALUES (1, 2)",
        "FROM duckdb_columns() WHERE table_name = 'codes'",
        "FROM information_schema.columns LIMIT 1",
        "PIVOT codes ON kind IN ('content', 'bos') USING count(*) GROUP BY sae",
        "SELECT json_extract(metadata, '$.lang') FROM contexts LIMIT 1",
        "FROM codes USING SAMPLE 3",
        "SELECT corpus, count(*) FROM codes GROUP BY ROLLUP (corpus)",
        "FROM codes QUALIFY row_number() OVER (ORDER BY activation) < 3",
        "EXPLAIN ANALYZE FROM codes LIMIT 1",
    ],
)
def test_plain_queries_pass(built, query):
    assert sql(built.connection, query).num_columns
    assert sql_batches(built.connection, query).read_all().num_columns


def test_what_is_nested_too_deep_is_refused_in_one_line(built):
    with pytest.raises(ScopelakeError) as caught:
        sql(built.connection, "SELECT " + "abs(" * 5000 + "1" + ")" * 5000)
    assert "\n" not in str(caught.value)


def test_files_that_a_predicate_reads_are_hashed_first(built):
    seen = []
    checked = built.connection._files.check

    def check(table, filters):
        seen.append((table, tuple(filters)))
        checked(table, filters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built.connection._files, "check", check)
        where = "context IN (SELECT context FROM codes WHERE feature = 1)"
        top_contexts(built.connection, Ranking(built.sae(), 3, where=where))
    assert ("codes", ()) in seen


def test_a_predicate_may_ask_macros(built):
    where = "context IN (SELECT context FROM top_contexts_of('post/layer_1_width_12', 3, k := 2))"
    found = top_contexts(built.connection, Ranking(built.sae(), 3, where=where))
    assert 1 <= len(set(found.table["context"].to_pylist())) <= 2
