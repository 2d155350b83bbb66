"""Where a feature's card comes from: the tables of a snapshot, in as few queries as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.names import KINDS, ROLES
from scopelake.query.card import CoderFacts, Decode, FeatureCard
from scopelake.query.card_statistics import (
    EXACT_FIRINGS,
    Cells,
    Statistics,
    cells_sql,
    statistics_table,
    stored_statistics,
    summed,
)
from scopelake.query.coactive import Coactive, coactive, counted_on, explain_coactive, states_of
from scopelake.query.connect import Connection
from scopelake.query.contexts import top_contexts
from scopelake.query.literals import literal
from scopelake.query.partial import partial_on
from scopelake.query.rank_contexts import Ranking
from scopelake.query.resolve import SaeInfo
from scopelake.query.sql import run
from scopelake.query.token_counts import TokenCounts, add_up
from scopelake.query.views import PRIVATE
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

Row = dict[str, Any]

N_PEAKS: Final = 5
_WINDOW: Final = 10
_TALLY_ERROR: Final = 2.0**-6
"""Of quantiles of firings that were not kept, relative (docs/format.md)."""


class CardSource:
    """Makes the cards of a snapshot's features; what they share is read once.

    Args:
        connection: from `connect`.
        store: the lake.
        snapshot: what of it is read.
        decode: what gives token ids their text.
        exact_firings: up to so many firings quantiles are of the firings themselves.
    """

    def __init__(
        self,
        connection: Connection,
        store: LakeStore,
        snapshot: Snapshot,
        decode: Decode,
        exact_firings: int = EXACT_FIRINGS,
    ) -> None:
        self._connection, self._store, self._snapshot = connection, store, snapshot
        self._decode, self._exact = decode, exact_firings
        self._counts = TokenCounts(connection)

    def card(
        self,
        sae: SaeInfo,
        feature: int,
        *,
        corpus: str | None = None,
        k: int = 10,
        with_coactive: bool = False,
    ) -> FeatureCard:
        """Return the card of a feature.

        Args:
            sae: from `resolve_sae`.
            feature: index in it.
            corpus: only of this corpus.
            k: neighbors of its own SAE, neighbors of others, features that fire with it.
            with_coactive: whether features are counted that fire with it, which reads all firings
                of its SAE.

        Raises:
            CorpusNotFoundError, NotIngestedError: there is no such corpus, or the SAE was not run
                on it, or on none.
            DamagedFileError: a file that it may read is not what was written.
        """
        self._connection.coverage.check_known(sae, corpus)
        rows = self._feature_rows(sae, feature, corpus)
        states = states_of(self._connection, sae, corpus, rows)
        notes = [f"corpus {name}: {how}" for name, how in states.items() if how]
        known = _Known(sae, rows, states)
        cells = self._cells(sae, feature, known)
        tokens = self._tokens(rows, notes)
        neighbors = self._neighbors(sae, feature, k, notes)
        together = self._coactive(sae, feature, corpus, k, known, notes) if with_coactive else None
        counts = add_up([self._tokens_of(name) for name in known.whole])
        of_whole = cells.on(known.whole)
        if known.kept and known.whole:
            notes.append("roles and positions are of the corpora of which all firings are kept")
        norms = next((r for r in rows.values() if r["decoder_norm"] is not None), {})
        return FeatureCard(
            feature=feature,
            coder=self._facts(sae, feature),
            corpora=tuple(sorted([*known.whole, *known.kept])),
            total=_total(known, rows, of_whole, notes),
            by_corpus=_by_corpus(known, rows, states, cells),
            by_role=_by_role(of_whole, counts.sum(axis=0)),
            by_position=_by_position(of_whole, counts.sum(axis=(1, 2))),
            tokens=tokens,
            decoder_norm=norms.get("decoder_norm"),
            encoder_norm=norms.get("encoder_norm"),
            labels=self._labels(sae, feature),
            neighbors=neighbors,
            peaks=top_contexts(self._connection, _peaks(sae, feature, corpus), window=_WINDOW),
            coactive=together,
            notes=tuple(notes),
        )

    def explain(self, sae: SaeInfo, feature: int, corpus: str | None = None, k: int = 10) -> str:
        """Return the SQL that `card` runs, one statement after the other."""
        rows = self._feature_rows(sae, feature, corpus)
        known = _Known(sae, rows, states_of(self._connection, sae, corpus, rows))
        statements = [_features_sql(sae, feature, corpus)]
        if known.read:
            binned = self._is_binned(sae, feature, known)
            statements.append(self._cells_sql(sae, feature, known, binned=binned))
        statements.append(_neighbors_sql(sae, feature, k))
        statements.append(_peaks(sae, feature, corpus).sql()[0])
        if known.whole:
            corpora, _ = counted_on(self._connection, [sae], corpus)
            statements.append(explain_coactive(sae, feature, corpora=corpora, k=k))
        return ";\n\n".join(statements) + ";\n"

    def _feature_rows(self, sae: SaeInfo, feature: int, corpus: str | None) -> dict[str, Row]:
        """Return the feature's rows of the features table, by corpus."""
        filters = _of(sae, feature, corpus)
        found = self._connection.rows("features", SCHEMAS["features"].names, filters)
        return {row["corpus"]: row for row in found.sort_by("corpus").to_pylist()}

    def _cells(self, sae: SaeInfo, feature: int, known: _Known) -> Cells:
        """Return the feature's firings on all corpora of which all that there are are kept."""
        binned = self._is_binned(sae, feature, known)
        if not known.read:
            return Cells.of(_NO_FIRINGS, binned=False)
        listed = ("corpus", "in", known.read)
        reads = {"postings": [*_of(sae, feature, None), listed], "contexts": [listed]}
        if not self._split(known.read)[1]:
            del reads["contexts"]
        query = self._cells_sql(sae, feature, known, binned=binned)
        return Cells.of(run(self._connection, query, None, reads), binned=binned)

    def _cells_sql(self, sae: SaeInfo, feature: int, known: _Known, *, binned: bool) -> str:
        plain, chats = self._split(known.read)
        return cells_sql(sae.name, feature, plain, chats, binned=binned)

    def _is_binned(self, sae: SaeInfo, feature: int, known: _Known) -> bool:
        n = known.n_firings
        if known.incomplete:
            listed = ", ".join(literal(name) for name in known.incomplete)
            query = (
                f"SELECT count(*) AS n FROM {PRIVATE}.postings WHERE sae = ? AND feature = ? "
                f"AND corpus IN ({listed})"
            )
            reads = {"postings": _of(sae, feature, None)}
            n += int(run(self._connection, query, [sae.name, feature], reads)["n"][0].as_py())
        return n > self._exact

    def _split(self, corpora: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the corpora of text, and those whose tokens may have roles."""
        plain = [name for name in corpora if self._corpora[name]["chat"] is False]
        return plain, [name for name in corpora if name not in plain]

    def _tokens_of(self, corpus: str) -> Any:  # noqa: ANN401
        row = self._corpora[corpus]
        is_plain = row["chat"] is False and not row["packing"]
        return self._counts.of(corpus, is_plain=is_plain, n_bos=row["n_bos"])

    def _tokens(self, rows: dict[str, Row], notes: list[str]) -> pa.Table:
        """Return what the decoder promotes and suppresses, the same on every corpus."""
        corpus, row = next(
            ((name, r) for name, r in rows.items() if r["top_tokens"] is not None), ("", {})
        )
        found: list[Row] = [
            {"side": side, "rank": rank, "token_id": token, "logit": logit}
            for side in ("top", "bottom")
            for rank, (token, logit) in enumerate(
                zip(row.get(f"{side}_tokens", ()), row.get(f"{side}_logits", ()), strict=True)
            )
        ]
        if found:
            named = self._corpora[corpus]
            ids = [r["token_id"] for r in found]
            texts = self._decode(named["tokenizer"], named["tokenizer_digest"], ids)
            if texts is None:
                notes.append(
                    f"tokens are shown as ids: tokenizer {named['tokenizer']}, as corpus {corpus} "
                    "was made with it, is not on this machine"
                )
            found = [r | {"token": texts[i] if texts else None} for i, r in enumerate(found)]
        elif rows:
            notes.append("the tokens that it promotes were not computed")
        return pa.Table.from_pylist(found, schema=_TOKENS)

    def _neighbors(self, sae: SaeInfo, feature: int, k: int, notes: list[str]) -> pa.Table:
        if sae.name not in self._compared:
            notes.append("nearest features were not computed (add_neighbors)")
            return _NEIGHBORS.empty_table()
        filters = _of(sae, feature, None)
        found = self._connection.rows("neighbors", _NEIGHBORS.names, filters)
        order = [("cosine", "descending"), ("other_sae", "ascending"), ("rank", "ascending")]
        found = found.sort_by(order)
        is_own = pc.equal(found["other_sae"], sae.name)
        own, others = found.filter(is_own), found.filter(pc.invert(is_own))
        return pa.concat_tables([own.slice(0, k), others.slice(0, k)]).cast(_NEIGHBORS)

    def _labels(self, sae: SaeInfo, feature: int) -> pa.Table:
        filters = [("sae", "=", sae.name), ("feature", "=", feature)]
        rows = self._connection.rows("labels", ["label", "source"], filters)
        return rows.sort_by([("source", "ascending"), ("label", "ascending")])

    def _coactive(
        self,
        sae: SaeInfo,
        feature: int,
        corpus: str | None,
        k: int,
        known: _Known,
        notes: list[str],
    ) -> Coactive | None:
        if not known.whole:
            notes.append("what fires with it is not known: on no corpus all firings are kept")
            return None
        return coactive(self._connection, sae, feature, corpus=corpus, k=k)

    def _facts(self, sae: SaeInfo, feature: int) -> CoderFacts:
        row = self._saes[sae.name]
        layer = row["layers"][feature // (row["features_per_layer"] or row["width"])]
        names = ("sae", "type", "site", "width", "d_in", "d_out", "l0", "affine", "model")
        return CoderFacts(
            layer=layer, layers=tuple(row["layers"]), **{name: row[name] for name in names}
        )

    @cached_property
    def _saes(self) -> dict[str, Row]:
        rows = self._store.read("saes", self._snapshot).to_pylist()
        return {row["sae"]: row for row in rows}

    @cached_property
    def _corpora(self) -> dict[str, Row]:
        columns = ["corpus", "chat", "packing", "n_bos", "tokenizer", "tokenizer_digest"]
        rows = self._store.read("corpora", self._snapshot, columns).to_pylist()
        return {row["corpus"]: row for row in rows}

    @cached_property
    def _compared(self) -> set[str]:
        """SAEs that have neighbors."""
        files = self._store.data_files("neighbors", self._snapshot)
        return {file.partition["sae"] for file in files}


class _Known:
    """Which corpora tell what of a feature."""

    def __init__(self, sae: SaeInfo, rows: dict[str, Row], states: dict[str, str]) -> None:
        self.whole = [name for name, how in states.items() if not how]
        """All firings are in the lake."""
        self.kept = [name for name, p in sae.partial.items() if p.keep is not None and name in rows]
        """All were counted, not all kept."""
        self.incomplete = [name for name, how in states.items() if how and name not in sae.partial]
        """The ingest is not through."""
        self.read = [*self.whole, *self.incomplete]
        self.n_firings: int = sum(rows[name]["firings"] for name in self.whole)


def _total(
    known: _Known, rows: dict[str, Row], cells: Cells, notes: list[str]
) -> Statistics | None:
    counted = [*known.whole, *known.kept]
    if not counted:
        return None
    stored = {n: stored_statistics(rows[n], 0.0 if n in known.whole else _TALLY_ERROR)
              for n in counted}  # fmt: skip
    if len(counted) == 1 or known.kept:
        if len(counted) > 1:
            notes.append("quantiles in all are not known, since not all firings are kept")
        return summed(list(stored.values()))
    return cells.statistics(sum(s.n_tokens or 0 for s in stored.values()))


def _by_corpus(
    known: _Known, rows: dict[str, Row], states: dict[str, str], cells: Cells
) -> pa.Table:
    statistics = []
    for name in states:
        if name in rows:
            exact = 0.0 if name in known.whole else _TALLY_ERROR
            statistics.append(stored_statistics(rows[name], exact))
        elif name in known.incomplete:
            statistics.append(cells.on([name]).statistics(None))
        else:
            statistics.append(Statistics())
    keys = {"corpus": list(states), "state": list(states.values())}
    return statistics_table(keys, statistics)


def _by_role(cells: Cells, n_tokens: Any) -> pa.Table:  # noqa: ANN401
    """Return the statistics by role and kind, of those that the corpora have tokens of."""
    keys, statistics = [], []
    for role, kind in zip(*np.nonzero(n_tokens), strict=True):
        mine = cells.take((cells.role == role) & (cells.kind == kind))
        keys.append((ROLES[role], KINDS[kind]))
        statistics.append(mine.statistics(int(n_tokens[role, kind])))
    columns = {"role": [role for role, _ in keys], "kind": [kind for _, kind in keys]}
    return statistics_table(columns, statistics)


def _by_position(cells: Cells, n_tokens: Any) -> pa.Table:  # noqa: ANN401
    firings = np.bincount(cells.position, weights=cells.count, minlength=len(n_tokens))
    columns = {
        "position": pa.array(np.arange(len(n_tokens)), pa.int32()),
        "firings": pa.array(firings.astype(np.int64)),
        "n_tokens": pa.array(n_tokens, pa.int64()),
        "density": pa.array(firings / np.maximum(n_tokens, 1), mask=n_tokens == 0),
    }
    return pa.table(columns)


_TOKENS: Final = pa.schema(
    [("side", pa.string()), ("rank", pa.int32()), ("token_id", pa.int32()),
     ("token", pa.string()), ("logit", pa.float32())]
)  # fmt: skip
_NEIGHBORS: Final = pa.schema(
    [("other_sae", pa.string()), ("other_feature", pa.int32()), ("rank", pa.int32()),
     ("cosine", pa.float32())]
)  # fmt: skip
_NO_FIRINGS: Final = pa.schema(
    [("corpus", pa.string()), ("role", pa.int8()), ("kind", pa.int8()), ("position", pa.int32()),
     ("activation", pa.float32())]
).empty_table()  # fmt: skip


def _of(sae: SaeInfo, feature: int, corpus: str | None) -> list[tuple[str, str, Any]]:
    """Return the conditions on rows of one feature."""
    of_corpus = [("corpus", "=", corpus)] if corpus is not None else []
    return [("sae", "=", sae.name), ("feature", "=", feature), *of_corpus]


def _peaks(sae: SaeInfo, feature: int, corpus: str | None) -> Ranking:
    """Return the contexts that a card shows; of published examples there may be fewer."""
    depths = [known.depth for known in partial_on(sae, corpus).values()]
    return Ranking(sae, feature, min([N_PEAKS, *depths]), corpus)


def _features_sql(sae: SaeInfo, feature: int, corpus: str | None) -> str:
    of_corpus = "" if corpus is None else f" AND corpus = {literal(corpus)}"
    return (
        f"SELECT * FROM {PRIVATE}.features\nWHERE sae = {literal(sae.name)} AND feature = "
        f"{int(feature)}{of_corpus}\nORDER BY corpus"
    )


def _neighbors_sql(sae: SaeInfo, feature: int, k: int) -> str:
    return (
        f"SELECT other_sae, other_feature, rank, cosine FROM {PRIVATE}.neighbors\n"
        f"WHERE sae = {literal(sae.name)} AND feature = {int(feature)}\n"
        "QUALIFY row_number() OVER (PARTITION BY other_sae = sae ORDER BY cosine DESC, other_sae, "
        f"rank) <= {int(k)}\nORDER BY other_sae <> sae, cosine DESC, other_sae, rank"
    )
