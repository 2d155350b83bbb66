"""Which contexts a feature is strongest in: by one firing, or by all that it has there.

The common case reads ``peaks``; a filter, BOS, another ranking than by the strongest firing, or a
depth beyond that of peaks reads ``postings``. Both give the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.names import CONTEXT_RANKINGS, KIND_BOS, ContextRanking
from scopelake.query.connect import Connection
from scopelake.query.literals import literal
from scopelake.query.partial import check_answerable, partial_on
from scopelake.query.resolve import SaeInfo
from scopelake.query.snapshot_files import Reads, whole_tables
from scopelake.query.sql import check_predicate, run
from scopelake.query.views import PRIVATE, token_columns
from scopelake.query.windows import documents_of
from scopelake.store.running import PEAKS_DEPTH

WHERE_COLUMNS: Final = (
    "corpus", "context", "position", "activation", "token_id", "token", "role", "turn", "kind",
    "document", "document_index", "part", "n_tokens", "metadata", "text",
)  # fmt: skip
"""Columns that a `where` may use."""

_VALUES: Final = {
    "max": "max(activation)",
    "mean": "favg(activation)",
    "sum": "fsum(activation)",
    "count": "count(*)",
}

_COLUMNS: Final = ("corpus", "context", "position", "activation")

Rows = list[dict[str, Any]]
"""corpus, context, position and activation of the strongest firing, value."""


@dataclass(frozen=True)
class Ranking:
    """Which contexts are asked for.

    Raises:
        InvalidArgumentError: `k` is below 1, or there is no such ranking.
        QueryError: `where` is not one predicate; or what is asked for is more than what is known
            of a corpus can tell.
    """

    sae: SaeInfo
    feature: int
    k: int = 20
    corpus: str | None = None
    where: str | None = None
    """SQL predicate that a firing must meet to count, over `WHERE_COLUMNS`."""
    bos: bool = False
    """Whether firings on BOS count."""
    by: ContextRanking = "max"
    distinct: bool = False
    """Whether of each document only the first context counts."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidArgumentError(
                f"k={self.k} was asked for; k is a number of contexts; give 1 or more"
            )
        if self.by not in CONTEXT_RANKINGS:
            raise InvalidArgumentError(
                f"a ranking by {self.by!r} was asked for; there are {', '.join(CONTEXT_RANKINGS)}; "
                "choose one"
            )
        check_answerable(self.sae, self.corpus, self._needs_all(), k=self.k)
        if self.where is not None:
            check_predicate(self.where)

    def _needs_all(self) -> str | None:
        """Return what only all firings can answer, in words."""
        if self.where is not None:
            return f"where {self.where!r}"
        if self.bos:
            return "bos"
        return None if self.by == "max" else f"by={self.by!r}"

    @property
    def is_in_peaks(self) -> bool:
        """Whether the strongest contexts of each feature tell it."""
        plain = self.where is None and not self.bos and self.by == "max"
        return plain and self.k <= PEAKS_DEPTH

    def find(self, connection: Connection) -> Rows:
        """Return the contexts, highest value first (ties: corpus, then context)."""
        if self.is_in_peaks and (found := self._from_peaks(connection)) is not None:
            return found
        query, params = self.sql(inline=False)
        rows: Rows = self.run(connection, query, params).to_pylist()
        return rows

    def run(self, connection: Connection, query: str, params: list[Any]) -> pa.Table:
        """Run a query over the contexts of this ranking, or over what it is made of.

        Raises:
            QueryError: `where` fails.
        """
        if self.where is not None and "(" in self.where:
            connection.make_macros()
        try:
            return run(connection, query, params, self._reads())
        except QueryError as error:
            if self.where is None or "column" not in str(error):
                raise
            raise QueryError(f"{error}; columns of where are {', '.join(WHERE_COLUMNS)}") from error

    def _from_peaks(self, connection: Connection) -> Rows | None:
        """Return what the query does, without one; None where peaks are too few for it."""
        # Of distinct documents there may be fewer than contexts.
        depth = PEAKS_DEPTH if self.distinct else self.k
        filters = [
            ("sae", "=", self.sae.name),
            ("feature", "=", self.feature),
            ("rank", "<", depth),
        ]
        filters += [("corpus", "=", self.corpus)] if self.corpus is not None else []
        rows = connection.rows("peaks", _COLUMNS, filters)
        order = [("activation", "descending"), ("corpus", "ascending"), ("context", "ascending"),
                 ("position", "ascending")]  # fmt: skip
        strongest: dict[tuple[str, int], dict[str, Any]] = {}
        for row in rows.sort_by(order).to_pylist():
            # Published examples may have several firings of a context.
            strongest.setdefault((row["corpus"], row["context"]), row)
        # What several files hold beyond the depth is not all that there is.
        ranked = list(strongest.values())[:depth]
        found = [row | {"value": float(row["activation"])} for row in ranked]
        return self._distinct(connection, found) if self.distinct else found

    def _distinct(self, connection: Connection, rows: Rows) -> Rows | None:
        """Keep of each document the first context; None if that is not all there is to know."""
        documents = documents_of(connection, [(row["corpus"], row["context"]) for row in rows])
        first: dict[tuple[str, str | None], dict[str, Any]] = {}
        for row in rows:
            first.setdefault((row["corpus"], documents[row["corpus"], row["context"]]), row)
        # Of a packed context's documents peaks have only the strongest.
        is_packed = any(name is None for _, name in first)
        if is_packed or (len(first) < self.k and len(rows) >= PEAKS_DEPTH):
            check_answerable(self.sae, self.corpus, f"k={self.k} documents")
            return None
        return list(first.values())[: self.k]

    def _reads(self) -> Reads:
        """Return what the query reads: of both tables of firings, little for one feature."""
        of_corpus = [("corpus", "=", self.corpus)] if self.corpus is not None else []
        firings = [("sae", "=", self.sae.name), ("feature", "=", self.feature), *of_corpus]
        reads: Reads = {"peaks": firings, "postings": firings}
        joined = self.where is not None or self.distinct
        reads = {**reads, "contexts": of_corpus} if joined else reads
        # A subquery of `where` reads what it names, whole.
        return {**reads, **whole_tables(self.where or "")}

    def sql(self, *, inline: bool = True) -> tuple[str, list[Any]]:
        """Return the SQL that ranks contexts, and its parameters (none if they are `inline`)."""
        params: list[Any] = []

        def value(given: str | int) -> str:
            if inline:
                return literal(given) if isinstance(given, str) else str(int(given))
            params.append(given)
            return "?"

        if self.is_in_peaks and not self.distinct:
            return self._peaks_sql(value), params
        ranked = (
            "SELECT corpus, context, first(position ORDER BY activation DESC, position) AS "
            f"position, max(activation) AS activation, CAST({_VALUES[self.by]} AS DOUBLE) AS value"
        )
        firings = self._firings_sql(value)
        if self.distinct:
            # A packed context has several documents, each of which counts.
            ranked = f"{ranked}, document FROM ({firings})\nGROUP BY corpus, context, document"
            ranked += (
                "\nQUALIFY row_number() OVER "
                "(PARTITION BY corpus, document ORDER BY value DESC, context) = 1"
            )
        else:
            ranked = f"{ranked} FROM ({firings})\nGROUP BY corpus, context"
        query = f"{ranked}\nORDER BY value DESC, corpus, context, position LIMIT {value(self.k)}"
        return query, params

    def _chosen(self, value: Any) -> str:  # noqa: ANN401
        chosen = f"sae = {value(self.sae.name)} AND feature = {value(self.feature)}"
        return chosen if self.corpus is None else f"{chosen} AND corpus = {value(self.corpus)}"

    def _peaks_sql(self, value: Any) -> str:  # noqa: ANN401
        # A file's contexts from rank k on cannot be among the k strongest of all files. Published
        # examples may have several firings of a context.
        strongest = (
            "QUALIFY row_number() OVER "
            "(PARTITION BY corpus, context ORDER BY activation DESC, position) = 1\n"
        )
        partly = partial_on(self.sae, self.corpus)
        return (
            f"SELECT {', '.join(_COLUMNS)}, CAST(activation AS DOUBLE) AS value "
            f"FROM {PRIVATE}.peaks\nWHERE {self._chosen(value)} AND rank < {value(self.k)}\n"
            f"{strongest if partly else ''}"
            f"ORDER BY activation DESC, corpus, context LIMIT {value(self.k)}"
        )

    def _firings_sql(self, value: Any) -> str:  # noqa: ANN401
        columns = ", ".join(_COLUMNS)
        firings = f"SELECT {columns} FROM {PRIVATE}.postings WHERE {self._chosen(value)}"
        if not self.bos:
            firings += f" AND kind <> {KIND_BOS}"
        if partly := partial_on(self.sae, self.corpus):
            again = f"sae = {value(self.sae.name)} AND feature = {value(self.feature)}"
            listed = ", ".join(value(name) for name in partly)
            firings += (
                f" UNION ALL SELECT {columns} FROM {PRIVATE}.peaks WHERE {again} "
                f"AND corpus IN ({listed})"
            )
        if self.where is None and not self.distinct:
            return firings
        columns += ", document" if self.distinct else ""
        condition = "" if self.where is None else f"\nWHERE (\n{self.where}\n)"
        return f"SELECT {columns} FROM ({token_columns(firings)}){condition}"
