"""Rows of small files, kept in memory: catalogues are read again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Final

import pyarrow as pa

from scopelake.store.integrity import not_there
from scopelake.store.root import Root

SMALL: Final = 1 << 16
"""Bytes of a file up to which its rows are kept."""

_MOST: Final = 1 << 25
"""Bytes of rows to keep, of all lakes."""

_Key = tuple[tuple[str, str, Hashable], ...]


class SmallFiles:
    """The rows of files that were used last; several threads may use it.

    Args:
        most: bytes of rows to keep.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most, self.n_bytes, self._lock = most, 0, Lock()
        self._kept: OrderedDict[_Key, pa.Table] = OrderedDict()
        """Of single files, and of some together."""

    def rows(
        self, root: Root, paths: Sequence[str], load: Callable[[Sequence[str]], list[pa.Table]]
    ) -> pa.Table:
        """Return all rows of files, one after the other.

        Args:
            root: the lake's.
            paths: of one file or more, which are never written again.
            load: reads those that are not here.

        Raises:
            DamagedFileError: a file is not there.
        """
        keys = [(root.url, path, _version(root, path)) for path in paths]
        if (found := self._get(tuple(keys))) is not None:
            return found
        there = {key: self._get((key,)) for key in keys}
        missing = [key for key in keys if there[key] is None]
        for key, rows in zip(missing, load([path for _, path, _ in missing]), strict=True):
            there[key] = rows
            self._put((key,), rows)
        if len(keys) == 1:
            return there[keys[0]]
        found = pa.concat_tables([there[key] for key in keys]).combine_chunks()
        self._put(tuple(keys), found)
        return found

    def _get(self, key: _Key) -> pa.Table | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _put(self, key: _Key, rows: pa.Table) -> None:
        with self._lock:
            # What is larger than all that is kept would push everything else out.
            if key not in self._kept and rows.nbytes <= self._most:
                self._kept[key] = rows
                self.n_bytes += rows.nbytes
                if len(key) > 1:
                    self._drop_outgrown(key)
            while self.n_bytes > self._most:
                self._drop(next(iter(self._kept)))

    def _drop_outgrown(self, key: _Key) -> None:
        """Let go of lists that lack one file of `key`'s: each commit makes a longer one."""
        files = set(key)
        for other in [k for k in self._kept if 1 < len(k) == len(key) - 1 and files.issuperset(k)]:
            self._drop(other)

    def _drop(self, key: _Key) -> None:
        self.n_bytes -= self._kept.pop(key).nbytes


def _version(root: Root, path: str) -> Hashable:
    try:
        return root.version(path)
    except FileNotFoundError as error:
        raise not_there(root, path) from error


SMALL_FILES: Final = SmallFiles()
