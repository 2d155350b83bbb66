"""Where things are in a lake, relative to its root: pure path arithmetic, no IO."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from scopelake.names import slug

FORMAT: Final = "scopelake"
FORMAT_VERSION: Final = 4
"""What is written; see docs/format.md for what changed."""

READABLE_VERSIONS: Final = (1, 2, 3, 4)

TABLES: Final = (
    "contexts",
    "codes",
    "postings",
    "peaks",
    "samples",
    "tallies",
    "features",
    "neighbors",
    "evaluations",
    "labels",
    "saes",
    "models",
    "corpora",
    "runs",
    "files",
    "merged",
    "snapshots",
)
"""Every table of a lake; each is a Delta table. One that an older lake lacks is read as empty."""

DENSE: Final = "dense"
"""The kind that dense shards have in the ``files`` table."""


LAKE_FILE: Final = "lake.json"
"""The file that makes a folder a lake."""

PENDING: Final = "pending"
"""The folder of commits that have begun; empty when the lake is idle."""

ACTIVATIONS: Final = "activations"
"""The folder of the Zarr group of dense activations."""


DENSE_SHARD: Final = re.compile(r"/c/\d+/0/0\Z")
"""The end of a dense shard's path; its array's metadata lies beside."""


def table_folder(table: str) -> str:
    """Return the folder of a Delta table."""
    return f"tables/{table}"


_DIGEST: Final = re.compile(r"-([0-9a-f]{32})\.parquet\Z")


def data_folder(table: str, partition: dict[str, str]) -> PurePosixPath:
    """Return the folder, relative to the lake, of the files with rows of one partition.

    Partition folders are ``column=value`` with the value percent-encoded, as Delta writers do:
    some readers (Polars) take partition values from the path and not from the log.
    """
    folders = [f"{column}={quote(value, safe='')}" for column, value in partition.items()]
    return PurePosixPath("tables", table, *folders)


def new_data_name(checksum: str) -> str:
    """Return a fresh name for a Parquet file, which carries the checksum of its bytes."""
    return f"{uuid4().hex}-{checksum.removeprefix('xxh3:')}.parquet"


def checksum_in_name(name: str) -> str | None:
    """Return the checksum that a file's name carries; the first lakes' have none."""
    match = _DIGEST.search(name)
    return f"xxh3:{match[1]}" if match else None


def array_name(corpus: str, model: str, site: str, layer: int) -> str:
    """Return the path of a dense array inside the Zarr group."""
    return f"{corpus}/{slug(model)}/{site}/layer_{layer}"
