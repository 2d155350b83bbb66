"""Making shards on a dask cluster: this process sends them out and commits what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from scopelake.errors import ClusterError
from scopelake.ingest.budget import PIECES
from scopelake.ingest.distribute import Cluster
from scopelake.ingest.plan import Shard
from scopelake.ingest.remote import RemoteJob, make_there
from scopelake.ingest.run_here import Work
from scopelake.ingest.shard_files import ShardFiles

if TYPE_CHECKING:
    from distributed import Future

_WINDOW: Final = 2
"""Shards that are sent out for each that can be made at once: a worker never waits for one."""


def run_there(cluster: Cluster, job: RemoteJob, work: Work) -> None:
    """Make and commit every shard that waits, until it is to stop.

    Args:
        cluster: whose workers reach the lake, the model and the coders under the same paths.
        job: what workers need to know.
        work: the shards.

    Raises:
        ClusterError: the scheduler is lost.
    """
    from distributed import as_completed

    out: dict[Any, Shard] = {}
    arriving = as_completed([])

    def send() -> None:
        most = _WINDOW * PIECES * cluster.n_workers()
        while len(out) < most and (shard := work.next()) is not None:
            future = cluster.submit(make_there, job, shard)
            out[future] = shard
            arriving.add(future)

    try:
        send()
        while out:
            batch = [(future, out.pop(future)) for future in arriving.next_batch(block=True)]
            _settle(batch, cluster, work)
            send()
    finally:
        cluster.cancel(list(out))


def _settle(batch: Sequence[tuple[Future, Shard]], cluster: Cluster, work: Work) -> None:
    made: list[ShardFiles] = []
    for future, shard in batch:
        if future.status == "finished":
            made.append(future.result())
        elif future.status == "error":
            work.ledger.failed(shard, _error(future.exception()), is_elsewhere=True)
        else:  # cancelled or lost: with the scheduler, which may come back
            cluster.wait_for_scheduler()
            work.ledger.back(shard)
    if not made:
        return
    for files in made:
        work.stages.add(files.seconds)
        work.on_batch(files.tokens, files.firings)
    with work.stages.timed("commit"):
        _, stale = work.commit(made)
    for files in stale:
        work.ledger.again(files.shard)
    work.ledger.done(len(made) - len(stale))


def _error(error: BaseException | None) -> Exception:
    return error if isinstance(error, Exception) else ClusterError(f"a task ended with {error!r}")
