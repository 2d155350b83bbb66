"""The lake as users hold it: every verb delegates to the room that does the work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scopelake.asking import Asking
from scopelake.building import Building
from scopelake.store.lake_store import LakeStore

if TYPE_CHECKING:
    import pyarrow as pa


class Lake(Building, Asking):
    """A lake at one snapshot; writing moves it to the snapshot it made."""

    @classmethod
    def create(cls, path: str | Path) -> Lake:
        """Create an empty lake; see `scopelake.create`."""
        store = LakeStore.create(Path(path))
        return cls(store, store.snapshot(), pinned=False)

    @classmethod
    def open(cls, path: str | Path, snapshot: int | None = None) -> Lake:
        """Open a lake; see `scopelake.open`."""
        store = LakeStore.open(Path(path))
        return cls(store, store.snapshot(snapshot), pinned=snapshot is not None)

    def snapshots(self) -> pa.Table:
        """Return every snapshot of the lake, oldest first."""
        return self._store.snapshots()

    def __repr__(self) -> str:
        return f"Lake({str(self.path)!r}, snapshot={self.snapshot})"

    def _repr_html_(self) -> str:
        return self.info()._repr_html_()
