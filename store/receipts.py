"""What a worker hands to the committer for a file that it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import xxhash


@dataclass(frozen=True)
class Receipt:
    """A file that is on disk and durable, but not part of the lake until it is committed."""

    table: str
    """The table it belongs to, or ``dense``."""
    path: str
    """Relative to the lake, with ``/``."""
    run: str
    n_rows: int
    n_bytes: int
    checksum: str
    """``xxh3:`` and 32 hex digits, of the file's bytes."""
    partition: dict[str, str] = field(default_factory=dict)
    stats: str = ""
    """Delta's statistics of the file, JSON; empty for dense shards."""
    shard: int | None = None
    sae: str | None = None
    corpus: str | None = None
    model: str | None = None
    site: str | None = None
    layer: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Receipt:
        """Return the receipt that `to_dict` made `values` of."""
        return Receipt(**values)


class Hashed:
    """A file that is written from its beginning to its end, hashed on the way.

    Args:
        file: to write to.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, xxhash.xxh3_128()
        self.n_bytes = 0

    def write(self, data: bytes | bytearray) -> int:
        """Write bytes behind those that are there."""
        self._digest.update(data)
        self.n_bytes += memoryview(data).nbytes
        return self._file.write(data)

    def writelines(self, parts: Iterable[bytes | bytearray]) -> None:
        """Write one after the other."""
        for part in parts:
            self.write(part)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    @property
    def checksum(self) -> str:
        """The checksum of what was written, as `checksum` gives it."""
        return _named(self._digest)


def checksum(path: Path) -> str:
    """Return the checksum of a file's bytes: ``xxh3:`` and 32 hex digits (XXH3, 128 bits)."""
    with path.open("rb") as file:
        return checksum_of(file)


def checksum_of(file: BinaryIO) -> str:
    """Return the checksum of what is left to read of an open file."""
    digest = xxhash.xxh3_128()
    while block := file.read(1 << 22):
        digest.update(block)
    return _named(digest)


def _named(digest: xxhash.xxh3_128) -> str:
    return f"xxh3:{digest.hexdigest()}"
