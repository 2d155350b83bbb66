"""Tasks on a dask cluster; without one, in this process.

The package ``distributed`` is needed only when a scheduler is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scopelake.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from distributed import Client

_TIMEOUT: Final = "10s"

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cluster:
    """Runs a function over tasks on a scheduler's workers; an argument for `store.compact`.

    Args:
        scheduler: address of a dask scheduler (``tcp://...``) or a ``distributed.Client``.

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
        if isinstance(scheduler, Client):
            self._client, self._owned = scheduler, False
            return
        try:
            self._client, self._owned = Client(scheduler, timeout=_TIMEOUT), True
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                f"scheduler {scheduler!r} was asked for; it does not answer ({error}); give the "
                "address of a dask scheduler, or start one with dask scheduler"
            ) from error

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

    def close(self) -> None:
        """Leave the scheduler, unless the client was given."""
        if self._owned:
            self._client.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *of_error: Any) -> None:  # noqa: ANN401
        self.close()
