"""Firings put in order and selected, compiled (`_native.c`); each function has its plain
counterpart in numpy, which gives the same and is used where nothing could be compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from scopelake.store import _native
except ImportError as error:
    WHY_NOT: str | None = f"the compiled part of the store is not built ({error})"
else:
    WHY_NOT = None

Column = npt.NDArray[Any]


def by_feature(columns: tuple[Column, ...], width: int) -> tuple[Column, ...]:
    """Return columns of firings stably sorted by feature.

    Args:
        columns: context i64, position i32, feature i32, activation f32, kind i8, [n] each.
        width: above every feature.
    """
    context, position, feature, activation, kind = map(np.ascontiguousarray, columns)
    made = _native.by_feature(context, position, feature, activation, kind, width)
    return tuple(np.frombuffer(m, c.dtype) for m, c in zip(made, columns, strict=True))


def select(
    columns: tuple[Column, ...],
    peak_bounds: npt.NDArray[np.uint32],
    sample_bounds: npt.NDArray[np.uint32],
    k_peaks: int,
    per_band: int,
) -> tuple[Column, Column, Column, Column]:
    """Return which feature-major firings are peaks, and which are samples.

    Args:
        columns: as in `by_feature`.
        peak_bounds: [features], as in `firings.peaks`.
        sample_bounds: [features, BANDS], as in `firings.samples`.
        k_peaks: most contexts of a feature.
        per_band: most samples of a feature and band.

    Returns:
        Rows of peaks (i64, by feature and rank), rows of samples (i64, by feature, band and
        priority), their bands (i8) and priorities (i32).
    """
    context, position, feature, activation, kind = map(np.ascontiguousarray, columns)
    strongest, drawn, band, priority = _native.select(
        context, position, feature, activation, kind,
        np.ascontiguousarray(peak_bounds), np.ascontiguousarray(sample_bounds), k_peaks, per_band,
    )  # fmt: skip
    return (
        np.frombuffer(strongest, np.int64),
        np.frombuffer(drawn, np.int64),
        np.frombuffer(band, np.int8),
        np.frombuffer(priority, np.int32),
    )
