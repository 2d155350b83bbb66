"""Thrift's compact protocol, written: as much of it as Parquet's metadata needs.

Source: the Thrift project's specification of the compact protocol (thrift-compact-protocol.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_TRUE, _FALSE, _I8, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 5, 6, 8, 9, 12
_LONG_LIST = 15


class Struct:
    """A struct under construction; fields are added by ascending number, each once."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._last = 0

    def boolean(self, field: int, value: bool) -> Struct:
        """Add a bool."""
        self._begin(field, _TRUE if value else _FALSE)
        return self

    def i8(self, field: int, value: int) -> Struct:
        """Add a byte."""
        self._begin(field, _I8)
        self._bytes.append(value & 0xFF)
        return self

    def i32(self, field: int, value: int) -> Struct:
        """Add an i32."""
        self._begin(field, _I32)
        self._bytes += _zigzag(value)
        return self

    def i64(self, field: int, value: int) -> Struct:
        """Add an i64."""
        self._begin(field, _I64)
        self._bytes += _zigzag(value)
        return self

    def binary(self, field: int, value: bytes) -> Struct:
        """Add a string or bytes."""
        self._begin(field, _BINARY)
        self._bytes += _varint(len(value)) + value
        return self

    def struct(self, field: int, value: Struct) -> Struct:
        """Add a struct, which is complete."""
        self._begin(field, _STRUCT)
        self._bytes += value.to_bytes()
        return self

    def structs(self, field: int, values: Sequence[Struct]) -> Struct:
        """Add a list of structs, which are complete."""
        self._list(field, _STRUCT, len(values))
        for value in values:
            self._bytes += value.to_bytes()
        return self

    def i32s(self, field: int, values: Sequence[int]) -> Struct:
        """Add a list of i32."""
        self._list(field, _I32, len(values))
        for value in values:
            self._bytes += _zigzag(value)
        return self

    def strings(self, field: int, values: Sequence[str]) -> Struct:
        """Add a list of strings."""
        self._list(field, _BINARY, len(values))
        for value in values:
            held = value.encode()
            self._bytes += _varint(len(held)) + held
        return self

    def to_bytes(self) -> bytes:
        """Return the struct, ended."""
        return bytes(self._bytes) + b"\0"

    def _begin(self, field: int, kind: int) -> None:
        step = field - self._last
        if 0 < step <= 15:
            self._bytes.append(step << 4 | kind)
        else:
            self._bytes.append(kind)
            self._bytes += _zigzag(field)
        self._last = field

    def _list(self, field: int, kind: int, n: int) -> None:
        self._begin(field, _LIST)
        if n < _LONG_LIST:
            self._bytes.append(n << 4 | kind)
        else:
            self._bytes.append(_LONG_LIST << 4 | kind)
            self._bytes += _varint(n)


_SMALL: Final = [bytes([n]) for n in range(128)]


def _varint(value: int) -> bytes:
    if value < 128:
        return _SMALL[value]
    held = bytearray()
    while value > 0x7F:
        held.append(value & 0x7F | 0x80)
        value >>= 7
    held.append(value)
    return bytes(held)


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
