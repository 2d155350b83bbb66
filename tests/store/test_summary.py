"""Feature statistics against numpy, feature by feature."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from scopelake.errors import DamagedFileError, InvalidArgumentError
from scopelake.store import feature_ranges, gathered, summary
from scopelake.store.firings import Firings
from scopelake.store.precision import round_mantissa
from scopelake.store.summary import feature_statistics
from scopelake.store.writer import write_firings


def files(store, parts, bits=23):
    paths = []
    for shard, firings in enumerate(parts):
        receipts = write_firings(
            store.root, firings, sae="s", corpus="c", shard=shard, run="r", bits=bits
        )
        paths.append(receipts[1].path)
    return paths


@pytest.fixture(params=["kept", "paged", "plain"])
def way(request, monkeypatch):
    """Whether activations are kept, counted in pages, or gathered with nothing compiled."""
    if request.param == "paged":
        monkeypatch.setattr(gathered, "PAGED_FROM", 12)
    if request.param == "plain":
        for module in (gathered, summary):
            monkeypatch.setattr(module, "WHY_NOT", "the test has none")
    return request.param


@pytest.mark.parametrize("bits", [23, 10])
@pytest.mark.parametrize(("most_bytes", "threads"), [(1, 1), (3000, 1), (3000, 4), (10**9, 2)])
def test_statistics_equal_numpy(store, make_firings, way, bits, most_bytes, threads):
    parts = [make_firings(700, seed=1), make_firings(0), make_firings(63, first_context=500)]
    found = feature_statistics(
        store.root, files(store, parts, bits), 64, 1000, most_bytes=most_bytes, threads=threads
    )
    merged = Firings.concat(parts)
    activation = round_mantissa(merged.activation, bits)
    rows = found.to_pylist()
    assert [r["feature"] for r in rows] == list(range(64))
    for row in rows:
        chosen = (merged.feature == row["feature"]) & (merged.kind != 2)
        values = activation[chosen].astype(np.float64)
        assert row["firings"] == len(values)
        assert row["density"] == len(values) / 1000
        assert row["n_tokens"] == 1000
        bins = [0] * 32
        for value in values.tolist():
            bins[min(max(math.floor(math.log2(value)) + 8, 0), 31)] += 1
        assert row["histogram"] == bins
        if len(values) == 0:
            assert {row[c] for c in ("mean", "max", "p10", "p50", "p90", "p99")} == {None}
            continue
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert row["max"] == values.max()
        for name, q in [("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99)]:
            assert row[name] == pytest.approx(np.quantile(values, q), rel=1e-6)


@pytest.mark.parametrize("others", [0, 1, 2, 3, 11, 12])
def test_a_feature_that_fires_mostly_on_bos(store, others):
    n = gathered.PAGED_FROM + others  # it has pages, and hardly any firings that count
    firings = Firings(
        np.arange(n),
        np.zeros(n, np.int32),
        np.full(n, 3, np.int32),
        np.r_[np.full(n - others, 5000.0), np.arange(1.0, others + 1)].astype(np.float32),
        np.r_[np.full(n - others, 2), np.zeros(others)].astype(np.int8),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = feature_statistics(store.root, files(store, [firings], 10), 4, n)
    row = found.to_pylist()[3]
    assert row["firings"] == others
    if others:
        values = np.arange(1.0, others + 1)
        for name, q in [("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1)]:
            assert row[name] == pytest.approx(np.quantile(values, q), rel=1e-6)
        assert row["mean"] == values.mean()
    else:
        assert row["p50"] is None


def test_rows_of_features_are_within_what_a_thread_may_hold():
    rows = np.array([10, 5000, 10**9, 0, 8191, 8192, 70])
    for may_page, of_feature in ((True, 58_000), (False, 4 * 10**9 + 400)):
        for most in (1, 40_000, 130_000, 10**8):
            ranges = list(summary._ranges(rows, most, 1, may_page=may_page))
            assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])]
            assert ranges[-1][1] == len(rows)
            for low, high in ranges:
                taken = np.minimum(4 * rows[low:high] + 352, of_feature).sum()
                assert taken <= most or high == low + 1
    assert len(list(summary._ranges(rows, 10**12, 4, may_page=True))) > 1  # threads share it


def test_files_whose_row_groups_hide_features_are_refused(store, make_firings, monkeypatch):
    paths = files(store, [make_firings(300)])
    groups = [replace(g, high=20) for g in feature_ranges.row_groups(store.root, paths)]
    monkeypatch.setattr(summary, "row_groups", lambda *_: groups)
    with pytest.raises(DamagedFileError, match="run verify"):
        feature_statistics(store.root, paths, 21, 1000)


def test_no_files_give_silent_features(store):
    found = feature_statistics(store.root, [], 3, 10)
    assert found["firings"].to_pylist() == [0, 0, 0]
    assert found["mean"].null_count == 3


def test_features_beyond_the_width_are_refused(store, make_firings):
    paths = files(store, [make_firings(300)])
    with pytest.raises(InvalidArgumentError, match="feature 39"):
        feature_statistics(store.root, paths, 39, 10)
    with pytest.raises(InvalidArgumentError, match="1 or more"):
        feature_statistics(store.root, paths, 64, 0)
