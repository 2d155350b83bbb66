"""How notable a firing is: its activation, beside what is usual for its feature, or its surprise.

A feature that is always on drowns the rest in a ranking by activation. Its statistics on a corpus,
BOS left out, say what is usual for it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import InvalidArgumentError, NotIngestedError
from scopelake.names import FIRING_RANKINGS, FiringRanking
from scopelake.query.connect import Connection
from scopelake.store.firings import band

_COLUMNS: Final = ("feature", "mean", "max", "histogram", "n_tokens")

Scores = npt.NDArray[np.float64]


def check_by(by: str) -> None:
    """Refuse a ranking that there is not.

    Raises:
        InvalidArgumentError: there is none of that name.
    """
    if by not in FIRING_RANKINGS:
        raise InvalidArgumentError(
            f"a ranking by {by!r} was asked for; there are {', '.join(FIRING_RANKINGS)}; choose one"
        )


def scores(connection: Connection, firings: pa.Table, by: FiringRanking, corpus: str) -> Scores:
    """Return the score of each firing, [n]; NaN where nothing can be said.

    - ``activation``: itself.
    - ``mean``, ``max``: activation over the feature's mean or max on the corpus.
    - ``surprise``: in bits, -log2 of the share of the corpus's tokens on which the feature fires in
      the same power of two of activation or above. A firing stronger than any on the corpus is as
      surprising as one on half a token.

    NaN is a firing of a feature that never fires on the corpus outside of BOS, but for surprise.

    Args:
        connection: from `connect`.
        firings: sae, feature, activation.
        by: one of `FIRING_RANKINGS`.
        corpus: whose statistics say what is usual.

    Raises:
        NotIngestedError: there are none of an SAE on the corpus.
    """
    activation: Scores = firings["activation"].to_numpy().astype(np.float64)
    if by == "activation":
        return activation
    found = np.full(len(activation), np.nan)
    for sae in pc.unique(firings["sae"]).to_pylist():
        at = np.flatnonzero(pc.equal(firings["sae"], sae).to_numpy())
        feature = firings["feature"].to_numpy()[at]
        statistics = _statistics(connection, sae, corpus, np.unique(feature))
        row = np.searchsorted(statistics["feature"].to_numpy(), feature)
        if by == "surprise":
            found[at] = _surprise(statistics, row, activation[at])
        else:
            usual = statistics[by].to_numpy(zero_copy_only=False).astype(np.float64)
            found[at] = activation[at] / usual[row]
    return found


def _statistics(
    connection: Connection, sae: str, corpus: str, features: npt.NDArray[np.int32]
) -> pa.Table:
    filters = [("sae", "=", sae), ("corpus", "=", corpus), ("feature", "in", features.tolist())]
    rows = connection.rows("features", _COLUMNS, filters)
    if rows.num_rows < len(features):
        raise NotIngestedError(
            f"what is usual for {sae} on corpus {corpus!r} was asked for; its statistics are not "
            "there, since its ingest there is not complete; ingest it, or rank by activation"
        )
    return rows.sort_by("feature").combine_chunks()


def _surprise(statistics: pa.Table, row: npt.NDArray[Any], activation: Scores) -> Scores:
    histogram = statistics["histogram"].combine_chunks().flatten().to_numpy()
    histogram = histogram.reshape(statistics.num_rows, -1)
    at_least = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
    n = np.maximum(at_least[row, band(activation.astype(np.float32))], 0.5)
    return np.asarray(np.log2(statistics["n_tokens"].to_numpy()[row] / n))
