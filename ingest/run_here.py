"""Making shards in this process: one is encoded while the one before is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Final

from scopelake.ingest.budget import PIECES
from scopelake.ingest.ledger import Ledger
from scopelake.ingest.plan import Shard
from scopelake.ingest.shard_files import ShardFiles
from scopelake.ingest.stages import Stages
from scopelake.ingest.worker import NotBegunError, Worker
from scopelake.store.snapshot import Snapshot

Commit = Callable[[Sequence[ShardFiles]], tuple[Snapshot, list[ShardFiles]]]
"""Commits shards; returns the snapshot with them, and those that must be made again."""

Left = Callable[[Shard], Shard | None]
"""Returns what of a shard nobody has committed yet."""


_SENT: Final = PIECES + 1
"""Shards made, or waiting to be: a commit shorter than a piece does not hold up the device."""


@dataclass(frozen=True)
class Work:
    """The shards that are to be made, and what is done with them."""

    ledger: Ledger
    """Says which, and is told what became of them."""
    commit: Commit
    left: Left
    """Asked before a shard is begun."""
    is_stopping: Callable[[], bool]
    """Whether no more shards are to be begun."""
    on_batch: Callable[[int, int], None]
    """Called with tokens and firings as they are made; what failed is taken off again."""
    ahead: Callable[[Callable[[], bool]], None]
    """Called in a thread of its own once the device has encoded the last shard, if shards are made
    here; what it is given says whether all is committed, so that it is to end."""
    stages: Stages

    def next(self) -> Shard | None:
        """Return the next shard that has something left to make; None if there is none."""
        while not self.is_stopping() and (planned := self.ledger.next()) is not None:
            if (shard := self.left(planned)) is not None:
                return shard
        return None

    def begin(self) -> None:
        """Refuse to begin a shard if no more are to be begun.

        Raises:
            NotBegunError: then.
        """
        if self.is_stopping():
            raise NotBegunError


@dataclass(frozen=True)
class _Sent:
    """A shard that is made or waits for it."""

    shard: Shard
    made: Future[ShardFiles]
    settled: Event
    """Set once it is committed, or is not to be."""


def run_here(worker: Worker, work: Work) -> None:
    """Make and commit every shard that waits, until it is to stop; then close the worker."""
    with closing(worker):
        _run(worker, work)


def _run(worker: Worker, work: Work) -> None:
    sent: deque[_Sent] = deque()
    settled: deque[Event] = deque([_set_event() for _ in range(PIECES)], PIECES)
    ahead: Future[None] | None = None
    over = Event()
    with ThreadPoolExecutor(_SENT + 1, thread_name_prefix="scopelake-shard") as pool:
        try:
            while True:
                while len(sent) < _SENT and (shard := work.next()) is not None:
                    made = pool.submit(_Counted(work).make, worker, shard, settled[0].wait)
                    settled.append(Event())
                    sent.append(_Sent(shard, made, settled[-1]))
                if not sent:
                    break
                if len(sent) < _SENT and ahead is None and not work.is_stopping():
                    ahead = pool.submit(worker.when_idle, work.ahead, over.is_set)
                # In order: what is in the lake is the beginning of the corpus.
                wait([sent[0].made])
                _settle(sent[0].shard, sent[0].made, worker, work)
                # Set first: a shard that waits for it is released whatever comes between.
                sent[0].settled.set()
                sent.popleft()
            over.set()
            if ahead is not None:
                ahead.result()
        except BaseException:
            over.set()
            try:
                worker.stop()
            finally:
                for one in sent:
                    one.settled.set()
            raise


def _set_event() -> Event:
    event = Event()
    event.set()
    return event


def _settle(shard: Shard, made: Future[ShardFiles], worker: Worker, work: Work) -> None:
    error = made.exception()
    if error is None:
        _commit([made.result()], worker, work)
    elif isinstance(error, NotBegunError):
        work.ledger.back(shard)
    elif isinstance(error, Exception):
        work.ledger.failed(shard, error)
    else:
        raise error


def _commit(made: Sequence[ShardFiles], worker: Worker, work: Work) -> None:
    with work.stages.timed("commit"):
        snapshot, stale = work.commit(made)
    if stale:
        worker.look_back.reset()
        for files in stale:
            work.ledger.again(files.shard)
    for files in made:
        if files not in stale:
            worker.look_back.settle(snapshot, files.shard.index, files.receipts)
    work.ledger.done(len(made) - len(stale))


class _Counted:
    """Makes a shard and takes what was counted off again if that fails."""

    def __init__(self, work: Work) -> None:
        self._work, self._tokens, self._firings = work, 0, 0

    def make(self, worker: Worker, shard: Shard, before_write: Callable[[], object]) -> ShardFiles:
        try:
            # It looks back at what the shards before those in memory left in the lake.
            return worker.make(shard, self._count, self._work.begin, before_write)
        except BaseException:
            self._work.on_batch(-self._tokens, -self._firings)
            raise

    def _count(self, tokens: int, firings: int) -> None:
        self._tokens += tokens
        self._firings += firings
        self._work.on_batch(tokens, firings)
