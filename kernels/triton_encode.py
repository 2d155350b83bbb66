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
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import triton

from scopelake.kernels.triton_tiles import encode_tiles, score_pairs
from scopelake.kernels.weights import EncoderWeights, Operands, SparseCodes

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
    job = _Job(Operands(x, weights, features), exact, precision, tiles, {})
    return _run([job], room)[0]


def encode_all(
    operands: Sequence[Operands], *, tiles: Tiles | None = None, room: int | None = None
) -> list[SparseCodes]:
    """Encode several at once: every kernel is launched before the host waits for the first.

    Args:
        operands: each on one device.
        tiles: the shape of a tile, by default one for the dtype of the weights.
        room: firings that the first try of each has room for.
    """
    converted: _Converted = {}
    return _run([_Job(one, None, "ieee", tiles, converted) for one in operands], room)


def _run(jobs: Sequence[_Job], room: int | None) -> list[SparseCodes]:
    tried = [job.launch(_ROOM * job.n_tokens if room is None else room) for job in jobs]
    # Reading a count is what waits for the device.
    counts = [int(launched.counter.item()) for launched in tried]
    again = [job.launch(n) if n > launched.capacity else launched
             for job, launched, n in zip(jobs, tried, counts, strict=True)]  # fmt: skip
    return [job.sorted(launched, n) for job, launched, n in zip(jobs, again, counts, strict=True)]


_Converted = dict[tuple[int, torch.dtype], torch.Tensor]
"""Inputs in the dtype of the weights, by identity."""


@dataclass(frozen=True)
class _Launched:
    """What a kernel that was launched writes to."""

    capacity: int
    counter: torch.Tensor
    """[1] int64: how many fire, whether there is room for them or not."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Token, feature and activation, [capacity] each, in no order."""


class _Job:
    """An encoding, ready to be launched."""

    def __init__(
        self, operands: Operands, exact: EncoderWeights | None, precision: Precision,
        tiles: Tiles | None, converted: _Converted,
    ) -> None:  # fmt: skip
        x, weights, self._features = operands.x, operands.weights, operands.features
        if self._features is not None:
            weights = _columns(weights, self._features)
            exact = None if exact is None else _columns(exact, self._features)
        self._given, self._exact = x, exact
        key = (id(x), weights.w_enc.dtype)
        if key not in converted:  # several coders may read it
            converted[key] = x.to(weights.w_enc.dtype).contiguous()
        self._x = converted[key]
        self._w = weights.w_enc if weights.w_enc.stride(1) == 1 else weights.w_enc.contiguous()
        self._bias, self._threshold = weights.b_enc.float(), weights.threshold.float()
        self._precision = precision
        self._tiles = tiles or _TILES[self._w.element_size()]
        self.n_tokens, self._width = len(x), weights.width
        nothing = torch.zeros(1, device=x.device)
        self._norm, self._slack = nothing, nothing
        if exact is not None:
            # Cauchy and Schwarz: what rounding input and weights can change, and summing them.
            self._norm = x.float().norm(dim=1) * (_BFLOAT16_UNITS + 2.0**-22 * weights.d_in)
            self._slack = exact.w_enc.float().norm(dim=0)
            self._bias, self._threshold = exact.b_enc.float(), exact.threshold.float()

    def launch(self, room: int) -> _Launched:
        """Launch the kernel, with room for so many firings; the host does not wait for it."""
        x, t, capacity = self._x, self._tiles, max(1, room)
        counter = torch.zeros(1, dtype=torch.int64, device=x.device)
        found = (
            torch.empty(capacity, dtype=torch.int32, device=x.device),
            torch.empty(capacity, dtype=torch.int32, device=x.device),
            torch.empty(capacity, dtype=torch.float32, device=x.device),
        )
        n_tiles = triton.cdiv(self.n_tokens, t.tokens) * triton.cdiv(self._width, t.features)
        if n_tiles:
            with _current(x.device):
                encode_tiles[(min(n_tiles, _n_programs(x.device)),)](
                    x, self._w, self._bias, self._threshold, self._slack, self._norm, counter,
                    *found, self.n_tokens, self._width, x.shape[1], x.stride(0),
                    self._w.stride(0), capacity,
                    BM=t.tokens, BN=t.features, BK=t.inputs, PRECISION=self._precision,
                    UPCAST=INTERPRETED and x.dtype != torch.float32,
                    WITH_SLACK=self._exact is not None, num_warps=t.warps, num_stages=t.stages,
                )  # fmt: skip
        return _Launched(capacity, counter, found)

    def sorted(self, launched: _Launched, n: int) -> SparseCodes:
        """Return the `n` firings that were found, token-major."""
        token, feature, activation = (part[:n] for part in launched.found)
        if self._exact is not None:
            token, feature, activation = _rescored(self._given, self._exact, token, feature)
        order = torch.argsort(token.long() * max(1, self._width) + feature)
        counts = torch.bincount(token, minlength=self.n_tokens)
        indptr = torch.zeros(self.n_tokens + 1, dtype=torch.int64, device=token.device)
        torch.cumsum(counts, 0, out=indptr[1:])
        names = feature[order]
        if self._features is not None:
            names = self._features.to(torch.int32)[names.long()]
        return SparseCodes(indptr, names, activation[order])


def _rescored(
    x: torch.Tensor, exact: EncoderWeights, token: torch.Tensor, feature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return those of the pairs that fire in float32, with their activations."""
    scores = torch.empty(len(token), device=x.device)
    rows, w = x.float().contiguous(), exact.w_enc.float().contiguous()
    block = 128
    if len(token):
        with _current(x.device):
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


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _n_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 3  # interpreted: one after the other
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
