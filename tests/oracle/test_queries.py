"""Every verb against a brute-force oracle over plain tuples."""

import subprocess
import sys
from collections import defaultdict

import duckdb
import pytest

from scopelake.errors import (
    AmbiguousSaeError,
    ContextNotFoundError,
    FeatureNotFoundError,
    InvalidArgumentError,
    LayerNotFoundError,
    QueryError,
    SaeNotFoundError,
)
from scopelake.query import contexts as contexts_module
from scopelake.query.connect import connect, init_sql
from scopelake.query.contexts import top_contexts
from scopelake.query.firing import features_at
from scopelake.query.resolve import resolve_sae
from scopelake.query.sql import sql

SAE = "repo/resid_post_all/layer_2_width_32_l0_small"
KINDS = ("content", "template", "bos", "generated")
ROLES = ("none", "user", "model", "system", "tool")


@pytest.fixture(scope="module")
def connection(lake):
    return lake.connect()


def ask(lake, connection, feature, **options):
    info = resolve_sae(lake.store, lake.store.snapshot(), sae=SAE, feature=feature)
    return top_contexts(connection, info, feature, **options).table.to_pylist()


def oracle(lake, feature, *, k, window, corpus=None, keep=lambda row: True, bos=False):
    best, fired = {}, defaultdict(dict)
    for row in lake.firings[SAE]:
        name, context, position, found, activation, kind = row
        if found != feature or (corpus and name != corpus) or (kind == 2 and not bos):
            continue
        fired[name, context][position] = activation
        if keep(row):
            best.setdefault((name, context), []).append((-activation, position))
    ranked = sorted((min(v)[0], key, min(v)[1]) for key, v in best.items())[:k]
    result = []
    for rank, (negative, key, position) in enumerate(ranked):
        tokens = lake.tokens[key]
        start, stop = max(0, position - window), min(len(tokens), position + window + 1)
        pieces = [p if k_ != 2 else "<bos>" for p, _, k_ in tokens[start:stop]]
        result.append({
            "rank": rank, "corpus": key[0], "context": key[1], "position": position,
            "activation": -negative, "document": f"doc{key[1] // 3}", "start": start, "stop": stop,
            "tokens": pieces, "activations": [fired[key].get(p, 0.0) for p in range(start, stop)],
            "text": "".join(pieces),
        })  # fmt: skip
    return result


@pytest.mark.parametrize("feature", [0, 7, 30, 31])  # 30 fires everywhere, 31 nowhere
@pytest.mark.parametrize("k", [1, 20, 255, 256, 257, 1000])
def test_top_contexts_equal_the_oracle_at_every_depth(lake, connection, feature, k):
    found = ask(lake, connection, feature, k=k, window=3)
    assert found == oracle(lake, feature, k=k, window=3)


@pytest.mark.parametrize("window", [0, 1, 100])
@pytest.mark.parametrize("corpus", [None, "beta"])
def test_windows_and_corpora(lake, connection, window, corpus):
    found = ask(lake, connection, 30, k=50, window=window, corpus=corpus)
    assert found == oracle(lake, 30, k=50, window=window, corpus=corpus)


def test_postings_and_peaks_give_the_same_answer(lake, connection, monkeypatch):
    shallow = ask(lake, connection, 30, k=200)
    monkeypatch.setattr(contexts_module, "PEAKS_DEPTH", 0)
    assert ask(lake, connection, 30, k=200) == shallow


def test_bos_counts_only_when_asked(lake, connection):
    with_bos = ask(lake, connection, 30, k=100, window=2, bos=True)
    assert with_bos == oracle(lake, 30, k=100, window=2, bos=True)
    assert with_bos != ask(lake, connection, 30, k=100, window=2)


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("role = 'user'", lambda lake, r: lake.tokens[r[0], r[1]][r[2]][1] == 1),
        ("kind IN ('generated')", lambda lake, r: r[5] == 3),
        ("position BETWEEN 2 AND 5", lambda lake, r: 2 <= r[2] <= 5),
        ("token = ' b'", lambda lake, r: lake.tokens[r[0], r[1]][r[2]][0] == " b"),
        ("metadata ->> '$.label' = '1'", lambda lake, r: r[1] % 2 == 1),
        ("text LIKE '%é%' -- with a comment",
         lambda lake, r: any("é" in p for p, _, _ in lake.tokens[r[0], r[1]])),
        ("false", lambda lake, r: False),
    ],
)  # fmt: skip
def test_where_filters_tokens_before_ranking(lake, connection, where, keep):
    found = ask(lake, connection, 7, k=30, window=4, where=where)
    assert found == oracle(lake, 7, k=30, window=4, keep=lambda r: keep(lake, r))


@pytest.mark.parametrize("where", ["1) OR (1", "role = 'user'; DROP VIEW codes", "", "nope = 1",
                                   "1) UNION SELECT * FROM saes --"])  # fmt: skip
def test_where_that_is_no_predicate_is_refused(lake, connection, where):
    with pytest.raises(QueryError):
        ask(lake, connection, 7, where=where)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"window": -1}])
def test_sizes_out_of_range_are_refused(lake, connection, options):
    with pytest.raises(InvalidArgumentError):
        ask(lake, connection, 7, **options)


@pytest.mark.parametrize("position", [None, 0, 1])
@pytest.mark.parametrize("k", [None, 1, 2])
@pytest.mark.parametrize("sae", [None, SAE])
def test_features_at_equal_the_oracle(lake, connection, position, k, sae):
    key = next(key for key, tokens in lake.tokens.items() if len(tokens) > 5)
    snapshot = lake.store.snapshot()
    found = features_at(
        connection, lake.store, snapshot, key[1], position, corpus=key[0], sae=sae, k=k
    ).table.to_pylist()
    expected = []
    for name, rows in lake.firings.items():
        if sae in (None, name):
            at = defaultdict(list)
            for corpus, context, p, feature, activation, _ in rows:
                if (corpus, context) == key and position in (None, p):
                    at[p].append((-activation, feature))
            expected += [(p, a, name, f) for p, v in at.items() for a, f in sorted(v)[:k]]
    assert [(r["position"], -r["activation"], r["sae"], r["feature"]) for r in found] == sorted(
        expected
    )
    pieces = ["<bos>" if kind == 2 else piece for piece, _, kind in lake.tokens[key]]
    assert all(r["token"] == pieces[r["position"]] for r in found)


def test_the_tokens_view_is_the_text(lake, connection):
    rows = sql(connection, "SELECT * FROM tokens ORDER BY corpus, context, position").to_pylist()
    expected = [
        (corpus, context, position, "<bos>" if kind == 2 else piece, ROLES[role], KINDS[kind])
        for (corpus, context), tokens in sorted(lake.tokens.items())
        for position, (piece, role, kind) in enumerate(tokens)
    ]
    columns = ("corpus", "context", "position", "token", "role", "kind")
    assert [tuple(row[c] for c in columns) for row in rows] == expected


@pytest.mark.parametrize("query", [
    "INSERT INTO stored.codes VALUES (1)", "CREATE TABLE t (i INT)", "DROP VIEW codes",
    "ATTACH '/tmp/x.db'", "COPY (SELECT 1) TO '/tmp/x.csv'", "INSTALL httpfs", "LOAD httpfs",
    "SET memory_limit = '1GB'", "SELECT 1; SELECT 2", "", "SELECT FROM WHERE",
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/hostname')",
    "SELECT * FROM '/etc/passwd'", "SELECT * FROM glob('/etc/*')", "SELECT * FROM absent",
    "SELECT CAST('x' AS INTEGER)", "EXPORT DATABASE '/tmp/x'", "CALL pragma_version()",
])  # fmt: skip
def test_sql_that_is_no_query_of_the_lake_is_refused_in_one_line(connection, query):
    with pytest.raises(QueryError) as refused:
        sql(connection, query)
    assert "\n" not in str(refused.value)


def test_sql_takes_parameters(connection):
    table = sql(connection, "SELECT ? + 1 AS n, ? AS s", [41, "x'; DROP"])
    assert table.to_pylist() == [{"n": 42, "s": "x'; DROP"}]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"sae": "nope"}, SaeNotFoundError, SAE),
        ({}, AmbiguousSaeError, SAE),
        ({"layer": 3}, LayerNotFoundError, "layers 2, 4"),
        ({"layer": 2, "site": "mlp_out"}, LayerNotFoundError, "layers 4"),
        ({"layer": 2, "feature": 32}, FeatureNotFoundError, "0 to 31"),
        ({"layer": 2, "feature": -1}, FeatureNotFoundError, "0 to 31"),
    ],
)
def test_saes_that_are_not_there_are_refused_with_a_list(lake, asked, error, message):
    with pytest.raises(error, match=message):
        resolve_sae(lake.store, lake.store.snapshot(), **asked)


def test_an_sae_goes_by_layer_site_or_ending(lake):
    snapshot = lake.store.snapshot()
    for asked in ({"layer": 2}, {"site": "resid_post"}, {"sae": SAE.rpartition("/")[2]}):
        assert resolve_sae(lake.store, snapshot, **asked).name == SAE


def test_contexts_that_are_not_there_are_refused(lake, connection):
    snapshot = lake.store.snapshot()
    with pytest.raises(ContextNotFoundError, match="0 to 39"):
        features_at(connection, lake.store, snapshot, 40, corpus="beta")
    with pytest.raises(InvalidArgumentError, match="alpha, beta"):
        features_at(connection, lake.store, snapshot, 0)


def test_a_plain_duckdb_client_has_the_same_views(lake, connection, tmp_path):
    (tmp_path / "init.sql").write_text(init_sql(lake.store, lake.store.snapshot()))
    query = "SELECT sae, count(*), sum(activation) FROM postings GROUP BY sae ORDER BY sae"
    code = (
        "import duckdb, duckdb_extensions\n"
        "duckdb_extensions.import_extension('delta')\n"
        "connection = duckdb.connect()\n"
        f"connection.execute(open({str(tmp_path / 'init.sql')!r}).read())\n"
        f"print(connection.execute({query!r}).fetchall())\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.strip() == str(connection.execute(query).fetchall())


def test_an_older_snapshot_shows_older_rows(lake):
    store = lake.store
    corpora = "SELECT count(*) AS n FROM corpora"
    counts = [
        sql(connect(store, store.snapshot(i)), corpora)["n"][0].as_py()
        for i in range(1, store.snapshot().id + 1)
    ]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 2)


def test_results_show_themselves(lake, connection):
    info = resolve_sae(lake.store, lake.store.snapshot(), sae=SAE)
    found = top_contexts(connection, info, 30, k=3)
    assert "[[" in found.to_text()
    assert "\x1b[" in found.to_text(color=True)
    assert "rgba(255,140,0" in found._repr_html_()
    html = top_contexts(connection, info, 30, k=100, where="token = '<x>'")._repr_html_()
    assert "<x>" not in html
    assert "&lt;x&gt;" in html
    assert "never fires" in top_contexts(connection, info, 31).to_text()
    assert list(found.to_pandas()["rank"]) == [0, 1, 2]
    assert duckdb.sql("SELECT 1").fetchone() == (1,)
