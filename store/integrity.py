"""Every file is hashed once in a process before it is first read: a flipped bit never answers.

Readers of Parquet take damaged pages for values (DuckDB 1.5 gave other values without an error for
98 of 100 random flipped bits), so the checksum comes first. It is in a file's name, or, in the
first lakes, in the ``files`` table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from scopelake.errors import DamagedFileError
from scopelake.store.layout import checksum_in_name
from scopelake.store.receipts import checksum

_checked: set[tuple[Path, int, int]] = set()
"""path, bytes and time of change of files whose checksum was right"""


def check_files(paths: Iterable[Path], known: Mapping[str, str] | None = None) -> None:
    """Refuse files whose bytes are not those that were written.

    Args:
        paths: Parquet files.
        known: checksums by name, of files whose name carries none; such a file that is not there
            either is taken as it is.

    Raises:
        DamagedFileError: a file is missing or has another checksum.
    """
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise DamagedFileError(
                f"{path} was to be read; it is not there; run scopelake verify"
            ) from error
        key = (path, status.st_size, status.st_mtime_ns)
        if key in _checked:
            continue
        expected = checksum_in_name(path.name) or (known or {}).get(path.name)
        if expected is not None:
            found = checksum(path)
            if found != expected:
                raise DamagedFileError(
                    f"{path} was to be read; its checksum is {found}, it was written with "
                    f"{expected}; run scopelake verify"
                )
        _checked.add(key)
