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
    from scopelake.lake import Lake

__all__ = ["Lake", "ScopelakeError", "__version__", "create", "open"]


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
        SnapshotNotFoundError: there is no such snapshot.
    """
    from scopelake.lake import Lake

    return Lake.open(path, snapshot)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "Lake":
        from scopelake.lake import Lake

        return Lake
    if name == "__version__":
        return version("scopelake")
    raise AttributeError(f"module 'scopelake' has no attribute {name!r}")
