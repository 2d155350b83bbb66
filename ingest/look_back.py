"""What the lake holds of each coder on a corpus, for the peaks and samples of new shards."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from scopelake.store.catalog import committed_shards
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.running import Running
from scopelake.store.snapshot import Snapshot


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
        self._lock = threading.RLock()
        self._n_let_go = 0

    def of(self, sae: str) -> Running:
        """Return what the lake holds of a coder."""
        return self.of_all([sae])[sae]

    def of_all(self, saes: Sequence[str]) -> dict[str, Running]:
        """Return what the lake holds of each coder, all as of one moment or later."""
        with self._lock:
            if new := [sae for sae in saes if sae not in self._running]:
                snapshot = self._store.snapshot()
                done = committed_shards(self._store, snapshot, self._corpus)
                for sae in new:
                    self._running[sae] = self._load(snapshot, sae, done)
            return {sae: self._running[sae] for sae in saes}

    def _load(self, snapshot: Snapshot, sae: str, done: set[tuple[str, int]]) -> Running:
        shards = {shard for name, shard in done if name == sae}
        if not shards:
            return Running(self._widths[sae])
        found = Running.load(self._store, snapshot, sae, self._corpus, self._widths[sae])
        found.shards |= shards
        return found

    def let_go(self, shard: int) -> None:
        """Keep nothing of a shard that was written: somebody else commits it.

        What the lake holds is read anew each time twice as many shards have come by: so the rows
        of peaks stay near the fewest, and few reads are made.
        """
        self.forget(shard)
        with self._lock:
            self._n_let_go += 1
            if self._n_let_go.bit_count() == 1:
                self._running.clear()

    def settle(self, snapshot: Snapshot, shard: int, receipts: Iterable[Receipt]) -> None:
        """Take in what was written of a shard, if it is what the lake has now, or let go of it.

        Args:
            snapshot: that of the commit.
            shard: which.
            receipts: of the files that were to be committed.
        """
        peaks = {r.path: r.sae for r in receipts if r.table == "peaks"}
        filters = [("path", "in", list(peaks))]
        there = self._store.read("files", snapshot, ["path"], filters)["path"].to_pylist()
        taken = {peaks[path] for path in there}
        with self._lock:
            for sae, running in self._running.items():
                if sae in taken:
                    running.accept(shard)
                else:
                    running.forget(shard)

    def forget(self, shard: int) -> None:
        """Let go of what was written of a shard: it will not be committed."""
        with self._lock:
            for running in self._running.values():
                running.forget(shard)

    def reset(self) -> None:
        """Forget everything; it is read again."""
        with self._lock:
            self._running.clear()


def is_seen(
    store: LakeStore, snapshot: Snapshot, corpus: str, seen: Mapping[str, frozenset[int]]
) -> bool:
    """Return whether the lake still has every shard that peaks were left out for.

    If not, a repair has taken one out since, and what looked back at it has to be made again.

    Args:
        store: the lake.
        snapshot: as of which.
        corpus: the corpus.
        seen: by coder, the shards that were looked back at.
    """
    done = committed_shards(store, snapshot, corpus)
    return all((sae, shard) in done for sae, shards in seen.items() for shard in shards)
