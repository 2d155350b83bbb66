"""Who makes the shards of an ingest: this process, or a dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import pyarrow as pa
import torch

from scopelake.errors import ModelError
from scopelake.ingest.activations import ActivationSource, LiveActivations
from scopelake.ingest.budget import Budget
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.distribute import Cluster
from scopelake.ingest.evaluation_rows import evaluation_table
from scopelake.ingest.look_back import LookBack
from scopelake.ingest.model import ModelIdentity
from scopelake.ingest.recipes import Described, Recipe
from scopelake.ingest.remote import RemoteJob, evaluate_there, identify, ready_there
from scopelake.ingest.run_here import Work, run_here
from scopelake.ingest.run_there import run_there
from scopelake.ingest.stages import Stages
from scopelake.ingest.statistics import WeightColumns
from scopelake.ingest.worker import Assignment, Worker
from scopelake.kernels.weights import EncoderWeights

if TYPE_CHECKING:
    from distributed import Client


class Origin(Protocol):
    """What is known of activations where they are not computed."""

    @property
    def model(self) -> ModelIdentity:
        """The model that they are of."""

    @property
    def origin(self) -> str:
        """How they come about."""

    @property
    def device(self) -> torch.device:
        """Where this process computes what decoders say."""

    def readout_need(self) -> int:
        """Bytes of this process's memory that `readout` takes, with what is computed by it."""

    def readout(self) -> torch.Tensor | None:
        """From the stream to logits, [d_model, vocab], float32; None if it is not known."""


class Crew(Protocol):
    """Makes shards."""

    @property
    def source(self) -> Origin:
        """What the activations are."""

    @property
    def n_devices(self) -> int:
        """How many devices encode."""

    @property
    def columns(self) -> WeightColumns | None:
        """What weights say, of coders of which it is known; what is computed is added. None:
        nothing is known, and nothing kept."""

    def ready(
        self, assignment: Assignment, coders: Sequence[CoderFiles], budget: Budget, stages: Stages
    ) -> Callable[[Work], None]:
        """Load the coders' weights; return what makes and commits all shards with them.

        Raises:
            TooLittleMemoryError: `budget` does not hold a context beside them.
        """

    def evaluate(self, assignment: Assignment, coders: Sequence[CoderFiles]) -> pa.Table:
        """Return rows of the evaluations table.

        Raises:
            ModelError: no model runs.
        """


@dataclass(frozen=True)
class Loaded:
    """What is in memory already of coders, by their names."""

    encoders: Mapping[str, tuple[EncoderWeights, ...]] = field(default_factory=dict)
    columns: WeightColumns = field(default_factory=dict)


class Here:
    """This process.

    Args:
        source: what gives the activations.
        loaded: what need not be loaded.
    """

    n_devices = 1

    def __init__(self, source: ActivationSource, loaded: Loaded | None = None) -> None:
        self.source, self._loaded = source, loaded

    @property
    def columns(self) -> WeightColumns | None:
        """What weights say, as far as it is in memory."""
        return None if self._loaded is None else self._loaded.columns

    def ready(
        self, assignment: Assignment, coders: Sequence[CoderFiles], budget: Budget, stages: Stages
    ) -> Callable[[Work], None]:
        """Load the coders' weights."""
        there = {} if self._loaded is None else self._loaded.encoders
        weights = {
            c.name: there.get(c.name) or load_encoders(c, self.source.model.device) for c in coders
        }
        widths = {coder.name: coder.width for coder in coders}
        look_back = LookBack(assignment.store, assignment.config.corpus, widths)
        worker = Worker(assignment, self.source, weights, look_back, budget, stages)
        worker.begin(coders)
        return partial(run_here, worker)

    def evaluate(self, assignment: Assignment, coders: Sequence[CoderFiles]) -> pa.Table:
        """Return rows of the evaluations table."""
        if not isinstance(self.source, LiveActivations):
            raise ModelError("an evaluation was asked for; no model runs; use ingest")
        store = assignment.store
        return evaluation_table(
            store, store.snapshot(), dict(assignment.corpus), self.source.model, coders,
            assignment.run,
        )  # fmt: skip


class There:
    """The workers of a cluster, which reach the lake and all files under the same paths.

    Args:
        cluster: the cluster.
        recipe: how workers come by the activations.

    Raises:
        ClusterError: no worker comes.
    """

    def __init__(self, cluster: Cluster, recipe: Recipe) -> None:
        self._cluster, self._recipe, self._key = cluster, recipe, uuid4().hex
        self.columns: WeightColumns | None = None
        cluster.wait_for_worker()
        model: ModelIdentity = cluster.submit(identify, self._key, recipe).result()
        self.source = Described(model, recipe)

    @property
    def n_devices(self) -> int:
        """Workers there are now."""
        return self._cluster.n_workers()

    def ready(
        self, assignment: Assignment, coders: Sequence[CoderFiles], budget: Budget, stages: Stages
    ) -> Callable[[Work], None]:
        """Load the coders' weights on a worker; `budget` is this process's, workers have theirs."""
        job = RemoteJob(self._key, assignment, self._recipe, tuple(coders))
        self._cluster.submit(ready_there, job).result()
        return partial(run_there, self._cluster, job)

    def evaluate(self, assignment: Assignment, coders: Sequence[CoderFiles]) -> pa.Table:
        """Return rows of the evaluations table."""
        asked = (self._key, assignment, self._recipe, list(coders))
        rows: pa.Table = self._cluster.submit(evaluate_there, *asked).result()
        return rows


@contextmanager
def crew_of(recipe: Recipe, scheduler: str | Client | None) -> Iterator[Crew]:
    """Yield who makes shards of what a recipe opens: this process, or a scheduler's workers.

    Raises:
        ModelError, LayerNotFoundError, CoderMismatchError: the recipe cannot be opened.
        MissingDependencyError, InvalidArgumentError, ClusterError: the scheduler cannot be used.
    """
    if scheduler is None:
        yield Here(recipe.open())
        return
    with Cluster(scheduler) as cluster:
        yield There(cluster, recipe)
