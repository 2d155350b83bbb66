"""Firings as columns, their two sort orders, and each feature's strongest contexts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.names import KIND_BOS
from scopelake.store import native

_Order = npt.NDArray[np.intp]

_DTYPES: Final[dict[str, type[np.generic]]] = {
    "context": np.int64,
    "position": np.int32,
    "feature": np.int32,
    "activation": np.float32,
    "kind": np.int8,
}


@dataclass(frozen=True)
class Firings:
    """Nonzero codes of one coder, as columns of equal length n.

    Raises:
        InvalidArgumentError: a column has another shape or dtype, an activation is not finite,
            or an address is negative.
    """

    context: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    activation: npt.NDArray[np.float32]
    kind: npt.NDArray[np.int8]

    def __post_init__(self) -> None:
        n = len(self.context)
        for name, dtype in _DTYPES.items():
            column = getattr(self, name)
            if column.shape != (n,) or column.dtype != dtype:
                raise InvalidArgumentError(
                    f"firings need {name} as {np.dtype(dtype).name}[{n}]; found "
                    f"{column.dtype}{list(column.shape)}; convert the column"
                )

    def __len__(self) -> int:
        return len(self.context)

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Return the columns, in their order."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def check(self) -> None:
        """Refuse values that no file may hold.

        Raises:
            InvalidArgumentError: an activation is NaN or infinite, or an address is negative.
        """
        if len(self) == 0:
            return
        bad = int(np.count_nonzero(~np.isfinite(self.activation)))
        if bad:
            raise InvalidArgumentError(
                f"{bad} of {len(self)} activations are NaN or infinite; a firing needs a finite "
                "activation; check the model's output"
            )
        for name in ("context", "position", "feature", "kind"):
            lowest = int(getattr(self, name).min())
            if lowest < 0:
                raise InvalidArgumentError(
                    f"firings have {name} {lowest}; it counts from 0; check the encoder's output"
                )

    def take(self, index: npt.NDArray[Any]) -> Firings:
        """Return the firings that a numpy index or mask selects."""
        return Firings(*(column[index] for column in self.columns()))

    @staticmethod
    def concat(parts: Iterable[Firings]) -> Firings:
        """Return the firings of all `parts`, in that order; none at all for no parts."""
        several = list(parts)
        empty = {name: np.empty(0, dtype) for name, dtype in _DTYPES.items()}
        return Firings(
            **{
                name: np.concatenate([empty[name], *(getattr(p, name) for p in several)])
                for name in _DTYPES
            }
        )

    def token_major(self) -> Firings:
        """Return them sorted by context, position, feature; themselves if they are already."""
        if is_sorted(self.context, self.position, self.feature):
            return self
        return self.take(sort_order(self.context, self.position, self.feature))

    def feature_major(self) -> Firings:
        """Return them sorted by feature, context, position; themselves if they are already."""
        if is_sorted(self.feature, self.context, self.position):
            return self
        by_token = self.token_major()
        if native.WHY_NOT is None:
            width = int(by_token.feature.max()) + 1
            return Firings(*native.by_feature(by_token.columns(), width))
        return by_token.take(sort_order(by_token.feature))


BANDS: Final = 32
"""Powers of two of activation that are told apart."""

_BANDS_LOG2_START: Final = -8


def band(activation: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the band of each activation: a power of two wide, from 2^-8; outliers in the ends."""
    # The exponent's bits are floor(log2(x)) + 127; of subnormal numbers, far below, they are 0.
    exponent = (activation.view(np.uint32) >> np.uint32(23)).astype(np.int32)
    # What is not positive has no logarithm and belongs below every band.
    exponent[~(activation > 0)] = 0
    return np.clip(exponent - (127 + _BANDS_LOG2_START), 0, BANDS - 1)


def priority(
    context: npt.NDArray[Any], position: npt.NDArray[Any], feature: npt.NDArray[Any]
) -> npt.NDArray[np.uint32]:
    """Return a hash of each address, 31 bits, the same everywhere: samples are of the lowest.

    It is the finalizer of SplitMix64 (Steele, Lea, Flood 2014) over a mix of the three.
    """
    x = context.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= position.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    x ^= feature.astype(np.uint64) * np.uint64(0x165667B19E3779F9)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(33)).astype(np.uint32)


def samples(
    firings: Firings, per_band: int, bounds: npt.NDArray[np.uint32] | None = None
) -> pa.Table:
    """Return of each feature and band of activation `per_band` firings, BOS excluded.

    They are those of the lowest `priority` (ties: lowest context, then position): a uniform sample
    that does not depend on how the firings are divided, so samples of parts can be merged.

    Args:
        firings: in any order.
        per_band: most firings of a feature and band.
        bounds: [features, BANDS], priorities above which a firing is left out.

    Returns:
        feature i32, band i8, priority i32, context i64, position i32, activation f32; sorted by
        feature, band, priority, context, position.
    """
    drawn = priority(firings.context, firings.position, firings.feature)
    key = firings.feature.astype(np.int64) * BANDS + band(firings.activation)
    keep = firings.kind != KIND_BOS
    if bounds is not None:
        keep &= drawn <= bounds.ravel()[key]
    # Columns are taken as late as possible: few rows are left at the end.
    at = np.flatnonzero(keep)
    at = at[_is_among_lowest(key[at], drawn[at], per_band)]
    kept, drawn, key = firings.take(at), drawn[at], key[at]
    order = np.lexsort((kept.position, kept.context, drawn, key))
    order = order[rank_in_group(key[order]) < per_band]
    best = kept.take(order)
    return pa.table(
        {
            "feature": best.feature,
            "band": (key[order] % BANDS).astype(np.int8),
            "priority": drawn[order].astype(np.int32),
            "context": best.context,
            "position": best.position,
            "activation": best.activation,
        }
    )


def _is_among_lowest(
    key: npt.NDArray[np.int64], value: npt.NDArray[np.uint32], k: int
) -> npt.NDArray[np.bool_]:
    """Whether a value is not above the k-th lowest of its key."""
    if len(key) == 0:
        return np.zeros(0, dtype=bool)
    # One sort of plain integers is many times faster than a lexsort of all rows.
    both = (key.astype(np.uint64) << np.uint64(32)) | value
    both.sort()
    counts = np.bincount(key)
    last = np.cumsum(counts) - counts + np.minimum(counts, k) - 1
    highest = (both[np.maximum(last, 0)] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return np.asarray(value <= highest[key])


def peaks(firings: Firings, k: int, bounds: npt.NDArray[np.uint32] | None = None) -> pa.Table:
    """Return each feature's `k` strongest contexts, BOS excluded.

    A context is ranked by the strongest firing of the feature in it (ties: lowest position),
    contexts by that activation, highest first (ties: lowest context).

    Args:
        firings: in any order.
        k: most contexts of a feature, 1 or more.
        bounds: [features], keys of `descending` above which a context is left out.

    Returns:
        feature i32, rank i32 (from 0), context i64, position i32, activation f32; sorted by
        feature, rank.

    Raises:
        InvalidArgumentError: `k` is below 1.
    """
    if k < 1:
        raise InvalidArgumentError(f"k_peaks {k} was asked for; give 1 or more")
    ordered = firings.feature_major()
    keep = ordered.kind != KIND_BOS
    if bounds is not None:
        keep &= ordered.activation >= not_above(bounds)[ordered.feature]
    strongest = _strongest_per_context(
        ordered if keep.all() else ordered.take(np.flatnonzero(keep))
    )
    best = strongest.take(sort_order(strongest.feature, descending(strongest.activation)))
    rank = rank_in_group(best.feature)
    keep = rank < k
    best = best.take(keep)
    return pa.table(
        {
            "feature": best.feature,
            "rank": rank[keep].astype(np.int32),
            "context": best.context,
            "position": best.position,
            "activation": best.activation,
        }
    )


def ranked(firings: Firings) -> pa.Table:
    """Return all firings but those on BOS, each with the rank of its context.

    Contexts of a feature rank as in `peaks`; a context's further firings share its rank.

    Args:
        firings: in any order, each address once.

    Returns:
        The columns of `peaks`, sorted by feature, rank, activation (highest first), position.
    """
    ordered = firings.feature_major()
    ordered = ordered.take(ordered.kind != KIND_BOS)
    best = _strongest_per_context(ordered)
    order = sort_order(best.feature, descending(best.activation))
    rank_of_context = np.empty(len(best), dtype=np.int64)
    rank_of_context[order] = rank_in_group(best.feature[order])
    starts = _group_starts((ordered.feature, ordered.context))
    rank = np.repeat(rank_of_context, np.diff(starts, append=len(ordered)))
    order = sort_order(ordered.feature, rank, descending(ordered.activation))
    sorted_firings = ordered.take(order)
    return pa.table(
        {
            "feature": sorted_firings.feature,
            "rank": rank[order].astype(np.int32),
            "context": sorted_firings.context,
            "position": sorted_firings.position,
            "activation": sorted_firings.activation,
        }
    )


def _strongest_per_context(ordered: Firings) -> Firings:
    """Keep of feature-major firings the first strongest of each feature and context."""
    n = len(ordered)
    if n == 0:
        return ordered
    starts = _group_starts((ordered.feature, ordered.context))
    if len(starts) == n:
        return ordered
    highest = np.maximum.reduceat(ordered.activation, starts)
    is_highest = ordered.activation == np.repeat(highest, np.diff(starts, append=n))
    # Every group has one at least, so the n-th group's first follows those of the groups before.
    per_group = np.add.reduceat(is_highest, starts, dtype=np.int64)
    return ordered.take(np.flatnonzero(is_highest)[np.cumsum(per_group) - per_group])


def _group_starts(columns: tuple[npt.NDArray[Any], ...]) -> _Order:
    change = np.zeros(len(columns[0]), dtype=bool)
    change[:1] = True
    for column in columns:
        change[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(change)


def rank_in_group(sorted_group: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number the members of each run of equal values from 0."""
    n = len(sorted_group)
    starts = _group_starts((sorted_group,))
    return np.arange(n) - np.repeat(starts, np.diff(starts, append=n))


def descending(activation: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return keys whose ascending order is the descending order of finite activations."""
    raw = (activation + np.float32(0.0)).view(np.uint32)
    sign = np.uint32(1 << 31)
    ascending = np.where(raw & sign, ~raw, raw | sign)
    return ~ascending


def not_above(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return the lowest activations whose keys of `descending` are not above `keys`.

    Where every activation's is not, as where nothing is known, that is minus infinity.
    """
    ascending = ~keys
    sign = np.uint32(1 << 31)
    found = np.where(ascending & sign, ascending ^ sign, ~ascending).view(np.float32)
    found[np.isnan(found)] = -np.inf
    return found


def is_sorted(*keys: npt.NDArray[Any]) -> bool:
    """Whether rows ascend by `keys`, the first weighing most; equal rows count as ascending."""
    tied: npt.NDArray[np.bool_] | None = None
    for key in keys:
        below = key[1:] < key[:-1]
        if (below if tied is None else below & tied).any():
            return False
        equal = key[1:] == key[:-1]
        tied = equal if tied is None else tied & equal
    return True


def sort_order(*keys: npt.NDArray[Any]) -> _Order:
    """Return the stable order of rows by non-negative `keys`, the first weighing most.

    Each key is sorted 16 bits at a time, least first: numpy's stable sort of 16-bit integers is
    a radix sort, several times faster than its sort of wide ones.
    """
    order: _Order = np.arange(len(keys[0]))
    for key in reversed(keys):
        offset = key - key.min() if len(key) else key
        span = int(offset.max()) if len(key) else 0
        shift = 0
        while span >> shift:
            digit = (offset >> offset.dtype.type(shift)).astype(np.uint16)
            order = order[np.argsort(digit[order], kind="stable")]
            shift += 16
    return order
