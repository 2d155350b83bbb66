"""scopelake: the activation store and query layer for Gemma 3 and Gemma Scope 2.

>>> import scopelake                                             # doctest: +SKIP
>>> lake = scopelake.open("demo-lake")                           # doctest: +SKIP
>>> lake.top_contexts(17, layer=3, site="resid_post")            # doctest: +SKIP

Importing this package loads neither torch nor DuckDB; what a call needs is loaded by the call.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopelake.errors import ScopelakeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scopelake.lake import Lake
    from scopelake.store.verify import Verification

__all__ = ["Lake", "ScopelakeError", "__version__", "create", "open", "verify"]


def create(path: str | Path) -> Lake:
    """Create an empty lake at `path`, a folder or ``s3://`` prefix that is absent or empty.

    Raises:
        LakeExistsError: something is there already.
    """
    from scopelake.lake import Lake

    return Lake.create(path)


def open(path: str | Path, snapshot: int | None = None) -> Lake:  # noqa: A001
    """Open the lake at `path`: at its latest snapshot, or pinned to `snapshot` and read-only.

    Raises:
        LakeNotFoundError: nothing is there.
        NotALakeError: the folder is not a lake.
        DamagedFileError: its lake.json is damaged or missing, or what says which snapshots it has.
        SnapshotNotFoundError: there is no such snapshot.
    """
    from scopelake.lake import Lake

    return Lake.open(path, snapshot)


def verify(
    path: str | Path,
    snapshot: int | None = None,
    *,
    all_snapshots: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Re-read the files of the lake at `path`, also of one too damaged to be opened.

    Args:
        path: of the lake.
        snapshot: whose files; of the latest by default.
        all_snapshots: read the files that any snapshot names, each once.
        progress: called with bytes read and bytes in all.

    Raises:
        LakeNotFoundError: nothing is there.
        NotALakeError: the folder is not a lake.
        DamagedFileError: its lake.json is damaged or missing.
        SnapshotNotFoundError: there is no such snapshot.
        InvalidArgumentError: one snapshot and all were asked for.
    """
    from scopelake.lake import verify

    return verify(path, snapshot, all_snapshots=all_snapshots, progress=progress)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "Lake":
        from scopelake.lake import Lake

        return Lake
    if name == "__version__":
        return version("scopelake")
    raise AttributeError(f"module 'scopelake' has no attribute {name!r}")
