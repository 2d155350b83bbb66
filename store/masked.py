"""A Zarr array as a snapshot has it: without shards of a killed or later ingest, in its size."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any, Final, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

_METADATA: Final = "zarr.json"


class _Masked(WrapperStore[Store]):
    """A store of one array, of whose shards only some are there."""

    folder: str
    named: Set[str]
    n_contexts: int | None

    def _with_store(self, store: Store) -> Self:
        made = type(self)(store)
        made.folder, made.named, made.n_contexts = self.folder, self.named, self.n_contexts
        return made

    def _is_hidden(self, key: str) -> bool:
        return key.startswith("c/") and f"{self.folder}/{key}" not in self.named

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if self._is_hidden(key):
            return None
        found = await super().get(key, prototype, byte_range)
        if key != _METADATA or found is None or self.n_contexts is None:
            return found
        said = json.loads(found.to_bytes())
        said["shape"][0] = self.n_contexts
        return prototype.buffer.from_bytes(json.dumps(said).encode())

    async def exists(self, key: str) -> bool:
        return not self._is_hidden(key) and await super().exists(key)


def masked(
    store: Any,  # noqa: ANN401
    folder: str,
    named: Set[str],
    n_contexts: int | None = None,
) -> Store:
    """Return a read-only view of an array's store with only the shards that are named.

    Args:
        store: of the array's folder.
        folder: that folder, relative to the lake.
        named: paths of shards, relative to the lake.
        n_contexts: of the array in the snapshot; None: as many as it has now.
    """
    made = _Masked(store)
    made.folder, made.named, made.n_contexts = folder, named, n_contexts
    return made
