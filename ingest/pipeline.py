"""Ingest: one pass over a corpus, every coder, committed shard by shard.

    contexts -> [ forward, capture, encode ] -> shard files -> receipts -> commit -> snapshot

Shards are made in this process or on a cluster (`run_here`, `run_there`); this one commits them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import torch

from scopelake.errors import EncoderWarning, LostShardError, ScopelakeError, ShardWarning
from scopelake.ingest.budget import Budget, parse_memory
from scopelake.ingest.capture import site_width
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.committer import Committer
from scopelake.ingest.crews import Crew
from scopelake.ingest.evaluation_rows import unevaluated
from scopelake.ingest.ledger import Ledger, one_line
from scopelake.ingest.plan import (
    IngestConfig,
    IngestPlan,
    Shard,
    make_plan,
    not_committed,
    without_committed,
)
from scopelake.ingest.report import LOG, IngestSummary, Progress
from scopelake.ingest.rows import RunTotals, model_table, run_table, sae_table
from scopelake.ingest.run_here import Work
from scopelake.ingest.shard_files import ShardFiles
from scopelake.ingest.statistics import (
    statistics_files,
    undescribed,
    without_statistics,
    write_statistics,
)
from scopelake.ingest.weight_facts import WeightFacts
from scopelake.ingest.worker import Assignment
from scopelake.kernels.encode import choose
from scopelake.names import counted
from scopelake.store import gathered, native
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class Hooks:
    """What a caller sees of an ingest while it runs, and how it stops one."""

    on_progress: Callable[[Progress], None] | None = None
    """Called after every batch and commit."""
    stop: threading.Event | None = None
    """Once it is set no more shards are begun."""


def ingest(
    store: LakeStore,
    config: IngestConfig,
    crew: Crew,
    coders: Sequence[CoderFiles],
    hooks: Hooks | None = None,
    *,
    dry_run: bool = False,
    describe: bool = True,
) -> IngestSummary:
    """Encode a corpus's activations with `coders` in one pass.

    What the lake holds already is not done again.

    Args:
        store: the lake.
        config: what is to be made.
        crew: who makes it, and of what.
        coders: those to encode with.
        hooks: what the caller sees of it.
        dry_run: only check everything, and say what is left to make.
        describe: write the statistics of features once all of a coder's shards are committed; what
            is left out the next ingest does.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        CoderMismatchError: a coder does not fit the model.
        ModelError: the corpus has token ids that the model does not know.
        InvalidArgumentError: the memory is too little.
        LakeBusyError: other writers came first again and again.
        LostShardError: a shard is neither in the lake nor known to have failed.
        ClusterError: the cluster was lost.

    Warns:
        ShardWarning: shards failed every time and were set aside.
    """
    writer = Writer(store)
    if dry_run:
        return _Job(store, writer, config, crew, list(coders), Hooks(), describe).preview()
    with writer:
        return _Job(store, writer, config, crew, list(coders), hooks or Hooks(), describe).run()


class _CallersError(BaseException):
    """The caller's own function failed: no shard is to blame."""

    def __init__(self, original: Exception) -> None:
        super().__init__()
        self.original = original


class _Job:
    """One call of ingest: its plan, its totals, and what it commits."""

    def __init__(
        self,
        store: LakeStore,
        writer: Writer,
        config: IngestConfig,
        crew: Crew,
        coders: list[CoderFiles],
        hooks: Hooks,
        describe: bool,
    ) -> None:
        self.store, self.config, self.hooks, self._describe = store, config, hooks, describe
        self.crew, self.source, self.model = crew, crew.source, crew.source.model
        self.plan: IngestPlan = make_plan(store, store.snapshot(), config, self.model, coders)
        self.budget = Budget(parse_memory(config.memory), self.plan.coders, config.batch_tokens)
        self.committer = Committer(writer, self.plan, config, self.model)
        self.ledger = Ledger(self.plan.shards, self.plan.n_shards - len(self.plan.shards))
        self.totals = RunTotals()
        self._facts = WeightFacts(self.source, self.budget, self.totals.stages, crew.columns)
        self._assignment = Assignment(store, config, self.plan.corpus, self.plan.run)
        self._counting = threading.Lock()
        self._is_running = False
        """Whether the lake says of this run that it is running."""

    def run(self) -> IngestSummary:
        try:
            return self._run()
        except BaseException as error:
            if self._is_running:
                LOG.error("ingest broken off", extra={"scopelake": {
                    "run": self.plan.run, "error": type(error).__name__,
                }})  # fmt: skip
                self._say_interrupted()
            if isinstance(error, _CallersError):
                raise error.original from None
            raise

    def _run(self) -> IngestSummary:
        pending = self._to_describe()
        evaluated = self._coders_to_evaluate()
        state = "complete"
        if self.plan.shards or pending or evaluated:
            if self.plan.shards:
                _warn_if_slow(self.model.device)
                self._shards()
                self._check_all_there()
            state = self._state()
            if state != "complete":
                evaluated = []  # the next ingest has more to do anyway
            self._finish(self._to_describe(), evaluated, state)
        elif self._was_broken_off():
            self._finish([], [], state)  # other runs have done its work since
        if self.ledger.aside:
            _warn_of_failed(self.ledger, self.plan)
        return self._summary(len(evaluated), len(pending))

    def preview(self) -> IngestSummary:
        """Return what is left to do; nothing is written."""
        pending = self._to_describe()
        if self.plan.shards:
            self._ready()
        return self._summary(len(self._coders_to_evaluate()), len(pending))

    def _summary(self, n_evaluated: int, n_described: int) -> IngestSummary:
        totals = self.totals
        return IngestSummary(
            self.plan.run,
            self.store.snapshot().id,
            len(self.plan.shards),
            n_evaluated,
            totals.tokens,
            totals.firings,
            totals.n_bytes,
            totals.seconds,
            totals.stages.seconds,
            tuple(self.ledger.aside),
            self.ledger.n_left,
            round(self.plan.n_tokens_left * self.ledger.share_left),
            self.crew.n_devices,
            n_described,
        )  # fmt: skip

    def _prepare(self) -> None:
        """Write the catalogue rows and empty arrays that the shards will refer to."""
        snapshot = self.store.snapshot()
        saes = self.store.read("saes", snapshot, columns=["sae", "digest"])
        # A coder of which only examples were imported has no digest yet.
        known = {r["sae"] for r in saes.to_pylist() if r["digest"] is not None}
        models = self.store.read("models", snapshot, columns=["model"])["model"].to_pylist()
        rows = {"runs": self._run_row("running")}
        if new := [c for c in self.plan.coders if c.name not in known]:
            rows["saes"] = sae_table(new, self.model)
        if self.model.name not in models:
            rows["models"] = model_table(self.model)
        corpus = self.plan.corpus
        for site in self.config.dense:
            width = site_width(self.model, site)
            ensure_array(
                self.store.root, corpus["corpus"], self.model.name, site.site, site.layer,
                corpus["n_contexts"], corpus["context_length"], width, corpus["shard_contexts"],
            )  # fmt: skip
        self.committer.rows("start", rows)
        self._is_running = True
        LOG.info("ingest started", extra={"scopelake": {
            "run": self.plan.run, "corpus": self.config.corpus, "shards": len(self.plan.shards),
        }})  # fmt: skip

    def _shards(self) -> None:
        run = self._ready()
        # Nothing is written before it is known that all fits together.
        self._prepare()
        work = Work(
            self.ledger, self._commit, self._left, self._is_stopping, self._count,
            self._ahead, self.totals.stages,
        )  # fmt: skip
        run(work)

    def _ahead(self, is_over: Callable[[], bool]) -> None:
        """Compute what statistics will need of weights, while the last shard is written."""
        if not self._describe or self.ledger.aside:
            return
        try:
            self._facts.ahead(undescribed(self.store, self.plan), is_over)
        except Exception as error:  # noqa: BLE001 - what is real comes again when it is needed
            LOG.warning("nothing more is computed ahead", extra={"scopelake": {
                "run": self.plan.run, "error": one_line(error),
            }})  # fmt: skip

    def _check_all_there(self) -> None:
        """Refuse to end as if all were well with a shard lost, whoever made or committed it."""
        accounted = self.ledger.accounted(is_stopped=self._is_stopping())
        wanted = [shard for shard in self.plan.shards if shard.index not in accounted]
        lost = not_committed(
            self.store, self.store.snapshot(), self.config.corpus, self.model.name, wanted
        )
        if lost:
            coders = sorted({c.name for shard in lost for c in shard.coders})
            sites = sorted({str(site) for shard in lost for site in shard.dense})
            raise LostShardError(
                f"{counted(len(self.plan.shards), 'shard')} of {self.config.corpus!r} "
                f"{'was' if len(self.plan.shards) == 1 else 'were'} to be made; of "
                f"{len(lost)} of them (the first is {lost[0].index}) {(coders + sites)[0]} is "
                "neither in the lake nor set aside; ingest again, which makes what is missing"
            )

    def _was_broken_off(self) -> bool:
        """Return whether the lake has this run as one that was not complete."""
        rows = self.store.read(
            "runs", self.store.snapshot(), ["state"], [("run", "=", self.plan.run)]
        )
        return any(state != "complete" for state in rows["state"].to_pylist())

    def _say_interrupted(self) -> None:
        """Say in the lake that this run goes on no more, if the lake can still be written."""
        try:
            self.committer.rows("interrupt", {"runs": self._run_row("interrupted")})
        except (ScopelakeError, OSError) as error:
            # What broke the ingest off is raised; `info` sees that the process is gone.
            LOG.warning("run not marked as interrupted", extra={"scopelake": {
                "run": self.plan.run, "error": one_line(error),
            }})  # fmt: skip

    def _ready(self) -> Callable[[Work], None]:
        coders = [c for c in self.plan.coders if any(c in s.coders for s in self.plan.shards)]
        known = self.crew.columns or {}
        promoting = [c for c in coders if c.targets[0].site != "attn_out" and c.name not in known]
        if self._describe and promoting:
            self.budget.expect_readout(self.source.readout_need())
        run = self.crew.ready(self._assignment, coders, self.budget, self.totals.stages)
        self.budget.check_readout()
        return run

    def _is_stopping(self) -> bool:
        return self.hooks.stop is not None and self.hooks.stop.is_set()

    def _state(self) -> str:
        if self.ledger.aside:
            return "incomplete"
        return "stopped" if self.ledger.n_left else "complete"

    def _left(self, shard: Shard) -> Shard | None:
        """Return what of a shard no other ingest has committed since the plan was made."""
        latest = self.store.snapshot()
        if latest.id == self.committer.last:
            return shard
        return without_committed(self.store, latest, self.config.corpus, self.model.name, shard)

    def _commit(self, made: Sequence[ShardFiles]) -> tuple[Snapshot, list[ShardFiles]]:
        snapshot, stale = self.committer.shards(made)
        with self._counting:
            for files in made:
                if files in stale:
                    self.totals.tokens -= files.tokens
                    self.totals.firings -= files.firings
                else:
                    self.totals.n_bytes += files.n_bytes
        self._count(0, 0)
        return snapshot, stale

    def _finish(self, coders: list[CoderFiles], evaluated: list[CoderFiles], state: str) -> None:
        """Write the statistics of coders that are complete on this corpus, and evaluations."""
        share = self.budget.statistics(len(coders))
        files = statistics_files(self.store, self.plan, self.config.keep) if coders else {}

        def statistics(coder: CoderFiles) -> Receipt:
            return write_statistics(
                self.store, self.plan, coder, self._facts.of(coder), files[coder.name],
                share, self.config.keep, scratch,
            )  # fmt: skip

        with (
            self.totals.stages.timed("finish", beside="readout"),
            self.store.root.scratch() as scratch,
            ThreadPoolExecutor(share.coders) as pool,
        ):
            receipts = list(pool.map(statistics, coders))
        rows = {}
        if evaluated:
            with self.totals.stages.timed("evaluate"):
                rows["evaluations"] = self.crew.evaluate(self._assignment, evaluated)
        self.totals.end()
        rows["runs"] = self._run_row(state)
        snapshot = self.committer.rows("finish", rows, receipts)
        self._is_running = False
        LOG.info("ingest ended", extra={"scopelake": {
            "run": self.plan.run, "state": state, "snapshot": snapshot.id,
            "tokens": self.totals.tokens, "firings": self.totals.firings,
            "bytes": self.totals.n_bytes, "stages": dict(self.totals.stages.seconds),
        }})  # fmt: skip
        self._count(0, 0)

    def _to_describe(self) -> list[CoderFiles]:
        return without_statistics(self.store, self.plan) if self._describe else []

    def _coders_to_evaluate(self) -> list[CoderFiles]:
        if not self.config.evaluate:
            return []
        return unevaluated(self.store, self.store.snapshot(), self.config.corpus, self.plan.coders)

    def _run_row(self, state: str) -> pa.Table:
        return run_table(
            self.plan, self.config, self.source.model, self.totals, self.source.origin, state
        )

    def _count(self, tokens: int, firings: int) -> None:
        with self._counting:
            self.totals.tokens += tokens
            self.totals.firings += firings
            totals = self.totals
            now = Progress(
                totals.tokens, self.plan.n_tokens_left, totals.firings, totals.n_bytes,
                totals.seconds,
            )  # fmt: skip
            if self.hooks.on_progress is not None:
                try:
                    self.hooks.on_progress(now)
                except Exception as error:
                    raise _CallersError(error) from error


def _warn_if_slow(device: torch.device) -> None:
    choice = choose(device)
    if choice.impl == "torch":
        warnings.warn(f"encoding with torch: {choice.reason}", EncoderWarning, stacklevel=2)
    if native.WHY_NOT is not None:
        warnings.warn(f"sorting with numpy: {native.WHY_NOT}", EncoderWarning, stacklevel=2)
    if gathered.WHY_NOT is not None:
        warnings.warn(f"statistics with numpy: {gathered.WHY_NOT}", EncoderWarning, stacklevel=2)


def _warn_of_failed(ledger: Ledger, plan: IngestPlan) -> None:
    warnings.warn(
        f"{len(ledger.aside)} of {counted(plan.n_shards, 'shard')} "
        f"{'was' if len(ledger.aside) == 1 else 'were'} set aside: "
        f"{'; '.join(map(str, ledger.aside))}; mend the cause and ingest again, which makes these "
        "only",
        ShardWarning,
        stacklevel=2,
    )
