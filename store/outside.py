"""Files for users stay outside of lakes, whose folders hold only what snapshots name."""

from __future__ import annotations

from pathlib import Path

from scopelake.errors import InvalidArgumentError
from scopelake.store.layout import LAKE_FILE


def check_outside(path: str | Path) -> Path:
    """Refuse a path that is a lake's folder or inside of one, links followed.

    Args:
        path: where a file or folder is to be written.

    Returns:
        It, as a path.

    Raises:
        InvalidArgumentError: it is in a lake.
    """
    asked = Path(path)
    full = asked.resolve()
    for folder in (full, *full.parents):
        if (folder / LAKE_FILE).is_file() and (folder / "tables").is_dir():
            raise InvalidArgumentError(
                f"{asked} was to be written; it is in the lake at {folder}, where only the lake's "
                "own files belong; choose a path outside"
            )
    return asked
