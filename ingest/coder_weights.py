"""Loading a coder's weights slice by slice: never more in memory than the result and one slice.

Encoders that are very large are not loaded for a CPU, but mapped: their pages are read while they
encode, and the system may let go of them, so that a coder larger than the memory encodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from scopelake.errors import CoderFileError
from scopelake.ingest.coder_header import SKIP
from scopelake.ingest.coders import CoderFiles
from scopelake.kernels.encode import prepare
from scopelake.kernels.weights import DecoderWeights, EncoderWeights

SLICE_BYTES: Final = 64 << 20

MAPPED_BYTES: Final = 4 << 30
"""Encoders of so many bytes are mapped."""


def load_encoders(
    coder: CoderFiles, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[EncoderWeights, ...]:
    """Load the encoders of `coder`, one for each layer; its decoder is not read.

    Args:
        coder: which.
        device: where to; on a CPU a very large encoder in float32 stays in its file, which must
            not be written to meanwhile.
        dtype: of the result.

    Raises:
        CoderFileError: a threshold is negative or a value is not finite.
    """
    encoders = []
    for params in coder.params:
        tensors = {k: _load(params, k, device, dtype) for k in ("b_enc", "threshold")}
        mapped = _mapped(params, "w_enc") if device.type == "cpu" else None
        if mapped is None or mapped.dtype != dtype or mapped.nbytes < MAPPED_BYTES:
            mapped = _load(params, "w_enc", device, dtype)
        tensors["w_enc"] = mapped
        _check(coder, params, tensors)
        if bool((tensors["threshold"] < 0).any()):
            raise CoderFileError(
                f"coder {coder.name} has a negative threshold; a JumpReLU's is 0 or more; fetch "
                f"{params.name} again"
            )
        weights = EncoderWeights(tensors["w_enc"], tensors["b_enc"], tensors["threshold"])
        encoders.append(prepare(weights))
    return tuple(encoders)


def load_decoder(
    coder: CoderFiles, device: torch.device, dtype: torch.dtype = torch.float32
) -> DecoderWeights:
    """Load the decoder of `coder`.

    Raises:
        CoderFileError: a value is not finite.
    """
    w_dec, b_dec, skip = [], [], []
    for params in coder.params:
        keys = ("w_dec", "b_dec", SKIP) if coder.affine else ("w_dec", "b_dec")
        tensors = {key: _load(params, key, device, dtype) for key in keys}
        _check(coder, params, tensors)
        shape = (coder.features_per_layer, len(coder.targets), coder.d_out)
        w_dec.append(tensors["w_dec"].view(shape))
        b_dec.append(tensors["b_dec"])
        skip += [tensors[SKIP]] if coder.affine else []
    return DecoderWeights(tuple(w_dec), torch.stack(b_dec), torch.stack(skip) if skip else None)


def load_decoder_rows(
    coder: CoderFiles, features: npt.NDArray[np.int64], device: torch.device
) -> DecoderWeights:
    """Load what of a decoder a few features need, as a decoder of these alone.

    Args:
        coder: which.
        features: ascending, each once; the first of them is feature 0 of the result.
        device: where to.

    Raises:
        CoderFileError: a value is not finite.
    """
    b_dec, skip, rows = [], [], []
    for number, params in enumerate(coder.params):
        own = features - number * coder.features_per_layer
        own = own[(own >= 0) & (own < coder.features_per_layer)]
        # Mapped: only the pages of these rows are read.
        found = _mapped(params, "w_dec")[torch.from_numpy(own)].to(device, torch.float32)
        tensors = {"b_dec": _load(params, "b_dec", device, torch.float32)}
        if coder.affine:
            tensors[SKIP] = _load(params, SKIP, device, torch.float32)
        _check(coder, params, tensors | ({"w_dec": found} if len(own) else {}))
        rows.append(found.view(len(own), len(coder.targets), coder.d_out))
        b_dec.append(tensors["b_dec"])
        skip += [tensors[SKIP]] if coder.affine else []
    found = rows[0] if len(rows) == 1 else torch.cat(rows)
    return DecoderWeights((found,), torch.stack(b_dec), torch.stack(skip) if skip else None)


def decoder_rows(coder: CoderFiles, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the decoder's rows, feature by feature, as float32 [some features, n_out, d_out].

    Raises:
        CoderFileError: a value is not finite.
    """
    shape = (-1, len(coder.targets), coder.d_out)
    for params in coder.params:
        for part in _slices(params, "w_dec"):
            rows = part.to(device, torch.float32).view(shape)
            _check(coder, params, {"w_dec": rows})
            yield rows


def encoder_parts(coder: CoderFiles, layer: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the rows of one encoder's ``w_enc`` as float32 [some of d_in, features_per_layer].

    Args:
        coder: which.
        layer: number of the encoder, from 0.
        device: where to.

    Raises:
        CoderFileError: a value is not finite.
    """
    params = coder.params[layer]
    for part in _slices(params, "w_enc"):
        rows = part.to(device, torch.float32)
        _check(coder, params, {"w_enc": rows})
        yield rows


def _mapped(params: Path, key: str) -> torch.Tensor:
    """Return a tensor whose bytes are the file's own; nothing is read yet."""
    with safe_open(params, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(key)
    return tensor


def _load(params: Path, key: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """One tensor, converted a slice of rows at a time into its place."""
    with safe_open(params, framework="pt") as file:
        shape = file.get_slice(key).get_shape()
    result = torch.empty(shape, dtype=dtype, device=device)
    start = 0
    for part in _slices(params, key):
        result[start : start + len(part)].copy_(part)
        start += len(part)
    return result


def _slices(params: Path, key: str) -> Iterator[torch.Tensor]:
    """Yield a tensor's rows in parts of about SLICE_BYTES.

    The file is opened anew for each part: an open one keeps the pages that were read mapped.
    """
    with safe_open(params, framework="pt") as file:
        shape = file.get_slice(key).get_shape()
    row_bytes = 4 * max(1, int(torch.tensor(shape[1:]).prod()))
    step = max(1, SLICE_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        with safe_open(params, framework="pt") as file:
            part = file.get_slice(key)[start : start + step]
        yield part


def _check(coder: CoderFiles, params: Path, tensors: dict[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        # min and max pass a NaN on, and make no mask of the tensor's size.
        low, high = torch.aminmax(tensor)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise CoderFileError(
                f"coder {coder.name} holds a {key} that is not finite; fetch {params.name} again"
            )
