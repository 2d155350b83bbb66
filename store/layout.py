"""Where things are in a lake's folder: pure path arithmetic, no IO."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from scopelake.names import slug

FORMAT: Final = "scopelake"
FORMAT_VERSION: Final = 1

TABLES: Final = (
    "contexts",
    "codes",
    "postings",
    "peaks",
    "features",
    "evaluations",
    "labels",
    "saes",
    "models",
    "corpora",
    "runs",
    "files",
    "snapshots",
)
"""Every table of a lake; each is a Delta table. One that an older lake lacks is read as empty."""

DENSE: Final = "dense"
"""The kind that dense shards have in the ``files`` table."""


def lake_file(root: Path) -> Path:
    """Return the file that makes a folder a lake."""
    return root / "lake.json"


def pending_dir(root: Path) -> Path:
    """Return the folder of commits that have begun; empty when the lake is idle."""
    return root / "pending"


def table_path(root: Path, table: str) -> Path:
    """Return the folder of a Delta table."""
    return root / "tables" / table


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


def activations_dir(root: Path) -> Path:
    """Return the folder of the Zarr group of dense activations."""
    return root / "activations"


def array_name(corpus: str, model: str, site: str, layer: int) -> str:
    """Return the path of a dense array inside the Zarr group."""
    return f"{corpus}/{slug(model)}/{site}/layer_{layer}"
