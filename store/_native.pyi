from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

Column = bytes | bytearray | npt.NDArray[Any]

def by_feature(
    context: Column,
    position: Column,
    feature: Column,
    activation: Column,
    kind: Column,
    width: int,
) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]: ...
def select(
    context: Column,
    position: Column,
    feature: Column,
    activation: Column,
    kind: Column,
    peak_bounds: Column,
    sample_bounds: Column,
    k_peaks: int,
    per_band: int,
) -> tuple[bytearray, bytearray, bytearray, bytearray]: ...
def bucket(
    parts: Sequence[tuple[Column, Column, Column]], low: int, high: int
) -> tuple[bytearray, bytearray]: ...
def summarize(counts: Column, activations: Column) -> tuple[bytearray, bytearray]: ...
