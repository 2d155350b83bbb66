"""Files as streams of bytes, decompressed by suffix; never whole in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Final, cast

import pyarrow as pa

from scopelake.errors import CorpusSourceError

COMPRESSED_SUFFIXES: Final = (".gz", ".zst", ".bz2", ".xz")
_BUFFER: Final = 1 << 20


def without_compression(path: PurePath) -> PurePath:
    """Return the path of what a compressed file holds; a plain file's as it is."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path


@contextmanager
def opened(path: Path, where: str) -> Iterator[IO[bytes]]:
    """Open a file to read, decompressed.

    Args:
        path: of the file; its suffix says how it is compressed.
        where: it comes from, for messages.

    Raises:
        CorpusSourceError: it cannot be read, or is not what its suffix says, also while it is read.
    """
    suffix = path.suffix.lower()
    try:
        with _open(path, suffix) as stream:
            yield stream
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror is not None:
            raise CorpusSourceError(
                f"{where} was asked for; it cannot be read ({error.strerror}); check its "
                "permissions"
            ) from error
        if suffix not in COMPRESSED_SUFFIXES:
            raise
        raise CorpusSourceError(
            f"{where} was asked for; it is not a whole {suffix} file ({_short(error)}); make it "
            "again"
        ) from error


def _open(path: Path, suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    if suffix == ".bz2":
        return bz2.open(path)
    if suffix == ".xz":
        return lzma.open(path)
    if suffix == ".zst":
        # Arrow's own codec: it reads files of several frames, and refuses one that is cut off.
        stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return io.BufferedReader(stream, _BUFFER)
    return path.open("rb", buffering=_BUFFER)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
