"""How long a query of a user may take, and how much memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Timer
from typing import Final

import duckdb

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.query.refusals import one_line

_MEMORY: Final = re.compile(r"\s*\d+(\.\d+)?\s*([KMGT]i?B|B)\s*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a query may take; None: no limit but the machine's."""

    timeout: float | None = None
    """Seconds that the query may run, to its last row. What comes before it is not counted: files
    are hashed, and a connection makes macros and, if it is asked for, the vocabulary."""
    memory: str | None = None
    """For example ``2GB``; what does not fit goes to temporary files."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not (
            isinstance(self.timeout, (int, float)) and 0 < self.timeout < float("inf")
        ):
            raise InvalidArgumentError(
                f"timeout={self.timeout!r} was asked for; a timeout is a number of seconds above "
                "0; give one"
            )
        if self.memory is not None and not (
            isinstance(self.memory, str) and _MEMORY.match(self.memory)
        ):
            raise InvalidArgumentError(
                f"memory={self.memory!r} was asked for; a memory limit is a number with a unit; "
                "give one such as 2GB or 500MiB"
            )


NO_LIMITS: Final = Limits()


@contextmanager
def limited(cursor: duckdb.DuckDBPyConnection, limits: Limits) -> Iterator[None]:
    """Stop the query that `cursor` runs within when its time is over, and say which limit it met.

    Raises:
        QueryError: it failed, or met a limit.
    """
    is_over = Event()

    def stop() -> None:
        is_over.set()
        cursor.interrupt()

    timer = Timer(limits.timeout or 0.0, stop)
    timer.daemon = True
    if limits.timeout is not None:
        timer.start()
    try:
        with explained(limits.memory):
            yield
    except QueryError as error:
        if is_over.is_set() and not isinstance(error.__cause__, duckdb.OutOfMemoryException):
            raise QueryError(
                f"a query within timeout={limits.timeout:g} seconds was asked for; it was still "
                "running and has been stopped; ask for less, or give it more time"
            ) from error.__cause__
        raise
    finally:
        timer.cancel()


@contextmanager
def explained(memory: str | None) -> Iterator[None]:
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
        raise QueryError(f"the query failed: {one_line(error)}; check it") from error
