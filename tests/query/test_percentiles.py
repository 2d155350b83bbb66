"""Percentiles of firings, beside a count of every row of a random lake with many ties."""

import numpy as np
import pytest

from scopelake.query.percentiles import percentiles

VALUES = np.array([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 70000.0, 1e6], np.float32)


@pytest.mark.parametrize("most_rows", [2_000_000, 0], ids=["counted", "bounded"])
def test_percentiles_are_the_shares_of_weaker_firings(built, most_rows):
    sae = built.sae()
    feature = np.repeat(np.arange(12, dtype=np.int32), len(VALUES))
    activation = np.tile(VALUES, 12)
    order = np.random.default_rng(0).permutation(len(feature))
    feature, activation = feature[order], activation[order]
    found, error = percentiles(
        built.connection, sae, "plain", feature, activation, most_rows=most_rows
    )
    there = {}
    for row in built.rows:
        if (row.sae, row.corpus) == (sae.name, "plain") and row.kind != "bos":
            there.setdefault(row.feature, []).append(row.activation)
    for f, a, percentile, wrong in zip(feature, activation, found, error, strict=True):
        if f not in there:
            assert np.isnan(percentile)
            assert np.isnan(wrong)
            continue
        exact = 100 * sum(value < a for value in there[f]) / len(there[f])
        if most_rows:
            assert wrong == 0
            assert percentile == pytest.approx(exact)
        else:
            assert 0 <= wrong <= 50
            assert abs(percentile - exact) <= wrong + 1e-9
            assert a < 1e6 or wrong == 0
    assert 11 not in there


def test_no_firing_has_no_percentile(built):
    none = np.zeros(0, np.int32), np.zeros(0, np.float32)
    found, error = percentiles(built.connection, built.sae(), "plain", *none)
    assert len(found) == len(error) == 0
