from typing import Any

import numpy.typing as npt

Column = bytes | npt.NDArray[Any]
Writable = bytearray | npt.NDArray[Any]

def count(feature: Column, low: int, rows: Writable) -> None: ...
def gather(
    feature: Column,
    activation: Column,
    kind: Column,
    next: Writable,
    stop: Column,
    values: Writable,
    pages: Writable,
    pool: Writable,
    used: Writable,
    low: int,
    first: int,
) -> tuple[int, int]: ...
def sort(values: Writable, starts: Column, counts: Column) -> None: ...
def summarize(
    values: Column, starts: Column, counts: Column, sums: Writable, bins: Writable
) -> None: ...
def paged(
    pages: Column, pool: Column, ranks: Column, values: Writable, sums: Writable, bins: Writable
) -> None: ...
