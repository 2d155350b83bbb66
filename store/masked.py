"""A Zarr store that hides shards: those of a killed or later ingest are not a snapshot's."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class _Masked(WrapperStore[Store]):
    """A store of one array, of whose shards only some are there."""

    folder: str
    named: Set[str]

    def _with_store(self, store: Store) -> Self:
        made = type(self)(store)
        made.folder, made.named = self.folder, self.named
        return made

    def _is_hidden(self, key: str) -> bool:
        return key.startswith("c/") and f"{self.folder}/{key}" not in self.named

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return None if self._is_hidden(key) else await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        return not self._is_hidden(key) and await super().exists(key)


def masked(store: Any, folder: str, named: Set[str]) -> Store:  # noqa: ANN401
    """Return a read-only view of an array's store with only the shards that are named.

    Args:
        store: of the array's folder.
        folder: that folder, relative to the lake.
        named: paths of shards, relative to the lake.
    """
    made = _Masked(store)
    made.folder, made.named = folder, named
    return made
