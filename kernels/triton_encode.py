"""Encoding on a GPU in two steps: what may fire, by tensor cores; whether it does, in float32.

The product of input and weights rounded to bfloat16 says of most features that they do not fire,
whatever rounding did: Cauchy and Schwarz bound it by the norms of what it took. All others are
scored anew in float32, each feature of a token by itself, so firings and activations are those of a
float32 product. Pre-activations are never written: what may fire is a bit each, read in order, so
nothing is sorted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import torch
import triton

from scopelake.kernels.triton_tiles import count_bits, list_features, score_features, screen_tiles
from scopelake.kernels.weights import EncoderWeights, HalfWeights, Operands, SparseCodes

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors; it must be set before the import."""

_HALF_UNIT: Final = 2.0**-8
"""Of bfloat16: what rounding takes from a number, at most, by its size."""

_SUMMED: Final = 1.25 * 2.0**-22
"""By number of products, what sums err by, at most, by the norms of what is multiplied: tensor
cores cut a product off where it is added, and the score is a float32 sum itself."""

_BITS_BYTES: Final = 1 << 29
"""Most bytes of bits at a time, of all coders; more tokens are encoded in several goes."""

_PREPARED_BYTES: Final = 64 << 20
"""Of features in float64, whose norms are taken at a time."""

_CACHED_BYTES: Final = 16 << 20
"""Of the rows that are scored with at a time: a third of an H100's cache."""

_MOST_PARTS: Final = 16
"""That the features of a token are scored in."""


@dataclass(frozen=True)
class Tiles:
    """Shape of a tile: tokens, features, and inputs at a time; and how a GPU runs it."""

    tokens: int = 128
    features: int = 256
    inputs: int = 64
    warps: int = 8
    stages: int = 3
    group: int = 16
    """Tiles of tokens that run beside each other."""


@dataclass(frozen=True)
class Scoring:
    """How features are scored: how many at a time, how many products of each, by how many warps."""

    features: int = 8
    products: int = 64
    warps: int = 1


@cache
def why_not(device: torch.device) -> str | None:
    """Return what keeps these kernels from running on a GPU, if anything does."""
    if torch.version.hip is not None:
        return "it was not tried on AMD's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"it multiplies in bfloat16, which this GPU does not ({capability[0]}.x, not 8.0)"
    try:  # its driver is compiled, which takes a C compiler
        with _current(device):
            words = torch.zeros(1, dtype=torch.int32, device=device)
            count_bits[(1, 1)](words, torch.empty_like(words), 1, 1, PART=16, num_warps=1)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller says it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def prepare(weights: EncoderWeights) -> EncoderWeights:
    """Return weights with what is made of them for this, which is else made at each call.

    Its `w_enc` [d_in, width] lies in memory feature by feature.
    """
    rows = weights.w_enc.T.contiguous()
    half = torch.empty(weights.w_enc.shape, dtype=torch.bfloat16, device=rows.device)
    error, norm = (torch.empty(len(rows), device=rows.device) for _ in range(2))
    step = max(1, _PREPARED_BYTES // (8 * max(1, weights.d_in)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        rounded = rows[part].to(torch.bfloat16)
        half[:, part] = rounded.T
        error[part], norm[part] = _norm(rows[part] - rounded, 1), _norm(rounded, 1)
    return replace(weights, w_enc=rows.T, half=HalfWeights(half, error, norm))


def encode(
    x: torch.Tensor,
    weights: EncoderWeights,
    features: torch.Tensor | None = None,
    *,
    tiles: Tiles | None = None,
) -> SparseCodes:
    """Encode `x` [n_tokens, d_in], any float dtype, to its firings.

    Args:
        x: finite activations, on the device of `weights`.
        weights: the coder, in float32 or bfloat16; products and sums are in float32.
        features: those to encode with, ascending; None for all.
        tiles: the shape of a tile.

    Returns:
        The firings, token-major. They do not depend on what else is encoded with them.
    """
    return encode_all([Operands(x, weights, features)], tiles=tiles)[0]


def encode_all(operands: Sequence[Operands], *, tiles: Tiles | None = None) -> list[SparseCodes]:
    """Encode several at once: every screen is launched before the host waits for the first.

    Args:
        operands: all on one device.
        tiles: the shape of a tile.
    """
    inputs: dict[int, _Input] = {}
    for one in operands:
        if id(one.x) not in inputs:  # several coders may read it
            inputs[id(one.x)] = _Input.of(one.x)
    jobs = [_Job(inputs[id(one.x)], one, tiles or Tiles()) for one in operands]
    found: list[list[SparseCodes]] = [[] for _ in jobs]
    for goes in _at_once([(job, tokens) for job in jobs for tokens in job.goes()]):
        screened = [(job, job.screen(tokens)) for job, tokens in goes]
        # Reading how many may fire is what waits for the device.
        n_listed = torch.stack([one.starts[-1] for _, one in screened]).tolist()
        scored = [(job, job.score(s, n)) for (job, s), n in zip(screened, n_listed, strict=True)]
        for job, candidates in scored:
            found[jobs.index(job)].append(job.fired(candidates))
    return [_joined(parts) for parts in found]


@dataclass(frozen=True)
class _Input:
    """Activations, and what is made of them once for all coders."""

    x: torch.Tensor
    half: torch.Tensor
    """bfloat16 [n_tokens, d_in]"""
    norm: torch.Tensor
    """[n_tokens] float32"""

    @classmethod
    def of(cls, x: torch.Tensor) -> _Input:
        rows = x if x.stride(1) == 1 else x.contiguous()
        return cls(rows, rows.to(torch.bfloat16), _norm(rows, 1))


@dataclass(frozen=True)
class _Screened:
    """What may fire, of some tokens."""

    tokens: slice
    words: torch.Tensor
    """[n_tokens, n_words] int32, a bit a feature."""
    starts: torch.Tensor
    """[n_tokens * n_parts + 1] int64: where the features of each part of each token begin."""


@dataclass(frozen=True)
class _Scored:
    """What may fire, with its pre-activations."""

    starts: torch.Tensor
    """[n_tokens + 1]"""
    features: torch.Tensor
    scores: torch.Tensor


class _Job:
    """Activations, and a coder to encode them with."""

    def __init__(self, given: _Input, operands: Operands, tiles: Tiles) -> None:
        weights, self._names = operands.weights, operands.features
        weights = weights if weights.half is not None else prepare(weights)
        assert weights.half is not None
        rows, half = weights.w_enc.T, weights.half
        bias, threshold = weights.b_enc.float(), weights.threshold.float()
        if self._names is not None:
            index = self._names.long()
            rows, half = rows[index], half.take(index)
            bias, threshold = bias[index], threshold[index]
        self._given, self._tiles, self._scoring = given, tiles, Scoring()
        self._rows, self._half, self._bias, self._threshold = rows, half.w_enc, bias, threshold
        self.n_tokens, self._width, d_in = len(given.x), len(bias), weights.d_in
        # What adding the bias and comparing err by is by the size of the two.
        size = (bias.abs() + threshold.abs()).clamp(max=1e30)
        self._least = threshold - bias - 2.0**-22 * size
        of_input = 0.0 if given.x.dtype == torch.bfloat16 else _HALF_UNIT
        self._slack = half.error + (of_input + _SUMMED * d_in) * half.norm
        self._n_words = -(-self._width // 32)
        # Of so many words that the rows of their features stay in the cache.
        words = triton.next_power_of_2(_CACHED_BYTES // (rows.element_size() * 32 * max(1, d_in)))
        least = triton.next_power_of_2(triton.cdiv(max(1, self._n_words), _MOST_PARTS))
        most = max(16, triton.next_power_of_2(self._n_words))
        self._part = min(most, max(16, words // 2, least))
        self._n_parts = max(1, triton.cdiv(self._n_words, self._part))

    def bits_bytes(self, tokens: slice) -> int:
        """Return what the bits of some tokens take."""
        n: int = tokens.stop - tokens.start
        return 4 * self._n_words * n

    def goes(self) -> list[slice]:
        """Return which tokens are encoded at a time."""
        step = max(1, _BITS_BYTES // (4 * max(1, self._n_words)))
        return [slice(i, min(i + step, self.n_tokens)) for i in range(0, self.n_tokens, step)] or [
            slice(0, 0)
        ]

    def screen(self, tokens: slice) -> _Screened:
        """Launch what finds out what may fire; the host does not wait for it."""
        half, norm, t = self._given.half[tokens], self._given.norm[tokens], self._tiles
        n, d_in, device = len(half), half.shape[1], half.device
        words = torch.empty((n, self._n_words), dtype=torch.int32, device=device)
        counts = torch.empty(n * self._n_parts, dtype=torch.int32, device=device)
        starts = torch.zeros(n * self._n_parts + 1, dtype=torch.int64, device=device)
        if n and self._width:
            n_tiles = triton.cdiv(n, t.tokens) * triton.cdiv(self._width, t.features)
            with _current(device):
                screen_tiles[(n_tiles,)](
                    half, self._half, self._least, self._slack, norm, words, n, self._width, d_in,
                    half.stride(0), self._half.stride(0), self._n_words,
                    BM=t.tokens, BN=t.features, BK=t.inputs, GROUP=t.group,
                    EVEN=d_in % t.inputs == 0, UPCAST=INTERPRETED,
                    num_warps=t.warps, num_stages=t.stages,
                )  # fmt: skip
                count_bits[(n, self._n_parts)](
                    words, counts, self._n_words, self._n_parts, PART=self._part, num_warps=1
                )
            torch.cumsum(counts, 0, out=starts[1:])
        return _Screened(tokens, words, starts)

    def score(self, screened: _Screened, n_listed: int) -> _Scored:
        """Launch what lists and scores what may fire; the host does not wait for it."""
        x, how = self._given.x[screened.tokens], self._scoring
        features = torch.empty(n_listed, dtype=torch.int32, device=x.device)
        scores = torch.empty(n_listed, dtype=torch.float32, device=x.device)
        grid = (len(x), self._n_parts)
        if n_listed:
            with _current(x.device):
                list_features[grid](
                    screened.words, screened.starts, features, self._n_words, self._n_parts,
                    PART=self._part, num_warps=1,
                )  # fmt: skip
                score_features[grid](
                    x, self._rows, self._bias, screened.starts, features, scores, self._n_parts,
                    x.shape[1], x.stride(0), self._rows.stride(0),
                    BLOCK=how.features, DEPTH=how.products, num_warps=how.warps,
                )  # fmt: skip
        return _Scored(screened.starts[:: self._n_parts], features, scores)

    def fired(self, scored: _Scored) -> SparseCodes:
        """Return those that fire."""
        fires = scored.scores > self._threshold[scored.features.long()]
        before = torch.zeros(len(fires) + 1, dtype=torch.int64, device=fires.device)
        torch.cumsum(fires, 0, out=before[1:])
        kept = fires.nonzero().squeeze(1)
        names = scored.features[kept]
        if self._names is not None:
            names = self._names.to(torch.int32)[names.long()]
        return SparseCodes(before[scored.starts], names, scored.scores[kept])


def _at_once(goes: Sequence[tuple[_Job, slice]]) -> Iterator[list[tuple[_Job, slice]]]:
    """Yield as many as may be launched before the host waits: their bits are there together."""
    group: list[tuple[_Job, slice]] = []
    taken = 0
    for job, tokens in goes:
        n_bytes = job.bits_bytes(tokens)
        if group and taken + n_bytes > _BITS_BYTES:
            yield group
            group, taken = [], 0
        group.append((job, tokens))
        taken += n_bytes
    if group:
        yield group


def _joined(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Return the codes of tokens that follow each other."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([torch.diff(part.indptr) for part in parts])
    indptr = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=indptr[1:])
    return SparseCodes(
        indptr,
        torch.cat([part.features for part in parts]),
        torch.cat([part.activations for part in parts]),
    )


def _norm(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Return Euclidean norms, float32, not below the true ones; no square is too small for them."""
    norm: torch.Tensor = torch.linalg.vector_norm(values, dim=dim, dtype=torch.float64)
    return (norm * (1 + 1e-6)).float()


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
