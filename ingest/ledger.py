"""What has become of each shard: made, tried again, set aside."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from scopelake.errors import (
    InvalidArgumentError,
    LakeBusyError,
    ScopelakeError,
    TooLittleMemoryError,
    WriterLostError,
)
from scopelake.ingest.plan import Shard
from scopelake.ingest.report import LOG
from scopelake.ingest.shard_files import FailedShard

TRIES: Final = 3
"""Times that a shard is tried before it is set aside."""

_HOPELESS: Final = 3
"""Shards that may fail before one has succeeded; then the cause is none of theirs."""


class Ledger:
    """The shards of an ingest that are to be made, and what has failed.

    Args:
        shards: those with work left.
        n_committed: shards of the same work that the lake has already.
    """

    def __init__(self, shards: Iterable[Shard], n_committed: int = 0) -> None:
        self._waiting = deque(shards)
        self._n_contexts = _n_contexts(self._waiting)
        self._tries: Counter[int] = Counter()
        self._n_good = n_committed
        self.aside: list[FailedShard] = []

    def next(self) -> Shard | None:
        """Return a shard to make, None if none waits."""
        return self._waiting.popleft() if self._waiting else None

    def again(self, shard: Shard) -> None:
        """Let a shard wait again, through no fault of its own.

        Raises:
            LakeBusyError: it was made `TRIES` times in vain.
        """
        self._tries[shard.index] += 1
        if self._tries[shard.index] >= TRIES:
            raise LakeBusyError(
                f"shard {shard.index} was made {TRIES} times; each time a repair took out what it "
                "builds on meanwhile; ingest again"
            )
        self._waiting.appendleft(shard)

    def accounted(self, *, is_stopped: bool) -> set[int]:
        """Return the numbers of the shards that need not be in the lake.

        Args:
            is_stopped: whether the ingest was to stop; only then may shards wait at its end.
        """
        waiting = {shard.index for shard in self._waiting} if is_stopped else set()
        return waiting | {failed.index for failed in self.aside}

    @property
    def n_left(self) -> int:
        """Shards that wait."""
        return len(self._waiting)

    @property
    def share_left(self) -> float:
        """Share of the contexts that wait, of those that there were at the beginning."""
        return _n_contexts(self._waiting) / max(self._n_contexts, 1)

    def done(self, n_shards: int) -> None:
        """Count shards that are committed."""
        self._n_good += n_shards

    def back(self, shard: Shard) -> None:
        """Let a shard wait that was not begun, or lost with others."""
        self._waiting.appendleft(shard)

    def failed(self, shard: Shard, error: Exception, *, is_elsewhere: bool = False) -> None:
        """Let a shard wait for another try, or set it aside after `TRIES`.

        Args:
            shard: which.
            error: what it failed with.
            is_elsewhere: whether on another machine, whose disk may be the cause.

        Raises:
            Exception: `error` itself, if another try or another shard would end like that: it is
                a refusal, the disk's, or the first shards have all failed.
        """
        if is_refusal(error) and not (is_elsewhere and isinstance(error, OSError)):
            raise error
        self._tries[shard.index] += 1
        tries = self._tries[shard.index]
        what = {"shard": shard.index, "tries": tries, "error": one_line(error)}
        if tries < TRIES:
            LOG.warning("shard failed, tried again", extra={"scopelake": what})
            # As long as none has succeeded it is soon seen whether any does.
            (self._waiting.append if self._n_good else self._waiting.appendleft)(shard)
            return
        LOG.error("shard set aside", extra={"scopelake": what})
        self.aside.append(FailedShard(shard.index, shard.start, shard.stop, tries, one_line(error)))
        if len(self.aside) >= _HOPELESS and not self._n_good:
            raise error


def _n_contexts(shards: Iterable[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)


def is_refusal(error: Exception) -> bool:
    """Whether an error is not of a shard's own making.

    What an encoder or a model does with some input is: activations that are not finite, memory
    that one shard overflows, also of a process that writes it.
    """
    if isinstance(error, WriterLostError):
        return False
    if isinstance(error, InvalidArgumentError):
        return isinstance(error, TooLittleMemoryError)
    return isinstance(error, ScopelakeError | OSError)


def one_line(error: Exception) -> str:
    """Return an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
