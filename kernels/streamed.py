"""Encoding with weights that lie elsewhere than the input: they come over slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from scopelake.kernels.weights import EncoderWeights, SparseCodes, join_layers

SLICE_BYTES: Final = 1 << 30
"""Bytes of weights on the device at once."""

Encode = Callable[[torch.Tensor, EncoderWeights], SparseCodes]


def encode(
    x: torch.Tensor, coder: EncoderWeights, one: Encode, slice_bytes: int = SLICE_BYTES
) -> SparseCodes:
    """Encode `x` [n_tokens, d_in] with a coder that may be larger than the device's memory.

    Args:
        x: finite activations.
        coder: weights on another device, or in a memory-mapped file.
        one: encodes with a slice of features on the device of `x`.
        slice_bytes: of the weights of a slice.
    """
    step = max(1, slice_bytes // (coder.w_enc.element_size() * max(1, coder.d_in)))
    codes, widths = [], []
    for start in range(0, max(1, coder.width), step):
        stop = min(start + step, coder.width)
        part = EncoderWeights(
            coder.w_enc[:, start:stop], coder.b_enc[start:stop], coder.threshold[start:stop]
        )
        codes.append(one(x, part.to(x.device)))
        widths.append(stop - start)
    return join_layers(codes, widths)
