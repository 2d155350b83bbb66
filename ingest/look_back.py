"""What the lake holds of each coder on a corpus, for the peaks and samples of new shards."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from scopelake.errors import LakeBusyError
from scopelake.store.catalog import committed_shards
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.running import Running
from scopelake.store.snapshot import Snapshot


class StaleLookBackError(LakeBusyError):
    """A shard that was looked back at is not in the lake any more."""


class LookBack:
    """Of each coder, what is committed; it is read once and kept up to date.

    Several threads may use it.

    Args:
        store: the lake.
        corpus: the corpus.
        widths: number of features by coder.
    """

    def __init__(self, store: LakeStore, corpus: str, widths: Mapping[str, int]) -> None:
        self._store, self._corpus, self._widths = store, corpus, widths
        self._running: dict[str, Running] = {}
        self._shards: dict[str, set[int]] = {}
        self._lock = threading.Lock()

    def of(self, sae: str) -> Running:
        """Return what the lake holds of a coder."""
        with self._lock:
            if sae not in self._running:
                snapshot = self._store.snapshot()
                self._running[sae] = Running.load(
                    self._store, snapshot, sae, self._corpus, self._widths[sae]
                )
                done = committed_shards(self._store, snapshot, self._corpus)
                self._shards[sae] = {shard for name, shard in done if name == sae}
            return self._running[sae]

    def seen(self, saes: Iterable[str]) -> dict[str, frozenset[int]]:
        """Return, by coder, the shards that are looked back at."""
        with self._lock:
            return {sae: frozenset(self._shards.get(sae, ())) for sae in saes}

    def settle(self, snapshot: Snapshot, shard: int, receipts: Iterable[Receipt]) -> None:
        """Take in what was written of a shard, if it is what the lake has now, or let go of it.

        Args:
            snapshot: that of the commit.
            shard: which.
            receipts: of the files that were to be committed; none: they will not be.
        """
        peaks = {r.path: r.sae for r in receipts if r.table == "peaks"}
        filters = [("path", "in", list(peaks))]
        there = (
            self._store.read("files", snapshot, ["path"], filters)["path"].to_pylist()
            if peaks
            else []
        )
        taken = {peaks[path] for path in there}
        with self._lock:
            for sae, running in self._running.items():
                if sae in taken:
                    running.accept(shard)
                    self._shards[sae].add(shard)
                else:
                    running.forget(shard)

    def reset(self) -> None:
        """Forget everything; it is read again."""
        with self._lock:
            self._running.clear()
            self._shards.clear()


def check_seen(
    store: LakeStore, snapshot: Snapshot, corpus: str, seen: Mapping[str, frozenset[int]]
) -> None:
    """Refuse files whose peaks left out what a shard had that a repair has taken out since.

    Raises:
        StaleLookBackError: then look back again, and write the shard again.
    """
    done = committed_shards(store, snapshot, corpus)
    for sae, shards in seen.items():
        if gone := {shard for shard in shards if (sae, shard) not in done}:
            raise StaleLookBackError(
                f"a shard of {sae} on {corpus} was to be committed; a repair has taken out shards "
                f"{sorted(gone)} meanwhile; ingest again"
            )
