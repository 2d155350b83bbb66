"""Top contexts: where a feature is strongest, with the text around it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.names import KIND_BOS
from scopelake.query.connect import Connection
from scopelake.query.literals import literal
from scopelake.query.partial import check_answerable, note, partial_on
from scopelake.query.resolve import SaeInfo
from scopelake.query.snapshot_files import Reads
from scopelake.query.sql import check_predicate, run
from scopelake.query.views import PRIVATE, token_columns
from scopelake.query.windows import (
    activations_in,
    context_texts,
    to_html,
    to_terminal,
    window_columns,
)
from scopelake.store.running import PEAKS_DEPTH

if TYPE_CHECKING:
    import pandas as pd


WHERE_COLUMNS: Final = (
    "corpus", "context", "position", "activation", "token_id", "token", "role", "turn", "kind",
    "document", "document_index", "part", "n_tokens", "metadata", "text",
)  # fmt: skip
"""Columns that a `where` may use."""


@dataclass(frozen=True)
class TopContexts:
    """A feature's strongest contexts, strongest first."""

    sae: str
    feature: int
    table: pa.Table
    """rank, corpus, context, position (of the peak), activation (of the peak), document, start,
    stop (window, positions [start, stop)), tokens and activations (of the window; null where it is
    not known), text."""
    note: str = ""
    """What the answer is short of: corpora of which not all firings are known, or whose
    ingest is not complete."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return the contexts as lines of text, the firing tokens marked."""
        if self.table.num_rows == 0:
            return self._never()
        lines = [f"feature {self.feature} of {self.sae}"]
        for row in self.table.to_pylist():
            where = f"{row['corpus']} {row['document']} #{row['context']}:{row['position']}"
            lines.append(f"{row['activation']:10.4g}  {where}")
            lines.append("    " + to_terminal(row["tokens"], row["activations"], color=color))
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        rows = self.table.to_pylist()
        if not rows:
            return f"<p>{escape(self._never())}</p>"
        highest = max(r["activation"] for r in rows)
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
            f"{escape(self.note)}"
        )

    def _never(self) -> str:
        asked = f"feature {self.feature} of {self.sae}"
        if self.note:
            return f"{asked} is in nothing that is known ({self.note})"
        return f"{asked} never fires in what was asked for"


def top_contexts(
    connection: Connection,
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
        where: SQL predicate that a firing must meet to count: over its activation, the columns
            of ``tokens``, and document_index, part, n_tokens, metadata and text of its context.
        bos: whether firings on BOS count.

    Raises:
        InvalidArgumentError: `k` or `window` is too small.
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError: the SAE was not run on it.
        QueryError: `where` is not one predicate, or fails; or it, `bos` or `k` asks for more than
            what is known of a corpus can tell.
    """
    if window < 0:
        raise InvalidArgumentError(
            f"window={window} was asked for; a window is a number of tokens; give 0 or more"
        )
    query, params = _ranking(sae, feature, k, corpus, where, bos, inline=False)
    connection.coverage.check_known(sae, corpus)
    try:
        rows = run(connection, query, params, _reads(sae, feature, corpus, where)).to_pylist()
    except QueryError as error:
        if where is None or "column" not in str(error):
            raise
        raise QueryError(f"{error}; columns of where are {', '.join(WHERE_COLUMNS)}") from error
    _add_windows(connection, sae, feature, rows, window, bos)
    return TopContexts(sae.name, feature, _table(rows), note(connection.coverage, sae, corpus))


def explain_top_contexts(
    sae: SaeInfo,
    feature: int,
    *,
    k: int = 20,
    corpus: str | None = None,
    where: str | None = None,
    bos: bool = False,
) -> str:
    """Return the SQL that ranks the contexts of `top_contexts`, as `sql` runs it.

    Raises:
        InvalidArgumentError: `k` is too small.
        QueryError: `where` is not one predicate.
    """
    return _ranking(sae, feature, k, corpus, where, bos, inline=True)[0]


def _ranking(
    sae: SaeInfo,
    feature: int,
    k: int,
    corpus: str | None,
    where: str | None,
    bos: bool,
    *,
    inline: bool,
) -> tuple[str, list[Any]]:
    """Return the SQL that ranks contexts, and its parameters (none if they are `inline`).

    The common case reads ``peaks``; a filter, BOS or a depth beyond it reads ``postings``. Both
    give the same answer.
    """
    if k < 1 or k != int(k):
        raise InvalidArgumentError(
            f"k={k} was asked for; k is a number of contexts; give 1 or more"
        )
    check_answerable(sae, corpus, k=k, where=where, bos=bos)
    params: list[Any] = []

    def value(given: str | int) -> str:
        if inline:
            return literal(given) if isinstance(given, str) else str(int(given))
        params.append(given)
        return "?"

    chosen = f"sae = {value(sae.name)} AND feature = {value(int(feature))}"
    if corpus is not None:
        chosen += f" AND corpus = {value(corpus)}"
    columns = "corpus, context, position, activation"
    order = "ORDER BY activation DESC, corpus, context LIMIT"
    # Published examples may have several firings of a context; so do all of postings.
    strongest = (
        "QUALIFY row_number() OVER "
        "(PARTITION BY corpus, context ORDER BY activation DESC, position) = 1\n"
    )
    partly = partial_on(sae, corpus)
    if where is None and not bos and k <= PEAKS_DEPTH:
        # A file's contexts from rank k on cannot be among the k strongest of all files.
        return (
            f"SELECT {columns} FROM {PRIVATE}.peaks\nWHERE {chosen} AND rank < {value(int(k))}\n"
            f"{strongest if partly else ''}{order} {value(int(k))}",
            params,
        )
    firings = f"SELECT {columns} FROM {PRIVATE}.postings WHERE {chosen}"
    if not bos:
        firings += f" AND kind <> {KIND_BOS}"
    if partly:
        again = f"sae = {value(sae.name)} AND feature = {value(int(feature))}"
        listed = ", ".join(value(name) for name in partly)
        firings += (
            f" UNION ALL SELECT {columns} FROM {PRIVATE}.peaks WHERE {again} "
            f"AND corpus IN ({listed})"
        )
    if where is not None:
        check_predicate(where)
        firings = f"SELECT {columns} FROM ({token_columns(firings)})\nWHERE (\n{where}\n)"
    return (
        f"SELECT {columns} FROM ({firings})\n{strongest}{order} {value(int(k))}",
        params,
    )


def _reads(sae: SaeInfo, feature: int, corpus: str | None, where: str | None) -> Reads:
    """Return what a ranking reads; both tables of firings, since both are small for a feature."""
    of_corpus: list[tuple[str, str, Any]] = [("corpus", "=", corpus)] if corpus is not None else []
    firings = [("sae", "=", sae.name), ("feature", "=", int(feature)), *of_corpus]
    reads = {"peaks": firings, "postings": firings}
    return reads if where is None else {**reads, "contexts": of_corpus}


def _add_windows(
    connection: Connection,
    sae: SaeInfo,
    feature: int,
    rows: list[dict[str, Any]],
    window: int,
    bos: bool,
) -> None:
    """Add rank, document and what is in the window to the ranked `rows`."""
    keys = [(row["corpus"], row["context"]) for row in rows]
    texts = context_texts(connection, keys)
    fired = activations_in(connection, sae, feature, keys, bos=bos)
    for rank, (row, key) in enumerate(zip(rows, keys, strict=True)):
        text = texts[key]
        start = max(row["position"] - window, 0)
        stop = min(row["position"] + window + 1, len(text.pieces))
        row |= {
            "rank": rank,
            "document": text.document(row["position"]),
            "start": start,
            "stop": stop,
            "tokens": text.pieces[start:stop],
            "activations": [
                fired[key].get(p, None if key[0] in sae.partial else 0.0)
                for p in range(start, stop)
            ],
            "text": "".join(text.pieces[start:stop]),
        }


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
