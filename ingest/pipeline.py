"""Ingest: one pass over a corpus, every coder, committed shard by shard.

    contexts -> [ forward, capture, encode ] -> shard files -> receipts -> commit -> snapshot

The next shard is encoded while a thread writes and commits the one before it; at most one shard
waits, so memory does not grow with the corpus.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch

from scopelake.errors import EncoderWarning
from scopelake.ingest.activations import ActivationSource, LiveActivations, ShardTokens
from scopelake.ingest.capture import site_width
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.encode_shard import ShardResult, encode_shard
from scopelake.ingest.evaluation_rows import evaluation_table, unevaluated
from scopelake.ingest.look_back import LookBack, StaleLookBackError
from scopelake.ingest.model import LoadedModel
from scopelake.ingest.plan import (
    IngestConfig,
    IngestPlan,
    Shard,
    check_catalogue,
    check_precision,
    make_plan,
    without_committed,
)
from scopelake.ingest.report import IngestSummary, Progress
from scopelake.ingest.rows import RunTotals, model_table, run_table, sae_table
from scopelake.ingest.statistics import without_statistics, write_statistics
from scopelake.kernels.encode import choose
from scopelake.kernels.weights import EncoderWeights
from scopelake.store.catalog import committed_dense_shards
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array, write_shard
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.running import Running
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard, write_firings

_MOST_TRIES: Final = 3

_WRITERS: Final = 2
"""Coders whose files are written, or whose statistics are made, at once."""


def ingest(
    store: LakeStore,
    config: IngestConfig,
    model: LoadedModel,
    coders: Sequence[CoderFiles],
    on_progress: Callable[[Progress], None] | None = None,
) -> IngestSummary:
    """Ingest a corpus with `coders` in one pass; what the lake holds already is not done again.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        CoderMismatchError: a coder does not fit the model.
        ModelError: the corpus has token ids that the model does not know.
        LakeBusyError: other writers came first again and again.
    """
    return encode_from(store, config, LiveActivations(model), coders, on_progress, model)


def encode_from(
    store: LakeStore,
    config: IngestConfig,
    source: ActivationSource,
    coders: Sequence[CoderFiles],
    on_progress: Callable[[Progress], None] | None = None,
    model: LoadedModel | None = None,
) -> IngestSummary:
    """Encode a corpus's activations, wherever they come from, with `coders` in one pass.

    Args:
        store: the lake.
        config: what is to be made.
        source: what gives the activations.
        coders: those to encode with.
        on_progress: called after every batch and commit.
        model: the model itself, which an evaluation runs.

    Raises:
        CorpusNotFoundError, CoderMismatchError, LakeBusyError: as in `ingest`.
    """
    with Writer(store) as writer:
        return _Job(store, writer, config, source, list(coders), on_progress, model).run()


class _Job:
    """One call of ingest: its plan, its totals, and the writing thread's hand-over."""

    def __init__(
        self,
        store: LakeStore,
        writer: Writer,
        config: IngestConfig,
        source: ActivationSource,
        coders: list[CoderFiles],
        on_progress: Callable[[Progress], None] | None,
        loaded: LoadedModel | None,
    ) -> None:
        self.store, self.writer, self.config = store, writer, config
        self.source, self.model, self.loaded = source, source.model, loaded
        self.plan: IngestPlan = make_plan(store, store.snapshot(), config, self.model, coders)
        self.totals = RunTotals()
        self.weights: dict[str, tuple[EncoderWeights, ...]] = {}
        widths = {coder.name: coder.width for coder in self.plan.coders}
        self.look_back = LookBack(store, config.corpus, widths)
        self.on_progress = on_progress

    def run(self) -> IngestSummary:
        pending = without_statistics(self.store, self.plan)
        evaluated = self._coders_to_evaluate()
        if self.plan.shards or pending or evaluated:
            self.weights = {
                c.name: load_encoders(c, self.model.device)
                for c in self.plan.coders
                if any(c in s.coders for s in self.plan.shards)
            }
            if self.plan.shards:
                _warn_if_slow(self.model.device)
                self._prepare()
                self._shards()
            self.weights.clear()  # evaluation loads one coder at a time
            self._finish(without_statistics(self.store, self.plan), evaluated)
        totals = self.totals
        return IngestSummary(
            self.plan.run,
            self.store.snapshot().id,
            len(self.plan.shards),
            len(evaluated),
            totals.tokens,
            totals.firings,
            totals.n_bytes,
            float(self._run_row(complete=True)["seconds"][0].as_py()),
            totals.stages.seconds,
        )  # fmt: skip

    def _prepare(self) -> None:
        """Write the catalogue rows and empty arrays that the shards will refer to."""
        snapshot = self.store.snapshot()
        saes = self.store.read("saes", snapshot, columns=["sae", "digest"])
        # A coder of which only examples were imported has no digest yet.
        known = {r["sae"] for r in saes.to_pylist() if r["digest"] is not None}
        models = self.store.read("models", snapshot, columns=["model"])["model"].to_pylist()
        rows = {"runs": self._run_row(complete=False)}
        replaced: dict[str, tuple[str, ...]] = {}
        if new := [c for c in self.plan.coders if c.name not in known]:
            rows["saes"] = sae_table(new, self.model)
            replaced["saes"] = ("sae",)
        if self.model.name not in models:
            rows["models"] = model_table(self.model)
            replaced["models"] = ("model",)
        corpus = self.plan.corpus
        for site in self.config.dense:
            width = site_width(self.model, site)
            ensure_array(
                self.store.root, corpus["corpus"], self.model.name, site.site, site.layer,
                corpus["n_contexts"], corpus["context_length"], width, corpus["shard_contexts"],
            )  # fmt: skip
        self._commit([], "start", f"start ingest of {self.config.corpus}", rows, replaced)

    def _shards(self) -> None:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scopelake-write") as pool:
            waiting: Future[None] | None = None
            for planned in self.plan.shards:
                shard = self._left(planned)
                if shard is None:
                    continue
                with self.totals.stages.timed("read"):
                    tokens = self._read(shard)
                result = encode_shard(
                    shard,
                    tokens,
                    self.source,
                    self.weights,
                    context_length=int(self.plan.corpus["context_length"]),
                    batch_tokens=self.config.batch_tokens,
                    stages=self.totals.stages,
                    on_batch=self._count,
                )
                if waiting is not None:
                    with self.totals.stages.timed("wait"):
                        waiting.result()
                waiting = pool.submit(self._write, shard, result)
            if waiting is not None:
                with self.totals.stages.timed("wait"):
                    waiting.result()

    def _left(self, shard: Shard) -> Shard | None:
        """Return what of a shard no other ingest has committed since the plan was made."""
        latest = self.store.snapshot()
        if latest.run in (self.plan.run, None):
            return shard
        return without_committed(self.store, latest, self.config.corpus, self.model.name, shard)

    def _revise(self, commit: Commit, snapshot: Snapshot) -> Commit:
        """Check what another writer may have changed since the plan was made."""
        if snapshot.run != self.plan.run:
            check_catalogue(self.store, snapshot, self.config.corpus, self.model, self.plan.coders)
            check_precision(self.store, snapshot, self.config, self.model, self.plan.coders)
            self.look_back.check(snapshot)
        kept = [
            r
            for r in commit.receipts
            if r.table != "features"
            or not self.store.data_files("features", snapshot, sae=r.sae, corpus=r.corpus)
        ]
        return replace(commit, receipts=tuple(kept))

    def _read(self, shard: Shard) -> ShardTokens:
        columns = ["context", "token_ids", "kinds"]
        table = self.store.read(
            "contexts",
            self.store.snapshot(),
            columns=columns,
            filters=[
                ("corpus", "=", self.config.corpus),
                ("context", ">=", shard.start),
                ("context", "<", shard.stop),
            ],
        ).sort_by("context")
        ids = tuple(np.array(v, dtype=np.int32) for v in table["token_ids"].to_pylist())
        kinds = tuple(np.array(v, dtype=np.int8) for v in table["kinds"].to_pylist())
        tokens = ShardTokens(shard.start, ids, kinds)
        self.source.check(tokens, self.config.corpus)
        return tokens

    def _write(self, shard: Shard, result: ShardResult) -> None:
        stages = self.totals.stages
        with stages.timed("write"):
            dense = self._write_dense(shard, result)
        for left in reversed(range(_MOST_TRIES)):
            with stages.timed("write"):
                firings = self._write_firings(shard, result)
            receipts = [*firings, *dense]
            reason = f"ingest {self.config.corpus} shard {shard.index}"
            try:
                with stages.timed("commit"):
                    snapshot = self._commit(receipts, str(shard.index), reason, {})
            except StaleLookBackError:
                discard(self.store.root, firings)
                self.look_back.reset()
                if not left:
                    raise
            else:
                break
        self.look_back.settle(snapshot, receipts)
        self.totals.n_bytes += sum(r.n_bytes for r in receipts)
        self._count(0, 0)

    def _write_firings(self, shard: Shard, result: ShardResult) -> list[Receipt]:
        def write(name: str, running: Running) -> list[Receipt]:
            return write_firings(
                self.store.root,
                result.firings[name],
                sae=name,
                corpus=self.config.corpus,
                shard=shard.index,
                run=self.plan.run,
                bits=self.config.activation_bits,
                running=running,
            )

        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="scopelake-write") as pool:
            done = [pool.submit(write, name, self.look_back.of(name)) for name in result.firings]
        return [receipt for one in done for receipt in one.result()]

    def _write_dense(self, shard: Shard, result: ShardResult) -> list[Receipt]:
        """Put the dense shards that nobody has committed: their places are fixed."""
        corpus, model = self.config.corpus, self.model.name
        done = committed_dense_shards(self.store, self.store.snapshot(), corpus, model)
        return [
            write_shard(
                self.store.root,
                corpus,
                model,
                site.site,
                site.layer,
                shard.start,
                values,
                shard=shard.index,
                run=self.plan.run,
            )
            for site, values in result.dense.items()
            if (site.site, site.layer, shard.index) not in done
        ]

    def _finish(self, coders: list[CoderFiles], evaluated: list[CoderFiles]) -> None:
        """Write the statistics of coders that are complete on this corpus, and evaluations."""
        readout = self.source.readout() if coders else None

        def statistics(coder: CoderFiles) -> Receipt:
            return write_statistics(self.store, self.plan, coder, self.model.device, readout)

        with self.totals.stages.timed("finish"), ThreadPoolExecutor(_WRITERS) as pool:
            receipts = list(pool.map(statistics, coders))
        rows = {}
        if evaluated and self.loaded is not None:
            rows["evaluations"] = evaluation_table(
                self.store, self.store.snapshot(), self.plan.corpus, self.loaded, evaluated,
                self.plan.run,
            )  # fmt: skip
        rows["runs"] = self._run_row(complete=True)
        self._commit(receipts, "finish", f"finish ingest of {self.config.corpus}", rows)

    def _coders_to_evaluate(self) -> list[CoderFiles]:
        if not self.config.evaluate or self.loaded is None:
            return []
        return unevaluated(self.store, self.store.snapshot(), self.config.corpus, self.plan.coders)

    def _commit(
        self,
        receipts: list[Receipt],
        step: str,
        reason: str,
        rows: Mapping[str, pa.Table],
        replaced: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Snapshot:
        keys = {**(replaced or {})}
        if "runs" in rows:
            keys["runs"] = ("run",)
        if "evaluations" in rows:
            keys["evaluations"] = ("sae", "corpus")
        # What a shard holds, not this name, keeps it from being committed twice: a shard that was
        # taken out, because it was damaged, comes back under the same run.
        return self.writer.commit(
            receipts,
            transaction=f"{self.plan.run}:{step}:{uuid4().hex}",
            reason=reason,
            run=self.plan.run,
            rows=rows,
            replace=keys,
            revise=self._revise,
        )

    def _run_row(self, *, complete: bool) -> pa.Table:
        return run_table(
            self.plan, self.config, self.source.model, self.totals, self.source.origin,
            complete=complete,
        )  # fmt: skip

    def _count(self, tokens: int, firings: int) -> None:
        self.totals.tokens += tokens
        self.totals.firings += firings
        if self.on_progress is not None:
            totals = self.totals
            self.on_progress(
                Progress(totals.tokens, self.plan.n_tokens_left, totals.firings, totals.n_bytes)
            )


def _warn_if_slow(device: torch.device) -> None:
    choice = choose(device)
    if choice.impl == "torch":
        warnings.warn(f"encoding with torch: {choice.reason}", EncoderWarning, stacklevel=2)
