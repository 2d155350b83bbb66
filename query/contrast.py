"""Contexts in which a feature does not fire though its nearest features do."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from scopelake.errors import InvalidArgumentError, NotIngestedError
from scopelake.names import KIND_BOS
from scopelake.query.connect import Connection
from scopelake.query.context_rows import (
    add_windows,
    check_window,
    context_table,
    contexts_html,
    contexts_text,
)
from scopelake.query.partial import check_answerable, note
from scopelake.query.rank_contexts import Rows
from scopelake.query.resolve import SaeInfo
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE

if TYPE_CHECKING:
    import pandas as pd

N_NEIGHBORS: Final = 10
"""Nearest features that are looked at."""


@dataclass(frozen=True)
class ContrastContexts:
    """Contexts that a feature leaves out, the strongest ones of its nearest features first."""

    sae: str
    feature: int
    table: pa.Table
    """other_feature (the neighbor that fires), cosine (of the two decoder directions), and the
    columns of `TopContexts.table`: position, activation and activations are the neighbor's, value
    is its activation over its max on the corpora asked for."""
    note: str = ""
    """What the answer is short of."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return the contexts as lines of text by neighbor, its firing tokens marked."""
        lines = [self._head]
        for head, rows in self._by_neighbor():
            lines += [head, *contexts_text(rows, color=color)]
        lines += ["none: it fires wherever they do"] if self.table.num_rows == 0 else []
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        body = "".join(
            f"<p>{escape(head)}</p>{contexts_html(rows, 'share of max')}"
            for head, rows in self._by_neighbor()
        )
        return f"<b>{escape(self._head)}</b>{body}{escape(self.note)}"

    @property
    def _head(self) -> str:
        return f"feature {self.feature} of {self.sae} does not fire in these, its nearest ones do"

    def _by_neighbor(self) -> list[tuple[str, Rows]]:
        found: dict[int, Rows] = {}
        for row in self.table.to_pylist():
            found.setdefault(row["other_feature"], []).append(row)
        return [
            (f"feature {other}, cosine {rows[0]['cosine']:.3f}", rows)
            for other, rows in found.items()
        ]


def contrast_contexts(
    connection: Connection,
    sae: SaeInfo,
    feature: int,
    *,
    k: int = 20,
    window: int | None = 16,
    corpus: str | None = None,
) -> ContrastContexts:
    """Return the contexts without a firing of a feature in which its neighbors are strongest.

    Of each context the neighbor counts whose activation is the largest part of its own max (ties:
    lowest feature); contexts rank by that (ties: corpus, then context). BOS is left out.

    Args:
        connection: from `connect`.
        sae: from `resolve_sae`.
        feature: index in it.
        k: number of contexts, 1 or more.
        window: tokens on either side of the neighbor's peak; the whole context if None.
        corpus: only this corpus.

    Raises:
        InvalidArgumentError: `k` or `window` is too small.
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError: the SAE was not run on it, or its decoder was not compared with itself.
        QueryError: not all firings on a corpus are known.
    """
    if k < 1:
        raise InvalidArgumentError(
            f"k={k} was asked for; k is a number of contexts; give 1 or more"
        )
    check_window(window)
    connection.coverage.check_known(sae, corpus)
    check_answerable(sae, corpus, "contrast")
    cosines = _neighbors(connection, sae, feature)
    rows = _find(connection, sae, feature, list(cosines), k, corpus)
    for other in dict.fromkeys(row["other_feature"] for row in rows):
        mine = [row for row in rows if row["other_feature"] == other]
        add_windows(connection, sae, other, mine, window, bos=False)
    for rank, row in enumerate(rows):
        row |= {"rank": rank, "cosine": cosines[row["other_feature"]]}
    return ContrastContexts(sae.name, feature, _table(rows), note(connection.coverage, sae, corpus))


def _neighbors(connection: Connection, sae: SaeInfo, feature: int) -> dict[int, float]:
    """Return the nearest features of the SAE itself, and their cosines."""
    of_itself = [("sae", "=", sae.name), ("other_sae", "=", sae.name)]
    filters = [*of_itself, ("feature", "=", feature), ("rank", "<", N_NEIGHBORS)]
    rows = connection.rows("neighbors", ("other_feature", "cosine"), filters).to_pylist()
    if not rows and not connection.rows("neighbors", ("feature",), of_itself).num_rows:
        raise NotIngestedError(
            f"contexts of the nearest features of {sae.name} were asked for; its decoder was not "
            "compared with itself; run add_neighbors first"
        )
    return {row["other_feature"]: row["cosine"] for row in rows}


def _find(
    connection: Connection,
    sae: SaeInfo,
    feature: int,
    others: list[int],
    k: int,
    corpus: str | None,
) -> Rows:
    if not others:
        return []
    chosen = f"sae = ? AND kind <> {KIND_BOS}{'' if corpus is None else ' AND corpus = ?'}"
    params: list[Any] = [sae.name] if corpus is None else [sae.name, corpus]
    listed = ", ".join(map(str, others))
    query = f"""\
WITH peaks AS (
    SELECT corpus, context, feature AS other_feature,
        first(position ORDER BY activation DESC, position) AS position,
        max(activation) AS activation
    FROM {PRIVATE}.postings WHERE {chosen} AND feature IN ({listed})
    GROUP BY corpus, context, feature
), shares AS (
    SELECT *, activation::DOUBLE / max(activation) OVER (PARTITION BY other_feature) AS value
    FROM peaks
)
SELECT * FROM shares ANTI JOIN (
    SELECT corpus, context FROM {PRIVATE}.postings WHERE {chosen} AND feature = {int(feature)}
) USING (corpus, context)
QUALIFY row_number() OVER (PARTITION BY corpus, context ORDER BY value DESC, other_feature) = 1
ORDER BY value DESC, corpus, context LIMIT {int(k)}"""
    of_corpus = [("corpus", "=", corpus)] if corpus is not None else []
    features = ("feature", "in", [feature, *others])
    reads = {"postings": [("sae", "=", sae.name), features, *of_corpus]}
    rows: Rows = run(connection, query, [*params, *params], reads).to_pylist()
    return rows


def _table(rows: Rows) -> pa.Table:
    types = {"other_feature": pa.int32(), "cosine": pa.float32()}
    columns = {name: pa.array([r[name] for r in rows], t) for name, t in types.items()}
    contexts = context_table(rows)
    return pa.table({**columns, **{name: contexts[name] for name in contexts.column_names}})
