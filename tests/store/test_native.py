"""The compiled part of the store gives what its plain counterparts give, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from scopelake.store import native
from scopelake.store.firings import BANDS, Firings
from scopelake.store.selection import select

SIZES = [0, 1, 63, 1023, 20_000]
ALL = np.uint32(0xFFFFFFFF)


@pytest.fixture
def plain(monkeypatch):
    """Call a function as if nothing were compiled."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(native, "WHY_NOT", "the test has none")
            return function(*arguments)

    return call


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def test_it_is_built_here():
    assert native.WHY_NOT is None


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("width", [40, 70_000])
def test_feature_major_order(make_firings, plain, n, width):
    firings = make_firings(n, seed=n, width=width)
    same(firings.feature_major().columns(), plain(firings.feature_major).columns())


def with_every_activation(firings: Firings) -> Firings:
    """Among them zero of either sign, subnormal and negative ones, and the largest."""
    values = np.array([0.0, -0.0, -1.5, 1e-45, 1e-38, 2.0**-8, 1.0, 1.0, 3.5, 70000.0, 3.4e38])
    drawn = np.random.default_rng(len(firings)).choice(values, len(firings))
    return Firings(
        firings.context, firings.position, firings.feature, drawn.astype(np.float32), firings.kind
    )


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("k_peaks", "per_band"), [(1, 1), (3, 2), (256, 5)])
@pytest.mark.parametrize("bound", ["none", "some", "all"])
def test_peaks_and_samples(make_firings, plain, n, k_peaks, per_band, bound):
    ordered = with_every_activation(make_firings(n, seed=n, width=30)).feature_major()
    rng = np.random.default_rng(n)
    peak_bounds, sample_bounds = np.full(30, ALL), np.full((30, BANDS), ALL)
    if bound == "some":
        # Keys of descending order of about 1, and of a third of all priorities.
        peak_bounds = rng.integers(0x3F000000, 0x41000000, 30).astype(np.uint32)
        sample_bounds = rng.integers(0, 1 << 31, (30, BANDS)).astype(np.uint32)
    elif bound == "all":
        # The key of the largest finite activation.
        peak_bounds, sample_bounds = np.full(30, np.uint32(0x00800000)), sample_bounds * 0
    arguments = (ordered, peak_bounds, sample_bounds, k_peaks, per_band)
    for found, expected in zip(select(*arguments), plain(select, *arguments), strict=True):
        assert found.equals(expected)
        assert bound != "none" or n == 0 or found.num_rows > 0


def test_peaks_of_contexts_whose_strongest_are_ties_and_bos():
    n = 600
    firings = Firings(
        np.repeat(np.arange(n // 2), 2).astype(np.int64),
        np.tile([0, 5], n // 2).astype(np.int32),
        np.zeros(n, np.int32),
        np.tile([9.0, 2.0, 1.0, 2.0], n // 4).astype(np.float32),
        np.tile([2, 0], n // 2).astype(np.int8),
    )
    strongest, _ = select(firings, np.full(1, ALL), np.full((1, BANDS), ALL), 256, 5)
    # All contexts are tied once BOS is left out, so the first 256 are kept, in their order.
    assert strongest["context"].to_pylist() == list(range(256))
    assert set(strongest["position"].to_pylist()) == {5}


def test_columns_that_do_not_fit_are_refused(make_firings):
    firings = make_firings(10)
    columns = firings.columns()
    short = (columns[0][1:], *columns[1:])
    with pytest.raises(ValueError, match="different lengths"):
        native.by_feature(short, 40)
    with pytest.raises(ValueError, match="a feature is not below 3"):
        native.by_feature((*columns[:2], np.full(10, 3, np.int32), *columns[3:]), 3)
    with pytest.raises(ValueError, match="a feature is not below 40"):
        native.by_feature((*columns[:2], np.full(10, -1, np.int32), *columns[3:]), 40)
    bounds, sampled = np.full(40, ALL), np.full((40, BANDS), ALL)
    with pytest.raises(ValueError, match="of different features"):
        native.select(columns, bounds[1:], sampled, 4, 4)
    with pytest.raises(ValueError, match="nothing is kept"):
        native.select(columns, bounds, sampled, 0, 4)


def test_the_package_works_where_it_is_not_built():
    code = (
        "import sys; sys.modules['scopelake.store._native'] = None\n"
        "import numpy as np\n"
        "from scopelake.store import native\n"
        "from scopelake.store.firings import Firings\n"
        "assert 'not built' in native.WHY_NOT, native.WHY_NOT\n"
        "f = Firings(np.zeros(2, np.int64), np.arange(2, dtype=np.int32), "
        "np.array([1, 0], np.int32), np.ones(2, np.float32), np.zeros(2, np.int8))\n"
        "assert f.feature_major().feature.tolist() == [0, 1]\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
