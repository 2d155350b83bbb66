"""Checks that every encoder makes of its input before it starts."""

from __future__ import annotations

import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels.weights import EncoderWeights


def check_input(x: torch.Tensor, weights: EncoderWeights) -> None:
    """Refuse an input that cannot be encoded with `weights`.

    The finiteness check reads `x` once: d_in values a token, against d_in times width
    multiplications for the encoding.

    Raises:
        InvalidArgumentError: wrong rank, width, device, or a value that is NaN or infinite.
    """
    if x.ndim != 2 or x.shape[1] != weights.d_in:
        raise InvalidArgumentError(
            f"encode was given shape {tuple(x.shape)}; the coder takes [n_tokens, {weights.d_in}]; "
            "pass the tensor of the site that the coder was trained on"
        )
    if x.device != weights.w_enc.device:
        raise InvalidArgumentError(
            f"encode was given a tensor on {x.device}; the coder's weights are on "
            f"{weights.w_enc.device}; move one of them"
        )
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).any(dim=1).sum())
        raise InvalidArgumentError(
            f"encode was given {bad} tokens with NaN or infinite values; activations must be "
            "finite; run the model in bfloat16 or float32, not float16"
        )
