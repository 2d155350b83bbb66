"""What of a shard can still be among a feature's strongest contexts or its samples.

Peaks and samples are written shard by shard. Without looking back each shard would bring 256
contexts of every feature; with what the lake holds already in mind the rows of N contexts grow
like 256 * (1 + ln(N / 256)). What is left out cannot be in the answer, so the union of all files
stays exact. Only rows that are committed are ever looked back at: what was written and not
committed must not hide anything.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.store.firings import BANDS, Firings, descending
from scopelake.store.lake_store import LakeStore
from scopelake.store.selection import select
from scopelake.store.snapshot import Snapshot

PEAKS_DEPTH: Final = 256
"""Contexts of a feature that `peaks` keeps: top-k up to it is exact."""

SAMPLES_PER_BAND: Final = 5
"""Firings of a feature that `samples` keeps of each power of two of activation."""

_NO_BOUND: Final = np.uint32(0xFFFFFFFF)


class Smallest:
    """The `k` smallest uint32 values seen of each of `n_keys` keys, or an upper bound of them.

    Args:
        k: how many.
        n_keys: keys are 0 to n_keys - 1.
        drop_bits: low bits of a value that are not kept, to save memory; bounds are rounded up.
    """

    def __init__(self, k: int, n_keys: int, drop_bits: int = 0) -> None:
        self._k, self._drop = k, np.uint32(drop_bits)
        self._counts = np.zeros(n_keys, dtype=np.int32)
        self._values: npt.NDArray[Any] = np.empty(0, np.uint16 if drop_bits >= 16 else np.uint32)

    def copy(self) -> Smallest:
        """Return another that can be added to."""
        return copy(self)  # what is held is never written to

    def bounds(self) -> npt.NDArray[np.uint32]:
        """Return, by key, a value that no member of the `k` smallest exceeds: [n_keys]."""
        found = np.full(len(self._counts), _NO_BOUND)
        full = np.flatnonzero(self._counts == self._k)
        last = np.cumsum(self._counts)[full] - 1
        low = np.uint32((1 << int(self._drop)) - 1)
        found[full] = (self._values[last].astype(np.uint32) << self._drop) | low
        return found

    def add(self, key: npt.NDArray[Any], value: npt.NDArray[np.uint32]) -> None:
        """Take in values of keys, of any number and order."""
        if len(key) == 0:
            return
        held = np.repeat(np.arange(len(self._counts), dtype=np.uint64), self._counts)
        new = (key.astype(np.uint64) << np.uint64(32)) | (value >> self._drop)
        new.sort()
        both = np.concatenate([(held << np.uint64(32)) | self._values, new])
        both.sort(kind="stable")  # two sorted runs: this merges them
        counts = np.bincount(key, minlength=len(self._counts)) + self._counts
        n_kept = np.minimum(counts, self._k)
        # The first n_kept of each run of equal keys, whose lengths are the counts.
        shift = np.repeat((np.cumsum(counts) - counts) - (np.cumsum(n_kept) - n_kept), n_kept)
        kept = both[np.arange(len(shift)) + shift]
        self._values = (kept & np.uint64(0xFFFFFFFF)).astype(self._values.dtype)
        self._counts = n_kept.astype(np.int32)


Keyed = tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]
"""Keys and values, as `Smallest` takes them: much less than the rows that they are of."""


class Selects(Protocol):
    """Selects what of firings may still count."""

    def select(self, by_feature: Firings, shard: int | None = None) -> tuple[pa.Table, pa.Table]:
        """Return rows of ``peaks`` and ``samples``."""


class Bounded:
    """Selects rows by bounds of one moment, and keeps what these say of later bounds.

    Args:
        of_peaks: [features], of `Smallest`.
        of_samples: [features, BANDS]
    """

    def __init__(
        self, of_peaks: npt.NDArray[np.uint32], of_samples: npt.NDArray[np.uint32]
    ) -> None:
        self._of_peaks, self._of_samples = of_peaks, of_samples
        self.selected: list[tuple[Keyed, Keyed]] = []

    def select(self, by_feature: Firings, shard: int | None = None) -> tuple[pa.Table, pa.Table]:
        """Return rows of ``peaks`` and ``samples`` that may still count, of whatever shard."""
        found = select(by_feature, self._of_peaks, self._of_samples, PEAKS_DEPTH, SAMPLES_PER_BAND)
        self.selected.append(_keys(*found))
        return found


class Running:
    """What the lake holds of one coder on one corpus, as far as new shards need it.

    Args:
        width: number of features.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._peaks = Smallest(PEAKS_DEPTH, width, drop_bits=16)
        self._samples = Smallest(SAMPLES_PER_BAND, width * BANDS)
        self.shards: set[int] = set()
        """Shards that are looked back at."""
        self._written: dict[int | None, list[tuple[Keyed, Keyed]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, store: LakeStore, snapshot: Snapshot, sae: str, corpus: str, width: int
    ) -> Running:
        """Return what `snapshot` holds."""
        found = cls(width)
        filters = [("sae", "=", sae), ("corpus", "=", corpus)]
        strongest, sampled = _keys(
            store.read("peaks", snapshot, ["feature", "activation"], filters),
            store.read("samples", snapshot, ["feature", "band", "priority"], filters),
        )
        found._peaks.add(*strongest)
        found._samples.add(*sampled)
        return found

    def select(self, by_feature: Firings, shard: int | None = None) -> tuple[pa.Table, pa.Table]:
        """Return a shard's rows of ``peaks`` and ``samples`` that may still count.

        Args:
            by_feature: the shard's firings, or a part's, feature-major, of features below the
                width.
            shard: its number; what is selected is kept until it is accepted or forgotten.
        """
        bounded = self.bounded(shard)
        found = bounded.select(by_feature)
        self.selected(shard, bounded.selected)
        return found

    def bounded(self, shard: int | None = None) -> Bounded:
        """Return what selects a shard's rows as `select` would now, and can be sent elsewhere."""
        with self._lock:
            strong, drawn = self._peaks.copy(), self._samples.copy()
            # Other parts of the shard will be committed with this one, or none of them.
            for of_peaks, of_samples in self._written.get(shard, ()):
                strong.add(*of_peaks)
                drawn.add(*of_samples)
        return Bounded(strong.bounds(), drawn.bounds().reshape(-1, BANDS))

    def selected(self, shard: int | None, keys: Sequence[tuple[Keyed, Keyed]]) -> None:
        """Keep what was selected of a shard until it is accepted or forgotten."""
        with self._lock:
            self._written.setdefault(shard, []).extend(keys)

    def accept(self, shard: int | None = None) -> None:
        """Look back, from now on, at what was selected of a shard: it is committed."""
        with self._lock:
            for strongest, sampled in self._written.pop(shard, []):
                self._peaks.add(*strongest)
                self._samples.add(*sampled)
            if shard is not None:
                self.shards.add(shard)

    def forget(self, shard: int | None = None) -> None:
        """Let go of what was selected of a shard: it is not part of the lake."""
        with self._lock:
            self._written.pop(shard, None)


def _keys(strongest: pa.Table, sampled: pa.Table) -> tuple[Keyed, Keyed]:
    """Return what rows of ``peaks`` and ``samples`` say of bounds."""
    columns = ("feature", "band", "priority")
    feature, band, priority = (sampled[c].to_numpy() for c in columns)
    return (
        (strongest["feature"].to_numpy(), descending(strongest["activation"].to_numpy())),
        (feature.astype(np.int32) * BANDS + band, priority.astype(np.uint32)),
    )
