"""Checkpoints of Delta logs: whether they say what the log says, and doing without one.

A checkpoint sums up the entries before it, so that a reader need not read them all; it has no
checksum. The log is kept whole, so what one has to say is known, and the lake can do without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import ObjectStoreError
from scopelake.store.delta_log import (
    Log,
    Wrong,
    add_digest,
    metadata_digest,
    transaction_digest,
)
from scopelake.store.layout import table_folder
from scopelake.store.root import Entry, Root

_NAME: Final = re.compile(r"/_delta_log/(\d{20})\.checkpoint\.parquet\Z")
_HINT: Final = "_last_checkpoint"

_KEPT: Final = 2
"""Checkpoints of a table that a vacuum leaves."""


def is_checkpoint(path: str) -> bool:
    """Whether a file of a log is a checkpoint, or names the last one."""
    return bool(_NAME.search(path)) or path.endswith(f"/_delta_log/{_HINT}")


def wrong_checkpoints(
    root: Root, table: str, log: Log, versions: Sequence[int] | None = None
) -> Iterator[Wrong]:
    """Yield the checkpoints that cannot be read or say otherwise than the log.

    Args:
        root: the lake's.
        table: its name.
        log: the table's; if an entry is wrong, checkpoints are only read.
        versions: whose checkpoints to look at, and the newest; None: at all.
    """
    for entry in sorted(root.list(f"{table_folder(table)}/_delta_log"), key=lambda e: e.path):
        if entry.path.endswith(f"/{_HINT}") and (why := _hint_problem(root, table, entry.path)):
            yield Wrong(entry.path, "damaged", why)
    paths = {int(m[1]): m.string for m in _found(root, table)}
    wanted = {_before(paths, v) for v in (paths if versions is None else [*versions, log.newest])}
    for version in sorted(v for v in wanted if v is not None):
        if why := _problem(root, paths[version], version, log):
            yield Wrong(paths[version], "damaged", why)


def checkpoint_before(root: Root, table: str, version: int) -> str | None:
    """Return the path of the checkpoint that a reader of a version begins with, if any."""
    paths = {int(m[1]): m.string for m in _found(root, table)}
    return paths.get(-1 if (found := _before(paths, version)) is None else found)


def _before(versions: Iterable[int], version: int) -> int | None:
    return max((v for v in versions if v <= version), default=None)


def remove_checkpoints(root: Root, paths: Iterable[str]) -> None:
    """Delete checkpoints; readers of the table read more entries of its log instead."""
    for path in paths:
        # First: readers follow what it names, and do not look further.
        root.delete(f"{path.rpartition('/')[0]}/{_HINT}")
        root.delete(path)


def old_checkpoints(root: Root, table: str) -> Iterator[Entry]:
    """Yield the checkpoints but the newest two: each lists all files, so they outgrow the log."""
    entries = {e.path: e for e in root.list(f"{table_folder(table)}/_delta_log")}
    found = sorted(path for path in entries if _NAME.search(path))
    yield from (entries[path] for path in found[:-_KEPT])


def _found(root: Root, table: str) -> Iterator[re.Match[str]]:
    for entry in root.list(f"{table_folder(table)}/_delta_log"):
        if match := _NAME.search(entry.path):
            yield match


def _hint_problem(root: Root, table: str, path: str) -> str:
    """Return in words why readers cannot follow what names the last checkpoint, if so."""
    try:
        version = int(json.loads(root.read(path))["version"])
    except ObjectStoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"names no checkpoint ({root.describe(error)})"
    if version in {int(match[1]) for match in _found(root, table)}:
        return ""
    return f"names checkpoint {version}, which is not there"


def _problem(root: Root, path: str, version: int, log: Log) -> str:
    """Return in words what is wrong with a checkpoint, if anything."""
    try:
        table = pq.read_table(root.open(path), columns=["add", "txn", "metaData"])
        rows = table.to_pylist()
        adds = {r["add"]["path"]: add_digest(_plain(r["add"])) for r in rows if r["add"]}
        n_adds = sum(r["add"] is not None for r in rows)
        transactions = {transaction_digest(r["txn"]) for r in rows if r["txn"]}
        metadata = [metadata_digest(_plain(r["metaData"])) for r in rows if r["metaData"]]
    except ObjectStoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        return f"no checkpoint ({root.describe(error)})"
    if log.wrong:
        return ""
    if n_adds > len(adds):
        return "it names a file twice; the log is whole without it"
    for what, said, found in (
        ("files", log.files_at(version), adds),
        ("transactions", log.transactions_at(version), transactions),
        ("columns or properties", [log.metadata_at(version)], metadata),
    ):
        if said != found:
            return f"it names other {what} than the log; the log is whole without it"
    return ""


def _plain(action: dict[str, Any]) -> dict[str, Any]:
    """Return an action as the log has it: maps are lists of pairs in Parquet."""
    return {
        key: dict(value) if key in ("partitionValues", "configuration") else value
        for key, value in action.items()
    }
