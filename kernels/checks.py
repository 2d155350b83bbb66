"""Checks that every encoder makes of its input before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels.weights import EncoderWeights

_WHOLE: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_input(x: torch.Tensor, coders: Sequence[EncoderWeights]) -> None:
    """Refuse an input that cannot be encoded with each of `coders`.

    The finiteness check reads `x` once: d_in values a token, against d_in times width
    multiplications for the encoding.

    Raises:
        InvalidArgumentError: wrong rank, width, dtype, device, or a value that is NaN or infinite.
    """
    if not isinstance(x, torch.Tensor):
        raise InvalidArgumentError(
            f"encode was given a {type(x).__name__}; it takes a tensor [n_tokens, d_in]; convert "
            "it, for instance by torch.as_tensor"
        )
    for coder in coders:
        if x.ndim != 2 or x.shape[1] != coder.d_in:
            raise InvalidArgumentError(
                f"encode was given shape {tuple(x.shape)}; the coder takes [n_tokens, "
                f"{coder.d_in}]; pass the tensor of the site that the coder was trained on"
            )
        if coder.w_enc.device not in (x.device, torch.device("cpu")):
            raise InvalidArgumentError(
                f"encode was given a tensor on {x.device}; the coder's weights are on "
                f"{coder.w_enc.device}; move one of them"
            )
    if not x.dtype.is_floating_point:
        raise InvalidArgumentError(
            f"encode was given {x.dtype}; activations are of a float dtype; pass bfloat16 or "
            "float32"
        )
    # float64 may hold what float32, in which everything is computed, does not.
    narrow = x.float() if x.dtype == torch.float64 else x
    if not bool(torch.isfinite(narrow).all()):
        bad = int((~torch.isfinite(narrow)).any(dim=1).sum())
        raise InvalidArgumentError(
            f"encode was given {bad} tokens with NaN or infinite values; activations must be "
            "finite; run the model in bfloat16 or float32, not float16"
        )


def check_features(features: object, coder: EncoderWeights) -> torch.Tensor | None:
    """Return which features are wanted, int64 on the coder's device; None for all.

    Raises:
        InvalidArgumentError: the coder does not have them all, or they do not ascend.
    """
    if features is None:
        return None
    given = list(features) if isinstance(features, Iterable) else features
    chosen = features if isinstance(features, torch.Tensor) else torch.as_tensor(given)
    chosen = chosen.to(coder.w_enc.device)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype not in _WHOLE):
        raise InvalidArgumentError(
            f"features of shape {tuple(chosen.shape)} and {chosen.dtype} were asked for; give "
            "whole numbers in a list"
        )
    chosen = chosen.long()
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < coder.width:
        raise InvalidArgumentError(
            f"features {int(chosen.min())} to {int(chosen.max())} were asked for; the coder has 0 "
            f"to {coder.width - 1}; choose among these"
        )
    if bool((chosen.diff() <= 0).any()):
        raise InvalidArgumentError(
            "features were asked for that do not ascend; sort them, each once"
        )
    return chosen
