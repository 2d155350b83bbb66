"""Which files of a table are to be merged, and the merging: no commits here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.store import delta
from scopelake.store.catalog import published_examples
from scopelake.store.feature_ranges import RowGroup, ranges, read_range, row_groups
from scopelake.store.firings import Firings, is_sorted
from scopelake.store.folder_root import FolderRoot
from scopelake.store.integrity import checked_copies
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import table_folder
from scopelake.store.parquet import write_parquet
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.schema import PARTITIONS, SORTED_BY, file_schema
from scopelake.store.snapshot import Snapshot
from scopelake.store.tallies import add_up
from scopelake.store.writer import write_merged

BY_FEATURE: Final = ("postings", "peaks", "samples", "tallies")
BY_CONTEXT: Final = ("codes", "contexts")
CONTEXTS_PER_FILE: Final = 8_192
"""About 30 MB of contexts of 1,024 tokens."""

_AT_ONCE: Final = 64
"""Files, or runs of files, that are merged at once where all of them are too many."""

_OFTEN: Final = 10
"""Times that a row group may be read, for a range of features reads one of each file at least. One
more step costs more than two reads, and less than 15 (docs/performance.md)."""


@dataclass(frozen=True)
class Part:
    """Files of a table, of one coder on one corpus (or of a corpus), that become fewer."""

    table: str
    sae: str | None
    corpus: str
    names: tuple[str, ...]
    """Relative to the table's folder, in the order of their rows."""

    @property
    def partition(self) -> dict[str, str]:
        """Value of each partition column."""
        own = {"sae": self.sae or "", "corpus": self.corpus}
        return {column: own[column] for column in PARTITIONS[self.table]}

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.table} of {f'{self.sae} on ' if self.sae else ''}{self.corpus}"


def to_merge(store: LakeStore, snapshot: Snapshot, rows_per_file: int) -> list[Part]:
    """Return the parts of a snapshot that have files to merge."""
    parts = []
    published = published_examples(store, snapshot)
    for table in (*BY_FEATURE, *BY_CONTEXT):
        if table not in snapshot.versions:
            continue
        opened = delta.open_table(store.root, table, snapshot.versions[table])
        found: dict[tuple[str | None, str], list[dict[str, Any]]] = {}
        for row in delta.added_files(opened).to_pylist():
            key = (row.get("partition.sae"), row["partition.corpus"])
            found.setdefault(key, []).append(row)
        for (sae, corpus), files in sorted(found.items(), key=str):
            if (sae, corpus) in published:
                continue  # all of them, not the strongest alone, and never in two files
            if table in BY_FEATURE:
                groups = _overlapping(files)
            else:
                most = CONTEXTS_PER_FILE if table == "contexts" else rows_per_file
                groups = _small_neighbours(files, most)
            parts += [Part(table, sae, corpus, tuple(names)) for names in groups]
    return parts


def _overlapping(files: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield all files if two of them share a feature."""
    bounds = sorted((*_bounds(file, "feature"), file["path"]) for file in files if _has_rows(file))
    if any(after[0] <= before[1] for before, after in zip(bounds, bounds[1:], strict=False)):
        yield sorted(file["path"] for file in files)


def _small_neighbours(files: list[dict[str, Any]], most_rows: int) -> Iterator[list[str]]:
    """Yield groups of files in sequence that have no more than `most_rows` together."""
    ordered = sorted(files, key=lambda file: (*_bounds(file, "context"), file["path"]))
    group: list[str] = []
    held = 0
    for file in ordered:
        if group and held + file["num_records"] > most_rows:
            if len(group) > 1:
                yield group
            group, held = [], 0
        group.append(file["path"])
        held += file["num_records"]
    if len(group) > 1:
        yield group


def _has_rows(file: dict[str, Any]) -> bool:
    return bool(file["num_records"])


def _bounds(file: dict[str, Any], column: str) -> tuple[int, int]:
    low, high = file.get(f"min.{column}"), file.get(f"max.{column}")
    return (-1, -1) if low is None or high is None else (low, high)  # no rows


def merge(root: Root, part: Part, rows_per_file: int) -> Iterator[Receipt]:
    """Write the rows of a part into fresh files; at least one, also without rows.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    paths = [f"{table_folder(part.table)}/{name}" for name in part.names]
    with checked_copies(root, paths) as local:
        if part.table in BY_CONTEXT:
            # Files of older versions lack columns, which are null then.
            found = [pq.read_table(local.open(path)) for path in paths]
            whole = [file_schema(part.table).empty_table(), *found]
            rows = pa.concat_tables(whole, promote_options="default")
            # Shards that came late lie between those of files that were merged before.
            rows = in_order(rows, SORTED_BY[part.table])
            yield write_parquet(root, part.table, rows, part.partition, run="")
            return
        if part.table == "tallies":
            rows = file_schema("tallies").empty_table()
            for path in paths:
                rows = add_up([rows, pq.read_table(local.open(path))])
            yield write_parquet(root, part.table, rows, part.partition, run="")
            return
        yield from _merge_by_feature(root, local, paths, part, rows_per_file)


def _merge_by_feature(
    root: Root, local: FolderRoot, paths: Sequence[str], part: Part, rows_per_file: int
) -> Iterator[Receipt]:
    """Merge files whose features overlap: of very many, lots first, into files that go again."""
    groups = list(row_groups(local, paths))
    n_ranges = sum(group.n_rows for group in groups) // rows_per_file
    is_often = n_ranges * len(paths) > _OFTEN * len(groups)
    runs, of = [[path] for path in paths], local
    with ExitStack() as between:
        while is_often and len(runs) > _AT_ONCE:
            size = -(-len(runs) // -(-len(runs) // _AT_ONCE))
            lots = [list(chain(*runs[at : at + size])) for at in range(0, len(runs), size)]
            with ExitStack() as step:
                to = FolderRoot(step.enter_context(root.scratch()), is_durable=False)
                runs = [
                    [made.path for made in _at_once(to, of, lot, part, rows_per_file)]
                    for lot in lots
                ]
                between.close()  # what they were made of
                between.push(step.pop_all())
            of = to
        yield from _at_once(root, of, list(chain(*runs)), part, rows_per_file)


def _at_once(
    root: Root, local: FolderRoot, paths: Sequence[str], part: Part, rows_per_file: int
) -> Iterator[Receipt]:
    groups = list(row_groups(local, paths))
    width = max((g.high for g in groups), default=0) + 1
    for low, high in ranges(local, groups, width, rows_per_file):
        firings = read_firings(local, groups, low, high, part.table)
        yield write_merged(root, firings, table=part.table, partition=part.partition, run="")


def in_order(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return the rows sorted by integer columns; themselves if they are already."""
    keys = [rows[column].to_numpy() for column in columns]
    if is_sorted(*keys):
        return rows
    return rows.take(np.lexsort(keys[::-1]))


def read_firings(
    root: Root, groups: Sequence[RowGroup], low: int, high: int, table: str
) -> Firings:
    """Return the firings with low <= feature < high of feature-major files of a table."""
    columns = ["context", "position", "feature", "activation"]
    if table == "postings":
        columns.append("kind")
    parts = []
    for rows in read_range(root, groups, low, high, columns):
        found = [rows[c].to_numpy() for c in columns]
        if table != "postings":
            found.append(np.zeros(rows.num_rows, dtype=np.int8))  # BOS is left out of them
        parts.append(Firings(*found))
    return Firings.concat(parts)
