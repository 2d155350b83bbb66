"""Memory that the C library keeps of what was freed."""

from __future__ import annotations

import ctypes
import os


def give_back_memory() -> None:
    """Give what is free in the C library's heaps, wherever it lies, back to the system.

    By itself glibc does so at a heap's end only, and what shards leave between them grows. It takes
    some milliseconds; elsewhere than on glibc it does nothing.
    """
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    return ctypes.CDLL(None) if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) else None
