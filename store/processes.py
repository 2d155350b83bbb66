"""Which process writes, as far as another one can tell whether it is still there."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

_SAME: Final = 0.1
"""Seconds by which two readings of when a process began may differ."""


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others: its number, its begin, and where it runs."""
    return {"pid": os.getpid(), "began": psutil.Process().create_time(), "where": _where()}


def is_gone(process: Mapping[str, Any] | None) -> bool | None:
    """Return whether a process is not there any more; None if that cannot be known from here.

    Args:
        process: from `this_process`, perhaps of another machine or container; None: not known.
    """
    if process is None or process["where"] != _where():
        return None
    try:
        began = psutil.Process(process["pid"]).create_time()
    except psutil.NoSuchProcess:
        return True
    # Numbers are given again.
    return bool(abs(began - process["began"]) > _SAME)


def _where() -> str:
    """Return the machine, since it was started, and the space that its process numbers are of."""
    parts = [platform.node()]
    with suppress(OSError):  # not Linux: the machine's name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
