from typing import Any

import numpy.typing as npt

Array = bytes | bytearray | npt.NDArray[Any]

def candidates(
    product: Array, n: int, width: int, tokens: Array, features: Array, first: int
) -> tuple[bytearray, bytearray]: ...
def score(
    x: Array,
    n: int,
    d: int,
    rows: Array,
    bias: Array,
    threshold: Array,
    width: int,
    counts: Array,
    features: Array,
) -> tuple[bytearray, bytearray, bytearray]: ...
