"""Feature statistics against numpy, feature by feature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scopelake.errors import InvalidArgumentError
from scopelake.store import gathered, summary
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
