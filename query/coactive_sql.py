"""The SQL of features that fire on the same tokens: of the verb, and of the macro."""

from __future__ import annotations

from collections.abc import Callable

from scopelake.names import KIND_BOS
from scopelake.query.views import PRIVATE


def coactive_sql(
    sae: str, feature: str, other: str, is_counted: Callable[[str], str], k: str
) -> str:
    """Return the SQL of co-firing features: other_feature, counts, lift and pmi.

    Args:
        sae: SQL of the SAE's name, a constant once it is planned; so are feature, other and k.
        feature: of the feature.
        other: of the other SAE's name.
        is_counted: from SQL of a corpus's name to that of a predicate: all firings of both SAEs
            have to be known there, and the other one's statistics to be written.
        k: of the number of rows; all if it is null.
    """
    # Every column is qualified: macros have arguments of the same names.
    return f"""\
WITH here AS (
    SELECT p.corpus, p.context, p.position FROM {PRIVATE}.postings p
    WHERE p.sae = {sae} AND p.feature = {feature} AND p.kind <> {KIND_BOS}
        AND {is_counted("p.corpus")}
), together AS (
    SELECT c.feature AS other_feature, count(*) AS n_both FROM {PRIVATE}.codes c SEMI JOIN here h
        ON h.corpus = c.corpus AND h.context = c.context AND h.position = c.position
    WHERE c.sae = {other} AND c.kind <> {KIND_BOS} AND {is_counted("c.corpus")}
        AND (c.feature <> {feature} OR {other} <> {sae})
    GROUP BY c.feature
), alone AS (
    SELECT f.feature AS other_feature, CAST(sum(f.firings) AS BIGINT) AS n_other,
        CAST(sum(f.n_tokens) AS BIGINT) AS n_tokens
    FROM {PRIVATE}.features f WHERE f.sae = {other} AND {is_counted("f.corpus")} GROUP BY f.feature
), counted AS (
    SELECT t.other_feature, t.n_both, n.n_feature, a.n_other, a.n_tokens,
        CAST(t.n_both AS DOUBLE) * a.n_tokens / (CAST(n.n_feature AS DOUBLE) * a.n_other) AS lift
    FROM together t JOIN alone a ON a.other_feature = t.other_feature,
        (SELECT count(*) AS n_feature FROM here) n
)
SELECT c.*, log2(c.lift) AS pmi FROM counted c
ORDER BY c.n_both * log2(c.lift) DESC, c.n_both DESC, c.other_feature LIMIT {k}"""
