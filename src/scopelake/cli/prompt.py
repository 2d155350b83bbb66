"""The SQL prompt: history, completion, queries over several lines, each of which can be stopped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from scopelake.cli.output import write
from scopelake.errors import ScopelakeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyPressEvent

    from scopelake.lake import Lake

HISTORY: Final = "SCOPELAKE_SQL_HISTORY"
"""Variable with the path of the history; empty: none is kept."""

_MODES: Final = ("table", "csv", "json", "jsonl")
_KEYWORDS: Final = (
    "SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "HAVING", "QUALIFY", "LIMIT", "JOIN",
    "USING", "LEFT JOIN", "ON", "AS", "AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "IS NULL",
    "IS NOT NULL", "CASE", "WHEN", "THEN", "ELSE", "END", "DESC", "DISTINCT", "WITH", "UNION ALL",
    "DESCRIBE", "EXPLAIN", "count(*)", "sum(", "avg(", "min(", "max(", "round(", "unnest(",
)  # fmt: skip
_HELP: Final = """\
A query ends with ; and Enter, over as many lines as it takes. Tab completes.
.tables        the views and macros
.schema VIEW   the columns of a view
.mode MODE     how rows are shown: table, csv, json, jsonl
.help          this
.quit          leave, as does Ctrl-D; Ctrl-C stops a query, or drops what was typed"""
_WORD: Final = re.compile(r"[\w.]+\Z")


class SqlCompleter(Completer):
    """Completes views, columns, macros and keywords, whatever their case."""

    def __init__(self, words: Iterable[tuple[str, str]]) -> None:
        self._words = sorted(dict(words).items(), key=lambda word: word[0].lower())

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """Yield what begins as the word before the cursor does."""
        found = _WORD.search(document.text_before_cursor)
        begun = found[0] if found else ""
        if not begun:
            return
        for word, meaning in self._words:
            if word.lower().startswith(begun.lower()):
                yield Completion(word, start_position=-len(begun), display_meta=meaning)


@dataclass
class Prompt:
    """A prompt on a lake, and how its answers are shown."""

    lake: Lake
    timeout: float | None
    memory: str | None
    mode: str

    def run(self, session: PromptSession[str]) -> None:
        """Read and answer until the user leaves."""
        print(f"{self.lake!r}; .help helps, Ctrl-D leaves")
        while True:
            try:
                text = session.prompt("scopelake> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text == ".quit":
                return
            if text:
                self.answer(text)

    def answer(self, text: str) -> None:
        """Print the answer, or the one line that says why there is none."""
        try:
            if text.startswith("."):
                self._command(text.rstrip(";").split())
            else:
                self._query(text.rstrip().rstrip(";"))
        except ScopelakeError as error:
            print(f"scopelake: {' '.join(str(error).split())}", file=sys.stderr)
        except KeyboardInterrupt:
            print("scopelake: stopped", file=sys.stderr)

    def _query(self, query: str) -> None:
        reader = self.lake.sql_batches(query, timeout=self.timeout, memory=self.memory)
        write(reader, self.mode, None)

    def _command(self, words: list[str]) -> None:
        match words:
            case [".help"]:
                print(_HELP)
            case [".tables"]:
                found = self.lake.views()
                write(found.filter(found["column"].is_null()).drop_columns("column").to_reader(),
                      self.mode, None)  # fmt: skip
            case [".schema", name]:
                write(self.lake.views(name).to_reader(), self.mode, None)
            case [".mode", mode] if mode in _MODES:
                self.mode = mode
            case [".mode", *_]:
                print(f"the mode is {self.mode}; modes are {', '.join(_MODES)}")
            case _:
                print(f"scopelake: {' '.join(words)!r} was asked for; .help lists what there is",
                      file=sys.stderr)  # fmt: skip


def prompt(
    lake: Lake, *, keep_history: bool, timeout: float | None, memory: str | None, mode: str
) -> None:
    """Open a prompt on a lake in this terminal.

    Args:
        lake: what is asked.
        keep_history: whether what was typed is kept for the next time.
        timeout: seconds of a query.
        memory: most memory of a query.
        mode: how rows are shown; forms that are no text become table.
    """
    shown = mode if mode in _MODES else "table"
    with _history(keep=keep_history) as history:
        Prompt(lake, timeout, memory, shown).run(make_session(lake, history))


def make_session(lake: Lake, history: History, **given: Any) -> PromptSession[str]:  # noqa: ANN401
    """Return a session that ends an entry at Enter behind ``;``, or behind a dot command."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        text = event.current_buffer.text.strip()
        if not text or text.endswith(";") or text.startswith("."):
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.insert_text("\n")

    return PromptSession(
        history=history, completer=SqlCompleter(_words(lake)), complete_while_typing=False,
        multiline=True, key_bindings=keys, **given,
    )  # fmt: skip


def _words(lake: Lake) -> Iterator[tuple[str, str]]:
    yield from ((word, "") for word in _KEYWORDS)
    yield from ((word, "") for word in (".help", ".tables", ".schema", ".mode", ".quit"))
    for row in lake.views().to_pylist():
        name = row["column"] or row["view"].split("(")[0]
        yield f"{name}(" if row["type"] == "macro" else name, row["about"]


@contextmanager
def _history(*, keep: bool) -> Iterator[History]:
    path = os.environ.get(HISTORY)
    if not keep or path == "":
        yield InMemoryHistory()
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    place = Path(path) if path else state / "scopelake" / "sql_history"
    place.parent.mkdir(parents=True, exist_ok=True)
    # Queries may quote what a corpus holds: for nobody else to read.
    place.touch(mode=0o600)
    yield FileHistory(str(place))
