"""How often features fire on the tokens of both sets, document by document, some features at once.

Firings are counted by DuckDB, which spills what does not fit into memory; of the counts so many are
in memory as a fixed number of firings can make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import duckdb
import numpy as np
import numpy.typing as npt

from scopelake.names import KIND_BOS
from scopelake.query.compared_coders import CoderPair, Matched
from scopelake.query.limits import explained
from scopelake.query.literals import literal
from scopelake.query.views import PRIVATE

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]

FIRINGS_AT_ONCE: Final = 8_000_000
"""Firings, also of other tokens, of the features that are counted together."""

DocumentValue = Literal["rate", "activation"]
"""What ranks documents: firings a token, or mean activation over all tokens."""

DOCUMENT_VALUES: Final[tuple[DocumentValue, ...]] = get_args(DocumentValue)

_COUNTS: Final = ("fired", "total", "tested")
_TESTED: Final = {"rate": "coalesce(count(*)", "activation": "coalesce(sum(activation::DOUBLE)"}


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
    """Firings within the document's window, or the sum of their activations."""

    @property
    def n_items(self) -> int:
        """Number of features."""
        return self.stop - self.start


def firing_counts(
    cursor: duckdb.DuckDBPyConnection,
    pair: CoderPair,
    matched: Matched,
    corpora: Sequence[Sequence[str]],
    by: DocumentValue = "rate",
    at_once: int = FIRINGS_AT_ONCE,
) -> Iterator[FiringCounts]:
    """Yield the counts of all matched features, in order.

    Args:
        cursor: of `token_table`.
        pair: the coder of each set.
        matched: which features.
        corpora: of sets a and b.
        by: what is tested.
        at_once: most firings that are counted together; of a single feature there may be more.

    Raises:
        QueryError: DuckDB fails.
    """
    with explained(None):
        both = sorted({*corpora[0], *corpora[1]})
        if pair.is_one:
            weight = _firings(cursor, pair.a.name, both, pair.a.width)
        else:
            weight = _firings(cursor, pair.a.name, corpora[0], pair.a.width)[matched.feature_a]
            of_b = _firings(cursor, pair.b.name, corpora[1], pair.b.width)
            weight = weight + of_b[matched.feature_b]
        for start, stop in _ranges(weight, at_once):
            features = (matched.feature_a[start:stop], matched.feature_b[start:stop])
            if pair.is_one:
                rows = [_counted(cursor, pair.a.name, both, features[0], by)]
            else:
                names = (pair.a.name, pair.b.name)
                rows = [
                    _counted(cursor, names[side], corpora[side], features[side], by, side)
                    for side in (0, 1)
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
    by: DocumentValue,
    side: int | None = None,
) -> dict[str, Floats]:
    """Return item, part and the counts of some features, [n] each.

    Args:
        cursor: as in `firing_counts`.
        sae: whose firings.
        corpora: where they are counted.
        features: by item.
        by: what is tested.
        side: only on tokens of a (0) or b (1); None: of both.
    """
    first, last = int(features.min()), int(features.max())
    # Names of corpora are long keys: they join only where there are several.
    place = "context, position" if len(corpora) == 1 else "corpus, context, position"
    of_side = "" if side is None else f" WHERE part % 2 = {side}"
    rows = cursor.execute(
        "SELECT feature, part, count(*) AS fired, sum(activation::DOUBLE) AS total, "
        f"{_TESTED[by]} FILTER (WHERE tested), 0) AS tested "
        f"FROM (SELECT {place}, feature, activation FROM {PRIVATE}.postings "
        f"WHERE sae = ? AND kind <> {KIND_BOS} "
        f"AND corpus IN ({', '.join(map(literal, corpora))}) AND feature BETWEEN ? AND ?) "
        f"JOIN (SELECT {place}, part, tested FROM tokens "
        f"WHERE corpus IN ({', '.join(map(literal, corpora))})) USING ({place}){of_side} "
        "GROUP BY feature, part",
        [sae, first, last],
    ).to_arrow_table()
    item_of = np.full(last - first + 1, -1)
    item_of[features - first] = np.arange(len(features))
    item = item_of[rows["feature"].to_numpy() - first]
    # Between features that are matched there may be others.
    there = item >= 0
    found = {name: rows[name].to_numpy()[there] for name in ("part", *_COUNTS)}
    return {"item": item[there], **found}


def _together(start: int, stop: int, tables: Sequence[dict[str, Floats]]) -> FiringCounts:
    """Return the rows of one feature and document as one, with the counts of both sets."""
    rows = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    item, part = rows["item"].astype(np.int64), rows["part"].astype(np.int64)
    document, is_b = part // 2, part % 2 == 1
    key = item * (int(document.max(initial=0)) + 1) + document
    _, first, row = np.unique(key, return_index=True, return_inverse=True)
    n = len(first)
    added: dict[str, tuple[Floats, Floats]] = {
        name: (_added(row, rows[name] * ~is_b, n), _added(row, rows[name] * is_b, n))
        for name in _COUNTS
    }
    return FiringCounts(start, stop, item[first], document[first], **added)


def _added(row: Ints, values: Floats, n: int) -> Floats:
    return np.bincount(row, weights=values, minlength=n).astype(np.float64)
