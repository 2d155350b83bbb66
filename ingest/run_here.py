"""Making shards in this process: one is encoded while the one before is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from scopelake.ingest.budget import PIECES
from scopelake.ingest.ledger import Ledger
from scopelake.ingest.plan import Shard
from scopelake.ingest.shard_files import ShardFiles
from scopelake.ingest.worker import Worker
from scopelake.store.snapshot import Snapshot

Commit = Callable[[Sequence[ShardFiles]], tuple[Snapshot, list[ShardFiles]]]
"""Commits shards; returns the snapshot with them, and those that must be made again."""

Left = Callable[[Shard], Shard | None]
"""Returns what of a shard nobody has committed yet."""


def run_here(
    worker: Worker,
    ledger: Ledger,
    commit: Commit,
    left: Left,
    is_stopping: Callable[[], bool],
    on_batch: Callable[[int, int], None],
) -> None:
    """Make and commit every shard that waits in `ledger`, until `is_stopping`.

    Args:
        worker: makes them.
        ledger: says which, and is told what became of them.
        commit: makes them part of the lake.
        left: asked before a shard is begun.
        is_stopping: whether no more shards are to be begun.
        on_batch: called with (tokens, firings) after each batch; what failed is taken off again.
    """
    making: dict[Future[ShardFiles], Shard] = {}
    with ThreadPoolExecutor(PIECES, thread_name_prefix="scopelake-shard") as pool:
        try:
            while True:
                while len(making) < PIECES and not is_stopping():
                    shard = _next(ledger, left)
                    if shard is None:
                        break
                    counted = _Counted(on_batch)
                    making[pool.submit(counted.make, worker, shard)] = shard
                if not making:
                    return
                done, _ = wait(making, return_when=FIRST_COMPLETED)
                _settle([(making.pop(one), one) for one in done], worker, ledger, commit)
        except BaseException:
            worker.stop()
            raise


def _next(ledger: Ledger, left: Left) -> Shard | None:
    while (planned := ledger.next()) is not None:
        if (shard := left(planned)) is not None:
            return shard
    return None


def _settle(
    done: Sequence[tuple[Shard, Future[ShardFiles]]],
    worker: Worker,
    ledger: Ledger,
    commit: Commit,
) -> None:
    made = []
    for shard, future in done:
        error = future.exception()
        if error is None:
            made.append(future.result())
        elif isinstance(error, Exception):
            ledger.failed(shard, error)
        else:
            raise error
    if not made:
        return
    with worker.stages.timed("commit"):
        snapshot, stale = commit(made)
    if stale:
        worker.look_back.reset()
        for files in stale:
            ledger.again(files.shard)
    for files in made:
        if files not in stale:
            worker.look_back.settle(snapshot, files.shard.index, files.receipts)
    ledger.done(len(made) - len(stale))


class _Counted:
    """Makes a shard and takes what was counted off again if that fails."""

    def __init__(self, on_batch: Callable[[int, int], None]) -> None:
        self._on_batch, self._tokens, self._firings = on_batch, 0, 0

    def make(self, worker: Worker, shard: Shard) -> ShardFiles:
        try:
            return worker.make(shard, self._count)
        except BaseException:
            self._on_batch(-self._tokens, -self._firings)
            raise

    def _count(self, tokens: int, firings: int) -> None:
        self._tokens += tokens
        self._firings += firings
        self._on_batch(tokens, firings)
