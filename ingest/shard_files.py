"""What making a shard gives: files that are written and not part of the lake yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scopelake.errors import LostShardError
from scopelake.ingest.plan import Shard
from scopelake.store.receipts import Receipt


@dataclass(frozen=True)
class ShardFiles:
    """The files of a shard."""

    shard: Shard
    receipts: tuple[Receipt, ...]
    looked_back: Mapping[str, frozenset[int]]
    """By coder, shards whose peaks were taken as being in the lake."""
    tokens: int
    firings: int
    seconds: Mapping[str, float]
    """By stage, if they are not counted already."""
    where: str
    """Which process made them."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(receipt.n_bytes for receipt in self.receipts)

    def lost(self, *, keeps_all: bool) -> LostShardError | None:
        """Return what is raised if some files are lost: either order has all that is kept.

        Args:
            keeps_all: whether every firing that was encoded is.
        """
        rows = {
            table: sum(r.n_rows for r in self.receipts if r.table == table)
            for table in ("codes", "postings")
        }
        wanted = self.firings if keeps_all else max(rows.values())
        for table, written in rows.items():
            if written != wanted:
                return LostShardError(
                    f"shard {self.shard.index} has {wanted:,} firings; its files of {table} have "
                    f"{written:,}; nothing of it was committed; ingest again"
                )
        return None


@dataclass(frozen=True)
class FailedShard:
    """A shard that was set aside, because it failed every time."""

    index: int
    start: int
    stop: int
    """Contexts [start, stop)."""
    tries: int
    error: str
    """What it failed with last, on one line."""

    def __str__(self) -> str:
        return (
            f"shard {self.index} (contexts {self.start} to {self.stop - 1}) failed {self.tries} "
            f"times: {self.error}"
        )
