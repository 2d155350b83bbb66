"""Encoding by torch's own operators, a tile of tokens at a time: on every device torch has."""

from __future__ import annotations

from typing import Final

import torch

from scopelake.kernels.weights import EncoderWeights, SparseCodes

TILE_BYTES: Final = 8 << 20
"""Bytes of float32 pre-activations in one tile on a CPU: they stay in its cache."""

DEVICE_TILE_BYTES: Final = 256 << 20
"""The same elsewhere: enough for a GPU to be busy with."""


def encode(
    x: torch.Tensor, weights: EncoderWeights, features: torch.Tensor | None = None
) -> SparseCodes:
    """Encode `x` [n_tokens, d_in], any float dtype, to its firings.

    Args:
        x: finite activations, on the device of `weights`.
        weights: the coder.
        features: those to encode with, ascending; None for all.
    """
    if features is not None:
        index = features.long()
        some = EncoderWeights(
            weights.w_enc[:, index], weights.b_enc[index], weights.threshold[index]
        )
        found = encode(x, some)
        names = features.to(torch.int32)[found.features.long()]
        return SparseCodes(found.indptr, names, found.activations)
    tile_bytes = TILE_BYTES if x.device.type == "cpu" else DEVICE_TILE_BYTES
    tile = max(1, tile_bytes // (4 * max(1, weights.width)))
    pre = torch.empty(min(tile, len(x)), weights.width, device=x.device)
    w_enc, b_enc = weights.w_enc.float(), weights.b_enc.float()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device)]
    fired = [torch.empty(0, dtype=torch.int32, device=x.device)]
    activations = [torch.empty(0, device=x.device)]
    for start in range(0, len(x), tile):
        rows = x[start : start + tile]
        out = pre[: len(rows)]
        torch.addmm(b_enc, rows.float(), w_enc, out=out)
        mask = out > weights.threshold
        flat = mask.view(-1).nonzero().squeeze(1)
        counts.append(mask.sum(dim=1))
        fired.append((flat % weights.width).to(torch.int32))
        activations.append(out.view(-1)[flat])
    indptr = torch.cat(counts).cumsum(0)
    return SparseCodes(indptr, torch.cat(fired), torch.cat(activations))
