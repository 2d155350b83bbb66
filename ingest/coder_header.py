"""What a params file holds, checked from its safetensors header before a tensor is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from scopelake.errors import CoderFileError

TENSORS: Final = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
SKIP: Final = "affine_skip_connection"
_DTYPES: Final = ("F32", "BF16")


@dataclass(frozen=True)
class Header:
    """Shapes of one params file: one encoder and its part of the decoder."""

    d_in: int
    width: int
    """Features of this encoder."""
    n_out: int
    """Layers that its decoder writes to; 1 in single-layer coders."""
    d_out: int
    affine: bool


def read_header(params: Path, name: str, *, multi_layer: bool) -> Header:
    """Read and check the header of `params`, of the coder called `name`.

    Raises:
        CoderFileError: not a whole safetensors file, missing tensors, wrong shapes or dtypes.
    """
    return _check(params.name, *_shapes(params, name), name, multi_layer=multi_layer)


def parse_header(start: bytes, file: str, name: str, *, multi_layer: bool) -> Header | None:
    """Read and check a header from the `start` of a params file; None if that has not all of it.

    Raises:
        CoderFileError: as of `read_header`.
    """
    stop = 8 + int.from_bytes(start[:8], "little")
    try:
        tensors = json.loads(start[8:stop]) if 8 < stop <= len(start) else {}
        tensors.pop("__metadata__", None)
        shapes = {key: [int(n) for n in value["shape"]] for key, value in tensors.items()}
        dtypes = {key: str(value["dtype"]) for key, value in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return _check(file, shapes, dtypes, name, multi_layer=multi_layer) if shapes else None


def _check(
    file: str,
    shapes: dict[str, list[int]],
    dtypes: dict[str, str],
    name: str,
    *,
    multi_layer: bool,
) -> Header:
    missing = [key for key in TENSORS if key not in shapes]
    if missing:
        raise CoderFileError(
            f"coder {name} was asked for; {file} holds {', '.join(sorted(shapes))} and "
            f"lacks {', '.join(missing)}; use a JumpReLU coder of Gemma Scope 2"
        )
    n_dims = 3 if multi_layer else 2
    for key, dims in (("w_enc", 2), ("w_dec", n_dims), ("b_dec", 1)):
        if len(shapes[key]) != dims:
            kind = "one encoder of several layers" if multi_layer else "a single-layer coder"
            raise CoderFileError(
                f"coder {name} was asked for; its {key} has shape {shapes[key]}, expected {dims} "
                f"dimensions in {kind}; keep the published folder names"
            )
    (d_in, width), d_out = shapes["w_enc"], shapes["b_dec"][0]
    # Where the others agree on the number of features, they are right and w_enc is not.
    if shapes["b_enc"] == shapes["threshold"] == [d_in] and width != d_in:
        d_in, width = width, d_in
    n_out = shapes["w_dec"][1] if multi_layer else 1
    expected = {
        "w_enc": [d_in, width], "b_enc": [width], "threshold": [width], "b_dec": [d_out],
        "w_dec": [width, n_out, d_out] if multi_layer else [width, d_out], SKIP: [d_in, d_out],
    }  # fmt: skip
    for key in (k for k in expected if k in shapes):
        if shapes[key] != expected[key] or dtypes[key] not in _DTYPES:
            raise CoderFileError(
                f"coder {name} was asked for; its {key} is {dtypes[key]} {shapes[key]}, expected "
                f"F32 {expected[key]}; fetch the file again"
            )
    return Header(d_in, width, n_out, d_out, SKIP in shapes)


def _shapes(params: Path, name: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    try:
        with safe_open(params, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return (
                {key: list(s.get_shape()) for key, s in slices.items()},
                {key: s.get_dtype() for key, s in slices.items()},
            )
    except (SafetensorError, OSError) as error:
        raise CoderFileError(
            f"coder {name} was asked for; {params.name} is not a whole safetensors file ({error}); "
            "fetch it again"
        ) from error
