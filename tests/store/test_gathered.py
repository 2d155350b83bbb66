"""Gathered activations against lists, kept one by one and counted in pages."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from scopelake.store import _statistics, gathered
from scopelake.store.firings import BANDS, band
from scopelake.store.gathered import (
    TooFineError,
    activations_by_feature,
    count_features,
    gather,
    has_pages,
)

SIZES = [0, 1, 63, 1023, 20_000]
WIDTH = 40
AWKWARD = [0.0, -0.0, -1.5, -1.501953125, 2.0**-126, 2.0**-8, 1.0, 1.0, 1.0009765625, 3.5, 65536.0]
"""With ten bits of mantissa at most; zeros of either sign, ties, neighbours, both ends."""


def make(n, *, values=None, seed=0):
    """Make firings in any order, a third of them of one feature, some on BOS, in three parts."""
    rng = np.random.default_rng(seed)
    feature = rng.integers(0, WIDTH, n).astype(np.int32)
    feature[rng.random(n) < 0.3] = 7
    if values is None:
        drawn = np.exp(rng.normal(0, 3, n)).astype(np.float32)
        drawn = (drawn.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    else:
        drawn = rng.choice(np.array(values, np.float32), n)
    kind = np.where(rng.random(n) < 0.05, 2, rng.choice([0, 1, 3], n)).astype(np.int8)
    columns = feature, drawn, kind
    cuts = slice(n // 3), slice(0), slice(n // 3, n)
    return [tuple(c[at] for c in columns) for at in cuts]


def lists(parts, low, high):
    """What is asked for, feature by feature."""
    found = [[] for _ in range(low, high)]
    for part in parts:
        for feature, activation, kind in zip(*(c.tolist() for c in part), strict=True):
            if kind != 2 and low <= feature < high:
                found[feature - low].append(activation)
    return [sorted(one) for one in found]


def check(parts, low, high, **how):
    expected = lists(parts, low, high)
    rows = count_features((feature for feature, _, _ in parts), low, high - low)
    assert rows.sum() >= sum(map(len, expected))
    found = gather(parts, rows, low, **how)
    assert found.counts.tolist() == [len(one) for one in expected]
    last = np.maximum(found.counts - 1, 0)
    # Not in order, and twice the same: as those around quantiles of a few firings.
    ranks = np.stack([last // 2, last, last * 0, last // 3, last, last // 2], axis=1)
    values, sums, bins = found.facts(ranks)
    assert bins.sum(axis=1).tolist() == found.counts.tolist()
    for index, one in enumerate(expected):
        assert sums[index] == pytest.approx(math.fsum(one), rel=1e-12, abs=1e-12)
        of_bins = np.bincount(band(np.array(one, np.float32)), minlength=BANDS)
        assert bins[index].tolist() == of_bins.tolist()
        assert values[index].tolist() == [one[rank] if one else 0 for rank in ranks[index]]


@pytest.fixture(params=["kept", "some paged", "paged", "plain"])
def how(request, monkeypatch):
    """Whether features keep their activations, have pages, or nothing is compiled."""
    if request.param == "plain":
        monkeypatch.setattr(gathered, "WHY_NOT", "the test has none")
    monkeypatch.setattr(gathered, "PAGED_FROM", 1000 if request.param == "some paged" else 1)
    return {"may_page": request.param != "kept"}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("low", "high"), [(0, WIDTH), (0, 1), (7, 31), (39, 40), (35, 90)])
def test_all_activations_of_features(how, n, low, high):
    check(make(n, seed=n), low, high, **how)


@pytest.mark.parametrize("n", SIZES)
def test_awkward_activations(how, n):
    check(make(n, values=AWKWARD, seed=n), 0, WIDTH, **how)


def test_as_many_exponents_as_there_are(how):
    # More pages than there is room for at first.
    powers = [2.0**power for power in range(-126, 128)]
    check(make(20_000, values=[*powers, *(-p for p in powers)]), 0, WIDTH, **how)


def test_activations_with_more_bits_have_no_pages(monkeypatch):
    monkeypatch.setattr(gathered, "PAGED_FROM", 1000)
    for value in (np.nextafter(np.float32(1), np.float32(2)), -1.0001, 1e-45):
        parts = make(20_000, values=[1.0, value])
        rows = count_features((feature for feature, _, _ in parts), 0, WIDTH)
        with pytest.raises(TooFineError):
            gather(parts, rows, 0, may_page=True)
        check(parts, 0, WIDTH)


def test_memory_of_a_feature_does_not_grow_with_its_firings():
    n, n_parts = 100_000, 40

    def parts():
        for seed in range(n_parts):
            activation = np.random.default_rng(seed).exponential(3, n).astype(np.float32) + 1
            activation = (activation.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
            yield np.zeros(n, np.int32), activation, np.zeros(n, np.int8)

    tracemalloc.start()
    found = gather(parts(), np.array([n * n_parts]), 0, may_page=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.counts.tolist() == [n * n_parts]
    # Two parts while they are made, of at most 25 bytes a firing; all activations are 16 MB.
    assert peak < 2 * 25 * n + 500_000


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("low", "high"), [(0, WIDTH), (7, 31), (35, 90)])
def test_activations_by_feature(how, n, low, high):
    parts = make(n, values=AWKWARD, seed=n + 1)
    counts, values = activations_by_feature(parts, low, high)
    expected = lists(parts, low, high)
    assert counts.tolist() == [len(one) for one in expected]
    assert values.tolist() == [value for one in expected for value in one]
    assert (counts.dtype, values.dtype) == (np.int64, np.float32)


def test_more_firings_than_were_counted_are_refused(how):
    parts = make(1023)
    rows = count_features((feature for feature, _, _ in parts), 0, WIDTH)
    with pytest.raises(ValueError, match="room for fewer firings"):
        gather([*parts, *parts], rows, 0, **how)


def test_only_what_can_be_counted_has_pages():
    rows = np.array([0, 8191, 8192, 2**32 - 1, 2**32, 2**62])
    assert has_pages(rows).tolist() == [False, False, True, True, False, False]


def buffers(n=3):
    """What `_statistics.gather` takes, for two features, the second of which has pages."""
    return {
        "feature": np.array([0, 1, 1], np.int32)[:n], "activation": np.ones(n, np.float32),
        "kind": np.zeros(n, np.int8), "next": np.zeros(2, np.int64),
        "stop": np.array([1, -1]), "values": np.zeros(1, np.float32),
        "pages": np.full(512, -1, np.int32), "pool": np.zeros(1024, np.uint32),
        "used": np.zeros(1, np.int64), "low": 0, "first": 0,
    }  # fmt: skip


def test_buffers_of_another_size_are_refused():
    good = buffers()
    assert _statistics.gather(*good.values()) == (3, 0)
    assert (good["next"].tolist(), good["pool"].sum()) == ([1, 2], 2)
    for name, wrong, why in (
        ("activation", np.ones(2, np.float32), "different lengths"),
        ("feature", np.zeros(4, np.int32), "different lengths"),
        ("first", 4, "different lengths"),
        ("first", -1, "different lengths"),
        ("next", np.zeros(1, np.int64), "no room"),
        ("next", np.array([-1, 0]), "no room"),
        ("next", np.array([0, 2**63 - 1]), "no room"),
        ("low", -1, "no room"),
        ("low", 2**31, "no room"),
        ("stop", np.array([2, -1]), "no room"),
        ("stop", np.array([1, -2]), "no room"),
        ("used", np.array([2]), "no room"),
        ("used", np.array([-1]), "no room"),
        ("pages", np.full(512, 1, np.int32), "fewer firings"),
    ):
        with pytest.raises(ValueError, match=why):
            _statistics.gather(*(buffers() | {name: wrong}).values())
    # Nothing holds them afterwards.
    column = bytearray(12)
    with pytest.raises(ValueError, match="different lengths"):
        _statistics.gather(*(buffers(2) | {"feature": column}).values())
    column.append(0)


@pytest.mark.parametrize(
    ("starts", "counts"),
    [
        ([0], [3]), ([-1], [1]), ([0], [-1]), ([1, 0], [2, 1]), ([0, 0], [1]),
        ([2**62], [2**62]), ([0], [2**63 - 1]), ([3], [0]),
    ],
)  # fmt: skip
def test_runs_of_other_values_are_refused(starts, counts):
    values, runs = np.ones(2, np.float32), (np.array(starts), np.array(counts))
    with pytest.raises(ValueError, match="of other values"):
        _statistics.sort(values, *runs)
    n = len(starts)
    with pytest.raises(ValueError, match="of other values"):
        _statistics.summarize(values, *runs, np.zeros(n), np.zeros((n, BANDS), np.int64))


def test_pages_of_other_features_are_refused():
    def call(pages=512, page=0, ranks=2, values=2, sums=1, bins=BANDS):
        _statistics.paged(
            np.full(pages, page, np.int32), np.zeros(1024, np.uint32), np.zeros(ranks, np.int64),
            np.zeros(values, np.float32), np.zeros(sums), np.zeros(bins, np.int64),
        )  # fmt: skip

    call()
    for wrong in ({"pages": 511}, {"page": 1}, {"values": 3}, {"sums": 2}, {"bins": 31}):
        with pytest.raises(ValueError, match="of other features"):
            call(**wrong)


@pytest.mark.parametrize("n", [2, 31, 32, 33, 64, 1000, 5000])
@pytest.mark.parametrize("of", ["few bits", "all bits", "both signs", "one value", "descending"])
def test_runs_are_sorted(n, of):
    rng = np.random.default_rng(n)
    values = rng.normal(0, 5, 2 * n).astype(np.float32)
    if of == "few bits":
        values = (np.abs(values).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    elif of == "all bits":
        values = np.abs(values)
    elif of == "one value":
        values[:] = 2.5
    elif of == "descending":
        values = np.sort(np.abs(values))[::-1].copy()
    expected = [*sorted(values[:n].tolist()), *values[n:].tolist()]
    _statistics.sort(values, np.array([0]), np.array([n]))
    assert values.tolist() == expected


def test_the_package_works_where_it_is_not_built():
    code = (
        "import sys; sys.modules['scopelake.store._statistics'] = None\n"
        "import numpy as np\n"
        "from scopelake.store import gathered\n"
        "assert 'not built' in gathered.WHY_NOT, gathered.WHY_NOT\n"
        "part = np.zeros(2, np.int32), np.array([2, 1], np.float32), np.zeros(2, np.int8)\n"
        "assert gathered.activations_by_feature([part], 0, 1)[1].tolist() == [1, 2]\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
