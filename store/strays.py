"""Files that no snapshot names: left over by our own writers, or unexpected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Final

from scopelake.errors import ObjectStoreError
from scopelake.names import counted
from scopelake.store.delta_log import read_log
from scopelake.store.expected import UNREADABLE, Survey
from scopelake.store.findings import Finding, Problem
from scopelake.store.layout import ACTIVATIONS, DENSE, DENSE_SHARD, PENDING, TABLES
from scopelake.store.root import Root
from scopelake.store.schema import PARTITIONS

_DATA: Final = r"[0-9a-f]{32}(-[0-9a-f]{32})?\.parquet"
"""The first lakes' names had no checksum."""
_TEMPORARY: Final = re.compile(rf"{PENDING}/(scratch-[0-9a-f]{{32}}/.+|[0-9a-f]{{32}}\.tmp)\Z")
_INTENT: Final = re.compile(rf"{PENDING}/\d{{12}}\.json\Z")
_METADATA: Final = re.compile(r"/zarr\.json\Z|\.partial\Z")
"""Of arrays and groups, and what zarr is writing of it."""


def strays(found: Survey) -> Iterator[Finding]:
    """Yield the files that no snapshot names; notes what cannot be told.

    Raises:
        ObjectStoreError: the object store refuses or does not answer.
    """
    yield from _of_tables(found)
    yield from _of_activations(found)
    for entry in found.store.root.list(PENDING):
        if not _INTENT.match(entry.path):
            is_ours = _TEMPORARY.match(entry.path) is not None
            yield Finding(entry.path, _problem(is_ours), PENDING)


def is_data_name(path: str) -> bool:
    """Whether a path is one that our writers give to a file of a table."""
    table = path.split("/")[1]
    if table not in TABLES:
        return False
    folders = "".join(f"{column}=[^/]+/" for column in PARTITIONS.get(table, ()))
    return re.fullmatch(f"tables/{re.escape(table)}/{folders}{_DATA}", path) is not None


def _problem(is_ours: bool) -> Problem:
    return "left over" if is_ours else "unexpected"


def _of_tables(found: Survey) -> Iterator[Finding]:
    root, unnamed = found.store.root, {}
    expected = {e.finding.path for e in found.expected}
    for entry in root.list("tables"):
        table, _, name = entry.path.removeprefix("tables/").partition("/")
        log = found.logs.get(table)
        if table in TABLES and (log is None or log.wrong or name.startswith("_delta_log/")):
            continue
        if entry.path not in expected and (log is None or name not in log.lives):
            unnamed[entry.path] = table, name
    # What was committed while the lake was read is named by now.
    lives = {t: read_log(root, t).lives for t in {table for table, _ in unnamed.values()}}
    for path, (table, name) in unnamed.items():
        if name not in lives[table]:
            yield Finding(path, _problem(is_data_name(path)), table)
    for table, log in found.logs.items():
        if log.wrong and table not in found.unopened:
            found.unchecked.append(
                f"which files of table {table} no snapshot names, because {log.wrong[0].path} is "
                f"{log.wrong[0].problem}"
            )


def _of_activations(found: Survey) -> Iterator[Finding]:
    root = found.store.root
    named = {e.finding.path for e in found.expected}
    is_known = found.is_listed
    there = [e.path for e in root.list(ACTIVATIONS) if not _METADATA.search(e.path)]
    try:
        # Shards of later snapshots, also of writers at work, lie beside those of these.
        rows = found.store.read("files", found.store.snapshot(), ["path"], [("kind", "=", DENSE)])
        named |= set(rows["path"].to_pylist())
    except ObjectStoreError:
        raise
    except UNREADABLE:
        is_known = False

    @cache
    def n_shards(array: str) -> float:
        return _n_shards(root, array)

    n_unknown = 0
    for path in there:
        if path in named:
            continue
        at = DENSE_SHARD.search(path)
        is_place = at is not None and int(at[0].split("/")[2]) < n_shards(path[: at.start()])
        if is_place and not is_known:
            n_unknown += 1
            continue
        yield Finding(path, _problem(is_place), DENSE)
    if n_unknown:
        found.unchecked.append(
            f"{counted(n_unknown, 'dense shard')} and the metadata beside, because table files "
            "cannot be read"
        )


def _n_shards(root: Root, array: str) -> float:
    """Return how many shards an array has; no end where its metadata does not tell."""
    try:
        metadata = json.loads(root.read(f"{array}/zarr.json"))
        size = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
        return math.ceil(int(metadata["shape"][0]) / size)
    except ObjectStoreError:
        raise
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError):
        return math.inf
