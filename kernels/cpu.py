"""Encoding on CPUs, compiled: product, threshold and compaction in one pass (`_native.c`).

Tokens are taken block by block and features chunk by chunk; what is in memory besides input and
output is the packed input and a tile of each thread. Results are the same bits for every split into
batches, blocks and threads, and on every machine with fused multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from scopelake.kernels.weights import EncoderWeights, Operands, SparseCodes

try:
    from scopelake.kernels import _native
except ImportError as error:
    WHY_NOT: str | None = f"the compiled encoder is not built ({error})"
else:
    WHY_NOT = None

TOKENS_AT_ONCE: Final = 16_384
"""Tokens that are packed at once."""

_BLOCK: Final = 2_048
"""Tokens of a task."""

_CHUNK: Final = 512
"""Features of a task: with a group of tiles of tokens, what a core's second cache holds."""

_Piece = tuple[bytearray, bytearray, bytearray]


def encode_all(
    operands: Sequence[Operands], instruction_set: str | None = None
) -> list[SparseCodes]:
    """Encode on the CPU; an `x` that several coders read is packed once.

    Args:
        operands: weights in float32 are not copied and may lie in a memory-mapped file; others are
            converted first.
        instruction_set: one of `_native.sets()`, by default the best.
    """
    name = instruction_set or _native.sets()[0]
    of_site: dict[int, list[int]] = {}
    for index, one in enumerate(operands):
        of_site.setdefault(id(one.x), []).append(index)
    found: list[list[SparseCodes]] = [[] for _ in operands]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for indexes in of_site.values():
            x = operands[indexes[0]].x
            coders = {i: _Coder.of(operands[i].weights, operands[i].features) for i in indexes}
            for start in range(0, len(x), TOKENS_AT_ONCE):
                tokens = _Tokens.pack(x[start : start + TOKENS_AT_ONCE], name, pool)
                for index, coder in coders.items():
                    found[index] += coder.encode(tokens, pool)
    return [concat(codes) for codes in found]


@dataclass(frozen=True)
class _Tokens:
    """Some tokens, packed in blocks."""

    set: str
    d_in: int
    sizes: tuple[int, ...]
    blocks: tuple[bytearray, ...]

    @classmethod
    def pack(cls, x: torch.Tensor, name: str, pool: ThreadPoolExecutor) -> _Tokens:
        d_in = x.shape[1]

        def pack(block: torch.Tensor) -> bytearray:
            rows = block.detach().float().contiguous().numpy()
            return _native.pack(name, rows, len(rows), d_in)

        blocks = [x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK)]
        sizes = tuple(len(block) for block in blocks)
        return cls(name, d_in, sizes, tuple(pool.map(pack, blocks)))


@dataclass(frozen=True)
class _Coder:
    """A coder's arrays, and which of its features are wanted."""

    weights: EncoderWeights
    features: torch.Tensor | None

    @classmethod
    def of(cls, weights: EncoderWeights, features: torch.Tensor | None) -> _Coder:
        tensors = (weights.w_enc, weights.b_enc, weights.threshold)
        w_enc, b_enc, threshold = (t.detach().float().contiguous() for t in tensors)
        plain = EncoderWeights(w_enc, b_enc, threshold)
        return cls(plain, None if features is None else features.to(torch.int32))

    @property
    def n_features(self) -> int:
        return self.weights.width if self.features is None else len(self.features)

    def encode(self, tokens: _Tokens, pool: ThreadPoolExecutor) -> list[SparseCodes]:
        """Return the codes of each block of tokens."""
        # Some chunks at a time: all threads have work, and few pieces wait to be joined.
        step = _CHUNK * max(16, 4 * torch.get_num_threads())
        pieces: list[list[_Piece]] = [[] for _ in tokens.blocks]
        for start in range(0, self.n_features, step):
            chunks = range(start, min(start + step, self.n_features), _CHUNK)
            # One chunk's weights, packed for each block, are read while they are in a cache.
            tasks = [(block, first) for first in chunks for block in range(len(tokens.blocks))]
            done = pool.map(lambda task: self._encode_chunk(tokens, *task), tasks)
            for (block, _), piece in zip(tasks, list(done), strict=True):
                pieces[block].append(piece)
            for block, size in enumerate(tokens.sizes):
                pieces[block] = [_native.join(pieces[block], size)]
        return [to_codes(_native.join(p, n)) for p, n in zip(pieces, tokens.sizes, strict=True)]

    def _encode_chunk(self, tokens: _Tokens, block: int, first: int) -> _Piece:
        weights, n = self.weights, min(_CHUNK, self.n_features - first)
        chosen = None if self.features is None else self.features[first : first + n].numpy()
        return _native.encode(
            tokens.set,
            tokens.blocks[block],
            tokens.sizes[block],
            tokens.d_in,
            weights.w_enc.numpy(),
            weights.b_enc.numpy(),
            weights.threshold.numpy(),
            weights.width,
            first if chosen is None else 0,
            n,
            b"" if chosen is None else chosen,
        )


def to_codes(piece: _Piece) -> SparseCodes:
    """Return a piece as codes."""
    counts = np.frombuffer(piece[0], np.int32)
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    features = np.frombuffer(piece[1], np.int32)
    activations = np.frombuffer(piece[2], np.float32)
    return SparseCodes(*(torch.from_numpy(a) for a in (indptr, features, activations)))


def concat(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Return the codes of all tokens of `parts`, one after the other."""
    ends = torch.tensor([0, *(int(p.indptr[-1]) for p in parts)]).cumsum(0).tolist()
    indptr = [p.indptr[1:] + end for p, end in zip(parts, ends, strict=False)]
    return SparseCodes(
        torch.cat([torch.zeros(1, dtype=torch.int64), *indptr]),
        torch.cat([torch.empty(0, dtype=torch.int32), *(p.features for p in parts)]),
        torch.cat([torch.empty(0), *(p.activations for p in parts)]),
    )
