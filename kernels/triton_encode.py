"""Encoding on a GPU by one Triton kernel: product, threshold and compaction in registers.

Tiles of pre-activations are never written. Each tile counts what fires, reserves so many places by
one atomic addition and writes (token, feature, activation) there; what does not fit is counted too,
and then all is done again with room for it. A sort on the device makes the order token-major.

The product is that of the weights' dtype: bfloat16 (float32 sums) or float32, by tf32 if asked for.
Given the coder in float32 besides, all that fires or might but for the rounding of the product is
scored anew in float32, each feature of a token by itself: firings and activations are those of
float32.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import triton

from scopelake.kernels.triton_tiles import encode_tiles, score_pairs
from scopelake.kernels.weights import EncoderWeights, SparseCodes

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors; it must be set before the import."""

_ROOM: Final = 128
"""Firings a token that the first try has room for."""

_BFLOAT16_UNITS: Final = 2.0**-7 + 2.0**-16
"""What rounding input and weights to bfloat16, each by half a unit in the last place, changes."""

Precision = Literal["ieee", "tf32"]


@dataclass(frozen=True)
class Tiles:
    """Shape of a tile: tokens, features, and inputs at a time; and how a GPU runs it."""

    tokens: int = 128
    features: int = 256
    inputs: int = 64
    warps: int = 8
    stages: int = 3


_TILES: Final = {2: Tiles(), 4: Tiles(128, 128, 32)}
"""By bytes of a weight; the operands of all stages lie in shared memory (227 KiB of an H100)."""


def encode(
    x: torch.Tensor,
    weights: EncoderWeights,
    features: torch.Tensor | None = None,
    *,
    precision: Precision = "ieee",
    exact: EncoderWeights | None = None,
    tiles: Tiles | None = None,
    room: int | None = None,
) -> SparseCodes:
    """Encode `x` [n_tokens, d_in], any float dtype, to its firings.

    Args:
        x: finite activations, on the device of `weights`.
        weights: the coder; `w_enc` in bfloat16 or float32 says what is multiplied.
        features: those to encode with, ascending; None for all.
        precision: of float32 products.
        exact: the coder in float32; firings and activations are then those of its product with
            `x` in float32.
        tiles: the shape of a tile, by default one for the dtype.
        room: firings that the first try has room for.

    Returns:
        The firings, token-major. Without `exact`, a pre-activation within the rounding of the
        product of its threshold may fire or not.
    """
    if features is not None:
        codes = encode(
            x, _columns(weights, features), precision=precision, tiles=tiles, room=room,
            exact=None if exact is None else _columns(exact, features),
        )  # fmt: skip
        names = features.to(torch.int32)[codes.features.long()]
        return SparseCodes(codes.indptr, names, codes.activations)
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        job = _Job(x, weights, exact, precision, tiles)
        return _encode(x, job, exact, max(1, _ROOM * len(x) if room is None else room))


def _encode(x: torch.Tensor, job: _Job, exact: EncoderWeights | None, capacity: int) -> SparseCodes:
    while True:
        n, found = job.launch(capacity)
        if n <= capacity:
            break
        capacity = n
    token, feature, activation = (part[:n] for part in found)
    if exact is not None:
        token, feature, activation = _rescored(x, exact, token, feature)
    order = torch.argsort(token.long() * max(1, job.width) + feature)
    counts = torch.bincount(token, minlength=len(x))
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(counts, 0, out=indptr[1:])
    return SparseCodes(indptr, feature[order], activation[order])


class _Job:
    """The operands of a launch."""

    def __init__(
        self, x: torch.Tensor, weights: EncoderWeights, exact: EncoderWeights | None,
        precision: Precision, tiles: Tiles | None,
    ) -> None:  # fmt: skip
        self._x = x.to(weights.w_enc.dtype).contiguous()
        self._w = weights.w_enc if weights.w_enc.stride(1) == 1 else weights.w_enc.contiguous()
        self._bias, self._threshold = weights.b_enc.float(), weights.threshold.float()
        self._precision, self._with_slack = precision, exact is not None
        self._tiles = tiles or _TILES[self._w.element_size()]
        self.width = weights.width
        nothing = torch.zeros(1, device=x.device)
        self._norm, self._slack = nothing, nothing
        if exact is not None:
            # Cauchy and Schwarz: what rounding input and weights can change, and summing them.
            self._norm = x.float().norm(dim=1) * (_BFLOAT16_UNITS + 2.0**-22 * weights.d_in)
            self._slack = exact.w_enc.float().norm(dim=0)
            self._bias, self._threshold = exact.b_enc.float(), exact.threshold.float()

    def launch(self, capacity: int) -> tuple[int, tuple[torch.Tensor, ...]]:
        """Return how many fire, and token, feature and activation of as many as there is room."""
        x, t = self._x, self._tiles
        n_tokens, width = len(x), self._w.shape[1]
        counter = torch.zeros(1, dtype=torch.int64, device=x.device)
        found = (
            torch.empty(capacity, dtype=torch.int32, device=x.device),
            torch.empty(capacity, dtype=torch.int32, device=x.device),
            torch.empty(capacity, dtype=torch.float32, device=x.device),
        )
        n_tiles = triton.cdiv(n_tokens, t.tokens) * triton.cdiv(width, t.features)
        if n_tiles:
            encode_tiles[(min(n_tiles, _n_programs(x.device)),)](
                x, self._w, self._bias, self._threshold, self._slack, self._norm, counter, *found,
                n_tokens, width, x.shape[1], x.stride(0), self._w.stride(0), capacity,
                BM=t.tokens, BN=t.features, BK=t.inputs, PRECISION=self._precision,
                UPCAST=INTERPRETED and x.dtype != torch.float32, WITH_SLACK=self._with_slack,
                num_warps=t.warps, num_stages=t.stages,
            )  # fmt: skip
        return int(counter.item()), found


def _rescored(
    x: torch.Tensor, exact: EncoderWeights, token: torch.Tensor, feature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return those of the pairs that fire in float32, with their activations."""
    scores = torch.empty(len(token), device=x.device)
    rows, w = x.float().contiguous(), exact.w_enc.float().contiguous()
    block = 128
    if len(token):
        score_pairs[(triton.cdiv(len(token), block),)](
            rows, w, exact.b_enc.float(), token, feature, scores, len(token), x.shape[1],
            rows.stride(0), w.stride(0), DEPTH=256, BLOCK=block,
        )  # fmt: skip
    fires = scores > exact.threshold[feature.long()]
    return token[fires], feature[fires], scores[fires]


def _columns(weights: EncoderWeights, features: torch.Tensor) -> EncoderWeights:
    """Return some features of a coder; consecutive ones without a copy."""
    first, n = int(features[0]) if len(features) else 0, len(features)
    if n and int(features[-1]) == first + n - 1:
        columns: Any = slice(first, first + n)
    else:
        columns = features.long()
    return EncoderWeights(
        weights.w_enc[:, columns], weights.b_enc[columns], weights.threshold[columns]
    )


def _n_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 3  # interpreted: one after the other
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
