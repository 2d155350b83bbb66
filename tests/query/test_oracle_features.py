"""Features: what fired here, together, next to each other; beside loops over all firings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.query.oracle import (
    CLT,
    N_LAKES,
    QUANTILES,
    SAES,
    SPELT,
    WIDTH,
    World,
    band,
    rounded,
)
from tests.query.random_lake import is_kept

from scopelake.errors import NotIngestedError, QueryError
from scopelake.names import FIRING_RANKINGS
from scopelake.query.percentiles import percentiles
from scopelake.query.resolve import resolve_sae

SEEDS = st.integers(0, N_LAKES - 1)
SAE = st.sampled_from(list(SAES))
FEATURE = st.integers(0, WIDTH - 1)
CORPUS = st.sampled_from([None, "plain", "chats"])

pytestmark = pytest.mark.filterwarnings("ignore::scopelake.errors.PartialWarning")

few = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def score(world: World, firing, by, usual) -> float | None:
    """The score of a firing, beside what is usual for its feature on a corpus."""
    if by == "activation":
        return firing.activation
    statistics = world.statistics(firing.sae, firing.feature, [usual])
    if by == "surprise":
        above = sum(band(a) >= band(firing.activation) for a in statistics.activations)
        return math.log2(statistics.n_tokens / max(above, 0.5))
    # Statistics are stored as float32.
    value = statistics.values[by]
    return None if value is None else firing.activation / float(np.float32(value))


def row_of(world: World, firing, value):
    site, layers = SAES[firing.sae]
    context = world.contexts[firing.corpus, firing.context]
    return {
        "sae": firing.sae, "layer": layers[firing.feature // (WIDTH // len(layers))],
        "site": site, "position": firing.position, "token": context.shown[firing.position],
        "feature": firing.feature, "activation": firing.activation, "score": value,
    }  # fmt: skip


def fired_here(world: World, context, position, saes, k, by, usual):
    """The first `k` of each SAE at each token."""
    by_place: dict[tuple[int, str], list] = {}
    for f in world.firings:
        is_here = (f.corpus, f.context) == context.key and position in (None, f.position)
        if is_here and f.sae in saes:
            value = score(world, f, by, usual)
            by_place.setdefault((f.position, f.sae), []).append((value, f))
    chosen = [one for ones in by_place.values() for one in sorted(ones, key=highest)[:k]]
    chosen.sort(key=lambda one: (one[1].position, *highest(one)))
    return [row_of(world, f, value) for value, f in chosen]


def highest(one):
    value, f = one
    known = -math.inf if value is None else value
    return -known, -f.activation, f.sae, f.feature, f.position


def fired_in_all(world: World, context, saes, k, by, usual):
    """Each feature of a context once, at its highest score; `k` of each SAE; BOS left out."""
    by_feature: dict[tuple[str, int], list] = {}
    for f in world.firings:
        is_here = (f.corpus, f.context) == context.key and world.kind(f) != "bos"
        if is_here and f.sae in saes:
            by_feature.setdefault((f.sae, f.feature), []).append((score(world, f, by, usual), f))
    best = sorted(((min(ones, key=highest), len(ones)) for ones in by_feature.values()),
                  key=lambda one: highest(one[0]))  # fmt: skip
    left = dict.fromkeys(SAES, math.inf if k is None else k)
    rows = []
    for (value, f), n in best:
        left[f.sae] -= 1
        if left[f.sae] >= 0:
            rows.append(row_of(world, f, value) | {"n_firings": n})
    return rows


def known_saes(world: World, context) -> list[str]:
    """SAEs of which the firings of a context are stored."""
    return [s for (s, corpus), keep in world.runs.items()
            if corpus == context.corpus and is_kept(context, keep)]  # fmt: skip


@settings(few, max_examples=60)
@given(
    seed=SEEDS, data=st.data(), sae=st.sampled_from([None, *SAES]),
    k=st.sampled_from([None, 1, 2, 50]), by=st.sampled_from(FIRING_RANKINGS),
    usual=CORPUS, whole=st.booleans(),
)  # fmt: skip
def test_what_fired_here(random_lake, seed, data, sae, k, by, usual, whole):
    world, lake = random_lake(seed)
    context = world.contexts[data.draw(st.sampled_from(sorted(world.contexts)))]
    at = None if whole else data.draw(st.sampled_from([None, *range(len(context.ids))]))
    asked = {"corpus": context.corpus, "sae": sae, "k": k, "by": by, "usual": usual,
             "whole": whole}  # fmt: skip
    saes = known_saes(world, context) if sae is None else [sae]
    if sae is not None and sae not in known_saes(world, context):
        with pytest.raises((QueryError, NotIngestedError)):
            lake.features_at(context.number, at, **asked)
        return
    compared = usual or context.corpus
    fires = {f.sae for f in world.firings if (f.corpus, f.context) == context.key
             and at in (None, f.position) and not (whole and world.kind(f) == "bos")}  # fmt: skip
    if by != "activation" and any((s, compared) not in world.runs for s in fires & set(saes)):
        with pytest.raises(NotIngestedError, match="what is usual"):
            lake.features_at(context.number, at, **asked)
        return
    if whole:
        expected = fired_in_all(world, context, saes, k, by, compared)
    else:
        expected = fired_here(world, context, at, saes, k, by, compared)
    found = lake.features_at(context.number, at, **asked)
    assert [row.keys() for row in found.table.to_pylist()[:1]] == [r.keys() for r in expected[:1]]
    assert found.table.to_pylist() == expected


@few
@given(seed=SEEDS, data=st.data(), sae=st.sampled_from([None, *SAES]),
       k=st.sampled_from([None, 1, 2, 50]))  # fmt: skip
def test_what_fired_here_in_sql(random_lake, seed, data, sae, k):
    world, lake = random_lake(seed)
    context = world.contexts[data.draw(st.sampled_from(sorted(world.contexts)))]
    at = data.draw(st.sampled_from([None, *range(len(context.ids))]))
    query = "FROM features_at($context, $at, corpus := $corpus, sae := $sae, k := $k)"
    asked = {"context": context.number, "at": at, "corpus": context.corpus, "sae": sae, "k": k}
    saes = known_saes(world, context) if sae is None else [sae]
    if (sae, context.corpus) not in world.runs and sae is not None:
        with pytest.raises(QueryError, match="it was not run there"):
            lake.sql(query, asked)
        return
    expected = fired_here(world, context, at, saes, k, "activation", context.corpus)
    if sae is not None and sae not in known_saes(world, context):
        with pytest.raises(QueryError, match="of no SAE that was meant"):
            lake.sql(query, asked)
        return
    assert lake.sql(query, asked).to_pylist() == expected


def together(world: World, sae, feature, other, corpora, k):
    """Counts over sets of tokens; the highest of n_both * pmi first."""

    def tokens(name, one):
        return {(f.corpus, f.context, f.position) for f in world.fired(name, one)
                if f.corpus in corpora}  # fmt: skip

    mine = tokens(sae, feature)
    n_tokens = sum(world.corpora[c].n_tokens for c in corpora)
    rows = []
    for one in range(WIDTH):
        theirs = tokens(other, one)
        n_both = len(mine & theirs)
        if n_both and (sae, feature) != (other, one):
            lift = n_both * n_tokens / (len(mine) * len(theirs))
            rows.append({"other_feature": one, "n_both": n_both, "n_feature": len(mine),
                         "n_other": len(theirs), "n_tokens": n_tokens, "lift": lift,
                         "pmi": math.log2(lift)})  # fmt: skip
    rows.sort(key=lambda r: (-r["n_both"] * r["pmi"], -r["n_both"], r["other_feature"]))
    return rows[:k]


@few
@given(seed=SEEDS, sae=SAE, other=st.sampled_from([None, *SAES]), feature=FEATURE, corpus=CORPUS,
       k=st.sampled_from([1, 3, 20]))  # fmt: skip
def test_what_fires_together(random_lake, seed, sae, other, feature, corpus, k):
    world, lake = random_lake(seed)
    both = (sae, other or sae)
    asked = {"sae": sae, "other_sae": other, "corpus": corpus, "k": k}
    query = "FROM coactive($sae, $feature, k := $k, corpus := $corpus, other_sae := $other_sae)"
    run_on = [set(world.on(s, corpus)) for s in both]
    whole = [set(world.whole(s, corpus)) for s in both]
    corpora = sorted(whole[0] & whole[1])
    if not corpora or not all(run_on):
        with pytest.raises((QueryError, NotIngestedError)):
            lake.coactive(feature, **asked)
        with pytest.raises(QueryError):
            lake.sql(query, {"feature": feature, **asked})
        return
    found = lake.coactive(feature, **asked)
    expected = together(world, sae, feature, both[1], corpora, k)
    assert found.corpora == tuple(corpora)
    assert bool(found.note) == (run_on != [set(corpora)] * 2)
    assert found.table.to_pylist() == expected
    # A macro cannot say what it leaves out, and refuses it.
    if run_on != whole:
        with pytest.raises(QueryError, match="not all are in the lake"):
            lake.sql(query, {"feature": feature, **asked})
        return
    in_sql = lake.sql(query, {"feature": feature, **asked}).to_pylist()
    assert in_sql == [{"other_sae": both[1]} | row for row in expected]


@few
@given(seed=SEEDS, sae=SAE, other=st.sampled_from([None, *SAES]), feature=FEATURE,
       k=st.sampled_from([1, 2, 20]))  # fmt: skip
def test_neighbors_in_sql(random_lake, seed, sae, other, feature, k):
    world, lake = random_lake(seed)
    near = sorted(
        (-cosine, name, j)
        for name in SAES if other in (None, name)
        for j, cosine in world.neighbors(sae, feature, name)
    )  # fmt: skip
    found = lake.sql("FROM neighbors($sae, $feature, k := $k, other_sae := $other)",
                     {"sae": sae, "feature": feature, "k": k, "other": other})  # fmt: skip
    assert found.to_pylist() == [
        {"other_sae": name, "other_feature": j, "cosine": -negative}
        for negative, name, j in near[:k]
    ]


@few
@given(seed=SEEDS, ids=st.lists(st.integers(0, len(SPELT)), max_size=6))
def test_decode(random_lake, seed, ids):
    world, lake = random_lake(seed)
    (row,) = lake.sql("SELECT decode($ids) AS text", {"ids": ids}).to_pylist()
    assert row["text"] == "".join(world.spelling(token) for token in ids)


@few
@given(
    seed=SEEDS, sae=SAE, corpus=st.sampled_from(["plain", "chats"]),
    asked=st.lists(
        st.tuples(FEATURE, st.sampled_from([0.001, 0.5, 1.0, 1.1, 2.0, 3.0, 70000.0, 1e6])),
        min_size=1, max_size=12,
    ),
    most_rows=st.sampled_from([0, 2_000_000]), bits=st.sampled_from([None, 7, 10]),
)  # fmt: skip
def test_percentiles(random_lake, seed, sae, corpus, asked, most_rows, bits):
    world, lake = random_lake(seed)
    if not world.on(sae, corpus):
        return
    values = np.array([rounded(a, bits or world.bits) for _, a in asked], np.float32)
    features = np.array([f for f, _ in asked], np.int32)
    info = resolve_sae(lake._saes, sae)
    found, error = percentiles(lake._connection, info, corpus, features, values, bits=bits,
                               most_rows=most_rows)  # fmt: skip
    for feature, value, percentile, wrong in zip(features.tolist(), values.tolist(), found, error,
                                                 strict=True):  # fmt: skip
        there = world.statistics(sae, feature, [corpus]).activations
        if not there:
            assert np.isnan(percentile)
            assert np.isnan(wrong)
            continue
        # What was rounded to other bits may have been anything that rounds to it.
        half = 0.0 if bits in (None, world.bits) else value * 2.0 ** -(bits + 1)
        ends = [rounded(value + side, world.bits) for side in (-half, half)]
        low, high = (100 * sum(a < end for a in there) / len(there) for end in ends)
        assert percentile - wrong <= low + 1e-9
        assert percentile + wrong >= high - 1e-9
        if most_rows and world.runs[sae, corpus] == "all" and half == 0:
            assert (percentile, wrong) == (pytest.approx(low), 0)


def test_each_lake_has_what_is_asked_about(random_lake):
    """What the questions are about is there: else they would find nothing to disagree on."""
    worlds = [random_lake(seed)[0] for seed in range(N_LAKES)]
    assert {keep.partition(":")[0] for w in worlds for keep in w.runs.values()} >= {"all", "sample"}
    assert any((CLT, "plain") not in w.runs for w in worlds)
    assert {c.bos for w in worlds for c in w.corpora.values()} == {"each", "document", "none"}
    assert any(len(x.documents) > 1 for w in worlds for x in w.contexts.values())
    assert any(len(c.ends) > 1 and c.ends[1] - c.ends[0] > 1 for w in worlds
               for c in w.corpora.values())  # fmt: skip
    assert any(w.is_compacted for w in worlds)
    assert {w.bits for w in worlds} == {7, 10, 23}
    values = [f.activation for w in worlds for f in w.firings]
    assert len(set(values)) < len(values) / 2
    assert set(QUANTILES) == {"p10", "p50", "p90", "p99"}
