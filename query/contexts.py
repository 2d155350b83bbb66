"""Top contexts: where a feature is strongest, with the text around it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.names import KIND_BOS
from scopelake.query.resolve import SaeInfo
from scopelake.query.sql import check_predicate, run
from scopelake.query.views import PRIVATE
from scopelake.query.windows import (
    activations_in,
    context_texts,
    to_html,
    to_terminal,
    window_columns,
)
from scopelake.store.writer import PEAKS_DEPTH

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TopContexts:
    """A feature's strongest contexts, strongest first."""

    sae: str
    feature: int
    table: pa.Table
    """rank, corpus, context, position (of the peak), activation (of the peak), document, start,
    stop (window, positions [start, stop)), tokens and activations (of the window), text."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return the contexts as lines of text, the firing tokens marked."""
        title = f"feature {self.feature} of {self.sae}"
        if self.table.num_rows == 0:
            return f"{title}: fires nowhere that was asked for"
        lines = [title]
        for row in self.table.to_pylist():
            where = f"{row['corpus']} {row['document']} #{row['context']}:{row['position']}"
            lines.append(f"{row['activation']:10.4g}  {where}")
            lines.append("    " + to_terminal(row["tokens"], row["activations"], color=color))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        rows = self.table.to_pylist()
        highest = max((r["activation"] for r in rows), default=1.0)
        body = "".join(
            f"<tr><td>{r['activation']:.4g}</td>"
            f"<td>{escape(r['corpus'])} {escape(r['document'])} #{r['context']}:{r['position']}"
            '</td><td style="text-align:left;font-family:monospace;white-space:pre-wrap">'
            f"{to_html(r['tokens'], r['activations'], highest)}</td></tr>"
            for r in rows
        )
        return (
            f"<b>feature {self.feature}</b> of {escape(self.sae)}"
            f"<table><tr><th>activation</th><th>where</th><th>context</th></tr>{body}</table>"
        )


def top_contexts(
    connection: duckdb.DuckDBPyConnection,
    sae: SaeInfo,
    feature: int,
    *,
    k: int = 20,
    window: int = 16,
    corpus: str | None = None,
    where: str | None = None,
    bos: bool = False,
) -> TopContexts:
    """Return the `k` contexts in which `feature` is strongest.

    A context is ranked by its strongest firing (ties: lowest position); contexts by that
    activation, highest first (ties: corpus, then context).

    Args:
        connection: from `connect`.
        sae: from `resolve_sae`.
        feature: index in the SAE.
        k: number of contexts, 1 or more.
        window: tokens on either side of the peak, 0 or more.
        corpus: only this corpus.
        where: SQL predicate that the firing's token must meet, over the columns of ``tokens``
            and the ``metadata`` and ``text`` of its context.
        bos: whether firings on BOS count.

    Raises:
        InvalidArgumentError: `k` or `window` is too small.
        QueryError: `where` is not one predicate, or fails.
    """
    if k < 1 or window < 0:
        raise InvalidArgumentError(
            f"k={k}, window={window} was asked for; k is 1 or more and window 0 or more"
        )
    query, params = statement(sae, feature, k=k, corpus=corpus, where=where, bos=bos)
    rows = run(connection, query, params).to_pylist()
    keys = [(row["corpus"], row["context"]) for row in rows]
    texts = context_texts(connection, keys)
    fired = activations_in(connection, sae.name, feature, keys, bos=bos)
    for rank, (row, key) in enumerate(zip(rows, keys, strict=True)):
        text = texts[key]
        start = max(row["position"] - window, 0)
        stop = min(row["position"] + window + 1, len(text.pieces))
        row |= {
            "rank": rank,
            "document": text.document,
            "start": start,
            "stop": stop,
            "tokens": text.pieces[start:stop],
            "activations": [fired[key].get(p, 0.0) for p in range(start, stop)],
            "text": "".join(text.pieces[start:stop]),
        }
    return TopContexts(sae.name, feature, _table(rows))


def statement(
    sae: SaeInfo, feature: int, *, k: int, corpus: str | None, where: str | None, bos: bool
) -> tuple[str, list[Any]]:
    """Return the SQL that ranks contexts, and its parameters.

    The common case reads ``peaks``; a filter, BOS or a depth beyond it reads ``postings``. Both
    give the same answer.
    """
    params: list[Any] = [sae.name, feature]
    narrowed = ""
    if corpus is not None:
        narrowed, params = " AND corpus = ?", [*params, corpus]
    order = f"ORDER BY activation DESC, corpus, context LIMIT {int(k)}"
    columns = "corpus, context, position, activation"
    if where is None and not bos and k <= PEAKS_DEPTH:
        return (
            f"SELECT {columns} FROM {PRIVATE}.peaks WHERE sae = ? AND feature = ?{narrowed} "
            f"{order}",
            params,
        )
    firings = (
        f"SELECT {columns} FROM {PRIVATE}.postings WHERE sae = ? AND feature = ?{narrowed}"
        + ("" if bos else f" AND kind <> {KIND_BOS}")
    )
    if where is not None:
        check_predicate(where)
        firings = (
            f"SELECT {columns} FROM ({firings}) JOIN tokens USING (corpus, context, position) "
            "JOIN (SELECT corpus, context, text, metadata, part FROM contexts) "
            f"USING (corpus, context) WHERE (\n{where}\n)"
        )
    return (
        f"SELECT {columns} FROM ({firings}) QUALIFY row_number() OVER "
        f"(PARTITION BY corpus, context ORDER BY activation DESC, position) = 1 {order}",
        params,
    )


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    types = {
        "rank": pa.int32(),
        "corpus": pa.string(),
        "context": pa.int64(),
        "position": pa.int32(),
        "activation": pa.float32(),
        "document": pa.string(),
        "start": pa.int32(),
        "stop": pa.int32(),
    }
    columns = {name: pa.array([r[name] for r in rows], t) for name, t in types.items()}
    text = pa.array([r["text"] for r in rows], pa.string())
    return pa.table({**columns, **window_columns(rows), "text": text})
