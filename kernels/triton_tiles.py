"""What runs on the GPU: Triton's language, which Python's type checkers do not follow."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def screen_tiles(
    x, w, least, slack, norm, words, n_tokens, width, d_in, x_stride, w_stride, n_words,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write for each token which features may fire, a bit each.

    x [n_tokens, d_in] and w [d_in, width], bfloat16; bit b of words[token, j] is feature 32 j + b.
    It is set where the product exceeds least[feature] - norm[token] * slack[feature].
    """
    n_row_tiles, n_column_tiles = tl.cdiv(n_tokens, BM), tl.cdiv(width, BN)
    # Tiles near to each other run at the same time: what they read is in the cache once.
    tile = tl.program_id(0)
    group = tile // (GROUP * n_column_tiles)
    n_rows_here = min(n_row_tiles - group * GROUP, GROUP)
    within = tile % (GROUP * n_column_tiles)
    row_tile, column_tile = group * GROUP + within % n_rows_here, within // n_rows_here
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    # Behind the last row or column others are read again; what they give is not kept.
    x_at = x + (rows % n_tokens)[:, None].to(tl.int64) * x_stride
    w_at = w + (columns % width)[None, :]
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, d_in, BK):
        k = start + tl.arange(0, BK)
        if EVEN:
            a = tl.load(x_at + k[None, :])
            b = tl.load(w_at + k[:, None].to(tl.int64) * w_stride)
        else:
            a = tl.load(x_at + k[None, :], mask=(k < d_in)[None, :], other=0.0)
            b = tl.load(
                w_at + k[:, None].to(tl.int64) * w_stride, mask=(k < d_in)[:, None], other=0.0
            )
        if UPCAST:  # the interpreter multiplies the raw bits of bfloat16
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums)
    of_row = tl.load(norm + rows % n_tokens)
    is_column = columns < width
    bound = tl.load(least + columns, mask=is_column, other=float("inf"))
    of_column = tl.load(slack + columns, mask=is_column, other=0.0)
    # Not whether it is above: what is not a number, of sums or bounds that pass float32, is scored.
    is_out = sums <= bound[None, :] - of_row[:, None] * of_column[None, :]
    may_fire = is_column[None, :] & (is_out == 0)
    bits = tl.reshape(may_fire.to(tl.int32), (BM, BN // 32, 32)) << tl.arange(0, 32)[None, None, :]
    packed = tl.sum(bits, axis=2)
    j = column_tile * (BN // 32) + tl.arange(0, BN // 32)
    tl.store(
        words + rows[:, None].to(tl.int64) * n_words + j[None, :], packed,
        mask=(rows < n_tokens)[:, None] & (j < n_words)[None, :],
    )  # fmt: skip


@triton.jit
def _n_bits(words):
    """Return how many bits of each word are set."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    sixteens = eights + (eights >> 8)
    return (sixteens + (sixteens >> 16)) & 0x3F


@triton.jit
def count_bits(words, counts, n_words, n_parts, PART: tl.constexpr):
    """Count the bits of each part, `PART` words, of each token: counts [n_tokens, n_parts]."""
    token, part = tl.program_id(0), tl.program_id(1)
    j = part * PART + tl.arange(0, PART)
    found = tl.load(words + token.to(tl.int64) * n_words + j, mask=j < n_words, other=0)
    tl.store(counts + token.to(tl.int64) * n_parts + part, tl.sum(_n_bits(found), axis=0))


@triton.jit
def list_features(words, starts, features, n_words, n_parts, PART: tl.constexpr):
    """Write the features of each part of each token, ascending, from its start on."""
    token, part = tl.program_id(0), tl.program_id(1)
    j = part * PART + tl.arange(0, PART)
    found = tl.load(words + token.to(tl.int64) * n_words + j, mask=j < n_words, other=0)
    n = _n_bits(found)
    at = tl.load(starts + token.to(tl.int64) * n_parts + part) + tl.cumsum(n, axis=0) - n
    for bit in range(32):
        is_set = ((found >> bit) & 1) != 0
        tl.store(features + at, 32 * j + bit, mask=is_set)
        at += is_set.to(tl.int32)


@triton.jit
def score_features(
    x, rows, bias, starts, features, scores, n_parts, d_in, x_stride, row_stride,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write the pre-activation of each feature listed, a sum in float32.

    rows [width, d_in]. Parts of features go slowest: their rows stay in the cache meanwhile.
    """
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = tl.load(starts + token * n_parts + part)
    stop = tl.load(starts + token * n_parts + part + 1)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        there = at < stop
        feature = tl.load(features + at, mask=there, other=0).to(tl.int64)
        sums = tl.zeros((BLOCK, DEPTH), dtype=tl.float32)
        for k_first in range(0, d_in, DEPTH):
            k = k_first + tl.arange(0, DEPTH)
            a = tl.load(x + token * x_stride + k, mask=k < d_in, other=0.0).to(tl.float32)
            b = tl.load(
                rows + feature[:, None] * row_stride + k[None, :],
                mask=there[:, None] & (k < d_in)[None, :], other=0.0,
            )  # fmt: skip
            sums = tl.fma(a[None, :], b.to(tl.float32), sums)
        score = tl.sum(sums, axis=1) + tl.load(bias + feature, mask=there, other=0.0)
        tl.store(scores + at, score, mask=there)
