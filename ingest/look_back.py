"""What the lake holds of each coder on a corpus, for the peaks and samples of new shards."""

from __future__ import annotations

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

    Args:
        store: the lake.
        corpus: the corpus.
        widths: number of features by coder.
    """

    def __init__(self, store: LakeStore, corpus: str, widths: Mapping[str, int]) -> None:
        self._store, self._corpus, self._widths = store, corpus, widths
        self._running: dict[str, Running] = {}
        self._shards: dict[str, set[int]] = {}

    def of(self, sae: str) -> Running:
        """Return what the lake holds of a coder."""
        if sae not in self._running:
            snapshot = self._store.snapshot()
            self._running[sae] = Running.load(
                self._store, snapshot, sae, self._corpus, self._widths[sae]
            )
            done = committed_shards(self._store, snapshot, self._corpus)
            self._shards[sae] = {shard for name, shard in done if name == sae}
        return self._running[sae]

    def check(self, snapshot: Snapshot) -> None:
        """Refuse to go on when a repair took out a shard: its peaks must hide nothing now.

        Raises:
            StaleLookBackError: then `reset`, and write the shard again.
        """
        done = committed_shards(self._store, snapshot, self._corpus)
        for sae, shards in self._shards.items():
            if gone := {shard for shard in shards if (sae, shard) not in done}:
                raise StaleLookBackError(
                    f"a shard of {sae} on {self._corpus} was to be committed; a repair has taken "
                    f"out shards {sorted(gone)} meanwhile; ingest again"
                )

    def settle(self, snapshot: Snapshot, receipts: Iterable[Receipt]) -> None:
        """Take in what was written last, if it is what the lake has now, and let go of the rest.

        Args:
            snapshot: that of the commit.
            receipts: of the files that were to be committed.
        """
        peaks = {r.path: r for r in receipts if r.table == "peaks"}
        filters = [("path", "in", list(peaks))]
        there = self._store.read("files", snapshot, ["path"], filters)["path"].to_pylist()
        taken = {peaks[path].sae: peaks[path].shard for path in there}
        for sae, running in self._running.items():
            shard = taken.get(sae)
            if shard is None:
                running.forget()
            else:
                running.accept()
                self._shards[sae].add(shard)

    def reset(self) -> None:
        """Forget everything; it is read again."""
        self._running.clear()
        self._shards.clear()
