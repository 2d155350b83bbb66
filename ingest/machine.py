"""What this machine, or the container that the process is in, lets it take."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files of control groups, version 2 and 1, with bytes of memory; or ``max``."""


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of its control group if that has less."""
    found: int = psutil.virtual_memory().total
    for path in map(Path, _LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            found = min(found, int(text))
    return found


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def taken_memory() -> int:
    """Return the bytes of memory that this process takes now."""
    taken: int = psutil.Process().memory_info().rss
    return taken


def peak_memory() -> int | None:
    """Return the peak resident memory of this process so far, bytes; None off Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    (line,) = [ln for ln in status.read_text().splitlines() if ln.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
