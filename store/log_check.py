"""Whether what is beside the data agrees with it: bounds in the Delta log, metadata of arrays.

Readers skip a file whose bounds in the log leave out what they look for, so a flipped bit there
hides rows; one in an array's ``zarr.json`` may change what its cells read as.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import zarr.storage

from scopelake.errors import ObjectStoreError
from scopelake.names import counted
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.dense import array_format, open_array
from scopelake.store.expected import UNREADABLE
from scopelake.store.lake_store import LakeStore
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot


def file_contradiction(root: Root, path: str, action: Mapping[str, Any]) -> str | None:
    """Return in words how the log's entry of a Parquet file differs from the file, if it does.

    Args:
        root: the lake's.
        path: of the file.
        action: path, num_records, partition.<column>, min.<column>, max.<column> of the log.
    """
    for name, value in action.items():
        kind, _, column = name.partition(".")
        if kind == "partition" and f"/{column}={quote(str(value), safe='')}/" not in path:
            return f"the log says {column} {value!r}"
    metadata = pq.read_metadata(root.open(path))
    said_rows = action["num_records"]
    if said_rows is None:
        return "the log says nothing of its rows"
    if metadata.num_rows != said_rows:
        return f"the log says {counted(said_rows, 'row')} instead of {metadata.num_rows:,}"
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index).path
        if metadata.num_rows == 0 or action.get(f"min.{column}") is None:
            continue
        bounds = [s for s in (g.column(index).statistics for g in groups) if s and s.has_min_max]
        found = (min(s.min for s in bounds), max(s.max for s in bounds)) if bounds else None
        said = (action[f"min.{column}"], action[f"max.{column}"])
        # Text and times are shortened in the log, by whoever wrote it.
        if found is not None and isinstance(said[0], int | float) and found != said:
            return f"the log says {column} from {said[0]} to {said[1]} instead of {found}"
    return None


def array_contradiction(
    store: LakeStore, snapshot: Snapshot, corpus: str, model: str, site: str, layer: int
) -> str | None:
    """Return in words how an array's metadata differs from what was written, if it does."""
    try:
        array = open_array(store.root, corpus, model, site, layer)
    except Exception as error:  # noqa: BLE001 - zarr has no base of its own for broken metadata
        return f"its metadata cannot be read ({store.root.describe(error)})"
    known = _corpus_shape(store, corpus)
    shape = array.shape
    if known is not None:
        # It grows when what was appended is ingested: until then it may be as it was before.
        ends, length = known
        shape = (shape[0] if shape[0] in ends else ends[-1], length, shape[2])
    shards = array.shards or array.chunks
    wanted = zarr.create_array(
        zarr.storage.MemoryStore(), zarr_format=3, **array_format(shape, shards)
    )
    found, expected = array.metadata.to_dict(), wanted.metadata.to_dict()
    wrong = sorted(key for key in expected if found.get(key) != expected[key])
    return f"its metadata has another {', '.join(wrong)}" if wrong else None


def _corpus_shape(store: LakeStore, corpus: str) -> tuple[tuple[int, ...], int] | None:
    """Return contexts, now and before each append, and positions of a corpus's arrays.

    None where the catalogue has no word.
    """
    columns, filters = [*NUMBER_COLUMNS, "context_length"], [("corpus", "=", corpus)]
    try:
        rows = store.read("corpora", store.snapshot(), columns, filters).to_pylist()
    except ObjectStoreError:
        raise
    except UNREADABLE:  # that is a finding of its own
        return None
    return (ContextNumbers.of(rows[0]).ends, rows[0]["context_length"]) if rows else None
