"""Features that fire together, against counts written out over every token."""

from __future__ import annotations

import math

import pytest

from scopelake.errors import (
    CorpusNotFoundError,
    InvalidArgumentError,
    NotIngestedError,
    QueryError,
)
from scopelake.query.coactive import coactive, explain_coactive
from scopelake.query.sql import sql

RARE, DENSE, SILENT = 3, 0, 11


def oracle(built, sae, feature, other, corpora, k):
    """The rows of the answer, by sets of tokens."""
    tokens = {}
    for row in built.rows:
        if row.kind != "bos" and row.corpus in corpora:
            address = (row.corpus, row.context, row.position)
            tokens.setdefault((row.sae, row.feature), set()).add(address)
    mine = tokens.get((sae, feature), set())
    # What the statistics divide by, as the builder wrote them.
    n_tokens = 1000 * len(corpora)
    rows = []
    for (name, one), theirs in tokens.items():
        n_both = len(mine & theirs)
        if name != other or n_both == 0 or (sae == other and one == feature):
            continue
        lift = n_both * n_tokens / len(mine) / len(theirs)
        rows.append((one, n_both, len(mine), len(theirs), n_tokens, lift, math.log2(lift)))
    rows.sort(key=lambda r: (-round(r[1] * r[6], 9), -r[1], r[0]))
    return rows[:k]


@pytest.mark.parametrize("feature", [RARE, DENSE, SILENT])
@pytest.mark.parametrize("corpus", [None, "chats", "plain"])
@pytest.mark.parametrize("other", [None, "mlp_out"])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_it_agrees_with_sets_of_tokens(counted, feature, corpus, other, k):
    built, sae = counted, counted.sae()
    second = None if other is None else built.sae(2, other)
    found = coactive(built.connection, sae, feature, second, corpus=corpus, k=k)
    name = sae.name if second is None else second.name
    corpora = ["chats", "plain"] if corpus is None else [corpus]
    expected = oracle(built, sae.name, feature, name, corpora, k)
    assert found.corpora == tuple(corpora)
    assert len(found.table) == len(expected)
    for row, values in zip(found.table.to_pylist(), expected, strict=True):
        assert tuple(row.values())[:5] == values[:5]
        assert (row["lift"], row["pmi"]) == pytest.approx(values[5:])
    assert (feature == SILENT) == (found.table.num_rows == 0)


def test_explain_gives_the_sql_that_is_run(counted):
    sae = counted.sae()
    query = explain_coactive(sae, RARE, corpora=["chats"], k=3)
    found = coactive(counted.connection, sae, RARE, corpus="chats", k=3)
    assert sql(counted.connection, query)["other_feature"].to_pylist() == (
        found.table["other_feature"].to_pylist()
    )


def test_it_shows_itself(counted):
    sae = counted.sae()
    found = coactive(counted.connection, sae, RARE, k=2)
    lines = found.to_text().split("\n")
    assert len(lines) == 3
    assert "PMI" in lines[1]
    assert found._repr_html_().count("<tr>") == 3
    assert list(found.to_pandas()["other_feature"]) == found.table["other_feature"].to_pylist()
    assert "none does" in str(coactive(counted.connection, sae, SILENT))


def test_what_cannot_be_counted_is_refused(built, counted):
    with pytest.raises(InvalidArgumentError, match="k=0"):
        coactive(counted.connection, counted.sae(), RARE, k=0)
    with pytest.raises(CorpusNotFoundError, match="chats, plain"):
        coactive(counted.connection, counted.sae(), RARE, corpus="x")
    # Of this lake's SAEs one has statistics, on one corpus.
    assert coactive(built.connection, built.sae(), RARE).corpora == ("plain",)
    assert "corpus chats is left out" in coactive(built.connection, built.sae(), RARE).note
    with pytest.raises(QueryError, match="its statistics are not written"):
        coactive(built.connection, built.sae(), RARE, corpus="chats")
    with pytest.raises(QueryError, match="all firings of"):
        coactive(built.connection, built.sae(), RARE, built.sae(2))


def test_an_sae_that_was_not_run_is_refused(counted):
    from dataclasses import replace

    stranger = replace(counted.sae(), name="gs-2/resid_post/layer_9_width_12")
    with pytest.raises(NotIngestedError, match="ingest it first"):
        coactive(counted.connection, counted.sae(), RARE, stranger)
