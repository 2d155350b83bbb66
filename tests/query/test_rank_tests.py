"""Rank tests, intervals and q-values against definitions that are counted out."""

from __future__ import annotations

from itertools import combinations, product
from math import erfc, exp, lgamma, log, sqrt
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopelake.query.compare import _tested
from scopelake.query.rank_tests import discovery_rates, rank_sum, signed_rank
from scopelake.query.rate_intervals import Documents, rate_difference
from scopelake.query.tails import LEAST, exact_tails, normal_tails, skewed_tails

Z95 = NormalDist().inv_cdf(0.975)


def ranks(values):
    """Ranks from 1, ties at their mean."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def pearson_tail(z, skewness):
    """P(Z >= z) of a standardized, shifted gamma variable of skewness above 0, by summing."""
    shape = 4 / skewness**2
    x = shape + z * sqrt(shape)
    if x <= 0:
        return 1.0
    # In logarithms of the variable, where the density of a small shape is tame.
    t = np.linspace(log(x), log(x + 60 * sqrt(shape) + 200), 400_001)
    density = np.exp(shape * t - np.exp(t) - lgamma(shape))
    return float(((density[1:] + density[:-1]) / 2 * np.diff(t)).sum())


def two_sided(upper, lower):
    return max(min(2 * min(upper, lower), 1.0), LEAST)


def counted_rank_sum(a, b):
    """AUC, z and p of Mann and Whitney's test, from all ways to choose which are in a."""
    values = [*a, *b]
    rank, n, m = ranks(values), len(values), len(a)
    found = sum(rank[:m])
    sums = np.array([sum(rank[i] for i in chosen) for chosen in combinations(range(n), m)])
    auc = sum((x > y) + (x == y) / 2 for x in a for y in b) / (m * len(b))
    deviation = sums.std()
    z = (found - sums.mean()) / deviation if deviation > 0 else 0.0
    if sum(v > 0 for v in values) <= 10:
        p = two_sided(np.mean(sums >= found - 1e-9), np.mean(sums <= found + 1e-9))
        return auc, z, p
    skewness = ((sums - sums.mean()) ** 3).mean() / deviation**3 if deviation > 0 else 0.0
    if abs(skewness) < 1e-6:
        return auc, z, two_sided(erfc(z / sqrt(2)) / 2, erfc(-z / sqrt(2)) / 2)
    sign = 1 if skewness > 0 else -1
    upper = pearson_tail(sign * z, abs(skewness))
    return auc, z, two_sided(upper, 1 - upper)


def delong(a, b):
    """Interval of the AUC on the logit scale."""
    of_a = [np.mean([(x > y) + (x == y) / 2 for y in b]) for x in a]
    of_b = [np.mean([(x > y) + (x == y) / 2 for x in a]) for y in b]
    auc = np.mean(of_a)
    if auc in (0, 1):
        return None
    deviation = sqrt(np.var(of_a, ddof=1) / len(a) + np.var(of_b, ddof=1) / len(b))
    logit, step = log(auc / (1 - auc)), Z95 * deviation / (auc * (1 - auc))
    return [1 / (1 + exp(-(logit + s * step))) for s in (-1, 1)]


def given_as_rows(features):
    """Arguments of `rank_sum` for lists of (values of a, values of b)."""
    rows = [
        (f, v, side == 0)
        for f, both in enumerate(features) for side in (0, 1) for v in both[side] if v > 0
    ]  # fmt: skip
    rng = np.random.default_rng(len(rows))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    return (
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.float64),
        np.array([r[2] for r in rows], bool),
    )


few = st.integers(2, 6)
value = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.25, 0.5, 3.0])


@settings(max_examples=25, deadline=None)
@given(few, few, st.data())
def test_rank_sums_are_those_of_all_ways_to_choose(n_a, n_b, data):
    drawn = st.tuples(
        st.lists(value, min_size=n_a, max_size=n_a), st.lists(value, min_size=n_b, max_size=n_b)
    )
    features = data.draw(st.lists(drawn, min_size=1, max_size=5))
    features.append(([1.0 + i for i in range(n_a)], [1.5 + i for i in range(n_b)]))
    features.append(([0.0] * n_a, [0.0] * n_b))
    found = rank_sum(*given_as_rows(features), len(features), n_a, n_b)
    for f, (a, b) in enumerate(features):
        if not any([*a, *b]):
            assert all(np.isnan(column[f]) for column in vars(found).values())
            continue
        auc, z, p = counted_rank_sum(a, b)
        assert found.auc[f] == pytest.approx(auc)
        assert found.z[f] == pytest.approx(z, abs=1e-9)
        assert found.p[f] == pytest.approx(p, rel=1e-5)
        interval = delong(a, b)
        if interval is not None:
            assert [found.auc_low[f], found.auc_high[f]] == pytest.approx(interval, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.data())
def test_signed_ranks_are_those_of_all_signs(n, data):
    difference = st.sampled_from([0.0, 0.1, -0.1, 0.5, -0.5, 2.0, -3.0])
    features = data.draw(
        st.lists(st.lists(difference, min_size=n, max_size=n), min_size=1, max_size=4)
    )
    features.append([0.5 + i for i in range(n)])
    rows = [(f, d) for f, values in enumerate(features) for d in values if d]
    found = signed_rank(
        np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows]), len(features), n
    )
    for f, values in enumerate(features):
        there = [d for d in values if d]
        if not there:
            assert np.isnan(found.p[f])
            continue
        rank = np.array(ranks([abs(d) for d in there]))
        sums = np.array([rank @ s for s in product((0, 1), repeat=len(there))])
        up = rank @ (np.array(there) > 0)
        z = (up - sums.mean()) / sums.std()
        assert found.z[f] == pytest.approx(z)
        if len(there) <= 10:
            p = two_sided(np.mean(sums >= up - 1e-9), np.mean(sums <= up + 1e-9))
        else:
            p = two_sided(erfc(z / sqrt(2)) / 2, erfc(-z / sqrt(2)) / 2)
        assert found.p[f] == pytest.approx(p, rel=1e-9)
        shares = [(d > 0) + (d == 0) / 2 for d in values]
        auc = np.mean(shares)
        assert found.auc[f] == pytest.approx(auc)
        if auc == 1:
            # Wilson's bound: the share t from which n of n is just as far as the quantile.
            t = found.auc_low[f]
            assert (1 - t) / sqrt(t * (1 - t) / n) == pytest.approx(Z95)
        elif auc > 0:
            step = Z95 * np.std(shares, ddof=1) / sqrt(n) / (auc * (1 - auc))
            bounds = [1 / (1 + exp(-log(auc / (1 - auc)) - s * step)) for s in (-1, 1)]
            assert [found.auc_low[f], found.auc_high[f]] == pytest.approx(bounds)


def test_an_effect_without_overlap_has_an_interval():
    rows = given_as_rows([([1.0, 2.0, 3.0], [0.0, 0.0]), ([0.0, 0.0, 0.0], [1.0, 1.0])])
    found = rank_sum(*rows, 2, 3, 2)
    assert found.auc.tolist() == [1, 0]
    assert (found.auc_high[0], found.auc_low[1]) == (1, 0)
    t = found.auc_low[0]
    assert found.auc_high[1] == pytest.approx(1 - t)
    variance = t * (1 - t) / 6 * (1 + 1.5 * ((1 - t) / (2 - t) + t / (1 + t)))
    assert (1 - t) ** 2 == pytest.approx(Z95**2 * variance)


@pytest.mark.parametrize("skewness", [-2.5, -0.3, 0.05, 0.126, 0.7, 3.0, 9.0])
def test_tails_are_integrals_of_the_density(skewness):
    z = np.array([-4.0, -1.5, -0.1, 0.0, 0.4, 2.0, 5.0, 12.0])
    lower, upper = skewed_tails(z, np.full(len(z), skewness))
    sign = 1 if skewness > 0 else -1
    wanted = [pearson_tail(sign * value, abs(skewness)) for value in z]
    # Wilson and Hilferty's approximation begins at a shape of 1e5.
    close = {"rel": 1e-6 if 4 / skewness**2 < 1e5 else 2e-2, "abs": 1e-12}
    assert (upper if sign > 0 else lower) == pytest.approx(wanted, **close)
    assert lower + upper == pytest.approx(np.ones(len(z)))


def test_far_tails_keep_their_digits():
    lower, upper = normal_tails(np.array([-20.0, 0.0, 20.0]))
    assert lower[0] == upper[2] == pytest.approx(2.7536e-89, rel=1e-4)
    assert lower[1] == 0.5
    assert len(skewed_tails(np.zeros(0), np.zeros(0))[0]) == 0
    lower, upper = exact_tails(np.zeros((0, 3)), np.zeros(0), np.full(4, 0.125))
    assert lower.shape == upper.shape == (0,)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([float("nan"), 0.0, 1e-9, 0.01, 0.02, 0.02, 0.3, 1.0]), max_size=12)
)
def test_q_values_are_the_lowest_rate_at_which_a_test_is_found(p):
    found = discovery_rates(np.array(p, np.float64))
    tested = [x for x in p if x == x]
    for x, q in zip(p, found, strict=True):
        if x != x:
            assert np.isnan(q)
            continue
        rates = [min(t * len(tested) / sum(y <= t for y in tested), 1) for t in tested if t >= x]
        assert q == pytest.approx(min(rates))


def test_differences_and_odds_have_the_spread_of_documents():
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, 40, (30, 2))
    fired = rng.binomial(tokens, rng.beta(0.3, 2, (5, 30, 1)))
    fired[1] = 0
    fired[2, :, 1] = 0
    fired[3] = tokens
    feature, document = np.nonzero(fired.sum(axis=2))
    of = [fired[feature, document, side].astype(float) for side in (0, 1)]
    found = rate_difference(feature, document, *of, 5, Documents(tokens[:, 0], tokens[:, 1]), 0.95)
    n, c = tokens.sum(axis=0), fired.sum(axis=1)
    scale = [np.sqrt(k / (k - 1)) for k in (tokens > 0).sum(axis=0)]
    for f in range(5):
        r = c[f] / n
        residual = (fired[f] - r * tokens) * scale
        wide = Z95 * sqrt((((residual / n) @ [1, -1]) ** 2).sum())
        bounds = [r[0] - r[1], r[0] - r[1] - wide, r[0] - r[1] + wide]
        names = ("difference", "difference_low", "difference_high")
        assert [getattr(found, name)[f] for name in names] == pytest.approx(bounds, abs=1e-7)
        cells = np.array([c[f, 0], n[0] - c[f, 0], c[f, 1], n[1] - c[f, 1]], float)
        cells += 0.5 * (cells == 0).any()
        odds = [getattr(found, f"log_odds{end}")[f] for end in ("", "_low", "_high")]
        if f == 1:
            assert np.isnan(odds).all()
            continue
        log_odds = log(cells[0] * cells[3] / cells[1] / cells[2])
        assert odds[0] == pytest.approx(log_odds)
        if f in (2, 3):
            assert np.isnan(odds[1:]).all()
            continue
        step = Z95 * sqrt((((residual / (n * r * (1 - r))) @ [1, -1]) ** 2).sum())
        assert odds[1:] == pytest.approx([log_odds - step, log_odds + step])


def test_one_document_has_no_spread():
    documents = Documents(np.array([9, 0, 0]), np.array([0, 8, 4]))
    found = rate_difference(
        np.array([0, 0]), np.array([0, 1]), np.array([3.0, 0]), np.array([0, 1.0]), 1, documents
    )
    assert found.difference[0] == pytest.approx(3 / 9 - 1 / 12)
    assert np.isnan(found.difference_low[0])
    assert np.isnan(found.log_odds_high[0])


def test_equal_differences_of_rates_are_ties():
    # As floats 3/10 - 2/10 is less than 1/10.
    counts = SimpleNamespace(
        tested=(np.repeat([3.0, 0.0], 100), np.repeat([2.0, 1.0], 100)),
        document=np.arange(200), item=np.zeros(200, np.int64), n_items=1,
    )  # fmt: skip
    windows = SimpleNamespace(
        test="signed-rank", length=np.full((200, 2), 10), n_documents=(200, 200)
    )
    found = _tested(SimpleNamespace(windows=windows), counts, 0.95)
    assert found.z[0] == pytest.approx(0)
    assert found.p[0] == pytest.approx(1)
