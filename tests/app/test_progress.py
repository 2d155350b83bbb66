"""Progress: a bar in a terminal, lines in a log, with rates, bytes and time left."""

import re
from dataclasses import replace

import pytest

from scopelake import progress
from scopelake.ingest.report import Progress

HALF = Progress(tokens=500, n_tokens=1000, firings=9000, n_bytes=3_000_000, seconds=4.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_ingest_shows_rates_bytes_and_time_left(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    with progress.ingest_progress("notes") as show:
        for tokens in (100, 300, 500):
            show(replace(HALF, tokens=tokens))
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in ("notes", "50%", "tokens/s", "firings/s", "3 MB written"):
        assert part in printed.err
    assert "125 tokens/s  2,250 firings/s" in printed.err  # by the clock of the ingest
    assert re.search(r"\d:\d\d:\d\d" if terminal else r"\d s left", printed.err)


def test_a_log_is_not_flooded(capsys):
    with progress.ingest_progress("notes") as show:
        for _ in range(100):
            show(HALF)
    assert capsys.readouterr().err == ""


def test_reading_a_corpus_is_silent_in_a_log(capsys):
    with progress.corpus_progress("notes") as show:
        show(3, 700)
    assert capsys.readouterr() == ("", "")
