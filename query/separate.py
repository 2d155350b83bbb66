"""Which features tell spans of text from the rest: by precision and recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import InvalidArgumentError, NotIngestedError, QueryError
from scopelake.names import KIND_BOS, counted
from scopelake.query.connect import Connection
from scopelake.query.feature_texts import FeatureTexts
from scopelake.query.resolve import SaeInfo
from scopelake.query.separation import RANKINGS, Separation
from scopelake.query.spans import checked_spans, tokens_of
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE

_FEW: Final = 1_000
"""Contexts up to which their numbers are named to the query, which then skips the others' rows."""


def separate(
    connection: Connection,
    texts: FeatureTexts,
    saes: Sequence[SaeInfo],
    spans: pa.Table,
    *,
    only: SaeInfo | None = None,
    by: str = "f1",
    k: int | None = 20,
    least: int = 1,
) -> Separation:
    """Return the features whose firings tell spans from the other tokens of their corpora.

    Args:
        connection: from `connect`.
        texts: what features are about.
        saes: of the lake.
        spans: of `spans.SPAN_COLUMNS`; no token is in two.
        only: features of this SAE; of all that are complete on the corpora if None.
        by: f1 (the harmonic mean of both), precision or recall.
        k: at most so many features; all that fire in a span if None.
        least: leave out features that fire in fewer spans.

    Raises:
        InvalidArgumentError: there are no spans, they are no such table, overlap or are beyond
            their context; `by` is none; or `k` or `least` is below 1.
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError: the SAE, or any, is not complete on the corpora.
        QueryError: not all firings of the SAE are known there.
    """
    _check_numbers(by, k, least)
    checked = checked_spans(connection, spans)
    corpora = tuple(sorted(set(checked["corpus"].to_pylist())))
    chosen, note = _chosen(connection, saes, corpora, only)
    tokens = tokens_of(checked)
    hits = pa.concat_tables(
        [_hits(connection, tokens, corpus, [s.name for s in chosen]) for corpus in corpora]
    )
    firings = _firings(connection, corpora, [s.name for s in chosen])
    table = _ranked(chosen, hits, firings, (checked.num_rows, by, k, least))
    table = texts.added_to(table, set(table["sae"].to_pylist()), corpora)
    return Separation(table, by, checked.num_rows, tokens.num_rows, corpora, note)


def _check_numbers(by: str, k: int | None, least: int) -> None:
    if by not in RANKINGS:
        raise InvalidArgumentError(
            f"a ranking by {by!r} was asked for; there are {', '.join(RANKINGS)}; choose one"
        )
    for name, value in (("k", k), ("least", least)):
        if value is not None and value < 1:
            raise InvalidArgumentError(
                f"{name}={value} was asked for; it is a number of "
                f"{'features' if name == 'k' else 'spans'}; give 1 or more"
            )


def _chosen(
    connection: Connection,
    saes: Sequence[SaeInfo],
    corpora: Sequence[str],
    only: SaeInfo | None,
) -> tuple[list[SaeInfo], str]:
    """Return the SAEs of which all firings on the corpora are known, and how many are left out."""
    coverage = connection.coverage
    files, _ = connection.files("features", [("corpus", "in", list(corpora))])
    columns = (files[f"partition.{name}"].to_pylist() for name in ("sae", "corpus"))
    described = set(zip(*columns, strict=True))

    def lacks(sae: SaeInfo, corpus: str) -> str:
        if corpus in sae.partial:
            return sae.partial[corpus].what
        if sae.name not in coverage.saes(corpus):
            return "not ingested"
        is_described = (sae.name, corpus) in described
        return coverage.state(sae.name, corpus) or ("" if is_described else "no statistics yet")

    known = {s.name: [(c, why) for c in corpora if (why := lacks(s, c))] for s in saes}
    if only is not None:
        for corpus, why in known[only.name]:
            kind = QueryError if corpus in only.partial else NotIngestedError
            raise kind(
                f"features of {only.name} that separate spans of corpus {corpus!r} were asked for; "
                f"not all its firings are known there ({why}); ingest it there to the end"
            )
        return [only], ""
    chosen = [s for s in saes if not known[s.name]]
    if not chosen:
        raise NotIngestedError(
            f"features that separate spans of {', '.join(corpora)} were asked for; of no SAE all "
            "firings are known there; ingest one there to the end"
        )
    left = len(saes) - len(chosen)
    return chosen, f"without {counted(left, 'SAE')} of which not all firings are known here" * (
        left > 0
    )


def _hits(connection: Connection, tokens: pa.Table, corpus: str, saes: Sequence[str]) -> pa.Table:
    """Return sae, feature, hits and spans of the features that fire in spans of a corpus."""
    here = tokens.filter(pc.equal(tokens["corpus"], corpus))
    context = np.unique(here["context"].to_numpy())
    where = "c.context BETWEEN $3 AND $4"
    values: list[Any] = [corpus, list(saes), int(context[0]), int(context[-1])]
    if len(context) <= _FEW:
        where += f" AND c.context IN ({', '.join(map(str, context.tolist()))})"
    query = (
        "SELECT sae, feature, count(*) AS hits, count(DISTINCT span) AS spans "
        f"FROM {PRIVATE}.codes c JOIN tokens_of_spans t "
        "ON c.context = t.context AND c.position = t.position\n"
        f"WHERE c.corpus = $1 AND list_contains($2::VARCHAR[], c.sae) AND {where} "
        f"AND c.kind <> {KIND_BOS}\nGROUP BY sae, feature"
    )
    reads = {
        "codes": [
            ("corpus", "=", corpus),
            *([("sae", "=", saes[0])] if len(saes) == 1 else []),
        ]
    }
    return run(connection, query, values, reads, {"tokens_of_spans": here})


def _firings(
    connection: Connection, corpora: Sequence[str], saes: Sequence[str]
) -> dict[str, npt.NDArray[np.int64]]:
    """Return by SAE the firings of each of its features on the corpora, BOS left out."""
    query = (
        f"SELECT sae, feature, sum(firings)::BIGINT AS firings FROM {PRIVATE}.features "
        "WHERE list_contains($1::VARCHAR[], corpus) AND list_contains($2::VARCHAR[], sae) "
        "GROUP BY sae, feature ORDER BY sae, feature"
    )
    rows = run(connection, query, [list(corpora), list(saes)])
    sae = rows["sae"].to_numpy(zero_copy_only=False)
    firings = rows["firings"].to_numpy()
    return {name: firings[sae == name] for name in saes}


def _ranked(
    saes: Sequence[SaeInfo],
    hits: pa.Table,
    firings: Mapping[str, npt.NDArray[np.int64]],
    asked: tuple[int, str, int | None, int],
) -> pa.Table:
    """Return the table of `Separation`.

    Args:
        saes: those whose features are ranked.
        hits: of each corpus, one after the other.
        firings: by SAE, of each feature.
        asked: number of spans, ranking, k, least.
    """
    n_spans, by, k, least = asked
    of = {s.name: s for s in saes}
    # A span is of one corpus: both numbers add up.
    added = hits.group_by(["sae", "feature"]).aggregate([("hits", "sum"), ("spans", "sum")])
    sae, feature = added["sae"].to_pylist(), added["feature"].to_numpy()
    hit, spans = added["hits_sum"].to_numpy(), added["spans_sum"].to_numpy()
    n = np.array([firings[s][f] for s, f in zip(sae, feature.tolist(), strict=True)], np.int64)
    precision, recall = hit / np.maximum(n, 1), spans / n_spans
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    score = {"f1": f1, "precision": precision, "recall": recall}[by]
    names = np.array([s.name for s in saes])
    order = np.lexsort((feature, np.searchsorted(np.sort(names), sae), -f1, -score))
    order = order[spans[order] >= least][:k]
    return pa.table(
        {
            "sae": pa.array([sae[i] for i in order], pa.string()),
            "layer": pa.array([of[sae[i]].layer_of(int(feature[i])) for i in order], pa.int32()),
            "site": pa.array([of[sae[i]].site for i in order], pa.string()),
            "feature": pa.array(feature[order], pa.int32()),
            "f1": f1[order],
            "precision": precision[order],
            "recall": recall[order],
            "hits": hit[order],
            "firings": n[order],
            "spans": spans[order],
        }
    )
