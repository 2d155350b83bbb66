"""The SQL prompt, typed into: completion, several lines, commands, history, stopping a query."""

from __future__ import annotations

import os
import signal
import stat
import threading

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import scopelake
from scopelake.cli.prompt import HISTORY, Prompt, _history, make_session

CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
def lake(built):
    return scopelake.open(built.store.root.path)


@pytest.fixture
def typed(lake, capsys):
    """Return a function that types into a prompt and returns what was printed."""

    def type_in(text, history=None):
        with create_pipe_input() as keys:
            keys.send_text(text)
            session = make_session(
                lake, history or InMemoryHistory(), input=keys, output=DummyOutput()
            )
            Prompt(lake, None, None, "csv").run(session)
        return capsys.readouterr()

    return type_in


def test_queries_take_several_lines_and_refusals_do_not_end_it(typed):
    said = typed(
        f"SELECT 1 AS one,\n2 AS two\n;\nSELEC;\nFROM '/etc/passwd';\nVALUES (7);\n{CTRL_D}"
    )
    assert said.out.splitlines()[1:] == ["one,two", "1,2", "col0", "7"]
    first, second = said.err.splitlines()
    assert "does not parse" in first
    assert "a lake has the views" in second


def test_commands(typed):
    said = typed(
        ".tables\n.schema codes\n.mode jsonl\nSELECT 1 AS x;\n.mode x\n.what\n.help\n.quit\n"
    )
    assert "tokens,view,a token of a context" in said.out
    assert "codes,feature,INTEGER," in said.out
    assert '{"x": 1}' in said.out
    assert "the mode is jsonl; modes are" in said.out
    assert "Ctrl-C stops a query" in said.out
    assert said.err == "scopelake: '.what' was asked for; .help lists what there is\n"


def test_ctrl_c_drops_what_was_typed(typed):
    assert "9" in typed(f"SELECT 5{CTRL_C}SELECT 9 AS x;\n{CTRL_D}").out


def test_ctrl_c_stops_a_query_and_the_prompt_goes_on(lake, capsys):
    prompt = Prompt(lake, None, None, "csv")
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    prompt.answer("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b;")
    timer.join()
    assert capsys.readouterr().err == "scopelake: stopped\n"
    prompt.answer("SELECT 3 AS x;")
    assert capsys.readouterr().out == "x\n3\n"


def test_completion(lake):
    completer = make_session(lake, InMemoryHistory(), output=DummyOutput()).completer

    def complete(text):
        return {c.text for c in completer.get_completions(Document(text), CompleteEvent())}

    assert {"codes", "corpora", "coactive("} <= complete("SELECT * FROM co")
    assert complete("select activ") == {"activation", "activation_bits"}
    assert "SELECT" in complete("sel")
    assert "top_contexts(" in complete("FROM TOP_")
    assert complete("SELECT ") == set()
    assert ".schema" in complete(".sch")


def test_history_is_for_its_user_alone_and_can_be_turned_off(typed, tmp_path, monkeypatch):
    monkeypatch.delenv(HISTORY, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for _ in range(2):
        with _history(keep=True) as history:
            typed(f"SELECT 41;\n{CTRL_D}", history)
    place = tmp_path / "state" / "scopelake" / "sql_history"
    assert place.read_text().count("SELECT 41;") >= 1
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with _history(keep=True) as history:
        assert "SELECT 41;" in list(history.load_history_strings())
    elsewhere = tmp_path / "mine"
    monkeypatch.setenv(HISTORY, str(elsewhere))
    with _history(keep=True) as history:
        typed(f"SELECT 42;\n{CTRL_D}", history)
    assert "SELECT 42;" in elsewhere.read_text()
    monkeypatch.setenv(HISTORY, "")
    with _history(keep=True) as off, _history(keep=False) as also:
        assert isinstance(off, InMemoryHistory)
        assert isinstance(also, InMemoryHistory)
