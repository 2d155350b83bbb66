"""Snapshots seen through SQL, and the same views in a DuckDB that knows nothing of scopelake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scopelake.errors import LakeError
from scopelake.query.connect import connect, init_sql
from scopelake.query.limits import Watch
from scopelake.query.sql import sql
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import write_firings

QUERIES = (
    "SELECT * FROM codes ORDER BY ALL LIMIT 50",
    "SELECT * FROM tokens ORDER BY ALL LIMIT 50",
    "SELECT corpus, context, roles, kinds FROM contexts ORDER BY ALL LIMIT 10",
    "SELECT sae, count(*), sum(activation) FROM peaks GROUP BY sae ORDER BY sae",
    "SELECT feature, firings, histogram FROM features ORDER BY ALL",
    "FROM top_contexts(1, 3, k := 5, around := 2)",
    "FROM top_contexts_of('mlp_out/layer_2_width_12', 3, k := 300, corpus := 'chats')",
    "FROM features_at(7, NULL, corpus := 'plain')",
    "FROM feature_card('layer_1_width_12', 3)",
    "FROM coactive('layer_1_width_12', 3, corpus := 'plain')",
    "FROM vocabulary ORDER BY ALL",
    "SELECT decode(token_ids) FROM contexts ORDER BY ALL LIMIT 9",
    "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL "
    "AND table_name <> 'vocabulary' ORDER BY ALL",
)
PLAIN = """
import json, sys
import duckdb, duckdb_extensions
given = json.load(sys.stdin)
connection = duckdb.connect(config={"extension_directory": given["folder"]})
duckdb_extensions.import_extension("delta", con=connection)
# Without a script of its own DuckDB takes itself for interactive, and draws a bar into stdout.
connection.execute("SET enable_progress_bar = false")
connection.execute(given["init"])
rows = [connection.execute(q).fetchall() for q in given["queries"]]
assert not any(name.startswith("scopelake") for name in sys.modules)
print(json.dumps(rows))
"""


def one_firing(context: int) -> Firings:
    return Firings(
        np.array([context], np.int64), np.array([1], np.int32), np.array([4], np.int32),
        np.array([2.0], np.float32), np.array([0], np.int8),
    )  # fmt: skip


def test_init_sql_makes_the_same_views_in_a_plain_duckdb(built, tmp_path):
    given = {
        "init": init_sql(built.store, built.snapshot),
        "queries": QUERIES,
        "folder": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN],
        input=json.dumps(given), capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = [
        built.connection.cursor_for(query, Watch(None)).execute(query).fetchall()
        for query in QUERIES
    ]
    assert all(ours)
    assert json.loads(done.stdout) == json.loads(json.dumps(ours))


def test_at_a_prompt_duckdb_draws_no_bars_into_what_is_printed(built):
    # Where no file is run, as at a prompt or in a notebook, it would: after 2 seconds of a query.
    code = f"""
import duckdb
from scopelake.query.connect import connect
from scopelake.store.lake_store import LakeStore
store = LakeStore.open({built.store.root.url!r})
ours = connect(store, store.snapshot()).session({{}})
for connection in (duckdb.connect(), ours, ours.cursor()):
    print(*connection.execute("SELECT current_setting('enable_progress_bar')").fetchone())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_a_snapshot_shows_its_own_rows_for_ever(tmp_path: Path):
    store = LakeStore.create(tmp_path / "lake")
    snapshots: list[Snapshot] = [store.snapshot()]
    early = connect(store, snapshots[0])
    with Writer(store) as writer:
        for shard in range(3):
            receipts = write_firings(
                store.root, one_firing(shard), sae="a/b/c", corpus="t", shard=shard, run="r",
                bits=23,
            )  # fmt: skip
            snapshots.append(writer.commit(receipts, transaction=f"{shard}", reason="shard"))
    for n, snapshot in enumerate(snapshots):
        connection = early if n == 0 else connect(store, snapshot)
        for table in ("codes", "postings", "peaks"):
            found = sql(connection, f"SELECT context FROM {table} ORDER BY context")
            assert found["context"].to_pylist() == list(range(n))
        assert sql(connection, "FROM snapshots").num_rows == n + 1
        assert sql(connection, "FROM tokens").num_rows == 0


def test_a_snapshot_whose_tables_are_gone_is_a_lake_error(tmp_path: Path):
    store = LakeStore.create(tmp_path / "lake")
    now = store.snapshot()
    gone = Snapshot(9, now.created_at, "x", None, {**now.versions, "codes": 77})
    with pytest.raises(LakeError, match="snapshot 9") as caught:
        connect(store, gone).execute("SELECT 1")
    assert "\n" not in str(caught.value)
