"""Commits that were decided on: a numbered log in which each number is taken once.

``pending/<n>.json`` is the commit that makes snapshot n. Who puts it there first has decided what
snapshot n will be; whoever finds it, a crash later or at the same time, carries it out. It is
removed when snapshot n is there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from uuid import uuid4

from scopelake.store.layout import pending_dir
from scopelake.store.parquet import fsync_folder

_NUMBERED: Final = re.compile(r"(\d{12})\.json\Z")


def put_intent(root: Path, number: int, text: str) -> bool:
    """Decide what snapshot `number` will be; False if that is decided already."""
    folder = pending_dir(root)
    folder.mkdir(exist_ok=True)  # a copy of a lake may have lost its empty folders
    temporary = folder / f"{uuid4().hex}.tmp"
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, _path(root, number))  # fails if the name is taken, on every POSIX system
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(folder)
    return True


def read_intent(root: Path, number: int) -> str | None:
    """Return what was decided on as snapshot `number`, if anything is waiting."""
    try:
        return _path(root, number).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def remove_intent(root: Path, number: int) -> None:
    """Forget a number whose snapshot is there; who carried it out with us may have done so."""
    _path(root, number).unlink(missing_ok=True)


def waiting_intents(root: Path) -> list[int]:
    """Return the numbers that are in the log, ascending."""
    folder = pending_dir(root)
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NUMBERED.match(name)))


def _path(root: Path, number: int) -> Path:
    return pending_dir(root) / f"{number:012d}.json"
