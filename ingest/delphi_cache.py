"""A latent cache of delphi's: one folder of splits, as `LatentCache.save_splits` writes them.

A split's name is ``<first>_<last>``, its features; in it ``locations`` [firings, 3] are row,
position and feature from the first, ``activations`` [firings], and ``tokens`` [rows, length].
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from safetensors import SafetensorError, safe_open

from scopelake.errors import CoderFileError

_NAME: Final = re.compile(r"(\d+)_(\d+)")
_CONFIG: Final = "config.json"
_FIRINGS_AT_ONCE: Final = 1 << 20
_TOKENS_AT_ONCE: Final = 1 << 20
_NEEDED: Final = ("locations", "activations", "tokens")
_WHOLE: Final = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_DTYPES: Final = {"locations": _WHOLE, "activations": ("F16", "BF16", "F32"), "tokens": _WHOLE}
"""What the import can take as it is: of more bits an activation would be rounded."""


@dataclass(frozen=True)
class Block:
    """Some firings of a cache."""

    row: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]
    first: int
    last: int
    """Features of the split that they are in."""


@dataclass(frozen=True)
class DelphiCache:
    """What a cache says of itself."""

    path: Path
    splits: tuple[tuple[int, Path], ...]
    """First feature and file of each, ascending."""
    width: int
    shape: tuple[int, int]
    """Rows, and tokens of each."""
    n_firings: int
    config: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The model that its configuration names."""
        named = self.config.get("model_name")
        return named if isinstance(named, str) and named else None

    def token_rows(self) -> Iterator[npt.NDArray[np.int32]]:
        """Yield the tokens, some rows at a time."""
        yield from _tokens(self.splits[0][1])

    def blocks(self) -> Iterator[Block]:
        """Yield the firings, split by split."""
        for (first, path), last in zip(self.splits, self._lasts(), strict=True):
            # numpy has no bfloat16 of its own.
            with safe_open(path, framework="np") as file, safe_open(path, "pt") as in_torch:
                locations = file.get_slice("locations")
                activations = in_torch.get_slice("activations")
                (n,) = activations.get_shape()
                for start in range(0, n, _FIRINGS_AT_ONCE):
                    some = slice(start, min(start + _FIRINGS_AT_ONCE, n))
                    where = locations[some].astype(np.int64)
                    values = activations[some].to(torch.float32).numpy()
                    yield Block(where[:, 0], where[:, 1], where[:, 2] + first, values, first, last)

    def _lasts(self) -> list[int]:
        return [first - 1 for first, _ in self.splits[1:]] + [self.width - 1]


def read_cache(path: Path) -> DelphiCache:
    """Read what a cache has, and check that its splits belong together.

    Args:
        path: folder of one module: the splits and config.json.

    Raises:
        CoderFileError: it is no cache, a split is missing or damaged, or has no tokens or others.
    """
    splits = _splits(path)
    config = _config(path)
    shapes = [_shape(file, *bounds) for bounds, file in splits]
    digests = {_digest(file) for _, file in splits}
    if len({shape for shape, _ in shapes}) > 1 or len(digests) > 1:
        raise CoderFileError(
            f"the cache in {path} was to be read; its splits have different tokens; they are of "
            "several runs: cache it again"
        )
    return DelphiCache(
        path,
        tuple((first, file) for (first, _), file in splits),
        splits[-1][0][1] + 1,
        shapes[0][0],
        sum(n for _, n in shapes),
        config,
    )


def _splits(path: Path) -> list[tuple[tuple[int, int], Path]]:
    found = []
    for file in path.glob("*.safetensors") if path.is_dir() else ():
        bounds = _NAME.fullmatch(file.stem)
        if bounds is not None:
            found.append(((int(bounds[1]), int(bounds[2])), file))
    if not found:
        raise CoderFileError(
            f"a delphi cache in {path} was asked for; it has no files such as 0_3275.safetensors; "
            "name the folder of one module, which is in latents/"
        )
    found.sort()
    expected = 0
    for (first, last), _ in found:
        if first != expected or last < first:
            raise CoderFileError(
                f"the cache in {path} was to be read; a split that begins with feature {expected} "
                f"is missing, the next one is {first}_{last}; cache it again"
            )
        expected = last + 1
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CoderFileError(
            f"the cache in {path} was to be read; its {_CONFIG} cannot be ({error}); restore it"
        ) from error
    return config if isinstance(config, dict) else {}


def _shape(file: Path, first: int, last: int) -> tuple[tuple[int, int], int]:
    """Return rows and length of a split's tokens, and how many firings it has."""
    try:
        with safe_open(file, framework="np") as opened:
            there: Sequence[str] = list(opened.keys())
            missing = [name for name in _NEEDED if name not in there]
            slices = {name: opened.get_slice(name) for name in _NEEDED if name in there}
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            dtypes = {name: one.get_dtype() for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CoderFileError(
            f"{file} was to be read; it is no whole safetensors file ({error}); cache it again"
        ) from error
    if missing:
        raise CoderFileError(
            f"{file} was to be read; it has no {', '.join(missing)}; cache it with save_tokens=True"
        )
    _check_dtypes(file, dtypes)
    locations, activations, tokens = (shapes[name] for name in _NEEDED)
    if len(activations) != 1 or locations != (activations[0], 3) or len(tokens) != 2:
        raise CoderFileError(
            f"{file} was to be read; its locations, activations and tokens are of shapes "
            f"{locations}, {activations} and {tokens}; they have to be [n, 3], [n] and [rows, "
            "length]: cache it again"
        )
    return (tokens[0], tokens[1]), activations[0]


def _check_dtypes(file: Path, dtypes: dict[str, str]) -> None:
    for name, dtype in dtypes.items():
        if dtype not in _DTYPES[name]:
            raise CoderFileError(
                f"{file} was to be read; its {name} are of type {dtype}; they have to be of "
                f"{', '.join(_DTYPES[name])}: cache it again"
            )


def _tokens(file: Path) -> Iterator[npt.NDArray[np.int32]]:
    with safe_open(file, framework="np") as opened:
        tokens = opened.get_slice("tokens")
        n_rows, length = tokens.get_shape()
        step = max(1, _TOKENS_AT_ONCE // max(length, 1))
        for start in range(0, n_rows, step):
            yield tokens[slice(start, min(start + step, n_rows))].astype(np.int32)


def _digest(file: Path) -> str:
    state = xxhash.xxh3_128()
    for rows in _tokens(file):
        state.update(np.ascontiguousarray(rows).data)
    return f"xxh3:{state.hexdigest()}"


def tokens_digest(cache: DelphiCache) -> str:
    """Return the digest of a cache's tokens, by which its corpus is known."""
    return _digest(cache.splits[0][1])
