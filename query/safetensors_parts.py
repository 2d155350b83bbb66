"""Safetensors files put together of parts on disk, so that no tensor is ever in memory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_NAMES: Final = {"uint16": "U16", "uint32": "U32", "int32": "I32", "float16": "F16",
                 "float32": "F32"}  # fmt: skip
_BLOCK: Final = 1 << 20
_ALIGNED: Final = 8


@dataclass(frozen=True)
class Part:
    """A tensor as a file of its values, in C order."""

    path: Path
    dtype: npt.DTypeLike
    shape: tuple[int, ...]


def write_safetensors(path: Path, parts: Mapping[str, Part], metadata: Mapping[str, str]) -> None:
    """Write tensors into one file; widest types first, so that all are aligned."""
    ordered = sorted(parts.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, part in ordered:
        end = at + part.path.stat().st_size
        dtype = _NAMES[np.dtype(part.dtype).name]
        header[name] = {"dtype": dtype, "shape": list(part.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, part in ordered:
            with part.path.open("rb") as values:
                shutil.copyfileobj(values, file, _BLOCK)


def cast_part(part: Part, dtype: npt.DTypeLike, path: Path) -> tuple[Part, float]:
    """Write a part's values in another type, some at a time.

    Returns:
        The new part, and the largest relative difference of a value.
    """
    error = 0.0
    given = np.dtype(part.dtype)
    with part.path.open("rb") as source, path.open("xb") as target:
        while block := source.read(_BLOCK * given.itemsize):
            values = np.frombuffer(block, given)
            cast = values.astype(dtype)
            target.write(cast.tobytes())
            wide = values.astype(np.float64)
            error = max(error, float(np.max(np.abs(cast.astype(np.float64) / wide - 1))))
    return Part(path, dtype, part.shape), error


def append(path: Path, values: npt.NDArray[np.generic] | Sequence[float]) -> None:
    """Put values behind those of a part."""
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(values).tobytes())
