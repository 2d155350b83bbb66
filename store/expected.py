"""What snapshots consist of, as far as the catalogue and the Delta logs can still be read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from scopelake.errors import LakeError, ObjectStoreError
from scopelake.store import delta
from scopelake.store.checkpoints import checkpoint_before, wrong_checkpoints
from scopelake.store.delta_log import Log, read_log
from scopelake.store.findings import Finding
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import DENSE, TABLES, checksum_in_name, table_folder
from scopelake.store.reading import read_files
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

UNREADABLE = (LakeError, OSError, ValueError, TypeError, KeyError, pa.ArrowException)
"""What reading a damaged Delta log or Parquet file may raise."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """A file as snapshots need it."""

    finding: Finding
    """What is said if it is not as it should be."""
    checksum: str | None
    n_bytes: int
    action: Mapping[str, Any] | None = None
    """The Delta log's entry of it."""


@dataclass
class Survey:
    """What some snapshots consist of."""

    store: LakeStore
    kept: Sequence[Snapshot]
    """Oldest first."""
    expected: list[Expected] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """Logs that are damaged."""
    unchecked: list[str] = field(default_factory=list)
    logs: dict[str, Log] = field(default_factory=dict)
    dense: list[Row] = field(default_factory=list)
    """The rows of dense shards in the ``files`` table."""
    is_listed: bool = True
    """Whether all of the ``files`` table could be read."""
    unopened: set[str] = field(default_factory=set)
    """Tables of which a version cannot be opened."""

    def versions(self, table: str) -> list[int]:
        """Return the versions of a table that the snapshots name."""
        return sorted({s.versions[table] for s in self.kept if table in s.versions})

    def snapshots(self, table: str, versions: Iterable[int]) -> tuple[int, int] | None:
        """Return the first and the last snapshot with one of these versions of a table."""
        wanted = set(versions)
        ids = [s.id for s in self.kept if s.id and s.versions.get(table) in wanted]
        return (ids[0], ids[-1]) if ids and len(self.kept) > 1 else None


def survey(store: LakeStore, kept: Sequence[Snapshot]) -> Survey:
    """Return what snapshots consist of; what is damaged is a finding.

    Raises:
        ObjectStoreError: the object store refuses or does not answer.
    """
    found = Survey(store, kept)
    actions = {table: _actions(found, table) for table in TABLES if found.versions(table)}
    rows = _rows(found, actions.get("files", {}))
    by_path = {row["path"]: row for row, _ in rows}
    for table, of_table in actions.items():
        for path, (action, versions) in of_table.items():
            row = by_path.get(path, {})
            known = checksum_in_name(path) or row.get("checksum")
            finding = _finding(path, table, row, found.snapshots(table, versions))
            found.expected.append(Expected(finding, known, action["size_bytes"], action))
    named = {expected.finding.path for expected in found.expected}
    for row, versions in rows:
        if row["kind"] == DENSE:
            found.dense.append(row)
        if row["path"] not in named:
            finding = _finding(row["path"], row["kind"], row, found.snapshots("files", versions))
            found.expected.append(Expected(finding, row["checksum"], row["n_bytes"]))
    kinds = {row["kind"] for row, _ in rows}
    for finding in list(found.findings):
        if finding.table not in kinds or not found.is_listed:
            found.expected += _lying_there(found, finding.table)
    return found


def _actions(found: Survey, table: str) -> dict[str, tuple[Row, list[int]]]:
    """Return, by path, the log's entry of each file and the versions with it."""
    root, versions = found.store.root, found.versions(table)
    log = found.logs[table] = read_log(root, table, versions[-1])
    wrong = [*log.wrong, *wrong_checkpoints(root, table, log, versions)]
    found.findings += [Finding(w.path, w.problem, table, detail=w.detail) for w in wrong]
    actions: dict[str, tuple[Row, list[int]]] = {}
    failed: dict[int, str] = {}
    for version in _cover(log, versions):
        try:
            rows = delta.added_files(delta.open_table(root, table, version)).to_pylist()
        except ObjectStoreError:
            raise
        except UNREADABLE as error:
            failed[version] = delta.describe(root, error)
            continue
        for row in rows:
            seen = actions.setdefault(f"{table_folder(table)}/{row['path']}", (row, []))[1]
            life = None if log.wrong else log.lives.get(row["path"])
            new = [version] if life is None else _within(versions, life)
            seen += [one for one in new if one not in seen] if seen else new
    if failed:
        _note_failed(found, table, failed)
    return actions


def _note_failed(found: Survey, table: str, failed: dict[int, str]) -> None:
    """Name what is damaged in a log that cannot be opened, and say what is not known for it."""
    wrong = [f for f in found.findings if f.table == table]
    if not wrong:
        version, why = next(iter(failed.items()))
        # All entries could be read, so it is the checkpoint, if there is one.
        path = checkpoint_before(found.store.root, table, version)
        path = path or f"{table_folder(table)}/_delta_log"
        wrong = [Finding(path, "damaged", table, detail=f"cannot be read ({why})")]
        found.findings += wrong
    found.unopened.add(table)
    numbers = sorted(failed)
    of = f"version {numbers[0]}" if len(numbers) == 1 else f"{len(numbers):,} versions"
    found.unchecked.append(
        f"which files {of} of table {table} has, because {wrong[0].path} is {wrong[0].problem}"
    )


def _cover(log: Log, versions: Sequence[int]) -> list[int]:
    """Return versions, newest first, that have every file that any of `versions` has."""
    if len(versions) == 1 or log.wrong:
        return list(reversed(versions))
    lasts = {within[-1] for life in log.lives.values() if (within := _within(versions, life))}
    return sorted(lasts | {versions[-1]}, reverse=True)


def _within(versions: Sequence[int], life: tuple[int, float]) -> list[int]:
    first, end = life
    return list(versions[bisect_left(versions, first) : bisect_left(versions, end)])


def _rows(found: Survey, files: Mapping[str, tuple[Row, list[int]]]) -> list[tuple[Row, list[int]]]:
    """Return the rows of the ``files`` table and the versions with each; once if they agree."""
    rows: dict[tuple[str, str, int], tuple[Row, list[int]]] = {}
    folder = f"{table_folder('files')}/"
    if any(finding.table == "files" for finding in found.findings):
        found.is_listed = False
    for path, (_, versions) in files.items():
        one = pa.table({"path": pa.array([path.removeprefix(folder)], pa.string())})
        try:
            names = SCHEMAS["files"].names
            listed = read_files(found.store.root, "files", one, names, ()).to_pylist()
        except ObjectStoreError:
            raise
        except UNREADABLE:
            found.is_listed = False
            found.unchecked.append(
                f"the dense shards and other files that {path} lists, because it cannot be read"
            )
            continue
        for row in listed:
            key = row["path"], row["checksum"], row["n_bytes"]
            rows.setdefault(key, (row, []))[1].extend(versions)
    return list(rows.values())


def _finding(path: str, table: str, row: Row, snapshots: tuple[int, int] | None) -> Finding:
    columns = ("corpus", "sae", "model", "site", "layer", "shard")
    known: dict[str, Any] = {column: row.get(column) for column in columns}
    return Finding(path, "damaged", table, **known, snapshots=snapshots)


def _lying_there(found: Survey, table: str) -> Iterator[Expected]:
    """Yield the files of a table whose log cannot tell; their names have their checksums."""
    named = {expected.finding.path for expected in found.expected}
    for entry in found.store.root.list(table_folder(table)):
        checksum = checksum_in_name(entry.path)
        if checksum is not None and entry.path not in named:
            named.add(entry.path)
            yield Expected(Finding(entry.path, "damaged", table), checksum, entry.n_bytes)
