"""What every verb of a lake works on: its store and the snapshot that is read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scopelake.errors import InvalidArgumentError
from scopelake.names import Site, check_text, check_whole
from scopelake.store.folder_root import FolderRoot
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

if TYPE_CHECKING:
    from scopelake.query.card_source import CardSource
    from scopelake.query.connect import Connection
    from scopelake.query.resolve import SaeInfo


class LakeHandle:
    """A store at one snapshot; writing moves it to the snapshot it made."""

    def __init__(self, store: LakeStore, snapshot: Snapshot, *, pinned: bool) -> None:
        self._store, self._snapshot, self._pinned = store, snapshot, pinned
        self._within: dict[str | int, Connection] = {}

    @property
    def url(self) -> str:
        """Where the lake is: the path of its folder, or ``s3://<bucket>/<prefix>``."""
        return self._store.root.url

    @property
    def path(self) -> Path:
        """The lake's folder.

        Raises:
            InvalidArgumentError: it is in an object store.
        """
        root = self._store.root
        if not isinstance(root, FolderRoot):
            raise InvalidArgumentError(
                f"the folder of the lake at {root.url} was asked for; it is in an object store; "
                "use `url`"
            )
        return root.path

    @property
    def snapshot(self) -> int:
        """Number of the snapshot that this handle reads."""
        return self._snapshot.id

    def refresh(self) -> None:
        """Move to the lake's latest snapshot."""
        for cached in ("_connection", "_saes", "_cards", "_label_search"):
            self.__dict__.pop(cached, None)
        self._within.clear()
        self._snapshot = self._store.snapshot()

    @cached_property
    def _connection(self) -> Connection:
        from scopelake.query.connect import connect

        return connect(self._store, self._snapshot)

    def _connection_within(self, memory: str | int | None) -> Connection:
        """Return a connection that takes at most so much memory; the last one is kept."""
        if memory is None:
            return self._connection
        if memory not in self._within:
            from scopelake.query.connect import connect

            self._within.clear()
            self._within[memory] = connect(self._store, self._snapshot, memory)
        return self._within[memory]

    @cached_property
    def _saes(self) -> list[SaeInfo]:
        from scopelake.query.resolve import list_saes

        return list_saes(self._store, self._snapshot)

    @cached_property
    def _cards(self) -> CardSource:
        from scopelake.named import decode
        from scopelake.query.card_source import CardSource

        return CardSource(self._connection, self._store, self._snapshot, decode)

    def _check_writable(self) -> None:
        if self._pinned:
            raise InvalidArgumentError(
                f"a write was asked of snapshot {self.snapshot}; a pinned snapshot is read-only; "
                "open the lake without a snapshot"
            )

    def _resolve(
        self,
        sae: str | None,
        layer: int | None,
        site: Site | None,
        corpus: str | None,
        feature: int | None = None,
    ) -> SaeInfo:
        """Return the one SAE that is meant; of several that fit, the one run on `corpus`."""
        from scopelake.query.resolve import resolve_sae

        for what, value in (("sae", sae), ("site", site), ("corpus", corpus)):
            if value is not None:
                check_text(what, value)
        layer = None if layer is None else check_whole("layer", layer)
        preferred: set[str] = set()
        if corpus is not None:
            partial = {s.name for s in self._saes if corpus in s.partial}
            preferred = partial | self._connection.coverage.saes(corpus)
        return resolve_sae(
            self._saes, sae=sae, layer=layer, site=site, feature=feature, preferred=preferred
        )
