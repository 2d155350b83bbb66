from typing import Any

import numpy.typing as npt

Array = bytes | bytearray | npt.NDArray[Any]
Piece = tuple[bytearray, bytearray, bytearray]

def sets() -> list[str]: ...
def pack(set: str, tokens: Array, n: int, d: int) -> bytearray: ...
def encode(
    set: str,
    packed: Array,
    n: int,
    d: int,
    weights: Array,
    bias: Array,
    threshold: Array,
    width: int,
    first: int,
    n_features: int,
    names: Array,
) -> Piece: ...
def join(pieces: list[Piece], n: int) -> Piece: ...
