"""Statistics of one feature's firings: in all, by corpus, by role and kind, by position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.names import KIND_BOS
from scopelake.query.literals import literal
from scopelake.query.views import PRIVATE
from scopelake.store.firings import BANDS, band
from scopelake.store.summary import QUANTILES

EXACT_FIRINGS: Final = 4_000_000
"""Up to so many firings are sorted for their quantiles; of more they are counted by bins."""

BINS: Final = 32
"""For each power of two."""
BIN_ERROR: Final = 2.0 ** (1 / (2 * BINS)) - 1
"""Most that a quantile of bins is off, relative."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of firings, BOS left out; None: not known, or of no firings."""

    firings: int | None = None
    n_tokens: int | None = None
    density: float | None = None
    """Share of the tokens."""
    mean: float | None = None
    max: float | None = None
    p10: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    quantile_error: float | None = None
    """Most that a quantile is off, relative; 0: exact."""
    histogram: tuple[int, ...] | None = None
    """Firings by power of two of activation: 32 bins from 2^-8, outliers in the end bins."""


@dataclass(frozen=True)
class Cells:
    """Firings, or firings of like activation counted together; arrays [n]."""

    corpus: npt.NDArray[Any]
    """Index in `names`."""
    role: npt.NDArray[Any]
    kind: npt.NDArray[Any]
    position: npt.NDArray[Any]
    activation: npt.NDArray[np.float32]
    """Of a firing, or the middle of a bin."""
    count: npt.NDArray[np.int64]
    total: npt.NDArray[np.float64]
    """Sum of the activations."""
    highest: npt.NDArray[np.float32]
    names: tuple[str, ...]
    """Of corpora."""
    error: float
    """Most that an activation is off, relative; 0: they are firings."""

    @classmethod
    def of(cls, rows: pa.Table, *, binned: bool) -> Cells:
        """Return the rows of `cells_sql` as arrays."""
        columns = {name: rows[name].to_numpy() for name in ("role", "kind", "position")}
        corpora = rows["corpus"].combine_chunks().dictionary_encode()
        columns["corpus"] = corpora.indices.to_numpy()
        names = tuple(corpora.dictionary.to_pylist())
        if not binned:
            activation = rows["activation"].to_numpy().astype(np.float32)
            ones, wide = np.ones(len(activation), np.int64), activation.astype(np.float64)
            return cls(**columns, activation=activation, count=ones, total=wide,
                       highest=activation, names=names, error=0.0)  # fmt: skip
        middle = np.exp2((rows["bin"].to_numpy() + 0.5) / BINS).astype(np.float32)
        return cls(
            **columns, activation=middle, count=rows["n"].to_numpy(),
            total=rows["total"].to_numpy(), highest=rows["highest"].to_numpy(), names=names,
            error=BIN_ERROR,
        )  # fmt: skip

    def on(self, corpora: Collection[str]) -> Cells:
        """Return those on some corpora."""
        wanted = np.array([name in corpora for name in self.names], bool)
        return self if wanted.all() else self.take(wanted[self.corpus])

    def take(self, mask: npt.NDArray[np.bool_]) -> Cells:
        """Return those for which `mask` is true."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {name: v[mask] for name, v in values.items() if isinstance(v, np.ndarray)}
        return Cells(**{**values, **arrays})

    def statistics(self, n_tokens: int | None) -> Statistics:
        """Return their statistics, among so many tokens."""
        firings = int(self.count.sum())
        density = firings / n_tokens if n_tokens else None
        if not firings:
            empty = (0,) * BANDS
            return Statistics(firings=0, n_tokens=n_tokens, density=density, histogram=empty)
        histogram = np.bincount(band(self.activation), weights=self.count, minlength=BANDS)
        highest = float(self.highest.max())
        ordered, ends = self._sorted()
        values = np.minimum(ordered.astype(np.float64), highest)
        quantiles = {name: _quantile(values, ends, q) for name, q in QUANTILES.items()}
        return Statistics(
            firings=firings, n_tokens=n_tokens, density=density,
            mean=float(self.total.sum()) / firings, max=highest, **quantiles,
            quantile_error=self.error, histogram=tuple(histogram.astype(int).tolist()),
        )  # fmt: skip

    def _sorted(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the activations in order, and how many firings there are up to each."""
        if not self.error:
            return np.sort(self.activation), np.arange(1, len(self.activation) + 1)
        order = np.argsort(self.activation)
        return self.activation[order], np.cumsum(self.count[order])


def _quantile(values: npt.NDArray[np.float64], ends: npt.NDArray[np.int64], q: float) -> float:
    """Return a linear quantile of sorted values, the i-th of which stands up to place ends[i]."""
    at = q * (int(ends[-1]) - 1)
    below = int(np.floor(at))
    left, right = (
        float(values[np.searchsorted(ends, min(place, int(ends[-1]) - 1), side="right")])
        for place in (below, below + 1)
    )
    return left + (right - left) * (at - below)


def cells_sql(
    sae: str, feature: int, plain: Sequence[str], chats: Sequence[str], *, binned: bool
) -> str:
    """Return the SQL of a feature's firings with the role and kind of their tokens, BOS left out.

    Args:
        sae: its name.
        feature: index in it.
        plain: corpora whose tokens have no role.
        chats: corpora whose contexts tell the roles.
        binned: count firings of like activation together.
    """
    parts = []
    if plain:
        parts.append(
            "SELECT corpus, CAST(0 AS TINYINT) AS role, kind, position, activation\n"
            f"FROM fired WHERE {_among(plain)}"
        )
    if chats:
        parts.append(
            "SELECT corpus, roles[position + 1] AS role, kind, position, activation\n"
            f"FROM fired JOIN (SELECT corpus, context, roles FROM {PRIVATE}.contexts "
            f"WHERE {_among(chats)}) USING (corpus, context)"
        )
    # Both parts are of one scan, which is most of what a rare feature costs.
    firings = (
        "WITH fired AS MATERIALIZED (\n"
        f"SELECT corpus, context, kind, position, activation FROM {PRIVATE}.postings\n"
        f"WHERE sae = {literal(sae)} AND feature = {int(feature)} AND kind <> {KIND_BOS} "
        f"AND {_among([*plain, *chats])}\n)\n"
    ) + "\nUNION ALL\n".join(parts)
    if not binned:
        return firings
    return (
        f"SELECT corpus, role, kind, position, CAST(floor(log2(activation) * {BINS}) AS INTEGER) "
        "AS bin, count(*) AS n, sum(CAST(activation AS DOUBLE)) AS total, "
        f"max(activation) AS highest\nFROM (\n{firings}\n)\nGROUP BY ALL"
    )


def _among(corpora: Sequence[str]) -> str:
    return f"corpus IN ({', '.join(map(literal, corpora))})"


def stored_statistics(row: Mapping[str, Any], error: float | None) -> Statistics:
    """Return what a row of the features table says; `error` is that of its quantiles."""
    names = [f.name for f in fields(Statistics) if f.name not in ("quantile_error", "histogram")]
    given = {name: row[name] for name in names}
    histogram = None if row["histogram"] is None else tuple(row["histogram"])
    known = None if given["p50"] is None else error
    return Statistics(**given, quantile_error=known, histogram=histogram)


def summed(parts: Sequence[Statistics]) -> Statistics:
    """Return what statistics of disjoint firings say together; quantiles they do not tell."""
    if len(parts) == 1:
        return parts[0]
    firings = sum(p.firings or 0 for p in parts)
    n_tokens = sum(p.n_tokens or 0 for p in parts)
    total = sum((p.mean or 0.0) * (p.firings or 0) for p in parts)
    histograms = [p.histogram or (0,) * BANDS for p in parts]
    return Statistics(
        firings=firings,
        n_tokens=n_tokens,
        density=firings / n_tokens if n_tokens else None,
        mean=total / firings if firings else None,
        max=max((p.max for p in parts if p.max is not None), default=None),
        histogram=tuple(map(sum, zip(*histograms, strict=True))),
    )


_TYPES: Final = {
    "firings": pa.int64(),
    "n_tokens": pa.int64(),
    **dict.fromkeys(("density", "mean", "max", *QUANTILES, "quantile_error"), pa.float64()),
    "histogram": pa.list_(pa.int64()),
}


def statistics_table(
    keys: Mapping[str, Sequence[str]], statistics: Sequence[Statistics]
) -> pa.Table:
    """Return statistics as rows behind their keys, columns of text."""
    columns = {name: pa.array(list(values), pa.string()) for name, values in keys.items()}
    columns |= {
        name: pa.array([getattr(s, name) for s in statistics], type_)
        for name, type_ in _TYPES.items()
    }
    return pa.table(columns)
