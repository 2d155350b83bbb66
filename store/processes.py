"""Which process writes, as far as another one can tell whether it is still there."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

_SAME: Final = 3600.0
"""Seconds by which two readings of when a process began may differ: they move with the clock."""


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others: its number, its begin, and where it runs.

    Its begin is in seconds since 1970 as ``began``; on Linux also in ticks since the machine was
    started as ``ticks``, which no change of the clock moves.
    """
    pid = os.getpid()
    return {
        "pid": pid,
        "began": psutil.Process().create_time(),
        "ticks": _ticks(pid),
        "where": _where(),
    }


def is_gone(process: Mapping[str, Any] | None) -> bool | None:
    """Return whether a process is not there any more; None if that cannot be known from here.

    Args:
        process: from `this_process`, perhaps of another machine or container; None: not known.
    """
    if process is None or process["where"] != _where():
        return None
    pid = process["pid"]
    if not _has_number(pid):
        return True
    # Numbers are given again: whoever has it now may have begun at another time.
    if process.get("ticks") is not None:
        ticks = _ticks(pid)
        return None if ticks is None else ticks != process["ticks"]
    try:
        began = psutil.Process(pid).create_time()
    except psutil.Error:
        return None
    return bool(abs(began - process["began"]) > _SAME)


def _has_number(pid: int) -> bool:
    """Return whether any process has a number, on Linux also one that ``/proc`` hides from us."""
    if platform.system() != "Linux":
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _ticks(pid: int) -> int | None:
    """Return when a process began, in ticks since the machine was started; None if not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may have spaces and parentheses; it is the second of all fields, and
    # the begin is the 22nd.
    return int(stat.rpartition(")")[2].split()[19])


def _where() -> str:
    """Return the machine, since it was started, and the space that its process numbers are of."""
    parts = [platform.node()]
    with suppress(OSError):  # not Linux: the machine's name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
