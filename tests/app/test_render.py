"""What is printed: strict JSON, every column under a name of its own, whole lines in a pipe."""

import json

import pyarrow as pa
import pytest

import scopelake
from scopelake.cli import main
from scopelake.render import distinct, print_table


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return str(scopelake.create(tmp_path_factory.mktemp("render") / "lake").path)


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def rows(capsys, lake, query):
    assert main(["sql", lake, query, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line, parse_constant=refuse_constant) for line in lines]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'nan'::DOUBLE", None),
        ("'-inf'::FLOAT", None),
        ("[1.5, 'nan'::DOUBLE]", [1.5, None]),
        ("{'x': 'inf'::DOUBLE}", {"x": None}),
        ("'\\xAA\\x01'::BLOB", "aa01"),
        ("TIMESTAMP '2020-01-02 03:04:05'", "2020-01-02T03:04:05"),
        ("DATE '2020-01-02'", "2020-01-02"),
        ("TIME '10:00'", "10:00:00"),
        ("INTERVAL '1 month 2 days 3.5 seconds'", "1 months 2 days 3.5 seconds"),
        ("sum(3::BIGINT)", 3),
        ("1.25::DECIMAL(4, 2)", "1.25"),
    ],
)
def test_json_is_strict(capsys, lake, expression, value):
    assert rows(capsys, lake, f"SELECT {expression} AS x") == [{"x": value}]


@pytest.mark.parametrize("type_", ["DATE", "TIMESTAMP"])
def test_a_time_beyond_pythons_is_text(capsys, lake, type_):
    ((value,),) = (r.values() for r in rows(capsys, lake, f"SELECT 'infinity'::{type_} AS x"))
    assert isinstance(value, str)


def test_columns_of_equal_names_are_all_shown(capsys, lake):
    query = "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a"
    assert rows(capsys, lake, query) == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]
    assert main(["sql", lake, query]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["a", "a_2", "a_1", "a_3"],
        ["1", "2", "3", "4"],
    ]
    assert distinct(["x", "y", "x"]) == ["x", "y", "x_1"]


def test_a_pipe_gets_whole_lines(capsys):
    name = "repo/family/" + "layer_3_width_1024_" * 20
    print_table(pa.table({"sae": [name], "n": [1]}))
    printed = capsys.readouterr().out
    assert f"{name}  1" in printed
    assert len(printed.splitlines()) == 2


def test_text_commands_no_terminal(capsys):
    print_table(pa.table({"a\x1b[2J": ["x\x1b]0;owned\x07\x9b31m", "two\nlines"]}))
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == ["a␛[2J", "x␛]0;owned␇\ufffd31m", "two", "lines"]
