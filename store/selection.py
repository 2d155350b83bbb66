"""A shard's peaks and samples, both in one pass over its firings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.store import native
from scopelake.store.firings import Firings, peaks, rank_in_group, samples


def select(
    by_feature: Firings,
    peak_bounds: npt.NDArray[np.uint32],
    sample_bounds: npt.NDArray[np.uint32],
    k_peaks: int,
    per_band: int,
) -> tuple[pa.Table, pa.Table]:
    """Return what `firings.peaks` and `firings.samples` do.

    Args:
        by_feature: feature-major, of features below the bounds' number.
        peak_bounds: [features].
        sample_bounds: [features, BANDS].
        k_peaks: most contexts of a feature.
        per_band: most samples of a feature and band.
    """
    if native.WHY_NOT is not None:
        return (
            peaks(by_feature, k_peaks, peak_bounds),
            samples(by_feature, per_band, sample_bounds),
        )
    strongest, drawn, band, priority = native.select(
        by_feature.columns(), peak_bounds, sample_bounds, k_peaks, per_band
    )
    best, sampled = by_feature.take(strongest), by_feature.take(drawn)
    return (
        pa.table(
            {
                "feature": best.feature,
                "rank": rank_in_group(best.feature).astype(np.int32),
                "context": best.context,
                "position": best.position,
                "activation": best.activation,
            }
        ),
        pa.table(
            {
                "feature": sampled.feature,
                "band": band,
                "priority": priority,
                "context": sampled.context,
                "position": sampled.position,
                "activation": sampled.activation,
            }
        ),
    )
