"""Delta logs read by ourselves: which versions have had a file, and which entry is damaged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import ObjectStoreError
from scopelake.store.layout import table_folder
from scopelake.store.root import Root

_VERSION: Final = re.compile(r"/(\d{20})\.json\Z")
_READERS: Final = 8


@dataclass(frozen=True)
class Wrong:
    """A file of a log that is not as it should be."""

    path: str
    problem: Literal["damaged", "missing"]
    detail: str


@dataclass(frozen=True)
class Log:
    """What the log of a table says; the log is kept whole, from version 0."""

    newest: int
    """Number of the last entry; -1 without any."""
    lives: Mapping[str, tuple[int, float]]
    """By file, the versions [first, end) that have had it; the end of those that the newest version
    has is infinite. Not to be relied on where an entry is wrong."""
    wrong: tuple[Wrong, ...]


def read_log(root: Root, table: str, until: int = 0) -> Log:
    """Read a table's log.

    Args:
        root: the lake's.
        table: its name.
        until: a version that the log has to reach.
    """
    folder = f"{table_folder(table)}/_delta_log"
    found = (_VERSION.search(entry.path) for entry in root.list(folder))
    newest = max((int(match[1]) for match in found if match), default=-1)
    if newest < 0:
        return Log(-1, {}, (_nothing(root, table),))
    lives: dict[str, tuple[int, float]] = {}
    wrong = []
    with ThreadPoolExecutor(_READERS) as pool:
        # By name: one that came while the folder was listed may not be among what was found.
        paths = [f"{folder}/{version:020d}.json" for version in range(max(newest, until) + 1)]
        entries = pool.map(lambda path: _entry(root, path), paths)
        for version, actions in enumerate(entries):
            if isinstance(actions, list):
                _follow(lives, version, actions)
                continue
            problem: Literal["damaged", "missing"] = "damaged" if actions else "missing"
            wrong.append(Wrong(paths[version], problem, actions or ""))
    return Log(newest, lives, tuple(wrong))


def wrong_checkpoints(root: Root, table: str) -> Iterator[Wrong]:
    """Yield the checkpoints of a table's log that cannot be read."""
    for entry in root.list(f"{table_folder(table)}/_delta_log"):
        try:
            if entry.path.endswith(".parquet"):
                pq.read_table(root.open(entry.path))
            elif entry.path.endswith("/_last_checkpoint"):
                json.loads(root.read(entry.path))
        except ObjectStoreError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            yield Wrong(entry.path, "damaged", f"no checkpoint ({root.describe(error)})")


def _nothing(root: Root, table: str) -> Wrong:
    folder = table_folder(table)
    if any(True for _ in root.list(folder)):
        return Wrong(f"{folder}/_delta_log", "missing", "the log of the table")
    return Wrong(folder, "missing", "the folder of the table")


def _entry(root: Root, path: str) -> list[dict[str, Any]] | str:
    """Return an entry's actions; in words why they cannot be read; nothing if it is missing."""
    try:
        actions = [json.loads(line) for line in root.read(path).decode().splitlines()]
    except FileNotFoundError:
        return ""
    except ObjectStoreError:
        raise
    except ValueError as error:
        return f"no entry of a Delta log ({root.describe(error)})"
    except OSError as error:
        return f"cannot be read ({root.describe(error)})"
    if not actions:
        return "no entry of a Delta log (it is empty)"
    for action in actions:
        changes = action if isinstance(action, dict) else {"add": None}
        for change in (changes[kind] for kind in ("add", "remove") if kind in changes):
            if not isinstance(change, dict) or not isinstance(change.get("path"), str):
                return "no entry of a Delta log (it names no file)"
    return actions


def _follow(
    lives: dict[str, tuple[int, float]], version: int, actions: list[dict[str, Any]]
) -> None:
    for action in actions:
        if "add" in action:
            lives[unquote(action["add"]["path"])] = (version, math.inf)
        elif "remove" in action:
            name = unquote(action["remove"]["path"])
            lives[name] = (lives[name][0] if name in lives else 0, version)
