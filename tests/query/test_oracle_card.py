"""A feature's card, in Python and in SQL, beside sums over all firings and all tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.query.oracle import N_LAKES, QUANTILES, SAES, WIDTH, Statistics, World
from tests.query.random_lake import decoder_columns

from scopelake.errors import NotIngestedError, QueryError
from scopelake.query.card_source import CardSource
from scopelake.query.card_statistics import BIN_ERROR
from scopelake.query.resolve import resolve_sae

pytestmark = pytest.mark.filterwarnings("ignore::scopelake.errors.PartialWarning")

few = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

TALLY_ERROR = 2.0**-6
"""Of quantiles of an ingest that did not keep all firings (docs/format.md)."""


def check(found, statistics: Statistics, *, error=0.0) -> None:
    """Compare statistics by name; `error` is that of quantiles, None: they are not known."""
    for name, value in statistics.values.items():
        if name in QUANTILES and error is None:
            assert found[name] is None
        elif isinstance(value, float):
            exact = 1e-9 if name == "density" else 1e-6
            wide = error if name in QUANTILES else 0.0
            assert found[name] == pytest.approx(value, rel=wide + exact), name
        else:
            given = found[name]
            assert (list(given) if name == "histogram" else given) == value, name


@few
@given(
    seed=st.integers(0, N_LAKES - 1), sae=st.sampled_from(list(SAES)),
    feature=st.integers(0, WIDTH - 1), corpus=st.sampled_from([None, "plain", "chats"]),
    k=st.sampled_from([1, 3, 10]), exact_firings=st.sampled_from([0, 10**9]),
)  # fmt: skip
def test_a_card(random_lake, seed, sae, feature, corpus, k, exact_firings):
    world, lake = random_lake(seed)
    info = resolve_sae(lake._saes, sae)
    source = CardSource(lake._connection, lake._store, lake._snapshot, lambda *_: None,
                        exact_firings)  # fmt: skip
    corpora, whole = world.on(sae, corpus), world.whole(sae, corpus)
    if not corpora:
        with pytest.raises(NotIngestedError):
            source.card(info, feature, corpus=corpus)
        return
    card = source.card(info, feature, corpus=corpus, k=k, with_coactive=True)
    total = world.statistics(sae, feature, corpora)
    n_stored = len([f for f in world.fired(sae, feature) if f.corpus in whole])
    binned = BIN_ERROR if n_stored > exact_firings else 0.0
    assert card.corpora == tuple(corpora)
    check(vars(card.total), total, error=error_in_all(world, sae, corpora, binned))
    assert [row["corpus"] for row in card.by_corpus.to_pylist()] == corpora
    for row in card.by_corpus.to_pylist():
        is_whole = row["corpus"] in whole
        one = world.statistics(sae, feature, [row["corpus"]])
        check(row, one, error=0.0 if is_whole else TALLY_ERROR)
        assert (row["state"] == "") == is_whole
    check_roles(world, card, sae, feature, whole, binned)
    check_positions(world, card, sae, feature, whole)
    check_decoder(world, card, sae, feature, k)
    strongest = lake.top_contexts(feature, sae=sae, corpus=corpus, k=5, window=10)
    assert card.peaks.table == strongest.table
    if whole:
        together = lake.coactive(feature, sae=sae, corpus=corpus, k=k)
        assert card.coactive.table == together.table
    else:
        assert card.coactive is None


def error_in_all(world: World, sae, corpora, binned) -> float | None:
    if len(corpora) == 1:
        return 0.0 if world.runs[sae, corpora[0]] == "all" else TALLY_ERROR
    return binned if all(world.runs[sae, c] == "all" for c in corpora) else None


def check_roles(world: World, card, sae, feature, corpora, binned) -> None:
    n_tokens: dict[tuple[str, str], int] = {}
    firings: dict[tuple[str, str], list[float]] = {}
    for context in world.contexts.values():
        for role, kind in zip(context.roles, context.kinds, strict=True):
            if context.corpus in corpora and kind != "bos":
                n_tokens[role, kind] = n_tokens.get((role, kind), 0) + 1
    for f in world.fired(sae, feature):
        if f.corpus in corpora:
            context = world.contexts[f.corpus, f.context]
            place = context.roles[f.position], context.kinds[f.position]
            firings.setdefault(place, []).append(f.activation)
    rows = {(row["role"], row["kind"]): row for row in card.by_role.to_pylist()}
    assert rows.keys() == n_tokens.keys()
    for place, n in n_tokens.items():
        check(rows[place], Statistics(firings.get(place, []), n), error=binned)


def check_positions(world: World, card, sae, feature, corpora) -> None:
    contexts = [c for c in world.contexts.values() if c.corpus in corpora]
    n = max((len(c.ids) for c in contexts), default=0)
    n_tokens, firings = [0] * n, [0] * n
    for context in contexts:
        for position, kind in enumerate(context.kinds):
            n_tokens[position] += kind != "bos"
    for f in world.fired(sae, feature):
        if f.corpus in corpora:
            firings[f.position] += 1
    assert card.by_position.to_pylist() == [
        {"position": p, "firings": firings[p], "n_tokens": n_tokens[p],
         "density": firings[p] / n_tokens[p] if n_tokens[p] else None}
        for p in range(n)
    ]  # fmt: skip


def check_decoder(world: World, card, sae, feature, k) -> None:
    of_decoder = {name: values[feature] for name, values in decoder_columns(world, sae).items()}
    assert card.decoder_norm == of_decoder["decoder_norm"]
    assert card.encoder_norm == of_decoder["encoder_norm"]
    for side in ("top", "bottom"):
        rows = [row for row in card.tokens.to_pylist() if row["side"] == side]
        assert [row["token_id"] for row in rows] == of_decoder[f"{side}_tokens"]
        assert [row["logit"] for row in rows] == of_decoder[f"{side}_logits"]
    expected = []
    for is_own in (True, False):
        near = sorted(
            (-cosine, name, rank, j)
            for name in SAES if (name == sae) == is_own
            for rank, (j, cosine) in enumerate(world.neighbors(sae, feature, name))
        )  # fmt: skip
        expected += [{"other_sae": name, "other_feature": j, "rank": rank, "cosine": -negative}
                     for negative, name, rank, j in near[:k]]  # fmt: skip
    assert card.neighbors.to_pylist() == expected
    labels = sorted((who, text) for s, f, text, who in world.labels if (s, f) == (sae, feature))
    assert [(r["source"], r["label"]) for r in card.labels.to_pylist()] == labels
    site, layers = SAES[sae]
    assert card.coder.site == site
    assert card.coder.layer == layers[feature // (WIDTH // len(layers))]


@few
@given(
    seed=st.integers(0, N_LAKES - 1), sae=st.sampled_from(list(SAES)),
    feature=st.integers(0, WIDTH - 1), corpus=st.sampled_from([None, "plain", "chats"]),
)  # fmt: skip
def test_a_card_in_sql(random_lake, seed, sae, feature, corpus):
    world, lake = random_lake(seed)
    query = "FROM feature_card($sae, $feature, corpus := $corpus)"
    asked = {"sae": sae, "feature": feature, "corpus": corpus}
    corpora = world.on(sae, corpus)
    if not corpora:
        with pytest.raises(QueryError, match="it was not run there"):
            lake.sql(query, asked)
        return
    found = lake.sql(query, asked).to_pylist()
    assert [row["corpus"] for row in found] == [None, *corpora]
    of_decoder = {name: values[feature] for name, values in decoder_columns(world, sae).items()}
    labels = [text for s, f, text, _ in world.labels if (s, f) == (sae, feature)]
    site, layers = SAES[sae]
    facts = {"sae": sae, "feature": feature, "site": site, "labels": labels or None,
             "layer": layers[feature // (WIDTH // len(layers))], "source": "ingest"}  # fmt: skip
    for row, of in zip(found, [corpora, *([c] for c in corpora)], strict=True):
        error = None
        if len(of) == 1:
            error = 0.0 if world.runs[sae, of[0]] == "all" else TALLY_ERROR
        check(row, world.statistics(sae, feature, of), error=error)
        assert {name: row[name] for name in of_decoder} == of_decoder
        assert {name: row[name] for name in facts} == facts


@few
@given(seed=st.integers(0, N_LAKES - 1), sae=st.sampled_from(list(SAES)),
       feature=st.integers(0, WIDTH - 1))  # fmt: skip
def test_what_explains_a_card_runs(random_lake, seed, sae, feature):
    world, lake = random_lake(seed)
    if not world.whole(sae):
        return
    asked = lake.explain_feature(feature, sae=sae)
    rows = [lake.sql(query) for query in re.split(r";\n+", asked) if query.strip()]
    (statistics, firings, near, peaks, together) = rows
    assert statistics["corpus"].to_pylist() == world.on(sae)
    mine = [f.activation for f in world.fired(sae, feature) if f.corpus in world.whole(sae)]
    assert sorted(firings["activation"].to_pylist()) == sorted(mine)
    assert near.num_rows == sum(len(world.neighbors(sae, feature, other)) for other in SAES)
    assert peaks.num_rows == min(5, len({(f.corpus, f.context) for f in world.fired(sae, feature)}))
    assert together.num_rows == lake.coactive(feature, sae=sae, k=10).table.num_rows


def test_oracles_quantiles_are_numpys():
    """The model itself, on a case that is worked out by hand."""
    values = Statistics([1.0, 2.0, 3.0, 5.0], 8).values
    assert values["p50"] == 2.5
    assert values["p10"] == pytest.approx(1.3)
    assert (values["density"], values["mean"], values["max"]) == (0.5, 2.75, 5.0)
    assert np.flatnonzero(values["histogram"]).tolist() == [8, 9, 10]
