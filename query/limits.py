"""How long a query of a user may take, and how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Final

import duckdb

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.names import parse_bytes
from scopelake.query.refusals import one_line

_AGAIN: Final = 0.05
"""Seconds until a query that was told to stop is told again: it may not have begun before."""


@dataclass(frozen=True)
class Limits:
    """What a query may take; None: no limit but the machine's."""

    timeout: float | None = None
    """Seconds that it may take to its last row, with all that comes before it: files are hashed,
    and a connection makes macros and, if it is asked for, the vocabulary."""
    memory: str | int | None = None
    """For example ``2GB``, or bytes; what does not fit goes to temporary files."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not (
            isinstance(self.timeout, (int, float)) and 0 < self.timeout < float("inf")
        ):
            raise InvalidArgumentError(
                f"timeout={self.timeout!r} was asked for; a timeout is a number of seconds above "
                "0; give one"
            )
        if self.memory is not None:
            parse_bytes("memory", self.memory)


NO_LIMITS: Final = Limits()


class Watch:
    """The time of one query: what runs for it when that is over is stopped.

    Args:
        timeout: seconds; None: it has all the time.
    """

    def __init__(self, timeout: float | None) -> None:
        self._over, self._done = Event(), Event()
        self._running: duckdb.DuckDBPyConnection | None = None
        if timeout is not None:
            Thread(target=self._stop_after, args=(timeout,), daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether the time is."""
        return self._over.is_set()

    def check(self) -> None:
        """Go on only if there is time left.

        Raises:
            QueryError: there is none.
        """
        if self.is_over:
            raise QueryError("a query was asked for; its time is over; give it more")

    def runs(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Say whose queries are run for this one from now on.

        Raises:
            QueryError: there is no time left for them.
        """
        self.check()
        self._running = connection

    def close(self) -> None:
        """Let what runs go on."""
        self._done.set()

    def _stop_after(self, timeout: float) -> None:
        if self._done.wait(timeout):
            return
        self._over.set()
        # Again and again: what was about to begin has not heard it.
        while True:
            if self._running is not None:
                try:
                    self._running.interrupt()
                except duckdb.ConnectionException:  # closed: it has ended
                    return
            if self._done.wait(_AGAIN):
                return


@contextmanager
def limited(limits: Limits) -> Iterator[Watch]:
    """Time what a query takes, stop it when its time is over, and say which limit it met.

    Raises:
        QueryError: it failed, or met a limit.
    """
    watch = Watch(limits.timeout)
    try:
        with explained(limits.memory):
            yield watch
    except QueryError as error:
        if watch.is_over and not isinstance(error.__cause__, duckdb.OutOfMemoryException):
            raise QueryError(
                f"a query within timeout={limits.timeout:g} seconds was asked for; it was still "
                "running and has been stopped; ask for less, or give it more time"
            ) from error.__cause__
        raise
    finally:
        watch.close()


@contextmanager
def explained(memory: str | int | None) -> Iterator[None]:
    """Turn DuckDB's errors into ours.

    Args:
        memory: most that DuckDB may take; None: that of the machine.

    Raises:
        QueryError: DuckDB failed, or needed more memory.
        KeyboardInterrupt: Ctrl-C, which DuckDB turns into an error of its own.
    """
    try:
        yield
    except RuntimeError as error:
        # What DuckDB makes of Ctrl-C while it runs a query.
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise
    except duckdb.OutOfMemoryException as error:
        raise QueryError(
            f"a query within memory={memory or 'that of the machine'} was asked for; it "
            "needs more, also with temporary files; ask for less, or give it more memory"
        ) from error
    except duckdb.Error as error:
        said = one_line(error)
        raise QueryError(f"the query failed: {said}; {_mend(said)}") from error


def _mend(said: str) -> str:
    """What to do; AND binds before ->>, so that all metadata of a document is taken as a truth."""
    if "to BOOL when casting from source column metadata" in said:
        return "put parentheses around it: (metadata ->> 'key') = 'value'"
    return "check it"
