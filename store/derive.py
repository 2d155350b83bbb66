"""Files that follow from others: postings from codes, peaks and samples from postings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from scopelake.store.feature_ranges import ROWS_AT_ONCE, ranges, row_groups
from scopelake.store.firings import Firings
from scopelake.store.integrity import checked_copies
from scopelake.store.lake_store import LakeStore
from scopelake.store.merge import read_firings
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.writer import write_merged

_COLUMNS = ("context", "position", "feature", "activation", "kind")


def remake(
    store: LakeStore, sae: str, corpus: str, codes: Sequence[str], postings: Sequence[str]
) -> list[Receipt]:
    """Write the postings of files of codes anew, and the peaks and samples of all.

    Args:
        store: the lake.
        sae: the coder.
        corpus: the corpus.
        codes: paths of the token-major files whose firings no file of postings has any more.
        postings: paths of the feature-major files that stay.

    Returns:
        Receipts of files that are not committed yet.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    partition = {"sae": sae, "corpus": corpus}
    made = [_postings(store.root, path, partition) for path in codes]
    everything = [*postings, *(receipt.path for receipt in made)]
    with checked_copies(store.root, everything) as local:
        for table in ("peaks", "samples"):
            made += _strongest(store.root, local, everything, table, partition)
    return made


def derive_samples(store: LakeStore) -> list[Receipt]:
    """Write the samples of every coder that has firings: lakes of version 1 have none."""
    snapshot = store.snapshot()
    by_coder: dict[tuple[str, str], list[str]] = {}
    for file in store.data_files("postings", snapshot):
        key = (file.partition["sae"], file.partition["corpus"])
        by_coder.setdefault(key, []).append(file.path)
    made: list[Receipt] = []
    for (sae, corpus), paths in sorted(by_coder.items()):
        with checked_copies(store.root, paths) as local:
            partition = {"sae": sae, "corpus": corpus}
            made += _strongest(store.root, local, paths, "samples", partition)
    return made


def _postings(root: Root, codes: str, partition: dict[str, str]) -> Receipt:
    """Write a file of postings for a file of codes: so many rows are in memory."""
    with checked_copies(root, [codes]) as local:
        rows = pq.read_table(local.open(codes), columns=list(_COLUMNS))
    firings = Firings(*(rows[column].to_numpy() for column in _COLUMNS))
    return write_merged(root, firings, table="postings", partition=partition, run="")


def _strongest(
    root: Root, local: Root, postings: Sequence[str], table: str, partition: dict[str, str]
) -> Iterator[Receipt]:
    groups = list(row_groups(local, postings))
    width = max((group.high for group in groups), default=-1) + 1
    for low, high in ranges(local, groups, width, ROWS_AT_ONCE) if width else ():
        firings = read_firings(local, groups, low, high, "postings")
        yield write_merged(root, firings, table=table, partition=partition, run="")
