"""Screened encoding (experimental) against encoding without a screen, on CPUs.

    python benchmarks/screened.py [--tokens 1024] [--repeats 5]

Both give the same bits, which is checked first. Input is random, or Gemma-like: a mean of its own
and channels 100 times up.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from encode import L0, make_coder, make_tokens
from record import Measure, write_results

from scopelake.kernels.encode import encode
from scopelake.kernels.screened import Screen

SHAPES = ((1_152, 16_384), (640, 65_536), (1_152, 65_536), (2_560, 65_536), (1_152, 262_144))


def compare(
    d_in: int, width: int, n_tokens: int, repeats: int, *, gemma_like: bool
) -> list[Measure]:
    """Time both in turn.

    Raises:
        AssertionError: they differ.
    """
    coder, x = make_coder(d_in, width), make_tokens(n_tokens, d_in, gemma_like=gemma_like)
    start = time.perf_counter()
    screen = Screen.of(coder)
    made = time.perf_counter() - start
    plain, screened = encode(x, coder, "cpu"), screen.encode(x)
    for name in ("indptr", "features", "activations"):
        assert torch.equal(getattr(plain, name), getattr(screened, name)), name
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        encode(x, coder, "cpu")
        middle = time.perf_counter()
        screen.encode(x)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    what = f"d={d_in} F={width} {'Gemma-like' if gemma_like else 'random'}"
    return [
        Measure(f"{what}: screened", tuple(ratios), "x unscreened"),
        Measure(f"{what}: scored", (screen.count_candidates(x) / n_tokens,), "features a token"),
        Measure(f"{what}: making the screen", (made,), "s"),
    ]


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_024)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    measures = [
        measure
        for d_in, width in SHAPES
        for gemma_like in (False, True)
        for measure in compare(d_in, width, args.tokens, args.repeats, gemma_like=gemma_like)
    ]
    config = f"{args.tokens} tokens, about {L0} firings a token, {torch.get_num_threads()} threads"
    write_results("screened", measures, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
