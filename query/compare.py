"""Which features separate two sets of tokens: rates, their difference, and a test by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.query.card import Decode
from scopelake.query.compared_coders import (
    Choice,
    CoderPair,
    Ground,
    Matched,
    choose_pairs,
    find_ground,
    matched_features,
)
from scopelake.query.comparison import COLUMNS, Comparison, SetSize
from scopelake.query.connect import Connection
from scopelake.query.document_windows import DocumentTest, check_test
from scopelake.query.feature_texts import FeatureTexts
from scopelake.query.firing_counts import (
    DOCUMENT_VALUES,
    FIRINGS_AT_ONCE,
    DocumentValue,
    FiringCounts,
    firing_counts,
)
from scopelake.query.rank_tests import RankTest, discovery_rates, rank_sum, signed_rank
from scopelake.query.rate_intervals import Documents, rate_difference
from scopelake.query.resolve import SaeInfo
from scopelake.query.token_sets import Tokens, TokenSet, check_unit, token_table

Columns = dict[str, Any]

_TEST_COLUMNS: Final = ("auc", "auc_low", "auc_high", "z", "p")


@dataclass(frozen=True)
class ComparisonConfig:
    """How sets are compared.

    Raises:
        InvalidArgumentError: there is no such test or value, or the confidence is no share.
        QueryError: the unit is not one SQL expression.
    """

    test: DocumentTest | None = None
    """None: signed-rank where at least half of the documents of the set that has fewer have tokens
    of both, else rank-sum."""
    unit: str | None = None
    """SQL of what is independent of each other, over a token's columns; None: documents are."""
    by: DocumentValue = "rate"
    """What ranks documents."""
    confidence: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Of which part of a document is tested, where it is cut."""
    at_once: int = FIRINGS_AT_ONCE

    def __post_init__(self) -> None:
        check_test(self.test)
        check_unit(self.unit)
        if self.by not in DOCUMENT_VALUES:
            raise InvalidArgumentError(
                f"by={self.by!r} was asked for; there are {', '.join(DOCUMENT_VALUES)}; choose one"
            )
        is_number = isinstance(self.confidence, (int, float))
        if not is_number or not 0 < self.confidence < 1:
            raise InvalidArgumentError(
                f"confidence={self.confidence!r} was asked for; a confidence is a share between 0 "
                "and 1; give one such as 0.95"
            )


def compare(
    connection: Connection,
    there: Sequence[SaeInfo],
    a: TokenSet,
    b: TokenSet,
    choice: Choice,
    decode: Decode,
    config: ComparisonConfig | None = None,
) -> Comparison:
    """Compare how features fire on two sets of tokens, BOS left out.

    Args:
        connection: from `connect`.
        there: from `list_saes`.
        a: the first set.
        b: the second.
        choice: of which coders; several are one family of tests.
        decode: what gives token ids their text.
        config: how; as its defaults say if None.

    Raises:
        SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError: no coder fits, or several do.
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError: of no coder all firings are known there, or decoders were not compared.
        QueryError: a `where` fails, or coders cannot be compared.
        InvalidArgumentError: a set is empty, or both have tokens in common.
        DamagedFileError: a file that is read is not what was written.
    """
    config = config or ComparisonConfig()
    pairs = choose_pairs(connection, there, choice, a, b)
    ground = find_ground(connection, pairs, a, b)
    matched = [matched_features(connection, pair) for pair in ground.pairs]
    with token_table(
        connection, ground.sides, _reads(ground), unit=config.unit, test=config.test,
        seed=config.seed, may_overlap=not any(pair.is_one for pair in ground.pairs),
    ) as tokens:  # fmt: skip
        parts = [
            _columns(tokens, pair, features, counts, config.confidence)
            for pair, features in zip(ground.pairs, matched, strict=True)
            for counts in firing_counts(
                tokens.cursor,
                pair,
                features,
                [[*s.corpora] for s in ground.sides],
                config.by,
                config.at_once,
            )
        ]
    table = _table(parts)
    n_tested = tokens.windows.length.sum(axis=0)
    texts = FeatureTexts(connection, decode)
    names = {pair.a.name for pair in ground.pairs}
    table = texts.added_to(table, names, sorted(ground.sides[0].corpora))
    return Comparison(
        a=_size(tokens, ground, 0), b=_size(tokens, ground, 1),
        saes=tuple((pair.a.name, pair.b.name) for pair in ground.pairs),
        unit=config.unit, by=config.by, test=tokens.windows.test,
        n_documents=tokens.windows.n_documents,
        tested_tokens=(int(n_tested[0]), int(n_tested[1])),
        confidence=config.confidence, table=table, notes=_notes(tokens, ground, matched),
    )  # fmt: skip


def _reads(ground: Ground) -> dict[str, Any]:
    names = sorted({s.name for pair in ground.pairs for s in (pair.a, pair.b)})
    corpora = sorted({name for side in ground.sides for name in side.corpora})
    return {"postings": [("sae", "in", names), ("corpus", "in", corpora)]}


def _size(tokens: Tokens, ground: Ground, side: int) -> SetSize:
    of_side = tokens.n_tokens[:, side]
    asked = ground.sides[side]
    return SetSize(
        str(asked.asked), tuple(asked.corpora), int(of_side.sum()), int((of_side > 0).sum())
    )


def _notes(tokens: Tokens, ground: Ground, matched: Sequence[Matched]) -> tuple[str, ...]:
    notes = list(ground.notes)
    if tokens.n_lost:
        notes.append(
            f"on the documents of which firings are kept; {tokens.n_lost:,} contexts of others are "
            "in no set"
        )
    for pair, features in zip(ground.pairs, matched, strict=True):
        lost = pair.a.width - len(features.feature_a)
        if lost:
            notes.append(
                f"{lost:,} features of {pair.a.name} have no mutually nearest one in {pair.b.name}"
            )
    return (*notes, tokens.windows.note) if tokens.windows.note else tuple(notes)


def _columns(
    tokens: Tokens, pair: CoderPair, matched: Matched, counts: FiringCounts, confidence: float
) -> Columns:
    """Return the columns of some features."""
    at = slice(counts.start, counts.stop)
    feature = matched.feature_a[at]
    n_features = counts.n_items
    found: Columns = {
        "sae": [pair.a.name] * n_features,
        "layer": [pair.a.layer_of(int(f)) for f in feature],
        "site": [pair.a.site] * n_features,
        "feature": feature,
        "other_sae": [pair.b.name] * n_features,
        "other_feature": matched.feature_b[at],
        "cosine": matched.cosine[at],
    }
    for side, name in enumerate("ab"):
        found |= _of_side(tokens, counts, side, name)
    documents = Documents(tokens.n_tokens[:, 0], tokens.n_tokens[:, 1])
    found |= vars(
        rate_difference(counts.item, counts.document, *counts.fired, n_features, documents,
                        confidence)
    )  # fmt: skip
    tested = _tested(tokens, counts, confidence)
    nothing = np.full(n_features, np.nan)
    return found | {name: getattr(tested, name, nothing) for name in _TEST_COLUMNS}


def _of_side(tokens: Tokens, counts: FiringCounts, side: int, name: str) -> Columns:
    n = counts.n_items
    fired = np.bincount(counts.item, weights=counts.fired[side], minlength=n)
    total = np.bincount(counts.item, weights=counts.total[side], minlength=n)
    documents = np.bincount(counts.item[counts.fired[side] > 0], minlength=n)
    n_tokens = tokens.n_tokens[:, side].sum()
    return {
        f"firings_{name}": fired.astype(np.int64),
        f"documents_{name}": documents,
        f"rate_{name}": fired / n_tokens,
        f"mean_{name}": np.divide(total, fired, out=np.full(n, np.nan), where=fired > 0),
        f"mean_of_all_{name}": total / n_tokens,
    }


def _tested(tokens: Tokens, counts: FiringCounts, confidence: float) -> RankTest | None:
    windows, n = tokens.windows, counts.n_items
    if windows.test is None:
        return None
    length = windows.length[counts.document]
    # Or mean activations, which are as good.
    rates = [
        np.divide(fired, length[:, side], out=np.zeros(len(fired)), where=length[:, side] > 0)
        for side, fired in enumerate(counts.tested)
    ]
    if windows.test == "signed-rank":
        # Both parts have one length: of whole numbers equal differences stay equal.
        more, both = counts.tested[0] - counts.tested[1], length[:, 0]
        difference = np.divide(more, both, out=np.zeros(len(more)), where=both > 0)
        at = np.flatnonzero(difference)
        return signed_rank(counts.item[at], difference[at], n, windows.n_documents[0], confidence)
    # A document in this test has tokens of one set alone.
    rate = rates[0] + rates[1]
    at = np.flatnonzero(rate)
    return rank_sum(
        counts.item[at], rate[at], rates[0][at] > 0, n, *windows.n_documents, confidence
    )


def _table(parts: Sequence[Columns]) -> pa.Table:
    """Return the rows of all features with q-values, those that separate most first."""
    columns = {
        name: np.concatenate([part[name] for part in parts])
        for name in COLUMNS.names if name not in ("q", "label", "promotes")
    }  # fmt: skip
    columns["q"] = discovery_rates(columns["p"])
    p = np.where(np.isnan(columns["p"]), np.inf, columns["p"])
    effect = np.nan_to_num(np.abs(columns["auc"] - 0.5), nan=-1.0)
    odds = np.nan_to_num(np.abs(columns["log_odds"]), nan=-1.0)
    order = np.lexsort((columns["feature"], columns["sae"], -odds, -effect, p))
    arrays = {}
    for name, values in columns.items():
        shown = values[order]
        is_float = shown.dtype.kind == "f"
        arrays[name] = pa.array(
            shown, COLUMNS.field(name).type, mask=np.isnan(shown) if is_float else None
        )
    return pa.table(arrays)
