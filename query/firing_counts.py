"""How often features fire on the tokens of both sets, document by document, some features at once.

Firings are counted by DuckDB, which spills what does not fit into memory; of the counts so many are
in memory as a fixed number of firings can make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.names import KIND_BOS
from scopelake.query.compared_coders import CoderPair, Matched
from scopelake.query.limits import explained
from scopelake.query.literals import literal
from scopelake.query.views import PRIVATE

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FIRINGS_AT_ONCE: Final = 8_000_000
"""Firings, also of other tokens, of the features that are counted together."""

_COUNTS: Final = ("fired", "total", "tested")


@dataclass(frozen=True)
class FiringCounts:
    """Counts of matched features [start, stop); a row for each of them and document, [n]."""

    start: int
    stop: int
    item: Ints
    """Number of the matched feature, less `start`."""
    document: Ints
    fired: tuple[Floats, Floats]
    """Firings on the document's tokens of a, and of b."""
    total: tuple[Floats, Floats]
    """Sums of their activations."""
    tested: tuple[Floats, Floats]
    """Firings within the document's window."""

    @property
    def n_items(self) -> int:
        """Number of features."""
        return self.stop - self.start


def firing_counts(
    cursor: duckdb.DuckDBPyConnection,
    pair: CoderPair,
    matched: Matched,
    corpora: Sequence[Sequence[str]],
    at_once: int = FIRINGS_AT_ONCE,
) -> Iterator[FiringCounts]:
    """Yield the counts of all matched features, in order.

    Args:
        cursor: of `token_table`.
        pair: the coder of each set.
        matched: which features.
        corpora: of sets a and b.
        at_once: most firings that are counted together; of a single feature there may be more.

    Raises:
        QueryError: DuckDB fails.
    """
    with explained(None):
        weight = _firings(cursor, pair.a.name, corpora[0], pair.a.width)[matched.feature_a]
        if not pair.is_one:
            of_b = _firings(cursor, pair.b.name, corpora[1], pair.b.width)
            weight = weight + of_b[matched.feature_b]
        for start, stop in _ranges(weight, at_once):
            if pair.is_one:
                both = sorted({*corpora[0], *corpora[1]})
                rows = [_counted(cursor, pair.a.name, both, matched.feature_a[start:stop], (0, 1))]
            else:
                rows = [
                    _counted(cursor, pair.a.name, corpora[0], matched.feature_a[start:stop], (0,)),
                    _counted(cursor, pair.b.name, corpora[1], matched.feature_b[start:stop], (1,)),
                ]
            yield _together(start, stop, rows)


def _firings(
    cursor: duckdb.DuckDBPyConnection, sae: str, corpora: Sequence[str], width: int
) -> Ints:
    """Return the firings of each feature on whole corpora, [width]."""
    rows = cursor.execute(
        f"SELECT feature, count(*) AS n FROM {PRIVATE}.postings WHERE sae = ? "
        f"AND corpus IN ({', '.join(map(literal, corpora))}) GROUP BY feature",
        [sae],
    ).to_arrow_table()
    found = np.zeros(width, np.int64)
    found[rows["feature"].to_numpy()] = rows["n"].to_numpy()
    return found


def _ranges(weight: Ints, at_once: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of neighbors that weigh at most so much, or are one."""
    ends = np.cumsum(weight)
    start = 0
    while start < len(weight):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + at_once, "right")), start + 1)
        yield start, stop
        start = stop


def _counted(
    cursor: duckdb.DuckDBPyConnection,
    sae: str,
    corpora: Sequence[str],
    features: Ints,
    sides: Sequence[int],
) -> pa.Table:
    """Return item, document and the counts of the sides; those of other sides are 0."""
    items = pa.table({"feature": features.astype(np.int32), "item": np.arange(len(features))})
    cursor.register("items", items)
    columns = []
    for side in (0, 1):
        on = f"FILTER (WHERE side = {side})" if side in sides else "FILTER (WHERE false)"
        columns += [
            f"count(*) {on} AS fired_{side}",
            f"coalesce(sum(activation::DOUBLE) {on}, 0) AS total_{side}",
            f"count(*) {on.replace(')', ' AND tested)')} AS tested_{side}",
        ]
    # Bounds beside the join: they tell which row groups need not be read.
    return cursor.execute(
        f"SELECT item, document, {', '.join(columns)} FROM (SELECT corpus, context, position, "
        f"feature, activation FROM {PRIVATE}.postings WHERE sae = ? AND kind <> {KIND_BOS} "
        f"AND corpus IN ({', '.join(map(literal, corpora))}) "
        "AND feature BETWEEN ? AND ?) JOIN items USING (feature) "
        "JOIN tokens USING (corpus, context, position) "
        f"WHERE side IN ({', '.join(map(str, sides))}) GROUP BY item, document",
        [sae, int(features.min()), int(features.max())],
    ).to_arrow_table()


def _together(start: int, stop: int, tables: Sequence[pa.Table]) -> FiringCounts:
    """Return the rows of both coders, those of one feature and document as one."""
    rows = pa.concat_tables(tables)
    item, document = (rows[name].to_numpy().astype(np.int64) for name in ("item", "document"))
    columns = {
        name: tuple(rows[f"{name}_{side}"].to_numpy().astype(np.float64) for side in (0, 1))
        for name in _COUNTS
    }
    if len(tables) == 1:
        return FiringCounts(start, stop, item, document, **columns)
    key = item * (int(document.max(initial=0)) + 1) + document
    _, first, row = np.unique(key, return_index=True, return_inverse=True)
    merged = {
        name: (_added(row, a, len(first)), _added(row, b, len(first)))
        for name, (a, b) in columns.items()
    }
    return FiringCounts(start, stop, item[first], document[first], **merged)


def _added(row: Ints, values: Floats, n: int) -> Floats:
    return np.bincount(row, weights=values, minlength=n).astype(np.float64)
