"""A lake in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pyarrow as pa

from scopelake.store.layout import PENDING
from scopelake.store.receipts import checksum
from scopelake.store.root import Entry

_SCRATCH: Final = "scratch-"


@dataclass(frozen=True)
class FolderRoot:
    """The files of a lake in a folder of any POSIX file system."""

    path: Path
    """Absolute."""
    is_durable: bool = True
    """Whether what is put is synced to disk."""

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.path)

    @property
    def delta_options(self) -> dict[str, str] | None:
        """None are needed."""
        return None

    @property
    def is_near(self) -> bool:
        """It is."""
        return True

    def exists(self) -> bool:
        """Whether anything is there."""
        return self.path.exists()

    def is_empty(self) -> bool:
        """Whether nothing is there, or an empty folder."""
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def make(self) -> None:
        """Make the folder."""
        self.path.mkdir(parents=True, exist_ok=True)

    def describe(self, error: Exception) -> str:
        """Return an error's message on one line."""
        return " ".join(str(error).split())

    def size(self, path: str) -> int | None:
        """Return the bytes of a file; None if there is none."""
        full = self.path / path
        return full.stat().st_size if full.is_file() else None

    def modified(self, path: str) -> float | None:
        """Return when a file was last put; None if there is none."""
        full = self.path / path
        return full.stat().st_mtime if full.is_file() else None

    def version(self, path: str) -> Hashable:
        """Return its bytes and time of change."""
        status = (self.path / path).stat()
        return status.st_size, status.st_mtime_ns

    def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        return (self.path / path).read_bytes()

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for random access."""
        return pa.OSFile(str(self.path / path))

    @contextmanager
    def fetch(self, paths: Iterable[str]) -> Iterator[FolderRoot]:
        """Give itself: the files are here."""
        yield self

    def checksum(self, path: str) -> str:
        """Return the checksum of a file's bytes."""
        return checksum(self.path / path)

    def put(self, path: str, file: Path) -> None:
        """Move a file to its place, durable: the bytes first, then the name."""
        if self.is_durable:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        full = self.path / path
        full.parent.mkdir(parents=True, exist_ok=True)
        file.replace(full)
        self._sync_folder(full.parent)

    def put_new(self, path: str, data: bytes) -> bool:
        """Put a file in its place unless one is there."""
        full = self.path / path
        full.parent.mkdir(parents=True, exist_ok=True)
        temporary = full.with_name(f"{uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if self.is_durable:
                    os.fsync(file.fileno())
            os.link(temporary, full)  # fails if the name is taken, on every POSIX system
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        self._sync_folder(full.parent)
        return True

    def delete(self, path: str) -> None:
        """Delete a file, and the folders of a scratch that it leaves empty."""
        full = self.path / path
        full.unlink(missing_ok=True)
        for parent in full.parents:
            if parent == self.path or _SCRATCH not in str(parent.relative_to(self.path)):
                return
            if any(parent.iterdir()):
                return
            parent.rmdir()

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield every file under a folder."""
        # os.walk passes over folders that another process deletes in this moment.
        for parent, _, names in os.walk(self.path / folder):
            for full in (Path(parent) / name for name in names):
                try:
                    status = full.stat()
                except FileNotFoundError:
                    continue
                path = full.relative_to(self.path).as_posix()
                yield Entry(path, status.st_size, status.st_mtime)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder beside the data, so that a file is moved and not copied."""
        folder = self.path / PENDING / f"{_SCRATCH}{uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def zarr(self, folder: str, *, read_only: bool) -> Any:  # noqa: ANN401
        """Return the Zarr store of a folder."""
        import zarr.storage  # slow to import, and needed for dense activations only

        return zarr.storage.LocalStore(self.path / folder, read_only=read_only)

    def zarr_settings(self) -> dict[str, Any]:
        """Return the pipeline in Rust: several times faster than zarr-python's own."""
        return {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}

    def _sync_folder(self, folder: Path) -> None:
        """Make the names of new files in a folder durable."""
        if not self.is_durable:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
