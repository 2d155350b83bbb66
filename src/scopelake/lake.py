"""The lake as users hold it: every verb delegates to the room that does the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from scopelake.adding import Adding
from scopelake.asking import Asking
from scopelake.building import Building
from scopelake.comparing import Comparing
from scopelake.describing import Describing
from scopelake.errors import InvalidArgumentError
from scopelake.exchanging import Exchanging
from scopelake.framing import Framing
from scopelake.names import check_whole
from scopelake.planning import Planning
from scopelake.searching import Searching
from scopelake.store.lake_store import LakeStore

if TYPE_CHECKING:
    import pyarrow as pa
    from distributed import Client

    from scopelake.store.compact import Compacted
    from scopelake.store.repair import Repair
    from scopelake.store.vacuum import Vacuumed
    from scopelake.store.verify import Verification


class Lake(
    Adding, Building, Planning, Asking, Describing, Comparing, Searching, Exchanging, Framing
):
    """A lake at one snapshot; writing moves it to the snapshot it made."""

    @classmethod
    def create(cls, path: str | Path) -> Lake:
        """Create an empty lake; see `scopelake.create`."""
        store = LakeStore.create(path)
        return cls(store, store.snapshot(), pinned=False)

    @classmethod
    def open(cls, path: str | Path, snapshot: int | None = None) -> Lake:
        """Open a lake; see `scopelake.open`."""
        if snapshot is not None:
            snapshot = check_whole("snapshot", snapshot)
        store = LakeStore.open(path)
        return cls(store, store.snapshot(snapshot), pinned=snapshot is not None)

    def snapshots(self) -> pa.Table:
        """Return every snapshot of the lake, oldest first."""
        return self._store.snapshots()

    def verify(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        all_snapshots: bool = False,
    ) -> Verification:
        """Re-read every file of the snapshot and compare it with its checksum.

        Args:
            progress: called with bytes read and bytes in all.
            all_snapshots: read the files that any snapshot of the lake names, each once.

        Raises:
            InvalidArgumentError: all snapshots of a lake that is pinned to one.
        """
        from scopelake.store.verify import verify, verify_at

        if not all_snapshots:
            return verify(self._store, self._snapshot, progress)
        if self._pinned:
            raise InvalidArgumentError(
                f"all_snapshots=True was asked of snapshot {self.snapshot}; that reads the files "
                "of every snapshot; open the lake without a snapshot"
            )
        return verify_at(self._store, all_snapshots=True, on_progress=progress)

    def repair(self, found: Verification) -> Repair:
        """Make again what follows from other files; take out what the next ingest has to make.

        Args:
            found: what `verify` found of the latest snapshot.

        Raises:
            InvalidArgumentError: it is of another snapshot, or of all.
        """
        from scopelake.store.commit import Writer
        from scopelake.store.repair import repair, repair_unopened

        self._check_writable()
        if found.all_snapshots:
            raise InvalidArgumentError(
                "a repair of what was found in all snapshots was asked for; it mends the latest "
                "one only; verify the lake without all_snapshots"
            )
        if (early := repair_unopened(self._store.root, found)) is not None:
            return early
        with Writer(self._store) as writer:
            # Entering it may have carried out a commit that waited.
            if found.snapshot != self._store.snapshot().id:
                raise InvalidArgumentError(
                    f"a repair of what was found in snapshot {found.snapshot} was asked for; the "
                    f"lake is at {self._store.snapshot().id}; verify it again"
                )
            done = repair(writer, found)
        self.refresh()
        return done

    def compact(
        self,
        progress: Callable[[str, int, int], None] | None = None,
        *,
        scheduler: str | Client | None = None,
    ) -> Compacted:
        """Merge the files of many shards into few: firings by feature range, codes in sequence.

        Queries give the same answers before and after, and at older snapshots meanwhile. What was
        merged before a kill stays merged.

        Args:
            progress: called with (what was merged, parts done, of how many).
            scheduler: address of a dask scheduler, or a client, whose workers reach the lake under
                the same path or URL; None: one part after another in this process.

        Raises:
            DamagedFileError: a file is not what was written.
            LakeBusyError: another writer has compacted or repaired a part meanwhile.
            InvalidArgumentError: no scheduler answers there.
            MissingDependencyError: ``distributed`` is not installed.
        """
        from scopelake.ingest.distribute import Cluster
        from scopelake.store.commit import Writer
        from scopelake.store.compact import Runner, compact, one_by_one

        self._check_writable()
        with ExitStack() as stack:
            runner: Runner = one_by_one
            if scheduler is not None:
                runner = stack.enter_context(Cluster(scheduler))
            writer = stack.enter_context(Writer(self._store))
            done = compact(writer, runner=runner, on_progress=progress)
        self.refresh()
        return done

    def vacuum(
        self,
        keep: timedelta | None = timedelta(days=30),
        *,
        keep_snapshots: int = 1,
        grace: timedelta = timedelta(days=1),
        dry_run: bool = False,
    ) -> Vacuumed:
        """Delete snapshots that are not kept, and the files that only they or nobody needs.

        Args:
            keep: snapshots that are no older are kept; None: none for their age.
            keep_snapshots: so many of the latest are kept.
            grace: files that no snapshot names are left alone for so long.
            dry_run: only say what would be deleted.

        Raises:
            InvalidArgumentError: a negative number or time.
        """
        from scopelake.store.commit import Writer
        from scopelake.store.vacuum import VacuumConfig, vacuum

        self._check_writable()
        config = VacuumConfig(keep, keep_snapshots, grace, dry_run)
        with Writer(self._store) as writer:
            done = vacuum(writer, config)
        self.refresh()
        return done

    def __repr__(self) -> str:
        return f"Lake({self.url!r}, snapshot={self.snapshot})"

    def _repr_html_(self) -> str:
        return self.info()._repr_html_()


def verify(
    path: str | Path,
    snapshot: int | None = None,
    *,
    all_snapshots: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Re-read the files of a lake, also of one that cannot be opened; see `scopelake.verify`."""
    from scopelake.store.verify import verify_at

    if all_snapshots and snapshot is not None:
        raise InvalidArgumentError(
            f"all_snapshots=True and snapshot={snapshot} were asked for; one snapshot is not all; "
            "give one of the two"
        )
    if snapshot is not None:
        snapshot = check_whole("snapshot", snapshot)
    store = LakeStore.open(path)
    return verify_at(store, snapshot, all_snapshots=all_snapshots, on_progress=progress)
