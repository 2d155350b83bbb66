"""Columns of numbers as Parquet column chunks: a page each, after a dictionary where there is one.

Source: the Parquet format's specification (parquet.thrift, Encodings.md, Compression.md).
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt
import pyarrow as pa

from scopelake.store.thrift import Struct

try:
    from scopelake.store import _pages
except ImportError as error:
    WHY_NOT: str | None = f"the compiled writer of pages is not built ({error})"
else:
    WHY_NOT = None

INT32, INT64, FLOAT = 1, 2, 4
"""Parquet's physical types."""

PLAIN, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY, BYTE_STREAM_SPLIT = 0, 3, 5, 8, 9
"""Parquet's encodings."""

_UNCOMPRESSED, _ZSTD = 0, 6
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2

_WIDEST: Final = 1 << 22
"""Values from lowest to highest up to which a dictionary is made; its table is four bytes each."""

_PAYS: Final = 0.97
"""Share of its bytes to which a column's first data page has to compress, or none is compressed."""

PHYSICAL: Final = {"int8": INT32, "int32": INT32, "int64": INT64, "float": FLOAT}
"""By type."""

_SHORT: Final = ("PLAIN", "DELTA_BINARY_PACKED", "RLE_DICTIONARY")
_FITTING: Final = {
    "int8": _SHORT,
    "int32": _SHORT,
    "int64": ("PLAIN", "DELTA_BINARY_PACKED"),
    "float": ("PLAIN", "BYTE_STREAM_SPLIT"),
}
"""Encodings by type."""

_WIDTHS: Final = {INT32: "<i4", INT64: "<i8", FLOAT: "<f4"}
_FORMATS: Final = {INT32: "<i", INT64: "<q", FLOAT: "<f"}


@dataclass(frozen=True)
class Chunk:
    """A column of a row group, as bytes that lie in a file one after the other."""

    pages: tuple[bytes | bytearray, ...]
    """Header and body of the dictionary page, if there is one, and of the data page."""
    n_rows: int
    n_plain: int
    """Bytes before compression, headers included."""
    encodings: tuple[int, ...]
    bounds: tuple[bytes, bytes] | None

    @property
    def n_before(self) -> int:
        """Bytes of the dictionary page: before the data page."""
        return sum(map(len, self.pages[:-2]))

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return sum(map(len, self.pages))


class ColumnWriter:
    """Makes the chunks of one column.

    Args:
        type_: int8, int32, int64 or float.
        encoding: RLE_DICTIONARY (integers of 4 bytes or less; delta-coded where they are too far
            apart), DELTA_BINARY_PACKED (integers), BYTE_STREAM_SPLIT (floats) or PLAIN.
        level: of zstd.
    """

    def __init__(self, type_: pa.DataType, encoding: str, level: int) -> None:
        if not self.takes(type_, encoding):
            fitting = _FITTING.get(str(type_), ())
            raise ValueError(
                f"a column of {type_} has one of {', '.join(fitting) or 'none'}; not {encoding}"
            )
        self.physical = PHYSICAL[str(type_)]
        self._encoding = encoding
        self._zstd = pa.Codec("zstd", compression_level=level)
        self._pays: bool | None = None

    @staticmethod
    def takes(type_: pa.DataType, encoding: str) -> bool:
        """Return whether columns of this type can be written in this encoding."""
        return encoding in _FITTING.get(str(type_), ())

    @property
    def codec(self) -> int:
        """Parquet's number of the compression, which is that of every chunk of the column."""
        return _ZSTD if self._pays else _UNCOMPRESSED

    def chunk(self, values: npt.NDArray[Any]) -> Chunk:
        """Return a column chunk of the values, one or more, contiguous."""
        low, high = values.min(), values.max()
        encoding, dictionary, data = self._encoded(values, low, high)
        body = self._squeezed(data)  # before the dictionary: the data decide whether it pays
        pages: list[bytes | bytearray] = []
        n_plain = 0
        if dictionary is not None:
            of = Struct().i32(1, len(dictionary) // 4).i32(2, PLAIN).boolean(3, True)
            squeezed = self._squeezed(dictionary)
            pages += _headed(_DICTIONARY_PAGE, len(dictionary), squeezed, of)
            n_plain += len(pages[0]) + len(dictionary)
        of = Struct().i32(1, len(values)).i32(2, encoding).i32(3, RLE).i32(4, RLE)
        pages += _headed(_DATA_PAGE, len(data), body, of)
        n_plain += len(pages[-2]) + len(data)
        used = {encoding, RLE} | ({PLAIN} if dictionary is not None else set())
        return Chunk(
            tuple(pages), len(values), n_plain, tuple(sorted(used)), self._bounds(low, high)
        )

    def _encoded(
        self,
        values: npt.NDArray[Any],
        low: Any,  # noqa: ANN401
        high: Any,  # noqa: ANN401
    ) -> tuple[int, bytearray | None, bytes | bytearray]:
        """Return the encoding, the dictionary if there is one, and the data."""
        size = values.itemsize
        if self._encoding == "RLE_DICTIONARY" and int(high) - int(low) < _WIDEST:
            dictionary, data = _pages.dictionary(values, size, int(low), int(high))
            return RLE_DICTIONARY, dictionary, data
        if self._encoding in ("RLE_DICTIONARY", "DELTA_BINARY_PACKED"):
            return DELTA_BINARY_PACKED, None, _pages.delta(values, size)
        if self._encoding == "BYTE_STREAM_SPLIT":
            return BYTE_STREAM_SPLIT, None, _pages.split(values)
        return PLAIN, None, values.astype(_WIDTHS[self.physical], copy=False).tobytes()

    def _squeezed(self, data: bytes | bytearray) -> bytes | bytearray:
        """Return the body of a page; the column's first one decides for all."""
        if self._pays is False:
            return data
        made: bytes = self._zstd.compress(data, asbytes=True)
        if self._pays is None:
            self._pays = len(made) < _PAYS * len(data)
        return made if self._pays else data

    def _bounds(self, low: Any, high: Any) -> tuple[bytes, bytes] | None:  # noqa: ANN401
        form = _FORMATS[self.physical]
        if self.physical != FLOAT:
            return struct.pack(form, int(low)), struct.pack(form, int(high))
        if math.isnan(low) or math.isnan(high):
            return None
        # A zero may stand for either sign.
        return struct.pack(form, low or -0.0), struct.pack(form, high or 0.0)


def _headed(
    kind: int, n_plain: int, body: bytes | bytearray, of: Struct
) -> tuple[bytes, bytes | bytearray]:
    """Return a page's header and body."""
    crc = struct.unpack("<i", struct.pack("<I", zlib.crc32(body)))[0]
    header = Struct().i32(1, kind).i32(2, n_plain).i32(3, len(body)).i32(4, crc)
    return header.struct(5 if kind == _DATA_PAGE else 7, of).to_bytes(), body
