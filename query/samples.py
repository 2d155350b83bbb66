"""Contexts from all over a feature's range of activation, not only its strongest."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.names import SAMPLINGS, Sampling
from scopelake.query.connect import Connection
from scopelake.query.context_rows import (
    add_windows,
    check_window,
    context_table,
    contexts_html,
    contexts_text,
)
from scopelake.query.partial import check_answerable, note
from scopelake.query.rank_contexts import Ranking, Rows

if TYPE_CHECKING:
    import pandas as pd

ALL: Final = 1 << 53
"""More contexts than there are."""


@dataclass(frozen=True)
class SampledContexts:
    """Contexts in which a feature fires, some from each band of activation."""

    sae: str
    feature: int
    how: Sampling
    table: pa.Table
    """band (from 0, the lowest), low, high (activations of the band), n_contexts (that it has),
    and the columns of `TopContexts.table`; by band, then rank in it."""
    note: str = ""
    """What the answer is short of."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return the contexts as lines of text by band, the firing tokens marked."""
        lines = [f"feature {self.feature} of {self.sae}, {_MEANINGS[self.how]}"]
        for head, rows in self._bands():
            lines += [head, *contexts_text(rows, color=color)]
        lines += ["never fires in what was asked for"] if self.table.num_rows == 0 else []
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        body = "".join(f"<p>{escape(h)}</p>{contexts_html(rows)}" for h, rows in self._bands())
        return (
            f"<b>feature {self.feature}</b> of {escape(self.sae)}, {_MEANINGS[self.how]}"
            f"{body}{escape(self.note)}"
        )

    def _bands(self) -> list[tuple[str, Rows]]:
        """Return a headline and the contexts of each band, the highest first."""
        found: dict[int, Rows] = {}
        for row in self.table.to_pylist():
            found.setdefault(row["band"], []).append(row)
        return [
            (
                f"activation {rows[0]['low']:.4g} to {rows[0]['high']:.4g}: "
                f"{len(rows):,} of {rows[0]['n_contexts']:,} contexts",
                rows,
            )
            for _, rows in sorted(found.items(), reverse=True)
        ]


_MEANINGS: Final = {
    "quantile": "from bands of equally many contexts",
    "uniform": "from bands of equal width of activation",
}


def sample_contexts(
    connection: Connection,
    ranking: Ranking,
    how: Sampling = "quantile",
    *,
    n_bands: int = 5,
    seed: int = 0,
    window: int | None = 16,
) -> SampledContexts:
    """Return contexts at random from bands of a feature's activation in them.

    Args:
        connection: from `connect`.
        ranking: which contexts, and how many in all; as many of each band, or all that it has.
        how: bands of equally many contexts, or of equal width between lowest and highest.
        n_bands: number of bands, 1 or more.
        seed: of the choice: equal arguments give equal contexts.
        window: tokens on either side of the peak; the whole context if None.

    Raises:
        InvalidArgumentError: an argument is out of range.
        CorpusNotFoundError, NotIngestedError, QueryError: as of `top_contexts`; of corpora of which
            not all firings are known too.
    """
    if how not in SAMPLINGS:
        raise InvalidArgumentError(
            f"a sample by {how!r} was asked for; there are {', '.join(SAMPLINGS)}; choose one"
        )
    if n_bands < 1 or ranking.k < n_bands:
        raise InvalidArgumentError(
            f"k={ranking.k} contexts of n_bands={n_bands} were asked for; give 1 band or more, and "
            "a context for each"
        )
    check_window(window)
    sae, corpus = ranking.sae, ranking.corpus
    connection.coverage.check_known(sae, corpus)
    check_answerable(sae, corpus, "a sample")
    every = Ranking(sae, ranking.feature, ALL, corpus, ranking.where, ranking.bos,
                    distinct=ranking.distinct)  # fmt: skip
    found = every.run(connection, *every.sql(inline=False))
    bands = _bands(found["activation"].to_numpy(), how, n_bands)
    rng = np.random.default_rng([seed, ranking.feature])
    rows: Rows = []
    for band, members in enumerate(bands):
        # Shares that differ by one, so that they add up to k.
        n = ranking.k // n_bands + (band < ranking.k % n_bands)
        chosen = np.sort(rng.permutation(members)[:n])
        rows += _rows(found, chosen, band, members)
    add_windows(connection, sae, ranking.feature, rows, window, bos=ranking.bos)
    return SampledContexts(
        sae.name, ranking.feature, how, _table(rows), note(connection.coverage, sae, corpus)
    )


def _bands(
    activation: npt.NDArray[np.float32], how: Sampling, n_bands: int
) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each band, lowest first; rows are by activation, highest first."""
    rows = np.arange(len(activation))[::-1]
    if how == "quantile":
        return np.array_split(rows, n_bands)
    if len(rows) == 0:
        return [rows] * n_bands
    edges = np.linspace(activation[-1], activation[0], n_bands + 1)
    band = np.searchsorted(edges[1:-1], activation, side="right")
    return [rows[band[rows] == b] for b in range(n_bands)]


def _rows(
    found: pa.Table, chosen: npt.NDArray[np.int64], band: int, members: npt.NDArray[np.int64]
) -> Rows:
    activation = found["activation"].to_numpy()[members]
    of_band: dict[str, Any] = {"band": band, "n_contexts": len(members)}
    if len(members):
        of_band |= {"low": float(activation.min()), "high": float(activation.max())}
    return [of_band | row for row in found.take(chosen).to_pylist()]


def _table(rows: Rows) -> pa.Table:
    types = {"band": pa.int32(), "low": pa.float32(), "high": pa.float32(),
             "n_contexts": pa.int64()}  # fmt: skip
    columns = {name: pa.array([r[name] for r in rows], t) for name, t in types.items()}
    contexts = context_table(rows)
    return pa.table({**columns, **{name: contexts[name] for name in contexts.column_names}})
