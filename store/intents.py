"""Commits that were decided on: a numbered log in which each number is taken once.

``pending/<n>.json`` is the commit that makes snapshot n. Who puts it there first has decided what
snapshot n will be; whoever finds it, a crash later or at the same time, carries it out. It is
removed when snapshot n is there.
"""

from __future__ import annotations

import re
from typing import Final

from scopelake.store.layout import PENDING
from scopelake.store.root import Root

_NUMBERED: Final = re.compile(rf"{PENDING}/(\d{{12}})\.json\Z")


def put_intent(root: Root, number: int, text: str) -> bool:
    """Decide what snapshot `number` will be; False if that is decided already."""
    if root.put_new(intent_path(number), text.encode()):
        return True
    # A store whose answer was lost says so of an intent of our own.
    return read_intent(root, number) == text


def read_intent(root: Root, number: int) -> str | None:
    """Return what was decided on as snapshot `number`, if anything is waiting."""
    try:
        return root.read(intent_path(number)).decode()
    except FileNotFoundError:
        return None


def remove_intent(root: Root, number: int) -> None:
    """Forget a number whose snapshot is there; who carried it out with us may have done so."""
    root.delete(intent_path(number))


def waiting_intents(root: Root) -> list[int]:
    """Return the numbers that are in the log, ascending."""
    found = (_NUMBERED.match(entry.path) for entry in root.list(PENDING))
    return sorted(int(match[1]) for match in found if match)


def intent_path(number: int) -> str:
    """Return where the commit that makes snapshot `number` waits."""
    return f"{PENDING}/{number:012d}.json"
