"""Compaction: the many files of a coder's firings by shard become few, by feature range.

``postings`` and ``peaks`` of a coder on a corpus are merged, in bounded memory, into files whose
feature ranges do not overlap, and swapped in by one commit, whatever is ingested meanwhile. Older
snapshots keep the files that they had, until a vacuum. A coder whose files do not overlap is left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import numpy as np

from scopelake.errors import InvalidArgumentError, LakeBusyError
from scopelake.store import delta
from scopelake.store.commit import Writer
from scopelake.store.feature_ranges import RowGroup, ranges, read_range, row_groups
from scopelake.store.firings import Firings
from scopelake.store.integrity import checked_copies
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import table_folder
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard, write_merged

TABLES: Final = ("postings", "peaks")
_KIND: Final[dict[str, tuple[str, ...]]] = {"postings": ("kind",), "peaks": ()}
ROWS_PER_FILE: Final = 8_000_000
"""About 25 MB of postings; a feature range of so many rows is sorted in memory at once."""


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    snapshot: int
    n_coders: int
    """Coders, each on one corpus, whose files were merged."""
    files_before: int
    files_after: int
    n_rows: int
    n_bytes: int
    """Written."""

    def to_text(self) -> str:
        """Return it as a line."""
        if not self.n_coders:
            return f"nothing to compact (snapshot {self.snapshot})"
        return (
            f"compacted {self.n_rows:,} rows of {self.n_coders:,} coders: {self.files_before:,} "
            f"files became {self.files_after:,}, {self.n_bytes / 1e6:,.1f} MB (snapshot "
            f"{self.snapshot})"
        )

    def __str__(self) -> str:
        return self.to_text()


@dataclass(frozen=True)
class _Part:
    """A table's files of one coder on one corpus."""

    table: str
    sae: str
    corpus: str
    names: tuple[str, ...]
    """Relative to the table's folder."""


def compact(
    writer: Writer,
    *,
    rows_per_file: int = ROWS_PER_FILE,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Compacted:
    """Merge the files of every coder that overlap in their features; one commit for each.

    Args:
        writer: entered.
        rows_per_file: most rows of a file, unless one feature has more; that many are in memory.
        on_progress: called with (coder, coders done, of how many).

    Raises:
        DamagedFileError: a file is not what was written.
        InvalidArgumentError: `rows_per_file` is below 1.
        LakeBusyError: another writer has compacted or repaired a coder meanwhile.
    """
    if rows_per_file < 1:
        raise InvalidArgumentError(f"rows_per_file={rows_per_file} was asked for; give 1 or more")
    store = writer.store
    parts = _overlapping(store, store.snapshot())
    by_coder: dict[tuple[str, str], list[_Part]] = {}
    for part in parts:
        by_coder.setdefault((part.sae, part.corpus), []).append(part)
    receipts: list[Receipt] = []
    for done, ((sae, _), several) in enumerate(sorted(by_coder.items()), start=1):
        receipts += _compact_coder(writer, several, rows_per_file)
        if on_progress is not None:
            on_progress(sae, done, len(by_coder))
    return Compacted(
        store.snapshot().id,
        len(by_coder),
        sum(len(part.names) for part in parts),
        len(receipts),
        sum(r.n_rows for r in receipts),
        sum(r.n_bytes for r in receipts),
    )


def _overlapping(store: LakeStore, snapshot: Snapshot) -> list[_Part]:
    """Return the parts with files that share a range of features."""
    parts = []
    for table in TABLES:
        opened = delta.open_table(store.root, table, snapshot.versions[table])
        found: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
        for row in delta.added_files(opened).to_pylist():
            key = (row["partition.sae"], row["partition.corpus"])
            low, high = row.get("min.feature"), row.get("max.feature")
            bounds = (-1, -1) if low is None or high is None else (low, high)  # no rows
            found.setdefault(key, []).append((*bounds, row["path"]))
        for (sae, corpus), files in sorted(found.items()):
            files.sort()
            if any(after[0] <= before[1] for before, after in zip(files, files[1:], strict=False)):
                parts.append(_Part(table, sae, corpus, tuple(sorted(f[2] for f in files))))
    return parts


def _compact_coder(writer: Writer, parts: Sequence[_Part], rows_per_file: int) -> list[Receipt]:
    store, receipts = writer.store, list[Receipt]()
    sae, corpus = parts[0].sae, parts[0].corpus

    def check_still_there(commit: Commit, snapshot: Snapshot) -> Commit:
        for part in parts:
            if not set(part.names) <= _names(store, snapshot, part):
                raise LakeBusyError(
                    f"compaction of {sae} on {corpus} was asked for; another writer has compacted "
                    "or repaired it meanwhile; compact again"
                )
        return commit

    try:
        for part in parts:
            receipts += _merge(store, part, rows_per_file)
        old = [f"{table_folder(part.table)}/{name}" for part in parts for name in part.names]
        writer.commit(
            receipts,
            transaction=f"compact:{uuid4().hex}",
            reason=f"compact {sae} on {corpus}",
            retire=old,
            revise=check_still_there,
        )
    except LakeBusyError:
        discard(store.root, receipts)
        raise
    return receipts


def _names(store: LakeStore, snapshot: Snapshot, part: _Part) -> set[str]:
    files = store.data_files(part.table, snapshot, sae=part.sae, corpus=part.corpus)
    return {file.path.removeprefix(f"{table_folder(part.table)}/") for file in files}


def _merge(store: LakeStore, part: _Part, rows_per_file: int) -> Iterator[Receipt]:
    paths = [f"{table_folder(part.table)}/{name}" for name in part.names]
    with checked_copies(store.root, paths) as local:
        groups = list(row_groups(local, paths))
        width = max((g.high for g in groups), default=0) + 1
        for low, high in ranges(groups, width, rows_per_file):
            firings = _read(local, groups, low, high, part.table)
            yield write_merged(
                store.root, firings, table=part.table, sae=part.sae, corpus=part.corpus
            )


def _read(root: Root, groups: Sequence[RowGroup], low: int, high: int, table: str) -> Firings:
    columns = ("context", "position", "feature", "activation", *_KIND[table])
    parts = []
    for rows in read_range(root, groups, low, high, columns):
        found = [rows[c].to_numpy() for c in columns]
        if table == "peaks":
            found.append(np.zeros(rows.num_rows, dtype=np.int8))  # peaks leave BOS out
        parts.append(Firings(*found))
    return Firings.concat(parts)
