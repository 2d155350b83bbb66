"""Delta logs read by ourselves: what they say of each version, and which entry is damaged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import unquote

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


@dataclass
class Log:
    """What the log of a table says; the log is kept whole, from version 0."""

    newest: int = -1
    """Number of the last entry; -1 without any."""
    lives: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By file, the versions [first, end) that have had it; the end of those that the newest version
    has is infinite. Not to be relied on where an entry is wrong."""
    wrong: tuple[Wrong, ...] = ()
    _adds: dict[str, int] = field(default_factory=dict)
    """By path as the log spells it, the digest of its entry."""
    _transactions: dict[int, int] = field(default_factory=dict)
    """By digest, the version that brought it."""
    _metadata: dict[int, int] = field(default_factory=dict)
    """By version, the digest of the columns and properties that it set."""

    def files_at(self, version: int) -> dict[str, int]:
        """Return, by path as the log spells it, the digest of each file's entry."""
        lives = ((path, *self.lives[unquote(path)]) for path in self._adds)
        return {path: self._adds[path] for path, first, end in lives if first <= version < end}

    def transactions_at(self, version: int) -> set[int]:
        """Return the digests of the application transactions up to a version."""
        return {name for name, first in self._transactions.items() if first <= version}

    def metadata_at(self, version: int) -> int | None:
        """Return the digest of the table's columns and properties."""
        return self._metadata.get(max((v for v in self._metadata if v <= version), default=-1))

    def follow(self, version: int, actions: list[dict[str, Any]]) -> None:
        """Take in what an entry says."""
        for action in actions:
            if "add" in action:
                add = action["add"]
                self.lives[unquote(add["path"])] = (version, math.inf)
                self._adds[add["path"]] = add_digest(add)
            elif "remove" in action:
                name = unquote(action["remove"]["path"])
                self.lives[name] = (self.lives[name][0] if name in self.lives else 0, version)
            elif "txn" in action:
                self._transactions.setdefault(transaction_digest(action["txn"]), version)
            elif "metaData" in action:
                self._metadata[version] = metadata_digest(action["metaData"])


def add_digest(add: Mapping[str, Any]) -> int:
    """Return a digest of what an entry says of a file that comes, as far as readers mind it."""
    return _digest(add, "path", "size", "partitionValues", "stats")


def metadata_digest(metadata: Mapping[str, Any]) -> int:
    """Return a digest of a table's columns, partitions and properties."""
    return _digest(metadata, "schemaString", "partitionColumns", "configuration")


def transaction_digest(transaction: Mapping[str, Any]) -> int:
    """Return a digest of an application transaction's name and number."""
    return _digest(transaction, "appId", "version")


def _digest(action: Mapping[str, Any], *keys: str) -> int:
    # A damaged entry may lack any of them: that makes it another one, not an error.
    return hash(json.dumps([action.get(key) for key in keys], sort_keys=True))


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
        return Log(wrong=(_nothing(root, table),))
    log, wrong = Log(newest), []
    with ThreadPoolExecutor(_READERS) as pool:
        # By name: one that came while the folder was listed may not be among what was found.
        paths = [f"{folder}/{version:020d}.json" for version in range(max(newest, until) + 1)]
        entries = pool.map(lambda path: _entry(root, path), paths)
        for version, actions in enumerate(entries):
            if isinstance(actions, list):
                log.follow(version, actions)
                continue
            problem: Literal["damaged", "missing"] = "damaged" if actions else "missing"
            wrong.append(Wrong(paths[version], problem, actions or ""))
    log.wrong = tuple(wrong)
    return log


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
        for kind in ("txn", "metaData"):
            if not isinstance(changes.get(kind, {}), dict):
                return f"no entry of a Delta log (its {kind} is none)"
    return actions
