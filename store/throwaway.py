"""Lakes that are deleted again: each begins as a copy of an empty one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from scopelake.store.folder_root import FolderRoot
from scopelake.store.lake_store import LakeStore


class EmptyLakes:
    """Makes empty lakes, one after the other or at once, each for a while."""

    @contextmanager
    def lake(self) -> Iterator[LakeStore]:
        """Yield an empty lake in the folder for temporary files; nothing of it stays.

        Nothing in it is synced to disk.
        """
        files = self._files
        with _folder() as root:
            for path, data in files.items():
                full = root.path / path
                full.parent.mkdir(parents=True, exist_ok=True)
                full.write_bytes(data)
            yield LakeStore(root)

    @cached_property
    def _files(self) -> Mapping[str, bytes]:
        """The files of an empty lake, by path: making its tables takes longer than copying them."""
        with _folder() as root:
            LakeStore.create(root.path)
            return {entry.path: root.read(entry.path) for entry in root.list("")}


@contextmanager
def _folder() -> Iterator[FolderRoot]:
    with TemporaryDirectory(prefix="scopelake-") as folder:
        yield FolderRoot(Path(folder) / "lake", is_durable=False)
