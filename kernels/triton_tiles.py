"""What runs on the GPU: Triton's language, which Python's type checkers do not follow."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode_tiles(
    x, w, bias, threshold, slack, norm, counter, tokens, features, activations,
    n_tokens, width, d_in, x_stride, w_stride, capacity,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, WITH_SLACK: tl.constexpr,
):  # fmt: skip
    """Write token, feature and activation of what fires, in any order, and count it.

    x [n_tokens, d_in], w [d_in, width]; `least` that an activation has to exceed is its threshold
    less norm[token] * slack[feature]. What has no place below `capacity` is counted only.
    """
    n_row_tiles = tl.cdiv(n_tokens, BM)
    n_tiles = n_row_tiles * tl.cdiv(width, BN)
    # Persistent programs; tiles of tokens go fastest, so that one tile of weights serves them all.
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        rows = (tile % n_row_tiles) * BM + tl.arange(0, BM)
        columns = (tile // n_row_tiles) * BN + tl.arange(0, BN)
        is_row, is_column = rows < n_tokens, columns < width
        sums = tl.zeros((BM, BN), dtype=tl.float32)
        for start in range(0, d_in, BK):
            k = start + tl.arange(0, BK)
            a = tl.load(
                x + rows[:, None].to(tl.int64) * x_stride + k[None, :],
                mask=is_row[:, None] & (k < d_in)[None, :], other=0.0,
            )  # fmt: skip
            b = tl.load(
                w + k[:, None].to(tl.int64) * w_stride + columns[None, :],
                mask=(k < d_in)[:, None] & is_column[None, :], other=0.0,
            )  # fmt: skip
            if UPCAST:  # the interpreter multiplies the raw bits of bfloat16
                a, b = a.to(tl.float32), b.to(tl.float32)
            sums = tl.dot(a, b, sums, input_precision=PRECISION)
        pre = sums + tl.load(bias + columns, mask=is_column, other=0.0)[None, :]
        # Columns behind the last feature never fire.
        least = tl.load(threshold + columns, mask=is_column, other=float("inf"))[None, :]
        if WITH_SLACK:
            per_row = tl.load(norm + rows, mask=is_row, other=0.0)
            per_column = tl.load(slack + columns, mask=is_column, other=0.0)
            least = least - per_row[:, None] * per_column[None, :]
        fires = (pre > least) & is_row[:, None]
        flags = fires.to(tl.int32)
        per_row_count = tl.sum(flags, axis=1)
        total = tl.sum(per_row_count, axis=0)
        if total > 0:
            base = tl.atomic_add(counter, total.to(tl.int64))
            row_start = tl.cumsum(per_row_count, axis=0) - per_row_count
            at = base + (row_start[:, None] + tl.cumsum(flags, axis=1) - flags).to(tl.int64)
            fits = fires & (at < capacity)
            shape = tl.zeros((BM, BN), dtype=tl.int32)
            tl.store(tokens + at, shape + rows[:, None], mask=fits)
            tl.store(features + at, shape + columns[None, :], mask=fits)
            tl.store(activations + at, pre, mask=fits)


@triton.jit
def score_pairs(
    x, w, bias, tokens, features, scores, n_pairs, d_in, x_stride, w_stride,
    DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the pre-activation of each pair of a token and a feature, in float32."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < n_pairs
    token = tl.load(tokens + at, mask=there, other=0).to(tl.int64)
    feature = tl.load(features + at, mask=there, other=0).to(tl.int64)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    column = w + feature  # moved on row by row: an offset could pass 32 bits
    # Fused multiply-adds in blocks, each from 0: the order in which CPUs encode.
    for start in range(0, d_in, DEPTH):
        part = tl.zeros((BLOCK,), dtype=tl.float32)
        for p in range(start, min(start + DEPTH, d_in)):
            a = tl.load(x + token * x_stride + p, mask=there, other=0.0)
            b = tl.load(column, mask=there, other=0.0)
            part = tl.fma(a, b, part)
            column += w_stride
        total = tl.where(start == 0, part, total + part)
    tl.store(scores + at, total + tl.load(bias + feature, mask=there, other=0.0), mask=there)
