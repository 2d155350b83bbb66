"""Settings of this process's memory allocators, which keep an ingest's peak where it is."""

from __future__ import annotations

import os
from typing import Final

from scopelake.store.memory import glibc

_GLIBC: Final = (
    # Of mallopt, from glibc's malloc.h: bytes from which a block is mapped by itself, ...
    (-3, 1 << 17, "MALLOC_MMAP_THRESHOLD_"),
    # ... and heaps that threads share: each keeps what its threads freed.
    (-8, 2, "MALLOC_ARENA_MAX"),
)
"""Parameter, value, and the variable that sets it otherwise (measured: docs/performance.md)."""

_DELTA: Final = "narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0"
"""Of jemalloc, which deltalake brings: one heap, and nothing that is free is kept."""


def keep_memory_steady() -> None:
    """Let what is freed go back to the system at once, unless the environment says otherwise.

    glibc raises the size from which a block is mapped by itself to that of blocks that were freed,
    and Arrow's own allocator keeps what threads that ended had: both grow with the shards. So do
    the gaps that blocks leave in a heap, and what deltalake keeps. Threads come and go with the
    shards, and each heap of glibc's keeps some of what they freed.
    It has to be called before Arrow and deltalake are imported; elsewhere than on glibc only they
    are told.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("_RJEM_MALLOC_CONF", _DELTA)
    if (libc := glibc()) is not None:
        for parameter, value, variable in _GLIBC:
            if variable not in os.environ:
                libc.mallopt(parameter, value)
