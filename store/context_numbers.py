"""Numbers of the contexts of a corpus, and how they fall into shards.

They count from 0 without gaps, until documents are appended: what is appended begins a shard of its
own, so the numbers that were left in the shard before it stay free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NUMBER_COLUMNS: Final = ("n_contexts", "shard_contexts", "context_ends")
"""Columns of the corpora table that say them."""


@dataclass(frozen=True)
class ContextNumbers:
    """Numbers of the contexts of a corpus."""

    ends: tuple[int, ...]
    """One more than the highest number after the corpus was added, and after each append."""
    shard_contexts: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> ContextNumbers:
        """Return those of a row of the corpora table."""
        ends = row.get("context_ends") or [row["n_contexts"]]
        return cls(tuple(int(end) for end in ends), int(row["shard_contexts"]))

    @property
    def end(self) -> int:
        """One more than the highest number: the size of arrays of a row a context."""
        return self.ends[-1]

    @property
    def n_shards(self) -> int:
        """Number of shards; each holds at least one context."""
        return -(-self.end // self.shard_contexts)

    @property
    def next_start(self) -> int:
        """Number of the first context of what is appended next: a shard begins there."""
        return self.n_shards * self.shard_contexts

    def shard(self, index: int) -> tuple[int, int]:
        """Return the numbers [start, stop) of the contexts of a shard."""
        start = index * self.shard_contexts
        stop = min(end for end in self.ends if end > start)
        return start, min(start + self.shard_contexts, stop)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Numbers [start, stop) of what was added, and of each append."""
        starts = [0, *(-(-end // self.shard_contexts) * self.shard_contexts for end in self.ends)]
        return list(zip(starts, self.ends, strict=False))

    def all(self) -> npt.NDArray[np.int64]:
        """Return every number, ascending."""
        return np.concatenate([np.arange(*part, dtype=np.int64) for part in self.ranges])
