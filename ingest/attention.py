"""Attention whose memory grows with the context, not with its square.

A sliding layer sees a window of keys before each query. Torch's kernels take that as a mask of
[queries, keys], which for 32,768 tokens is 1 GB, and 4 GB as numbers; here blocks of queries are
taken against the keys that they can see. Causal attention without a mask needs no help.
"""

from __future__ import annotations

from typing import Any, Final

import torch

NAME: Final = "scopelake"
"""What transformers knows it by."""

_LEAST_BLOCK: Final = 512


def register() -> str:
    """Make it known to transformers; return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: Any,  # noqa: ANN401
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    **rest: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Return what a layer's attention gives, [batch, queries, heads, width].

    Args:
        module: the attention.
        query: [batch, heads, queries, width].
        key: [batch, key heads, keys, width].
        value: as `key`.
        attention_mask: None: every query sees the keys up to its own, of a sliding layer the last
            `sliding_window` of them.
        sliding_window: keys that a query sees, its own included; None: all.
        rest: as transformers gives it.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    n = query.shape[2]
    is_whole = attention_mask is not None or sliding_window is None or n <= sliding_window
    if is_whole or n != key.shape[2]:
        found: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **rest
        )[0]
        return found, None
    assert sliding_window is not None
    parts = []
    step = max(sliding_window, _LEAST_BLOCK)
    for start in range(0, n, step):
        stop, first = min(start + step, n), max(0, start - sliding_window + 1)
        mask = _window_mask(start, stop, first, sliding_window, query.device)
        parts.append(
            sdpa_attention_forward(
                module, query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop],
                mask, **rest,
            )[0]
        )  # fmt: skip
    return torch.cat(parts, dim=1), None


def _window_mask(
    start: int, stop: int, first: int, window: int, device: torch.device
) -> torch.Tensor:
    """Whether queries [start, stop) see keys [first, stop): [1, 1, queries, keys]."""
    queries = torch.arange(start, stop, device=device)[:, None]
    behind = queries - torch.arange(first, stop, device=device)[None]
    return ((behind >= 0) & (behind < window))[None, None]
