"""Tallies: statistics of features that add up, against numpy on all firings."""

import numpy as np
import pytest

from scopelake.errors import InvalidArgumentError
from scopelake.store.firings import Firings, band
from scopelake.store.schema import file_schema
from scopelake.store.summary import QUANTILES
from scopelake.store.tallies import add_up, tallied_statistics, tally

WIDTH, N_TOKENS = 9, 5000


def firings_of(rng, n):
    return Firings(
        np.arange(n, dtype=np.int64),
        np.zeros(n, dtype=np.int32),
        rng.integers(0, WIDTH - 1, n, dtype=np.int32),  # the last never fires
        (rng.gamma(2.0, 3.0, n) + 0.01).astype(np.float32),
        np.where(rng.random(n) < 0.1, 2, 0).astype(np.int8),
    )


@pytest.mark.parametrize("sizes", [(0,), (1,), (63, 0, 1023), (4000, 1, 700)])
def test_sums_of_parts_say_what_numpy_says_of_all(sizes):
    rng = np.random.default_rng(sum(sizes))
    parts = [firings_of(rng, n) for n in sizes]
    found = tallied_statistics(add_up([tally(p) for p in parts]), WIDTH, N_TOKENS).to_pydict()
    every = Firings.concat(parts)
    for feature in range(WIDTH):
        mine = every.activation[(every.feature == feature) & (every.kind != 2)]
        assert found["firings"][feature] == len(mine)
        assert found["density"][feature] == len(mine) / N_TOKENS
        if not len(mine):
            assert found["mean"][feature] is found["max"][feature] is found["p50"][feature] is None
            continue
        assert found["max"][feature] == mine.max()
        assert found["mean"][feature] == pytest.approx(mine.astype(np.float64).mean(), rel=1e-6)
        expected = np.bincount(band(mine), minlength=32).tolist()
        assert found["histogram"][feature] == expected
        for name, q in QUANTILES.items():
            assert found[name][feature] == pytest.approx(np.quantile(mine, q), rel=1 / 64)


def test_adding_up_does_not_depend_on_how_it_is_divided():
    rng = np.random.default_rng(0)
    parts = [tally(firings_of(rng, n)) for n in (10, 500, 0, 300)]
    whole = add_up(parts)
    assert whole.schema == file_schema("tallies")
    again = add_up([add_up(parts[:2]), add_up(parts[2:])])
    assert whole.drop_columns(["total"]) == again.drop_columns(["total"])
    np.testing.assert_allclose(whole["total"].to_numpy(), again["total"].to_numpy(), rtol=1e-12)


def test_a_feature_beyond_the_width_is_refused():
    with pytest.raises(InvalidArgumentError, match="the files have feature"):
        tallied_statistics(tally(firings_of(np.random.default_rng(1), 100)), 3, 10)
