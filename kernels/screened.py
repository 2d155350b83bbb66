"""Experimental: encoding on CPUs with 8-bit products as a screen, for wide coders; off by default.

    x . w = s_t s_f (x8 . w8)  +  (s_t x8) . dw  +  dx . v          v, w8, dw: of the rotated w
    |rest| <= |s_t x8| |dw| + |dx| |v|                              (Cauchy and Schwarz)

An int32 product of 8-bit numbers is exact, so a feature whose bound stays below its threshold
cannot fire: the screen is proven, not statistical. What passes is scored in float32 in the order in
which `_native.c` sums: firings and activations are the same bits as without a screen. A random
rotation spreads channels that stand out, which would otherwise take all 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from scopelake.kernels import _native, _screen
from scopelake.kernels.cpu import concat, to_codes
from scopelake.kernels.weights import EncoderWeights, SparseCodes

_TOKENS: Final = 1_024
_FEATURES: Final = 8_192
"""Of a tile of products."""

_STEPS: Final = 127
_UNIT: Final = 2.0**-24
_CHAIN: Final = 512
"""Roundings of a sum in float32 that are reckoned with: of a block, of the blocks, and to spare."""

_TINY: Final = 1e-30
"""What is smaller is rounded to zero, and bounded like all that rounding takes."""

_SPARE: Final = 1 + 2.0**-18
"""Bounds are computed in float32, and rounded up by this."""


@dataclass(frozen=True)
class Screen:
    """A coder with what screens it, made once; it takes 2.25 times the memory of the coder."""

    coder: EncoderWeights
    rows: torch.Tensor
    """[width, d_in], its weights feature after feature."""
    rotation: torch.Tensor
    """[d_in, d_in] float64"""
    weights: torch.Tensor
    """[d_in, width] int8, of the rotated weights."""
    bounds: torch.Tensor
    """[4, width] float32: unit, lack, and what norms of rest and size may add."""

    @classmethod
    def of(cls, coder: EncoderWeights, seed: int = 0) -> Screen:
        """Make the screen of a coder of float32 weights on the CPU."""
        d_in, width = coder.d_in, coder.width
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(d_in, d_in, generator=draw, dtype=torch.float64)
        rotation = torch.linalg.qr(noise).Q
        weights = torch.empty(d_in, width, dtype=torch.int8)
        bounds = torch.empty(4, width, dtype=torch.float64)
        for start in range(0, width, _FEATURES):
            part = slice(start, min(start + _FEATURES, width))
            w = coder.w_enc[:, part].double()
            rotated = rotation.T @ w
            unit = rotated.abs().amax(dim=0).clamp(min=_TINY) / _STEPS
            unit = unit.float().double()
            rounded = (rotated / unit).round().clamp(-_STEPS, _STEPS)
            weights[:, part] = rounded.to(torch.int8)
            size = w.norm(dim=0)
            # A rotation is one but for some 1e-13, which what is to spare covers.
            bounds[:, part] = torch.stack([
                unit, coder.threshold[part].double() - coder.b_enc[part].double(), size,
                (rotated - unit * rounded).norm(dim=0) + _CHAIN * _UNIT * size,
            ])  # fmt: skip
        bounds[2:] *= _SPARE
        lack = bounds[1]
        # A bias is added in float32 too.
        lack -= 4 * _UNIT * (coder.threshold.double().abs() + coder.b_enc.double().abs())
        rows = coder.w_enc.float().T.contiguous()
        return cls(coder, rows, rotation, weights, bounds.float())

    def encode(self, x: torch.Tensor) -> SparseCodes:
        """Encode finite activations [n_tokens, d_in] on the CPU: as `encode` does, bit for bit."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = [self._encode_block(x[i : i + _TOKENS], pool)[0]
                     for i in range(0, len(x), _TOKENS)]  # fmt: skip
        return concat(parts)

    def count_candidates(self, x: torch.Tensor) -> int:
        """Return how many pairs of token and feature are scored."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return sum(self._encode_block(x[i : i + _TOKENS], pool)[1]
                       for i in range(0, len(x), _TOKENS))  # fmt: skip

    def _encode_block(self, x: torch.Tensor, pool: ThreadPoolExecutor) -> tuple[SparseCodes, int]:
        rows = x.float().contiguous()
        rotated = rows.double() @ self.rotation
        unit = rotated.abs().amax(dim=1).clamp(min=_TINY) / _STEPS
        unit = unit.float().double()
        rounded = (rotated / unit[:, None]).round().clamp(-_STEPS, _STEPS)
        kept = rounded * unit[:, None]
        rest = (rotated - kept).norm(dim=1)
        size = torch.maximum(rows.double().norm(dim=1), kept.norm(dim=1))
        tokens = torch.stack([unit, rest * _SPARE, size * _SPARE]).float()
        small = rounded.to(torch.int8)
        n = -(-len(x) // torch.get_num_threads())
        pieces, n_candidates = [], 0
        for start, product in self._products(small):
            tasks = [slice(i, i + n) for i in range(0, len(x), n)]
            done = pool.map(
                lambda part, p=product, s=start: self._score(rows, tokens, p, s, part), tasks
            )
            found, counts = zip(*done, strict=True)
            pieces.append(found)
            n_candidates += sum(counts)
        codes = []
        for i, part in enumerate(zip(*pieces, strict=True)):
            codes.append(to_codes(_native.join(list(part), min(n, len(x) - i * n))))
        return concat(codes), n_candidates

    def _products(self, small: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, self.coder.width, _FEATURES):
            yield start, torch._int_mm(small, self.weights[:, start : start + _FEATURES])

    def _score(
        self, rows: torch.Tensor, tokens: torch.Tensor, product: torch.Tensor, start: int,
        part: slice,
    ) -> tuple[tuple[bytearray, bytearray, bytearray], int]:  # fmt: skip
        x, width = rows[part], product.shape[1]
        counts, features = _screen.candidates(
            product[part].contiguous().numpy(), len(x), width,
            tokens[:, part].contiguous().numpy(),
            self.bounds[:, start : start + width].contiguous().numpy(), start,
        )  # fmt: skip
        piece = _screen.score(
            x.numpy(), len(x), x.shape[1], self.rows.numpy(), self.coder.b_enc.numpy(),
            self.coder.threshold.numpy(), self.coder.width, counts, features,
        )  # fmt: skip
        return piece, len(np.frombuffer(features, np.int32))
