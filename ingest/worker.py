"""Making the files of shards: contexts in, files out; nothing is committed here.

    read -> [ forward, capture, encode ] -> piece -> files

Several threads may make shards at once: one has the device, the others write what they have.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scopelake.ingest.activations import ActivationSource, ShardTokens
from scopelake.ingest.budget import PIECES, Budget, Needs
from scopelake.ingest.capture import site_width
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.encode_shard import Piece, encode_shard
from scopelake.ingest.look_back import LookBack
from scopelake.ingest.plan import IngestConfig, Shard
from scopelake.ingest.shard_files import ShardFiles
from scopelake.ingest.stages import Stages
from scopelake.kernels.weights import EncoderWeights
from scopelake.store.catalog import committed_dense_shards
from scopelake.store.dense import write_shard
from scopelake.store.keeping import parse_keep
from scopelake.store.lake_store import LakeStore
from scopelake.store.memory import give_back_memory
from scopelake.store.receipts import Receipt
from scopelake.store.running import Running
from scopelake.store.writer import discard
from scopelake.store.writing import Beside, Inside, WriteJob, Writing


class StoppedError(Exception):
    """The making of a shard was given up."""


class NotBegunError(Exception):
    """No more shards are begun."""


@dataclass(frozen=True)
class Assignment:
    """What shards are made of."""

    store: LakeStore
    config: IngestConfig
    corpus: Mapping[str, Any]
    """Its row of the corpora table."""
    run: str


class Worker:
    """Makes shards of one ingest, with the model and the coders in memory; `begin` comes first.

    Args:
        assignment: what of.
        source: what gives the activations.
        weights: by coder name, an encoder for each of its sites, on the source's device.
        look_back: what the lake holds of each coder.
        budget: memory that may be used.
        stages: counts the time.
        writing: writes firings; None: threads of this process on a CPU, which takes all cores
            anyway, and processes beside it where a GPU computes.
    """

    def __init__(
        self,
        assignment: Assignment,
        source: ActivationSource,
        weights: Mapping[str, tuple[EncoderWeights, ...]],
        look_back: LookBack,
        budget: Budget,
        stages: Stages,
        writing: Writing | None = None,
    ) -> None:
        self._assignment, self._source, self._weights = assignment, source, weights
        self.look_back, self._budget, self.stages = look_back, budget, stages
        if writing is None:
            is_cpu = source.model.device.type == "cpu"
            writing = Inside() if is_cpu else Beside(min(budget.writers, PIECES * len(weights)))
        self._writing = writing
        self._device = threading.Lock()
        self._n_encoding, self._idle = 0, threading.Condition()
        self._has_failed = False
        self._in_flight = threading.BoundedSemaphore(PIECES)
        self._stop, self._hold = threading.Event(), threading.Event()

    def begin(self, coders: Sequence[CoderFiles]) -> None:
        """Take what the process takes now, with all in memory that shards need, as given.

        Raises:
            TooLittleMemoryError: not even one context fits beside it.
        """
        corpus, dense_sites = self._assignment.corpus, self._assignment.config.dense
        sites = sorted({s for c in coders for s in c.sites} | set(dense_sites), key=str)
        self._budget.begin(
            Needs.of(
                self._source.token_bytes(sites),
                sum(site_width(self._source.model, site) for site in dense_sites),
                *(int(corpus[n]) for n in ("context_length", "shard_contexts", "n_tokens")),
            ),
            beside=self._writing.n_bytes,
        )

    def close(self) -> None:
        """End what was started to write; no shard may be being made."""
        self._writing.close()

    def hold(self) -> None:
        """Begin no more shards; those that are begun are made."""
        self._hold.set()

    def stop(self) -> None:
        """Give up the shards that are being made, at their next batch, and begin no more."""
        self._hold.set()
        with self._idle:
            self._stop.set()
            self._idle.notify_all()

    def when_idle(
        self, task: Callable[[Callable[[], bool]], None], is_over: Callable[[], bool]
    ) -> None:
        """Call `task` with `is_over` once no shard that was given has more to encode.

        It is not called if `stop` was, or if a shard failed, which is to be made again.
        """
        with self._idle:
            self._idle.wait_for(lambda: not self._n_encoding or self._stop.is_set())
            is_idle = not (self._stop.is_set() or self._has_failed)
        if is_idle:
            task(is_over)

    def _encoding(self) -> ExitStack:
        """Count a shard that has something to encode, until what is returned is closed."""
        with self._idle:
            self._n_encoding += 1
        encoding = ExitStack()
        encoding.callback(self._encoded)
        return encoding

    def _encoded(self) -> None:
        with self._idle:
            self._n_encoding -= 1
            self._idle.notify_all()

    def make(
        self,
        shard: Shard,
        on_batch: Callable[[int, int], None] | None = None,
        on_begin: Callable[[], None] | None = None,
        before_write: Callable[[], object] | None = None,
    ) -> ShardFiles:
        """Make a shard's files; those of an attempt that fails are removed again.

        Args:
            shard: what of it is wanted.
            on_batch: called with (tokens, firings) after each batch.
            on_begin: called once fewer than `PIECES` others are being made.
            before_write: called before the first piece is written.

        Raises:
            StoppedError: `stop` was called.
            NotBegunError: `hold` was called before it was begun.
        """
        counted = [0, 0]

        def count(tokens: int, firings: int) -> None:
            counted[0] += tokens
            counted[1] += firings
            if on_batch is not None:
                on_batch(tokens, firings)
            if self._stop.is_set():
                raise StoppedError

        receipts: list[Receipt] = []
        names = [coder.name for coder in shard.coders]
        with self._encoding() as encoding, self._in_flight:
            if self._hold.is_set():
                raise NotBegunError
            if on_begin is not None:
                on_begin()
            try:
                with self.stages.timed("read"):
                    tokens = self._read(shard)
                kept, running = self._kept(tokens), None
                for piece in self._pieces(shard, tokens, count, encoding.close):
                    if running is None:
                        running = self._running(names, before_write)
                    with self.stages.timed("write"):
                        receipts += self._write(shard, piece, running, kept)
            except BaseException:
                self._has_failed = True
                discard(self._assignment.store.root, (r for r in receipts if r.table != "dense"))
                self.look_back.forget(shard.index)
                raise
        give_back_memory()
        assert running is not None, "a shard has a piece, also one without contexts"
        # As of now: what others committed meanwhile bounds the later pieces.
        seen = {name: frozenset(running[name].shards) for name in names}
        where = f"{socket.gethostname()}:{os.getpid()}"
        return ShardFiles(shard, tuple(receipts), seen, counted[0], counted[1], {}, where)

    def _running(
        self, names: Sequence[str], before_write: Callable[[], object] | None
    ) -> Mapping[str, Running]:
        """Return what the lake holds of coders once `before_write` has returned."""
        if before_write is not None:
            before_write()
        if self._stop.is_set():
            raise StoppedError
        return self.look_back.of_all(names)

    def _kept(self, tokens: ShardTokens) -> npt.NDArray[np.int64] | None:
        """Return the contexts whose firings are stored; None: all."""
        keep = parse_keep(self._assignment.config.keep)
        if keep.is_all:
            return None
        has = [keep.has(document) for document in tokens.documents]
        return tokens.first_context + np.flatnonzero(has)

    def _pieces(
        self,
        shard: Shard,
        tokens: ShardTokens,
        count: Callable[[int, int], None],
        on_encoded: Callable[[], None],
    ) -> Iterator[Piece]:
        with self._device:
            pieces = encode_shard(
                shard, tokens, self._source, self._weights, self._budget,
                context_length=int(self._assignment.corpus["context_length"]),
                stages=self.stages, on_batch=count,
            )  # fmt: skip
        while True:
            # Between pieces another thread may have the device.
            with self._device:
                piece = next(pieces, None)
            if piece is None:
                return
            if piece.is_last:
                on_encoded()
            yield piece

    def _read(self, shard: Shard) -> ShardTokens:
        store, corpus = self._assignment.store, self._assignment.config.corpus
        table = store.read(
            "contexts",
            store.snapshot(),
            columns=["context", "token_ids", "kinds", "document", "documents"],
            filters=[
                ("corpus", "=", corpus),
                ("context", ">=", shard.start),
                ("context", "<", shard.stop),
            ],
        ).sort_by("context")
        ids = tuple(np.array(v, dtype=np.int32) for v in table["token_ids"].to_pylist())
        kinds = tuple(np.array(v, dtype=np.int8) for v in table["kinds"].to_pylist())
        # Of a packed context its first document decides.
        listed = table.select(["document", "documents"]).to_pylist()
        documents = tuple(
            row["documents"][0]["document"] if row["documents"] else row["document"]
            for row in listed
        )
        tokens = ShardTokens(shard.start, ids, kinds, documents)
        self._source.check(tokens, corpus)
        return tokens

    def _write(
        self,
        shard: Shard,
        piece: Piece,
        looked_back: Mapping[str, Running],
        kept: npt.NDArray[np.int64] | None,
    ) -> list[Receipt]:
        assignment = self._assignment

        def write(name: str) -> list[Receipt]:
            job = WriteJob(
                assignment.store.root,
                piece.codes(name),
                sae=name,
                corpus=assignment.config.corpus,
                shard=shard.index,
                run=assignment.run,
                bits=assignment.config.activation_bits,
                kept=kept,
                scratch=scratch,
            )
            return self._writing.write(job, looked_back[name])

        receipts: list[Receipt] = []
        failed: list[BaseException] = []
        with (
            assignment.store.root.scratch() as scratch,
            ThreadPoolExecutor(self._budget.writers, thread_name_prefix="scopelake-write") as pool,
        ):
            for done in [pool.submit(write, name) for name in piece.coders]:
                if (error := done.exception()) is None:
                    receipts += done.result()
                else:
                    failed.append(error)
        if failed:
            discard(assignment.store.root, receipts)
            raise failed[0]
        return receipts + (self._write_dense(shard, piece) if piece.dense else [])

    def _write_dense(self, shard: Shard, piece: Piece) -> list[Receipt]:
        """Put the dense shards that nobody has committed: their places are fixed."""
        store, corpus = self._assignment.store, self._assignment.config.corpus
        model = self._source.model.name
        done = committed_dense_shards(store, store.snapshot(), corpus, model)
        return [
            write_shard(
                store.root,
                corpus,
                model,
                site.site,
                site.layer,
                shard.start,
                values,
                shard=shard.index,
                run=self._assignment.run,
            )
            for site, values in (piece.dense or {}).items()
            if (site.site, site.layer, shard.index) not in done
        ]
