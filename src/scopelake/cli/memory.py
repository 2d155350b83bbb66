"""Settings of this process's memory allocators, which keep an ingest's peak where it is."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
"""Of mallopt, from glibc's malloc.h."""

_M_ARENA_MAX: Final = -8

_LARGE: Final = 1 << 20

_ARENAS: Final = 2
"""Heaps that threads share: each keeps what its threads freed (measured: docs/performance.md)."""


def keep_memory_steady() -> None:
    """Let what is freed go back to the system at once.

    glibc raises the size from which a block is mapped by itself to that of blocks that were freed,
    and Arrow's own allocator keeps what threads that ended had: both grow with the shards.
    Threads come and go with the shards, and each heap of glibc's keeps some of what they freed.
    It has to be called before Arrow is imported; elsewhere than on glibc only that is set.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
