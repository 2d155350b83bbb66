"""What fired here: the features of a context, or of one token in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scopelake.errors import (
    ContextNotFoundError,
    CorpusNotFoundError,
    InvalidArgumentError,
    QueryError,
)
from scopelake.names import check_whole, counted
from scopelake.query.connect import Connection
from scopelake.query.coverage import Coverage
from scopelake.query.resolve import SaeInfo, resolve_sae
from scopelake.query.sql import run
from scopelake.query.windows import context_texts, visible
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FeaturesAt:
    """What fired in a context, by position, strongest first."""

    corpus: str
    context: int
    table: pa.Table
    """sae, layer, site, position, token, feature, activation; by position, then activation
    (highest first), SAE and feature."""
    note: str = ""
    """What the answer is short of: SAEs of which not all firings are known here, or whose
    ingest has not come to this context."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return a line for each token, and under it one for each firing."""
        bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
        lines = [f"context {self.context} of {self.corpus}"]
        position = None
        for row in self.table.to_pylist():
            if row["position"] != position:
                position = row["position"]
                lines.append(f"{bold}{position:6d}  {visible(row['token'])}{plain}")
            lines.append(f"        {row['activation']:10.4g}  {row['feature']:7d}  {row['sae']}")
        if position is None:
            lines.append("        nothing fires in what was asked for")
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{r['position']}</td><td><code>{escape(visible(r['token']))}</code></td>"
            f"<td>{escape(r['sae'])}</td><td>{r['feature']}</td><td>{r['activation']:.4g}</td></tr>"
            for r in self.table.to_pylist()
        )
        head = "".join(
            f"<th>{h}</th>" for h in ("position", "token", "SAE", "feature", "activation")
        )
        return (
            f"<b>context {self.context}</b> of {escape(self.corpus)}"
            f"<table><tr>{head}</tr>{body}</table>{escape(self.note)}"
        )


def features_at(
    connection: Connection,
    store: LakeStore,
    snapshot: Snapshot,
    saes: Sequence[SaeInfo],
    context: int,
    position: int | None = None,
    *,
    corpus: str | None = None,
    sae: str | None = None,
    k: int | None = None,
) -> FeaturesAt:
    """Return the firings of a context or of one token, strongest first at each position.

    Args:
        connection: from `connect`.
        store: the lake.
        snapshot: what of it is read.
        saes: from `list_saes`.
        context: number of the context.
        position: only this token.
        corpus: may be left out when the lake has one.
        sae: only this one, by name or unique ending.
        k: at most so many firings of each SAE at each token.

    Raises:
        ContextNotFoundError: there is no such context or position.
        CorpusNotFoundError: the lake has no such corpus.
        SaeNotFoundError, AmbiguousSaeError: `sae` does not name one.
        InvalidArgumentError: `k` is below 1, or no corpus is named and the lake has several.
        QueryError: of `sae`, or of all, not all firings are known in this context.
        NotIngestedError: `sae`, or any, was not run on this corpus, or not yet on this context.
    """
    check_k(k)
    name = _corpus(store, snapshot, corpus)
    texts = context_texts(connection, [(name, context)])
    if (name, context) not in texts:
        raise ContextNotFoundError(
            f"context {context} of corpus {name!r} was asked for; it has contexts "
            f"{_numbers(store, snapshot, name)}; choose one of them"
        )
    pieces = texts[name, context].pieces
    if position is not None and not 0 <= position < len(pieces):
        raise ContextNotFoundError(
            f"position {position} of context {context} of {name!r} was asked for; it has positions "
            f"0 to {len(pieces) - 1}; choose one of them"
        )
    document = texts[name, context].document(0)
    only, note = _chosen(connection.coverage, saes, sae, (name, context, document))
    query, params = statement(name, context, position, k=k, sae=only)
    chosen = [("corpus", "=", name), ("context", "=", int(context))]
    chosen += [("sae", "=", only)] if only else []
    rows = run(connection, query, params, {"codes": chosen, "saes": ()})
    tokens = pa.array([pieces[p] for p in rows["position"].to_pylist()], pa.string())
    return FeaturesAt(name, context, rows.add_column(4, "token", tokens), note)


def _is_known(sae: SaeInfo, corpus: str, document: str) -> bool:
    return corpus not in sae.partial or sae.partial[corpus].has(document)


def _chosen(
    coverage: Coverage, saes: Sequence[SaeInfo], sae: str | None, where: tuple[str, int, str]
) -> tuple[str | None, str]:
    """Return the name of the one SAE asked for, and of which others nothing is known here.

    Args:
        coverage: of the lake.
        saes: those of the lake.
        sae: the one asked for, if one is.
        where: corpus, context and the context's document.
    """
    corpus, context, document = where
    if sae is not None:
        only = resolve_sae(saes, sae=sae, preferred=coverage.saes(corpus))
        if not _is_known(only, corpus, document):
            raise QueryError(
                f"what fires of {only.name} in context {context} was asked for; on corpus "
                f"{corpus!r} not all its firings are known ({only.partial[corpus].what}); ingest "
                "it into another corpus, or ask for top contexts"
            )
        coverage.check_known(only, corpus)
        coverage.check_shard([only.name], corpus, context)
        return only.name, ""
    unknown = {s.name for s in saes if not _is_known(s, corpus, document)}
    coverage.check_any(corpus, unknown)
    missing = coverage.check_shard(coverage.saes(corpus) - unknown, corpus, context)
    parts = [
        f"without {counted(n, 'SAE')} {why}"
        for n, why in (
            (len(unknown), "of which not all firings are known here"),
            (len(missing), "whose ingest has not come to this context"),
        )
        if n
    ]
    return None, "; ".join(parts)


def check_k(k: int | None) -> None:
    """Refuse a number of firings that is none, or below 1.

    Raises:
        InvalidArgumentError: it is.
    """
    if k is not None and check_whole("k", k) < 1:
        raise InvalidArgumentError(f"k={k} was asked for; k is a number of firings; give 1 or more")


def statement(
    corpus: str, context: int, position: int | None, *, k: int | None, sae: str | None = None
) -> tuple[str, list[Any]]:
    """Return the SQL of `features_at`, and its parameters."""
    query = (
        "SELECT sae, layers[feature // features_per_layer + 1] AS layer, site, position, feature, "
        "activation FROM codes JOIN (SELECT sae, layers, features_per_layer, site FROM saes) "
        "USING (sae) WHERE corpus = ? AND context = ?"
    )
    params: list[Any] = [corpus, context]
    if position is not None:
        query, params = f"{query} AND position = ?", [*params, position]
    if sae is not None:
        query, params = f"{query} AND sae = ?", [*params, sae]
    if k is not None:
        query += (
            " QUALIFY row_number() OVER (PARTITION BY sae, position "
            f"ORDER BY activation DESC, feature) <= {int(k)}"
        )
    return f"{query} ORDER BY position, activation DESC, sae, feature", params


def _corpus(store: LakeStore, snapshot: Snapshot, corpus: str | None) -> str:
    there = sorted(store.read("corpora", snapshot, ["corpus"])["corpus"].to_pylist())
    if corpus in there:
        return str(corpus)
    if corpus is None and len(there) == 1:
        return str(there[0])
    if corpus is None and there:
        raise InvalidArgumentError(
            f"a context was asked for without a corpus; the lake has {', '.join(there)}; name one "
            "with corpus=..."
        )
    raise CorpusNotFoundError(
        f"corpus {corpus!r} was asked for; the lake has {', '.join(there) or 'none'}; name one of "
        "them"
    )


def _numbers(store: LakeStore, snapshot: Snapshot, corpus: str) -> str:
    """Return in words the numbers of a corpus's contexts."""
    rows = store.read("corpora", snapshot, NUMBER_COLUMNS, [("corpus", "=", corpus)]).to_pylist()
    return ", ".join(f"{start} to {stop - 1}" for start, stop in ContextNumbers.of(rows[0]).ranges)
