"""The verb sql: forms of output, files, limits, init files, what it says of views."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scopelake.cli import main
from scopelake.query.columns import VIEWS

QUERY = (
    "SELECT sae, corpus, context, feature, activation, [feature, 1] AS pair, NULL AS nothing, "
    "'a,\"b\"' AS odd, 1 AS a, 2 AS a FROM codes ORDER BY ALL LIMIT 300"
)


@pytest.fixture
def lake(built):
    return str(built.store.root.path)


@pytest.fixture
def rows(built):
    """What DuckDB itself answers, with distinct names."""
    found = built.connection.execute(QUERY).fetchall()
    names = ["sae", "corpus", "context", "feature", "activation", "pair", "nothing", "odd", "a",
             "a_1"]  # fmt: skip
    return [dict(zip(names, row, strict=True)) for row in found]


def shell(*arguments, stdin="", status=0):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scopelake", *arguments],
        input=stdin.encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


def test_every_form_has_all_rows(lake, rows, tmp_path, capsys):
    read = {
        "csv": lambda p: list(csv.DictReader(io.StringIO(p.read_text()))),
        "json": lambda p: json.loads(p.read_text()),
        "jsonl": lambda p: [json.loads(line) for line in p.read_text().splitlines()],
        "parquet": lambda p: pq.read_table(p).to_pylist(),
    }
    for form, load in read.items():
        path = tmp_path / f"rows.{form}"
        assert main(["sql", lake, QUERY, "--format", form, "--output", str(path)]) == 0
        found = load(path)
        if form == "csv":
            assert [r["odd"] for r in found] == [r["odd"] for r in rows]
            assert [json.loads(r["pair"]) for r in found] == [r["pair"] for r in rows]
            assert [float(r["activation"]) for r in found] == [r["activation"] for r in rows]
            assert {r["nothing"] for r in found} == {""}
            assert list(found[0]) == list(rows[0])
        else:
            assert found == rows
    path = tmp_path / "rows.arrow"
    assert main(["sql", lake, QUERY, "--format", "arrow", "--output", str(path)]) == 0
    assert pa.ipc.open_stream(path.read_bytes()).read_all().num_rows == len(rows)
    path = tmp_path / "rows.txt"
    assert main(["sql", lake, QUERY, "--output", str(path)]) == 0
    assert len(path.read_text().splitlines()) == len(rows) + 1
    assert capsys.readouterr().out == ""
    assert len(list(tmp_path.iterdir())) == 6


def test_a_pipe_has_the_forms_that_it_can_take(lake, rows):
    lines = shell("sql", lake, QUERY, "--json").decode().splitlines()
    assert [json.loads(line) for line in lines] == rows
    arrow = shell("sql", lake, QUERY, "--format", "arrow")
    assert pa.ipc.open_stream(arrow).read_all().num_rows == len(rows)
    shown = shell("sql", lake, QUERY).decode().splitlines()
    assert len(shown) == 202
    assert shown[-1] == "... and 100 more rows"
    assert json.loads(shell("sql", lake, "FROM codes WHERE false", "--format", "json")) == []


def test_a_query_may_come_from_stdin(lake):
    assert shell("sql", lake, "--format", "csv", stdin="SELECT 1 AS x\n;\n") == b"x\n1\n"
    assert shell("sql", lake, stdin="  \n", status=2) == b""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SELECT 1", "--format", "parquet"], "give --output FILE, or --format arrow"),
        (["SELECT 1", "--json", "--format", "csv"], "give one of the two"),
        (["SELECT 1", "--output", "{there}"], "it is there already; give --overwrite"),
        (["SELECT 1", "--output", "{there}/x"], "its folder is not there"),
        (["SELECT 1", "--output", "{folder}"], "it is a folder"),
        (["SELECT 1", "--timeout", "0"], "--timeout 0.0"),
        (["SELECT 1", "--memory", "much"], "give one such as 8GB"),
        (["SELECT sum(a.range) FROM range(100000000) a, range(1000000) b", "--timeout", "0.1"],
         "was still running and has been stopped"),
        (["COPY codes TO '{there}'"], "SQL only reads a lake"),
        (["SELECT * FROM '{there}'"], "a lake has the views"),
        (["--describe", "nothing"], "there are contexts, tokens"),
        (["--init", "{there}"], "give --overwrite"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_leaves_files_alone(
    lake, tmp_path, capsys, arguments, said
):
    there = tmp_path / "there.csv"
    there.write_text("kept")
    places = {"{there}": str(there), "{folder}": str(tmp_path)}
    for name, place in places.items():
        arguments = [a.replace(name, place) for a in arguments]
    assert main(["sql", lake, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert there.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [there]


def test_a_query_that_fails_on_the_way_leaves_the_file_as_it_was(lake, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("kept")
    query = "SELECT CASE WHEN range < 500000 THEN 1 ELSE error('late') END FROM range(1000000)"
    asked = ["sql", lake, query, "--format", "csv", "--output", str(path), "--overwrite"]
    assert main(asked) == 2
    assert "late" in capsys.readouterr().err
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]
    asked[2] = "SELECT 1 AS x"
    assert main(asked) == 0
    assert path.read_text() == "x\n1\n"


def test_views_are_described(lake, capsys):
    assert main(["sql", lake, "--describe", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["view"] for r in found if r["type"] == "view"] == list(VIEWS)
    assert main(["sql", lake, "--describe", "codes"]) == 0
    shown = capsys.readouterr().out
    assert "activation" in shown
    assert "strength of the firing" in shown


def test_an_init_file_is_what_the_library_says(lake, tmp_path, built):
    path = tmp_path / "init.sql"
    assert main(["sql", lake, "--init", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert shell("sql", lake, "--init", "-").decode() == text + "\n"
    assert shell("sql", lake, "--init").decode() == text + "\n"
    assert "CREATE OR REPLACE MACRO main.top_contexts(" in text
    assert "COMMENT ON COLUMN main.codes.activation" in text
