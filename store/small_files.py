"""Rows of small files, kept in memory: catalogues are read again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Final

import pyarrow as pa

from scopelake.store.root import Root

SMALL: Final = 1 << 16
"""Bytes of a file up to which its rows are kept."""

_MOST: Final = 1 << 25
"""Bytes of rows to keep, of all lakes."""

_Key = tuple[str, str, Hashable]


class SmallFiles:
    """The rows of files that were used last; several threads may use it.

    Args:
        most: bytes of rows to keep.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most, self._n_bytes, self._lock = most, 0, Lock()
        self._kept: OrderedDict[_Key, pa.Table] = OrderedDict()

    def rows(self, root: Root, path: str, load: Callable[[str], pa.Table]) -> pa.Table:
        """Return all rows of a file, by `load` unless they are here.

        Args:
            root: the lake's.
            path: of a file that is never written again.
            load: reads it.
        """
        key = (root.url, path, root.version(path))
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        found = load(path)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._n_bytes += found.nbytes
            while self._n_bytes > self._most:
                self._n_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


SMALL_FILES: Final = SmallFiles()
