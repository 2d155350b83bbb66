"""Tasks on a dask cluster; without one, in this process.

The package ``distributed`` is needed only when a scheduler is named.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scopelake.errors import ClusterError, InvalidArgumentError, MissingDependencyError
from scopelake.names import check_filled

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin

_TIMEOUT: Final = 10
"""Seconds that a scheduler or a worker is waited for."""

_WAIT: Final = 60
"""Seconds that a first worker, or a scheduler that is gone, is waited for."""

_INFO_FOR: Final = 2.0
"""Seconds for which what the scheduler says of its workers is not asked again."""

_LOCAL: Final = re.compile(r"local(?::(\d+))?\Z")

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cluster:
    """Runs functions on a scheduler's workers; an argument for `store.compact`.

    Args:
        scheduler: address of a dask scheduler (``tcp://...``), a ``distributed.Client``, or
            ``local:2`` for two worker processes on this machine (``local``: one).

    Raises:
        MissingDependencyError: ``distributed`` is not installed.
        InvalidArgumentError: no scheduler answers there.
    """

    def __init__(self, scheduler: str | Client) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingDependencyError(
                f"scheduler {scheduler!r} was asked for; the package distributed is not installed; "
                "run pip install 'scopelake[dask]'"
            ) from error
        self._local: LocalCluster | None = None
        self._known: dict[str, Any] = {}
        self._asked = -math.inf
        self._seen = time.monotonic()
        if isinstance(scheduler, Client):
            self._client, self._owned = scheduler, False
            return
        check_filled("scheduler", scheduler)
        if str(scheduler).startswith("local") and not _LOCAL.match(str(scheduler)):
            raise InvalidArgumentError(
                f"scheduler {scheduler!r} was asked for; it is no number of workers here; give "
                "local:2, say, or the address of a scheduler"
            )
        if found := _LOCAL.match(str(scheduler)):
            self._local = _local_cluster(int(found[1] or 1))
            scheduler = self._local.scheduler_address
        try:
            self._client, self._owned = Client(scheduler, timeout=_TIMEOUT), True
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                f"scheduler {scheduler!r} was asked for; it does not answer ({error}); give the "
                "address of a dask scheduler, or start one with dask scheduler"
            ) from error
        if self._local is not None:
            self._client.register_plugin(_deaf_to_interrupts())

    def __call__(self, act: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield results as they come, in any order.

        A task whose worker is lost is run again elsewhere; what a task raises is raised here, and
        the tasks that are still waiting are cancelled.
        """
        from distributed import as_completed

        futures = self._client.map(act, list(tasks), pure=False)
        try:
            for _, result in as_completed(futures, with_results=True):
                yield result
        finally:
            self._client.cancel(futures)

    @property
    def address(self) -> str:
        """Where the scheduler is."""
        return str(self._client.scheduler.address if self._client.scheduler else "?")

    def n_workers(self) -> int:
        """Return how many workers there are, 1 at least."""
        return max(1, len(self._workers()))

    def submit(self, act: Callable[..., Result], *given: Any) -> Future:  # noqa: ANN401
        """Run `act` on a worker; where workers have a resource ``GPU``, on one of these.

        A worker is one model's; half of its GPU is asked for, so that it makes two shards at a
        time: one has the device, the other is written.
        """
        has_gpu = any("GPU" in worker.get("resources", {}) for worker in self._workers().values())
        resources = {"GPU": 0.5} if has_gpu else None
        return self._client.submit(act, *given, pure=False, resources=resources)

    def cancel(self, futures: list[Future]) -> None:
        """Give up what was submitted."""
        if self._client.status == "running":
            self._client.cancel(futures)

    def everywhere(self, act: Callable[..., None], *given: Any, **named: Any) -> None:  # noqa: ANN401
        """Run `act` on every worker at once, beside its tasks; on none if the scheduler is gone."""
        if self._client.status == "running":
            self._client.run(act, *given, on_error="ignore", **named)

    def check_workers(self) -> None:
        """Refuse to go on if there has been no worker for a while.

        Raises:
            ClusterError: then.
        """
        if self._workers():
            self._seen = time.monotonic()
        elif time.monotonic() > self._seen + _WAIT:
            raise self._no_worker()

    def wait_for_worker(self) -> None:
        """Wait until there is a worker.

        Raises:
            ClusterError: none comes.
        """
        try:
            self._client.wait_for_workers(1, timeout=_WAIT)
        except TimeoutError as error:
            raise self._no_worker() from error
        self._seen = time.monotonic()

    def _no_worker(self) -> ClusterError:
        return ClusterError(
            f"workers of the scheduler at {self.address} were asked for; it has had none for "
            f"{_WAIT} s; start some with dask worker; what is in the lake stays, and the next "
            "ingest goes on"
        )

    def wait_for_scheduler(self) -> None:
        """Wait until the scheduler is there, after its connection was lost.

        Raises:
            ClusterError: it does not come back.
        """
        deadline = time.monotonic() + _WAIT
        while self._client.status == "connecting" and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._client.status != "running":
            raise ClusterError(
                "the connection to the scheduler was lost and it does not come back; the lake is "
                "whole; start one and ingest again, which goes on"
            )

    def _workers(self) -> dict[str, Any]:
        self.wait_for_scheduler()
        if time.monotonic() > self._asked + _INFO_FOR:
            info = self._client.scheduler_info(n_workers=-1)
            self._known, self._asked = info.get("workers", {}), time.monotonic()
        return self._known

    def close(self) -> None:
        """Leave the scheduler, unless the client was given; end workers that were started."""
        if self._owned:
            self._client.close()
        if self._local is not None:
            self._local.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *of_error: Any) -> None:  # noqa: ANN401
        self.close()


def _deaf_to_interrupts() -> WorkerPlugin:
    """Return what lets workers go on at Ctrl-C, which a terminal sends to them too."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):  # type: ignore[misc]  # it has no types
        def setup(self, worker: Worker) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return Deaf()


def _local_cluster(n_workers: int) -> LocalCluster:
    from distributed import LocalCluster

    if n_workers < 1:
        raise InvalidArgumentError(
            f"scheduler='local:{n_workers}' was asked for; give 1 worker or more"
        )
    return LocalCluster(
        n_workers=n_workers, threads_per_worker=1, processes=True, host="127.0.0.1",
        dashboard_address=None,
    )  # fmt: skip
