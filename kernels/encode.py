"""Encoding as ingest calls it: one seam, several implementations, equal results.

``tiled`` multiplies a tile of tokens at a time and compacts it before the next, so the
pre-activations [n_tokens, width] never exist as a whole. ``reference`` is the definition.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels import reference
from scopelake.kernels.checks import check_input
from scopelake.kernels.weights import EncoderWeights, SparseCodes

Implementation = Literal["auto", "reference", "tiled"]

TILE_BYTES: Final = 8 << 20
"""Bytes of float32 pre-activations in one tile."""


def encode(x: torch.Tensor, weights: EncoderWeights, impl: Implementation = "auto") -> SparseCodes:
    """Encode `x` [n_tokens, d_in], any float dtype, to its firings.

    Args:
        x: activations of the coder's site, on the device of `weights`.
        weights: the coder, float32.
        impl: ``auto`` takes ``tiled``, which runs on every device.

    Raises:
        InvalidArgumentError: wrong shape, device, a value that is not finite, or unknown `impl`.
    """
    check_input(x, weights)
    if impl == "reference":
        return reference.encode(x, weights)
    if impl in ("auto", "tiled"):
        return _encode_tiled(x, weights)
    raise InvalidArgumentError(
        f"impl {impl!r} is unknown; there are 'auto', 'reference' and 'tiled'; choose one of them"
    )


def _encode_tiled(x: torch.Tensor, weights: EncoderWeights) -> SparseCodes:
    tile = max(1, TILE_BYTES // (4 * weights.width))
    counts, features, activations = [], [], []
    pre = torch.empty(min(tile, len(x)), weights.width, device=x.device)
    for start in range(0, len(x), tile):
        rows = x[start : start + tile].float()
        out = pre[: len(rows)]
        torch.addmm(weights.b_enc, rows, weights.w_enc, out=out)
        mask = out > weights.threshold
        flat = mask.view(-1).nonzero().squeeze(1)
        counts.append(mask.sum(dim=1))
        features.append((flat % weights.width).to(torch.int32))
        activations.append(out.view(-1)[flat])
    return _assemble(x.device, counts, features, activations)


def _assemble(
    device: torch.device,
    counts: list[torch.Tensor],
    features: list[torch.Tensor],
    activations: list[torch.Tensor],
) -> SparseCodes:
    if not counts:
        return SparseCodes(
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.empty(0, dtype=torch.int32, device=device),
            torch.empty(0, device=device),
        )
    n_firings = torch.cat(counts)
    indptr = torch.zeros(len(n_firings) + 1, dtype=torch.int64, device=device)
    torch.cumsum(n_firings, dim=0, out=indptr[1:])
    return SparseCodes(indptr, torch.cat(features), torch.cat(activations))
