"""Where a lake's files are: one Protocol, for a folder and for an object store.

Paths are relative to the lake, with ``/``. A file is made in a local scratch folder and put into
its place whole; files are never changed in place.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from scopelake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from scopelake.store.folder_root import FolderRoot

S3: Final = "s3://"


@dataclass(frozen=True)
class Entry:
    """A file of a lake."""

    path: str
    n_bytes: int
    modified: float
    """Seconds since 1970."""


class Root(Protocol):
    """The files of a lake."""

    @property
    def url(self) -> str:
        """Where the lake is, as Delta readers take it: an absolute path or a URL."""
        ...

    @property
    def delta_options(self) -> dict[str, str] | None:
        """What deltalake needs to get there; it holds no credentials."""
        ...

    @property
    def is_near(self) -> bool:
        """Whether small files are read faster one after the other than by threads."""
        ...

    def exists(self) -> bool:
        """Whether anything is there, a lake or not."""
        ...

    def is_empty(self) -> bool:
        """Whether a lake may be made there."""
        ...

    def make(self) -> None:
        """Make what a new lake needs before its first file."""
        ...

    def describe(self, error: Exception) -> str:
        """Return an error's message on one line, without credentials."""
        ...

    def size(self, path: str) -> int | None:
        """Return the bytes of a file; None if there is none."""
        ...

    def modified(self, path: str) -> float | None:
        """Return when a file was last put, seconds since 1970; None if there is none."""
        ...

    def version(self, path: str) -> Hashable:
        """Return what is another once a file has been changed from outside.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for random access; an object's bytes are all read before.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def fetch(self, paths: Iterable[str]) -> AbstractContextManager[FolderRoot]:
        """Return a context with a folder that has these files under the same paths, to read.

        Raises:
            FileNotFoundError: one is not there.
        """
        ...

    def checksum(self, path: str) -> str:
        """Return the checksum of a file's bytes, as `receipts.checksum` does.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def put(self, path: str, file: Path) -> None:
        """Move a file out of a scratch folder to its place, durable; what is there is replaced."""
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Put a file in its place unless one is there, whoever else tries; False if one is."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        ...

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield every file under a folder, in any order; nothing if there is no such folder."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """Return a context with a local folder in which files for `put` are made."""
        ...

    def zarr(self, folder: str, *, read_only: bool) -> Any:  # noqa: ANN401
        """Return the Zarr store of a folder."""
        ...

    def zarr_settings(self) -> dict[str, Any]:
        """Return zarr's configuration for arrays that are here."""
        ...


def root_at(path: str | Path) -> Root:
    """Return the root at a folder or ``s3://<bucket>/<prefix>``; nothing is read or made yet.

    Raises:
        InvalidArgumentError: no path, a URL of another kind, or one without a bucket.
    """
    if not isinstance(path, (str, PathLike)):
        raise InvalidArgumentError(
            f"a lake at {path!r} was asked for; it is of type {type(path).__name__}; give a path"
        )
    if path == "":
        # As a path it would be the current folder.
        raise InvalidArgumentError(
            "a lake at '' was asked for; that is no path; give one, or . for the current folder"
        )
    text = str(path)
    if isinstance(path, str) and "://" in text:
        if not text.startswith(S3):
            raise InvalidArgumentError(
                f"a lake at {text!r} was asked for; lakes are in folders and at "
                f"{S3}<bucket>/<prefix>; give one of these"
            )
        from scopelake.store.object_root import ObjectRoot

        return ObjectRoot.at(text)
    from scopelake.store.folder_root import FolderRoot

    return FolderRoot(Path(path).absolute())
