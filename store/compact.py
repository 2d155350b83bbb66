"""Compaction: the many files of many shards become few.

``postings``, ``peaks`` and ``samples`` of a coder on a corpus are merged into files whose feature
ranges do not overlap, ``codes`` and ``contexts`` into files of many shards in sequence. Each part
is merged in bounded memory, by a task that may run anywhere, and swapped in by one commit, whatever
is ingested meanwhile; what was committed before a kill stays merged. Older snapshots keep the files
that they had, until a vacuum. A part that is merged already is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import pyarrow as pa

from scopelake.errors import InvalidArgumentError, LakeBusyError
from scopelake.names import counted
from scopelake.store.catalog import shards_of_files
from scopelake.store.commit import Writer
from scopelake.store.feature_ranges import ROWS_AT_ONCE
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import table_folder
from scopelake.store.merge import Part, merge, to_merge
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard

Merged = tuple[Part, list[Receipt]]
Merge = Callable[[Part], Merged]
Runner = Callable[[Merge, Iterable[Part]], Iterator[Merged]]
"""Carries out merges, in the order of the parts or any: here, or on other machines."""


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    snapshot: int
    n_parts: int
    """Tables of a coder or corpus whose files were merged."""
    files_before: int
    files_after: int
    n_rows: int
    n_bytes: int
    """Written."""

    def to_text(self) -> str:
        """Return it as a line."""
        if not self.n_parts:
            return f"nothing to compact (snapshot {self.snapshot})"
        return (
            f"compacted {counted(self.n_rows, 'row')}: {counted(self.files_before, 'file')} became "
            f"{self.files_after:,}, {self.n_bytes / 1e6:,.1f} MB (snapshot {self.snapshot})"
        )

    def __str__(self) -> str:
        return self.to_text()


def one_by_one(act: Merge, parts: Iterable[Part]) -> Iterator[Merged]:
    """Merge part after part in this process."""
    return map(act, parts)


def compact(
    writer: Writer,
    *,
    rows_per_file: int = ROWS_AT_ONCE,
    runner: Runner = one_by_one,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Compacted:
    """Merge the files of every part that has some to merge; one commit for each part.

    Args:
        writer: entered.
        rows_per_file: most rows of a file, unless one feature has more; that many are in memory.
        runner: carries out the merges.
        on_progress: called with (part, parts done, of how many).

    Raises:
        DamagedFileError: a file is not what was written.
        InvalidArgumentError: `rows_per_file` is below 1.
        LakeBusyError: another writer has compacted or repaired a part meanwhile; parts that were
            done before stay merged.
    """
    if rows_per_file < 1:
        raise InvalidArgumentError(f"rows_per_file={rows_per_file} was asked for; give 1 or more")
    store = writer.store
    parts = to_merge(store, store.snapshot(), rows_per_file)
    merged = runner(_Merging(store, rows_per_file), parts)
    receipts: list[Receipt] = []
    for done, (part, made) in enumerate(merged, start=1):
        _commit(writer, part, made)
        receipts += made
        if on_progress is not None:
            on_progress(part.describe(), done, len(parts))
    return Compacted(
        store.snapshot().id,
        len(parts),
        sum(len(part.names) for part in parts),
        len(receipts),
        sum(r.n_rows for r in receipts),
        sum(r.n_bytes for r in receipts),
    )


@dataclass(frozen=True)
class _Merging:
    """A task that other processes can be sent."""

    store: LakeStore
    rows_per_file: int

    def __call__(self, part: Part) -> Merged:
        return part, list(merge(self.store.root, part, self.rows_per_file))


def _commit(writer: Writer, part: Part, receipts: Sequence[Receipt]) -> None:
    """Swap the merged files in for those of the part."""
    store = writer.store

    def check_still_there(commit: Commit, snapshot: Snapshot) -> Commit:
        files = store.data_files(part.table, snapshot, sae=part.sae, corpus=part.corpus)
        folder = f"{table_folder(part.table)}/"
        if not set(part.names) <= {file.path.removeprefix(folder) for file in files}:
            raise LakeBusyError(
                f"compaction of {part.describe()} was asked for; another writer has compacted or "
                "repaired it meanwhile; compact again"
            )
        return commit

    old = [f"{table_folder(part.table)}/{name}" for name in part.names]
    rows, remove = {}, {}
    if part.table == "codes":
        shards = shards_of_files(store, store.snapshot(), old)
        (path,) = {receipt.path for receipt in receipts}
        rows["merged"] = pa.Table.from_pylist(
            [
                {"path": path, "sae": part.sae, "corpus": part.corpus, "shard": shard}
                for shard in sorted(shards)
            ],
            schema=SCHEMAS["merged"],
        )
        remove["merged"] = ("path", old)
    try:
        writer.commit(
            receipts,
            transaction=f"compact:{uuid4().hex}",
            reason=f"compact {part.describe()}",
            rows=rows,
            retire=old,
            remove=remove,
            revise=check_still_there,
        )
    except LakeBusyError:
        discard(store.root, receipts)
        raise
