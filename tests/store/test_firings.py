"""Sorting and peaks against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from scopelake.errors import InvalidArgumentError
from scopelake.store.firings import Firings, peaks, ranked

SIZES = [0, 1, 63, 1023]


def rows(firings: Firings, *columns: str) -> list[tuple]:
    return list(zip(*(getattr(firings, c).tolist() for c in columns), strict=True))


def brute_peaks(firings: Firings, k: int) -> list[tuple]:
    best: dict[int, dict[int, tuple[float, int]]] = {}
    for c, p, f, a, kind in rows(firings, "context", "position", "feature", "activation", "kind"):
        if kind == 2:
            continue
        held = best.setdefault(f, {}).get(c)
        if held is None or (-a, p) < (-held[0], held[1]):
            best[f][c] = (a, p)
    found = []
    for f in sorted(best):
        ranked = sorted(best[f].items(), key=lambda item: (-item[1][0], item[0]))
        found += [(f, rank, c, p, a) for rank, (c, (a, p)) in enumerate(ranked[:k])]
    return found


@pytest.mark.parametrize("n", SIZES)
def test_ranked_firings_are_all_of_them_with_the_rank_that_peaks_give(make_firings, n):
    firings = make_firings(n, seed=n)
    rank = {(f, c): r for f, r, c, _, _ in brute_peaks(firings, n + 1)}
    columns = ("feature", "context", "position", "activation", "kind")
    expected = sorted(
        (f, rank[f, c], -a, p, c) for f, c, p, a, kind in rows(firings, *columns) if kind != 2
    )
    found = ranked(firings).to_pylist()
    assert expected == [
        (r["feature"], r["rank"], -r["activation"], r["position"], r["context"]) for r in found
    ]


@pytest.mark.parametrize("n", SIZES)
def test_both_orders_hold_the_same_rows_sorted(make_firings, n):
    firings = make_firings(n, seed=n)
    for ordered, key in [
        (firings.token_major(), ("context", "position", "feature")),
        (firings.feature_major(), ("feature", "context", "position")),
    ]:
        columns = (*key, "activation", "kind")
        assert rows(ordered, *columns) == sorted(rows(firings, *columns))


def test_order_of_wide_features_and_far_contexts(make_firings):
    base = make_firings(500)
    far = Firings(
        base.context + (1 << 40),
        base.position,
        base.feature * np.int32(6553),
        base.activation,
        base.kind,
    )
    key = ("feature", "context", "position")
    assert rows(far.feature_major(), *key) == sorted(rows(far, *key))


def test_sorted_firings_are_not_copied(make_firings):
    ordered = make_firings(63).token_major()
    assert ordered.token_major() is ordered


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 2, 256])
def test_peaks_equal_brute_force(make_firings, n, k):
    firings = make_firings(n, seed=n)
    found = peaks(firings, k)
    assert [tuple(r.values()) for r in found.to_pylist()] == brute_peaks(firings, k)


def test_peaks_of_negative_and_tied_activations():
    firings = Firings(
        np.array([3, 1, 2, 1], np.int64),
        np.array([5, 4, 9, 2], np.int32),
        np.zeros(4, np.int32),
        np.array([-1.0, -2.0, -1.0, -2.0], np.float32),
        np.zeros(4, np.int8),
    )
    found = peaks(firings, 10).to_pydict()
    assert found["context"] == [2, 3, 1]
    assert found["position"] == [9, 5, 2]


def test_concat_of_nothing_and_of_parts(make_firings):
    assert len(Firings.concat([])) == 0
    parts = [make_firings(3), make_firings(0), make_firings(4, first_context=9)]
    assert Firings.concat(parts).context.tolist() == [
        *parts[0].context.tolist(),
        *parts[2].context.tolist(),
    ]


def test_wrong_columns_are_refused(make_firings):
    good = make_firings(3)
    with pytest.raises(InvalidArgumentError, match="feature as int32"):
        Firings(good.context, good.position, good.context, good.activation, good.kind)
    with pytest.raises(InvalidArgumentError, match=r"kind as int8\[3\]"):
        Firings(good.context, good.position, good.feature, good.activation, good.kind[:2])
    with pytest.raises(InvalidArgumentError, match="k_peaks 0"):
        peaks(good, 0)
