"""Deleting what no snapshot that is kept needs any more."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Final
from uuid import uuid4

from scopelake.errors import InvalidArgumentError
from scopelake.names import counted
from scopelake.store import delta
from scopelake.store.checkpoints import old_checkpoints
from scopelake.store.commit import Writer
from scopelake.store.intents import read_intent, waiting_intents
from scopelake.store.lake_store import LakeStore, to_snapshot
from scopelake.store.layout import ACTIVATIONS, DENSE, PENDING, table_folder
from scopelake.store.planned import Commit
from scopelake.store.root import Entry
from scopelake.store.snapshot import Snapshot
from scopelake.store.verify import DENSE_SHARD

KEEP: Final = timedelta(days=30)
GRACE: Final = timedelta(days=1)


@dataclass(frozen=True)
class VacuumConfig:
    """What is kept, besides the latest snapshot."""

    keep: timedelta | None = KEEP
    """Snapshots that are no older; None: none for their age."""
    keep_snapshots: int = 1
    """So many of the latest."""
    grace: timedelta = GRACE
    """Files that no snapshot names are left alone for so long: an ingest may be about to commit
    them."""
    dry_run: bool = False
    """Only say what would be deleted."""

    def __post_init__(self) -> None:
        if self.keep_snapshots < 1:
            raise InvalidArgumentError(
                f"keep_snapshots={self.keep_snapshots} was asked for; the latest is always kept; "
                "give 1 or more"
            )
        for name, value in (("keep", self.keep), ("grace", self.grace)):
            if value is not None and value < timedelta(0):
                raise InvalidArgumentError(f"{name}={value} was asked for; give 0 or more")


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum deleted, or would delete."""

    snapshot: int
    """The latest now."""
    n_snapshots: int
    """Snapshots that cannot be opened any more."""
    n_files: int
    n_bytes: int
    dry_run: bool

    def to_text(self) -> str:
        """Return it as a line."""
        verb = "would delete" if self.dry_run else "deleted"
        return (
            f"{verb} {counted(self.n_files, 'file')}, {self.n_bytes / 1e6:,.1f} MB, and "
            f"{counted(self.n_snapshots, 'snapshot')} (snapshot {self.snapshot} is the latest)"
        )

    def __str__(self) -> str:
        return self.to_text()


def vacuum(writer: Writer, config: VacuumConfig) -> Vacuumed:
    """Delete snapshots that are not kept, and the files that only they or nobody needs.

    Readers and writers at work are not disturbed, unless they read a snapshot that is not kept or
    have had files uncommitted for longer than the grace.

    Args:
        writer: entered.
        config: what is kept.

    Raises:
        LakeError: a table cannot be read.
    """
    store = writer.store
    kept, gone = _split(store, config)
    files = list(_unneeded(store, kept, config))
    n_bytes = sum(entry.n_bytes for entry in files)
    if config.dry_run:
        return Vacuumed(store.snapshot().id, len(gone), len(files), n_bytes, True)
    if gone:
        writer.commit(
            [],
            transaction=f"vacuum:{uuid4().hex}",
            reason=f"remove {counted(len(gone), 'snapshot')}",
            remove={"snapshots": ("snapshot", gone)},
        )
    _delete(store, files, time.time() - config.grace.total_seconds())
    return Vacuumed(store.snapshot().id, len(gone), len(files), n_bytes, False)


def _delete(store: LakeStore, files: list[Entry], limit: float) -> None:
    """Delete files that nobody has committed since they were listed, or is about to commit."""
    # In this order: what is no promise any more by then is in its table.
    needed = _promised(store)
    tables = {entry.path.split("/")[1] for entry in files if entry.path.startswith("tables/")}
    for table in tables:
        lives = delta.file_lives(store.root, table)
        alive = (name for name, (_, end) in lives.items() if end == inf)
        needed |= {f"{table_folder(table)}/{name}" for name in alive}
    dense = []
    for entry in files:
        if DENSE_SHARD.search(entry.path):
            dense.append(entry)
        elif entry.path not in needed:
            store.root.delete(entry.path)
    for entry in dense:
        # Its place is fixed: somebody may have put it anew.
        modified = store.root.modified(entry.path)
        needed = _promised(store) | _dense_paths(store, [store.snapshot()])
        if modified is not None and modified < limit and entry.path not in needed:
            store.root.delete(entry.path)


def _promised(store: LakeStore) -> set[str]:
    """Return the files of commits that wait: somebody is about to carry them out."""
    texts = (read_intent(store.root, number) for number in waiting_intents(store.root))
    return {r.path for text in texts if text for r in Commit.from_json(text).receipts}


def _split(store: LakeStore, config: VacuumConfig) -> tuple[list[Snapshot], list[int]]:
    """Return the snapshots that are kept, and the numbers of those that are not."""
    rows = store.snapshots().to_pylist()
    now = datetime.now(UTC)
    kept, gone = [], []
    for age_rank, row in enumerate(reversed(rows)):
        young = config.keep is not None and now - row["created_at"] <= config.keep
        if age_rank < config.keep_snapshots or young:
            kept.append(to_snapshot(row))
        else:
            gone.append(row["snapshot"])
    return kept, sorted(gone)


def _unneeded(store: LakeStore, kept: list[Snapshot], config: VacuumConfig) -> Iterator[Entry]:
    """Yield what no kept snapshot names, if it was committed once or is older than the grace."""
    root, limit = store.root, time.time() - config.grace.total_seconds()
    for table in kept[0].versions:
        folder = table_folder(table)
        versions = sorted({s.versions[table] for s in kept if table in s.versions})
        lives = delta.file_lives(root, table)
        needed = {
            name
            for name, (first, end) in lives.items()
            # What came after the newest kept version is of a writer at work.
            if end > versions[-1] or bisect_left(versions, first) < bisect_left(versions, end)
        }
        for entry in root.list(folder):
            name = entry.path.removeprefix(f"{folder}/")
            if name.startswith("_delta_log/") or name in needed:
                continue
            if name in lives or entry.modified < limit:
                yield entry
        yield from (e for e in old_checkpoints(root, table) if e.modified < limit)
    dense = _dense_paths(store, kept)
    for entry in root.list(ACTIVATIONS):
        is_shard = DENSE_SHARD.search(entry.path)
        if is_shard and entry.path not in dense and entry.modified < limit:
            yield entry
    for entry in root.list(PENDING):
        is_intent = entry.path.endswith(".json") and entry.path.count("/") == 1
        if not is_intent and entry.modified < limit:
            yield entry


def _dense_paths(store: LakeStore, kept: list[Snapshot]) -> set[str]:
    by_version = {s.versions["files"]: s for s in kept}
    return {
        path
        for snapshot in by_version.values()
        for path in store.read("files", snapshot, ["path"], [("kind", "=", DENSE)])[
            "path"
        ].to_pylist()
    }
