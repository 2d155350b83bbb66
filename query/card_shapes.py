"""What a card's renderings share: which bins and positions are shown, numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from scopelake.query.card_statistics import Statistics

FIRST_POWER: Final = -8
"""Power of two at which the histogram's second bin ends and the first begins, in its count."""


def shown_bins(histogram: Sequence[int]) -> tuple[int, list[int]]:
    """Return the bins from the first to the last that has firings, and the first one's power."""
    there = [i for i, n in enumerate(histogram) if n]
    if not there:
        return FIRST_POWER, []
    first, last = there[0], there[-1]
    return FIRST_POWER + first, list(histogram[first : last + 1])


def densities(by_position: pa.Table, most: int) -> tuple[list[float], int]:
    """Return the density by position in at most so many ranges, and the positions of each range."""
    firings = by_position["firings"].to_numpy()
    n_tokens = by_position["n_tokens"].to_numpy()
    if not len(firings):
        return [], 1
    width = -(-len(firings) // most)
    starts = np.arange(0, len(firings), width)
    fired, there = (np.add.reduceat(column, starts) for column in (firings, n_tokens))
    return (fired / np.maximum(there, 1)).tolist(), width


def share(value: float | None) -> str:
    """Return a share in per cent."""
    return "?" if value is None else f"{100 * value:.3g} %"


def number(value: float | None) -> str:
    """Return a number to four digits."""
    return "?" if value is None else f"{value:.4g}"


def in_words(s: Statistics) -> str:
    """Return statistics on a line."""
    if s.firings is None:
        return f"density {share(s.density)}, max {number(s.max)}"
    among = "" if s.n_tokens is None else f" on {s.n_tokens:,} tokens ({share(s.density)})"
    text = f"{s.firings:,} firings{among}"
    if not s.firings:
        return text
    text += f", mean {number(s.mean)}, max {number(s.max)}"
    if s.p50 is None:
        return text
    off = f" within {share(s.quantile_error)}" if s.quantile_error else ""
    quantiles = (("p10", s.p10), ("p50", s.p50), ("p90", s.p90), ("p99", s.p99))
    return text + ", " + " ".join(f"{name} {number(value)}" for name, value in quantiles) + off
