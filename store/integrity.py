"""Every file is hashed once in a process before it is first read: a flipped bit never answers.

Readers of Parquet take damaged pages for values (DuckDB 1.5 gave other values without an error for
98 of 100 random flipped bits), so the checksum comes first. It is in a file's name, or, in the
first lakes, in the ``files`` table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from scopelake.errors import DamagedFileError
from scopelake.store.folder_root import FolderRoot
from scopelake.store.layout import checksum_in_name
from scopelake.store.root import Root

_THREADS: Final = 8
_FEW_BYTES: Final = 1 << 20
"""Of files that are here, which take less to hash than threads to begin."""

_checked: set[tuple[str, str, Hashable]] = set()
"""lake, path and version of files whose checksum was right"""


def check_files(
    root: Root,
    paths: Iterable[str],
    known: Mapping[str, str] | None = None,
    before_each: Callable[[], None] | None = None,
) -> None:
    """Refuse files whose bytes are not those that were written.

    Args:
        root: the lake's.
        paths: Parquet files, relative to it.
        known: checksums by name, of files whose name carries none; such a file that is not there
            either is taken as it is.
        before_each: called before each file is hashed, in any thread; what it raises ends the work.

    Raises:
        DamagedFileError: a file is missing or has another checksum.
    """
    _check_all(root, root, list(paths), known or {}, before_each)


@contextmanager
def checked_copies(
    root: Root, paths: Iterable[str], known: Mapping[str, str] | None = None
) -> Iterator[FolderRoot]:
    """Give a folder in which the files are, to be read at random; those of a folder themselves.

    Args:
        root: the lake's.
        paths: Parquet files, relative to it.
        known: checksums by name, of files whose name carries none.

    Raises:
        DamagedFileError: a file is missing or has another checksum.
    """
    wanted = list(paths)
    try:
        with root.fetch(wanted) as local:
            _check_all(root, local, wanted, known or {})
            yield local
    except FileNotFoundError as error:
        raise DamagedFileError(
            f"a file was to be read; it is not there ({error}); run scopelake verify"
        ) from error


def _check_all(
    root: Root,
    at: Root,
    paths: Sequence[str],
    known: Mapping[str, str],
    before_each: Callable[[], None] | None = None,
) -> None:
    """Hash files of `root` where they are, or where copies of them are."""

    def check(path: str) -> None:
        if before_each is not None:
            before_each()
        _check(root, at, path, known)

    left = [path for path in paths if at is not root or _key(root, path) not in _checked]
    if len(left) == 1 or (at.is_near and sum(at.size(p) or 0 for p in left) <= _FEW_BYTES):
        for path in left:
            check(path)
    elif left:
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(check, left):
                pass


def _key(root: Root, path: str) -> tuple[str, str, Hashable]:
    try:
        return root.url, path, root.version(path)
    except FileNotFoundError as error:
        raise not_there(root, path) from error


def not_there(root: Root, path: str) -> DamagedFileError:
    """Return what is raised where a file is missing that should be read."""
    return DamagedFileError(
        f"{root.url}/{path} was to be read; it is not there; run scopelake verify"
    )


def _check(root: Root, at: Root, path: str, known: Mapping[str, str]) -> None:
    key = _key(root, path)
    name = path.rsplit("/", 1)[-1]
    expected = checksum_in_name(name) or known.get(name)
    try:
        found = expected and at.checksum(path)
    except FileNotFoundError as error:
        raise not_there(root, path) from error
    if found != expected:
        raise DamagedFileError(
            f"{root.url}/{path} was to be read; its checksum is {found}, it was written with "
            f"{expected}; run scopelake verify"
        )
    _checked.add(key)
