"""The command line: parsing and printing only; every verb calls the library.

Exit status: 0 done, 1 a check that failed, 2 refused or failed with one line on stderr, 3 done but
for shards that failed every time, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from typing import NoReturn, TextIO

import scopelake
from scopelake.cli import (
    ask,
    begin,
    card,
    coders,
    compare,
    corpora,
    exchange,
    ingest,
    inspect,
    keep,
    plan,
    search,
    sql,
)  # fmt: skip
from scopelake.cli.memory import keep_memory_steady
from scopelake.cli.parsing import spelt
from scopelake.cli.status import INTERRUPTED, TERMINATED
from scopelake.errors import (
    CoderWarning,
    DamageWarning,
    EncoderWarning,
    PartialWarning,
    ScopelakeError,
    ShardWarning,
)
from scopelake.names import visible


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    keep_memory_steady()
    arguments = _parser().parse_args(argv)
    try:
        with _terminated_is_interrupted(), _one_line_warnings():
            status: int = arguments.run(arguments) or 0
    except ScopelakeError as error:
        message = visible(spelt(" ".join(str(error).split()), vars(arguments)))
        print(f"scopelake: {message}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        reason = " ".join(str(error).split())
        print(f"scopelake: {arguments.verb} failed: {reason}; {_advice(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        was_terminated = isinstance(error, _Terminated)
        how = "terminated" if was_terminated else "interrupted"
        print(f"scopelake: {how}; the lake is whole: run it again to go on", file=sys.stderr)
        return TERMINATED if was_terminated else INTERRUPTED
    return status


def _advice(error: OSError) -> str:
    if error.errno in (EACCES, EPERM, EROFS):
        return "check the permissions of the folder, and that it is not mounted read-only"
    if error.errno in (ENOSPC, EDQUOT):
        return "free some space on the disk; the lake is whole: run it again to go on"
    return "check the path and the disk"


_OURS = (CoderWarning, DamageWarning, EncoderWarning, PartialWarning, ShardWarning)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what an interrupt cleans up is cleaned up."""


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    def terminate(number: int, frame: object) -> NoReturn:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show our own warnings as one line; others as Python does."""
    with warnings.catch_warnings():
        plain = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, _OURS):
                print(f"scopelake: warning: {message}", file=sys.stderr)
            else:
                plain(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scopelake",
        description="The activation store and query layer for Gemma 3 and Gemma Scope 2.",
    )
    parser.add_argument("--version", action="version", version=scopelake.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    rooms = (
        begin, corpora, coders, plan, ingest, inspect, ask, card, compare, search, exchange, sql,
        keep,
    )  # fmt: skip
    for add in (verb for room in rooms for verb in room.VERBS):
        add(verbs)
    return parser
