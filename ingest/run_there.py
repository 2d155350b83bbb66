"""Making shards on a dask cluster: this process sends them out and commits what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from scopelake.errors import ClusterError
from scopelake.ingest.budget import PIECES
from scopelake.ingest.distribute import Cluster
from scopelake.ingest.plan import Shard
from scopelake.ingest.remote import RemoteJob, close_there, end_there, make_there
from scopelake.ingest.run_here import Work
from scopelake.ingest.shard_files import ShardFiles

if TYPE_CHECKING:
    from distributed import Future

_LOOK_EVERY: Final = 5
"""Seconds after which it is looked whether there are workers."""

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
    out: dict[Any, Shard] = {}

    def send() -> None:
        most = _WINDOW * PIECES * cluster.n_workers()
        while len(out) < most and (shard := work.next()) is not None:
            future = cluster.submit(make_there, job, shard)
            out[future] = shard

    is_held = False
    try:
        send()
        while out:
            if work.is_stopping() and not is_held:
                cluster.everywhere(end_there, job.key, at_once=False)
                is_held = True
            cluster.check_workers()
            _await(set(out))
            # Asked once, as it changes: a result that is lost with its worker is made again.
            ended = {f: status for f in out if (status := f.status) not in ("pending", "lost")}
            _settle([(f, out.pop(f), status) for f, status in ended.items()], cluster, work)
            send()
    except BaseException:
        cluster.cancel(list(out))
        # What has begun goes on otherwise, and nobody would commit it.
        cluster.everywhere(end_there, job.key, at_once=True)
        raise
    finally:
        cluster.everywhere(close_there, job.key)


def _await(futures: set[Any]) -> None:
    """Wait until one of `futures` is done, or some seconds."""
    from distributed import wait

    with suppress(TimeoutError):
        wait(futures, timeout=_LOOK_EVERY, return_when="FIRST_COMPLETED")


def _settle(batch: Sequence[tuple[Future, Shard, str]], cluster: Cluster, work: Work) -> None:
    # What is made is committed before anything of the others may end the ingest.
    made = {future: future.result() for future, _, status in batch if status == "finished"}
    _commit([files for files in made.values() if files is not None], work)
    for future, shard, status in batch:
        if status == "error":
            work.ledger.failed(shard, _error(future.exception()), is_elsewhere=True)
        elif status != "finished":  # cancelled, with the scheduler
            cluster.wait_for_scheduler()
            work.ledger.back(shard)
        elif made[future] is None:
            work.ledger.back(shard)


def _commit(made: Sequence[ShardFiles], work: Work) -> None:
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
