"""What a worker of a cluster does: it keeps the model and the coders, and makes shards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import pyarrow as pa

from scopelake.errors import ModelError
from scopelake.ingest.activations import ActivationSource, LiveActivations
from scopelake.ingest.budget import Budget, parse_memory
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.evaluation_rows import evaluation_table
from scopelake.ingest.look_back import LookBack
from scopelake.ingest.model import ModelIdentity
from scopelake.ingest.plan import Shard
from scopelake.ingest.recipes import Recipe
from scopelake.ingest.shard_files import ShardFiles
from scopelake.ingest.stages import Stages
from scopelake.ingest.worker import Assignment, NotBegunError, Worker

_OPENED: Final[dict[str, Any]] = {}
"""What this process keeps: the source of the last ingest and its `Worker`, by key."""

_LOCK: Final = threading.RLock()

_OF_LIMIT: Final = 0.6
"""Share of a worker's memory limit that shards may use: at 95 % it is killed."""


@dataclass(frozen=True)
class RemoteJob:
    """An ingest, as workers need to know it."""

    key: str
    """Of this call of ingest."""
    assignment: Assignment
    recipe: Recipe
    coders: tuple[CoderFiles, ...]


def identify(key: str, recipe: Recipe) -> ModelIdentity:
    """Open the source on a worker, where it stays, and say which model it is of."""
    found = _source(key, recipe).model
    return ModelIdentity(**{f.name: getattr(found, f.name) for f in fields(ModelIdentity)})


def ready_there(job: RemoteJob) -> None:
    """Load what shards need, and refuse memory that does not hold it.

    Raises:
        TooLittleMemoryError: not even one context fits beside it.
    """
    _worker(job)


def make_there(job: RemoteJob, shard: Shard) -> ShardFiles | None:
    """Make a shard on a worker; while its files are written the worker takes another one.

    Returns:
        Its files; None if no more shards are begun.
    """
    from distributed import secede

    worker = _worker(job)
    try:
        made = worker.make(shard, on_begin=secede)
    except NotBegunError:
        return None  # an error would be logged as if something had failed
    worker.look_back.let_go(shard.index)
    return replace(made, seconds=worker.stages.drain())


def end_there(key: str, *, at_once: bool) -> None:
    """Let a worker begin no more shards of an ingest, or give up those that it makes, too."""
    worker: Worker | None = _OPENED.get(f"{key}:worker")
    if worker is not None:
        worker.hold()
        if at_once:
            worker.stop()


def close_there(key: str) -> None:
    """End what a worker started for an ingest that is over."""
    worker: Worker | None = _OPENED.get(f"{key}:worker")
    if worker is not None:
        worker.close()


def evaluate_there(
    key: str,
    assignment: Assignment,
    recipe: Recipe,
    coders: Sequence[CoderFiles],
) -> pa.Table:
    """Evaluate coders on a worker; return rows of the evaluations table.

    Raises:
        ModelError: the activations are of no model that runs.
    """
    source = _source(key, recipe)
    if not isinstance(source, LiveActivations):
        raise ModelError(
            "an evaluation was asked for of activations that are stored; it runs the model; use "
            "ingest"
        )
    store = assignment.store
    corpus = dict(assignment.corpus)
    return evaluation_table(store, store.snapshot(), corpus, source.model, coders, assignment.run)


def _source(key: str, recipe: Recipe) -> ActivationSource:
    with _LOCK:
        if key not in _OPENED:
            _OPENED.clear()  # another ingest's
            _OPENED[key] = recipe.open()
        found: ActivationSource = _OPENED[key]
        return found


def _worker(job: RemoteJob) -> Worker:
    with _LOCK:
        source = _source(job.key, job.recipe)
        key = f"{job.key}:worker"
        if key not in _OPENED:
            config, store = job.assignment.config, job.assignment.store
            widths = {coder.name: coder.width for coder in job.coders}
            worker = Worker(
                job.assignment,
                source,
                {c.name: load_encoders(c, source.model.device) for c in job.coders},
                LookBack(store, config.corpus, widths),
                Budget(_memory(config.memory), job.coders, config.batch_tokens, _threads()),
                Stages(),
            )
            worker.begin(job.coders)
            _OPENED[key] = worker
        found: Worker = _OPENED[key]
        return found


def _threads() -> int:
    """Return how many threads this worker has: its share of the machine's cores."""
    from distributed import get_worker

    n: int = get_worker().state.nthreads
    return n


def _memory(asked: str | int | None) -> int:
    from distributed import get_worker

    limit = get_worker().memory_manager.memory_limit
    if asked in (None, "auto") and limit:
        return int(_OF_LIMIT * limit)
    return parse_memory(asked)
