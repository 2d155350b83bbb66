"""Re-reading a lake: every file against its checksum, and what is there that should not be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa

from scopelake.errors import ObjectStoreError, SnapshotNotFoundError
from scopelake.names import counted
from scopelake.store import delta
from scopelake.store.delta_log import read_log
from scopelake.store.expected import UNREADABLE, Expected, Survey, survey
from scopelake.store.findings import Finding, Verification
from scopelake.store.intents import intent_path, read_intent, waiting_intents
from scopelake.store.lake_store import LakeStore, to_snapshot
from scopelake.store.layout import ACTIVATIONS, DENSE_SHARD, PENDING, TABLES, array_name
from scopelake.store.log_check import array_contradiction, file_contradiction
from scopelake.store.planned import Commit
from scopelake.store.reading import read_files
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.strays import strays

__all__ = ["DENSE_SHARD", "Finding", "Verification", "verify", "verify_at"]

OnProgress = Callable[[int, int], None]

_THREADS: Final = 4


def verify(
    store: LakeStore, snapshot: Snapshot, on_progress: OnProgress | None = None
) -> Verification:
    """Re-read every file of a snapshot and compare it with its checksum.

    Args:
        store: the lake.
        snapshot: which version of it.
        on_progress: called with bytes read and bytes in all.

    Raises:
        ObjectStoreError: the object store refuses or does not answer.
    """
    return _verify(store, [snapshot], [], on_progress)


def verify_at(
    store: LakeStore,
    wanted: int | None = None,
    *,
    all_snapshots: bool = False,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Re-read every file of a snapshot, or of all, also where the snapshots cannot be read.

    Where they cannot, the newest version of every table is read instead, and the result says so.

    Args:
        store: the lake.
        wanted: number of the snapshot; the latest by default.
        all_snapshots: read the files that any kept snapshot names, each once.
        on_progress: called with bytes read and bytes in all.

    Raises:
        SnapshotNotFoundError: there is no such snapshot.
        ObjectStoreError: the object store refuses or does not answer.
    """
    notes: list[str] = []
    try:
        if all_snapshots:
            kept = [to_snapshot(row) for row in store.snapshots().to_pylist()]
        else:
            kept = [store.snapshot(wanted)]
    except (SnapshotNotFoundError, ObjectStoreError):
        raise
    except UNREADABLE:
        what = "all snapshots" if all_snapshots else f"snapshot {wanted or ''}".strip()
        notes.append(
            f"what {what} of the lake consist{'s' if not all_snapshots else ''} of, because table "
            "snapshots cannot be read (the newest version of each table was checked)"
        )
        kept = [*(_readable(store) if all_snapshots else ()), _newest(store)]
    found = _verify(store, kept, notes, on_progress)
    return replace(found, all_snapshots=all_snapshots)


def _readable(store: LakeStore) -> list[Snapshot]:
    """Return the snapshots whose rows can be read, oldest first."""
    rows = []
    try:
        files = delta.added_files(delta.open_table(store.root, "snapshots"))
    except UNREADABLE:
        return []
    for path in files["path"].to_pylist():
        one, names = pa.table({"path": pa.array([path])}), SCHEMAS["snapshots"].names
        try:
            rows += read_files(store.root, "snapshots", one, names, ()).to_pylist()
        except ObjectStoreError:
            raise
        except UNREADABLE:
            continue
    return [to_snapshot(row) for row in sorted(rows, key=lambda row: int(row["snapshot"]))]


def _newest(store: LakeStore) -> Snapshot:
    """Return the newest version of every table, as if it were a snapshot."""
    is_old = store.is_older()
    newest = {table: read_log(store.root, table).newest for table in TABLES}
    # A lake of an older format lacks tables.
    versions = {t: max(version, 0) for t, version in newest.items() if version >= 0 or not is_old}
    try:
        latest = delta.added_files(delta.open_table(store.root, "snapshots"))["max.snapshot"]
        number = max(latest.to_pylist())
    except UNREADABLE:
        number = 0
    return Snapshot(number, datetime.now(UTC), "", None, versions)


def _verify(
    store: LakeStore, kept: Sequence[Snapshot], notes: list[str], on_progress: OnProgress | None
) -> Verification:
    started = time.monotonic()
    found = survey(store, kept)
    by_path: dict[str, list[Expected]] = {}
    for one in found.expected:
        by_path.setdefault(one.finding.path, []).append(one)
    total, done = sum(each[0].n_bytes for each in by_path.values()), 0
    findings = list(found.findings)
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = pool.map(lambda each: _check(store.root, each), by_path.values())
        for each, wrong in zip(by_path.values(), checked, strict=True):
            done += each[0].n_bytes
            findings += wrong
            if on_progress is not None:
                on_progress(done, total)
    stray = sorted(strays(found), key=lambda f: f.path)
    findings += [f for f in stray if f.problem == "unexpected"]
    findings += [*_arrays(found), *_waiting(store, kept[-1])]
    findings.sort(key=lambda f: (f.problem, f.path))
    return Verification(
        kept[-1].id,
        len(by_path),
        total,
        time.monotonic() - started,
        tuple(findings),
        tuple(f for f in stray if f.problem == "left over"),
        (*notes, *found.unchecked),
        n_snapshots=len(kept),
    )


def _check(root: Root, each: Sequence[Expected]) -> list[Finding]:
    """Read a file once, and compare it with everything that is expected of it."""
    path = each[0].finding.path
    try:
        size = root.size(path)
        if size is None:
            return [replace(e.finding, problem="missing") for e in each]
        found = root.checksum(path) if any(size == e.n_bytes for e in each) else ""
    except FileNotFoundError:
        return [replace(e.finding, problem="missing") for e in each]
    except ObjectStoreError:
        raise
    except OSError as error:
        detail = f"cannot be read ({root.describe(error)})"
        return [replace(e.finding, detail=detail) for e in each]
    details = [(e, _difference(root, e, size, found)) for e in each]
    return [replace(e.finding, detail=detail) for e, detail in details if detail]


def _difference(root: Root, expected: Expected, size: int, found: str) -> str | None:
    if size != expected.n_bytes:
        return f"{counted(size, 'byte')} instead of {expected.n_bytes:,}"
    if expected.checksum is not None and found != expected.checksum:
        return f"checksum {found} instead of {expected.checksum}"
    if expected.action is None:
        return None
    try:
        return file_contradiction(root, expected.finding.path, expected.action)
    except ObjectStoreError:
        raise
    except (OSError, pa.ArrowException, TypeError) as error:
        return f"cannot be compared with the log ({root.describe(error)})"


def _arrays(found: Survey) -> Iterator[Finding]:
    """Yield the arrays whose metadata is not what was written."""
    columns = ("corpus", "model", "site", "layer")
    for values in sorted({tuple(row[c] for c in columns) for row in found.dense}):
        row = dict(zip(columns, values, strict=True))
        if detail := array_contradiction(found.store, found.kept[-1], **row):
            path = f"{ACTIVATIONS}/{array_name(**row)}/zarr.json"
            yield Finding(path, "damaged", ACTIVATIONS, **row, detail=detail)


def _waiting(store: LakeStore, newest: Snapshot) -> list[Finding]:
    """Return what waits to be carried out and is no commit: it would stop every writer."""
    found = []
    try:
        latest = store.snapshot().id
    except ObjectStoreError:
        raise
    except UNREADABLE:
        latest = newest.id
    for number in waiting_intents(store.root):
        path = intent_path(number)
        try:
            text = read_intent(store.root, number)
            if number <= latest or text is None:
                continue
            commit = Commit.from_json(text)
        except (ValueError, KeyError, TypeError) as error:
            found.append(Finding(path, "damaged", PENDING, detail=f"no commit ({error})"))
            continue
        lost = [r.path for r in commit.receipts if store.root.size(r.path) is None]
        if lost:
            detail = f"a commit that waits for {lost[0]}, which is not there"
            found.append(Finding(path, "damaged", PENDING, detail=detail))
    return found
