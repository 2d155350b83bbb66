"""Peaks and samples of many shards: exact at every moment, and few rows, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from scopelake.store.commit import Writer
from scopelake.store.firings import (
    BANDS,
    Firings,
    band,
    descending,
    not_above,
    peaks,
    priority,
    samples,
)
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND, Running, Smallest
from scopelake.store.writer import write_firings


@pytest.mark.parametrize("drop_bits", [0, 16])
@pytest.mark.parametrize("n", [0, 1, 63, 1023])
def test_bounds_hold_the_k_smallest(n, drop_bits):
    rng = np.random.default_rng(n)
    smallest = Smallest(4, 20, drop_bits)
    keys, values = np.empty(0, np.int64), np.empty(0, np.uint32)
    for _ in range(3):
        key = rng.integers(0, 15, n)
        value = rng.choice([0, 7, 70_000, 2**31, 2**32 - 1], n).astype(np.uint32)
        smallest.add(key, value)
        keys, values = np.concatenate([keys, key]), np.concatenate([values, value])
        bounds = smallest.bounds()
        for one in range(20):
            of_key = np.sort(values[keys == one])
            exact = int(of_key[3]) if len(of_key) >= 4 else 2**32 - 1
            assert exact <= int(bounds[one]) <= exact | ((1 << drop_bits) - 1)


def brute_samples(firings: Firings, per_band: int) -> list[tuple]:
    found: dict[tuple[int, int], list[tuple]] = {}
    columns = (firings.context, firings.position, firings.feature, firings.activation, firings.kind)
    for c, p, f, a, kind in zip(*(column.tolist() for column in columns), strict=True):
        if kind != 2:
            octave = min(max(int(np.floor(np.log2(a))) + 8, 0), 31) if a > 0 else 0
            drawn = int(priority(np.array([c]), np.array([p]), np.array([f]))[0])
            found.setdefault((f, octave), []).append((drawn, c, p, np.float32(a)))
    return [
        (f, b, *row) for (f, b), rows in sorted(found.items()) for row in sorted(rows)[:per_band]
    ]


def as_rows(table) -> list[tuple]:
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize("n", [0, 1, 63, 1023])
@pytest.mark.parametrize("per_band", [1, 3, 2000])
def test_samples_are_those_of_the_lowest_priority_in_each_band(make_firings, n, per_band):
    firings = make_firings(n, seed=n)
    assert as_rows(samples(firings, per_band)) == brute_samples(firings, per_band)


def test_bands_are_powers_of_two_with_outliers_in_the_ends():
    values = np.array([-1, 0, 1e-9, 2**-8, 0.999, 1, 1.999, 2, 2**23, 3e38], np.float32)
    assert band(values).tolist() == [0, 0, 0, 0, 7, 8, 8, 9, 31, 31]


def test_priorities_look_uniform_and_depend_on_every_part_of_an_address():
    n = 20_000
    zeros, count = np.zeros(n, np.int64), np.arange(n)
    for address in ((count, zeros, zeros), (zeros, count, zeros), (zeros, zeros, count)):
        drawn = priority(*address)
        counts = np.bincount(drawn >> 26, minlength=32)
        assert len(np.unique(drawn)) > n - 5
        # 32 cells of 625 expected; 5 standard deviations.
        assert np.abs(counts - n / 32).max() < 5 * np.sqrt(n / 32)


def shard_of(rng: np.random.Generator, shard: int, n: int) -> Firings:
    """One firing a context of a few features, with many equal activations."""
    context = np.arange(n, dtype=np.int64) + shard * n
    return Firings(
        context,
        np.ones(n, np.int32),
        rng.choice([0, 3, 5], n).astype(np.int32),
        (rng.choice([0.5, 1.0, 2.0, 40.0], n) + rng.integers(0, 2, n)).astype(np.float32),
        np.where(rng.random(n) < 0.1, 2, 0).astype(np.int8),
    )


@pytest.mark.parametrize("seed", range(3))
def test_files_of_many_shards_are_exact_and_few_rows(store, seed):
    rng = np.random.default_rng(seed)
    n, n_shards, saes = 800, 12, {"sae": "s", "corpus": "c"}
    running, shards, n_rows = Running(6), [], {"peaks": 0, "samples": 0}
    with Writer(store) as writer:
        for shard in range(n_shards):
            firings = shard_of(rng, shard, n)
            receipts = write_firings(
                store.root, firings, shard=shard, run="r", bits=23, running=running, **saes
            )
            if shard == 4:
                running.forget(shard)  # never committed: it must hide nothing
                continue
            writer.commit(receipts, transaction=str(shard), reason="shard")
            running.accept(shard)
            if shard == 7:
                running = Running.load(store, store.snapshot(), "s", "c", 6)
            shards.append(firings)
            for receipt in receipts[2:]:
                n_rows[receipt.table] += receipt.n_rows
            whole = Firings.concat(shards)
            check_exact(store, whole)
    plain = (n_shards - 1) * 3 * min(PEAKS_DEPTH, n // 4)
    assert n_rows["peaks"] < 0.75 * plain
    assert n_rows["samples"] < 0.5 * (n_shards - 1) * len(samples(shards[0], SAMPLES_PER_BAND))


def check_exact(store, whole: Firings) -> None:
    snapshot = store.snapshot()
    rows = store.read("peaks", snapshot).to_pylist()
    rows.sort(key=lambda r: (r["feature"], -r["activation"], r["context"]))
    best: dict[int, list[tuple]] = {}
    for row in rows:
        best.setdefault(row["feature"], []).append((row["context"], row["activation"]))
    expected: dict[int, list[tuple]] = {}
    for row in peaks(whole, PEAKS_DEPTH).to_pylist():
        expected.setdefault(row["feature"], []).append((row["context"], row["activation"]))
    assert {f: found[:PEAKS_DEPTH] for f, found in best.items()} == expected
    rows = store.read("samples", snapshot).to_pylist()
    rows.sort(key=lambda r: tuple(r[c] for c in ("feature", "band", "priority", "context")))
    kept: dict[tuple, list[tuple]] = {}
    for row in rows:
        address = (row["priority"], row["context"], row["position"], np.float32(row["activation"]))
        kept.setdefault((row["feature"], row["band"]), []).append(address)
    found = [(*key, *row) for key, of in sorted(kept.items()) for row in of[:SAMPLES_PER_BAND]]
    assert found == brute_samples(whole, SAMPLES_PER_BAND)


def test_bounds_of_another_shape_leave_out_what_is_above_them(make_firings):
    firings = make_firings(500)
    bounds = np.full(40, descending(np.array([1.0], np.float32))[0])
    found = peaks(firings, 300, bounds).to_pylist()
    assert found
    assert all(row["activation"] >= 1.0 for row in found)
    none = samples(firings, 4, np.zeros((40, BANDS), np.uint32))
    assert none.num_rows == 0


def test_bounds_as_activations_leave_out_what_bounds_as_keys_do():
    rng = np.random.default_rng(0)
    activation = (rng.standard_normal(2000) * 10.0 ** rng.integers(-40, 38, 2000)).astype(
        np.float32
    )
    activation[:4] = (0.0, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny)
    keys = np.concatenate([
        descending(activation), descending(activation) | np.uint32(0xFFFF),
        np.array([0xFFFFFFFF], np.uint32),
    ])  # fmt: skip
    lowest = not_above(keys)
    for value, key in zip(activation, descending(activation), strict=True):
        assert np.array_equal(value >= lowest, key <= keys)
