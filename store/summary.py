"""Statistics of every feature, exact, from feature-major files in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.store.feature_ranges import RowGroup, count_rows, read_columns, row_groups
from scopelake.store.firings import BANDS
from scopelake.store.gathered import PAGED_FROM, WHY_NOT, TooFineError, gather
from scopelake.store.integrity import checked_copies
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS

QUANTILES: Final = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p99": 0.99}

AT_ONCE: Final = 1 << 25
"""Bytes of gathered activations that a thread may hold, whatever the corpus."""

_FEWEST_ROWS: Final = 1_000_000
"""Firings of a range of features from which several threads share a coder."""

_A_FEATURE: Final = 8 * (BANDS + 12)
"""Bytes of what is known of a feature, apart from its activations."""

_PLAIN: Final = 80
"""Bytes of a firing where nothing is compiled (measured)."""

_COLUMNS: Final = ("feature", "activation", "kind")


def feature_statistics(
    root: Root,
    files: Iterable[str],
    width: int,
    n_tokens: int,
    *,
    most_bytes: int | None = None,
    threads: int = 1,
) -> pa.Table:
    """Return the statistics of every feature, firings on BOS left out.

    Features are taken range by range. How much memory that takes does not grow with the firings,
    if their activations have at most ten bits of mantissa; else a range has a feature at least.

    Args:
        root: the lake's.
        files: postings files of one coder on one corpus; their union is each firing once.
        width: number of features.
        n_tokens: tokens that are not BOS, the denominator of density.
        most_bytes: of gathered activations that each thread may hold, if less than `AT_ONCE`.
        threads: that make ranges at once.

    Returns:
        One row for each feature 0..width-1: the columns of the features table from `feature` to
        `n_tokens`; without firings mean, max and quantiles are null. Quantiles are numpy's
        linear ones of the stored activations, the mean is summed in float64.

    Raises:
        DamagedFileError: a file is not what was written.
        InvalidArgumentError: a file has a feature beyond `width`, or `width` or `n_tokens` is
            below 1.
    """
    if width < 1 or n_tokens < 1:
        raise InvalidArgumentError(
            f"statistics of {width} features over {n_tokens} tokens were asked for; give 1 or more"
        )
    files = list(files)
    most = AT_ONCE if most_bytes is None else min(AT_ONCE, most_bytes)
    with checked_copies(root, files) as local:
        groups = list(row_groups(local, files))
        highest = max((g.high for g in groups), default=0)
        if highest >= width:
            raise InvalidArgumentError(
                f"statistics of {width} features were asked for; the files have feature "
                f"{highest}; give the files and width of one coder"
            )
        with ThreadPoolExecutor(threads) as pool:
            lots = (groups[i::threads] for i in range(threads))
            rows = sum(pool.map(lambda lot: count_rows(local, lot, width), lots))
            assert isinstance(rows, np.ndarray)

            def parts(*, may_page: bool) -> list[pa.Table]:
                def of(bounds: tuple[int, int]) -> pa.Table:
                    return _of_range(local, groups, rows, bounds, n_tokens, may_page=may_page)

                return list(pool.map(of, _ranges(rows, most, threads, may_page=may_page)))

            try:
                found = parts(may_page=True)
            except TooFineError:
                found = parts(may_page=False)
    return pa.concat_tables(found).combine_chunks()


def _ranges(
    rows: npt.NDArray[np.int64], most: int, threads: int, *, may_page: bool
) -> Iterator[tuple[int, int]]:
    """Yield ranges [low, high) of features that take so many bytes at most; one may take more."""
    if WHY_NOT is None:
        kept = np.minimum(rows, PAGED_FROM) if may_page else rows
        n_bytes = 4 * kept + _A_FEATURE
    else:
        n_bytes = _PLAIN * rows + _A_FEATURE
    most_rows = max(_FEWEST_ROWS, int(rows.sum()) // threads)
    low, held, n = 0, 0, 0
    for feature, (more, of_rows) in enumerate(zip(n_bytes.tolist(), rows.tolist(), strict=True)):
        if held and (held + more > most or n + of_rows > most_rows):
            yield low, feature
            low, held, n = feature, 0, 0
        held, n = held + more, n + of_rows
    yield low, len(rows)


def _of_range(
    root: Root,
    groups: Sequence[RowGroup],
    rows: npt.NDArray[np.int64],
    bounds: tuple[int, int],
    n_tokens: int,
    *,
    may_page: bool,
) -> pa.Table:
    low, high = bounds
    read = read_columns(root, groups, low, high, _COLUMNS)
    gathered = gather(
        ((feature, activation, kind) for feature, activation, kind in read),
        rows[low:high], low, may_page=may_page,
    )  # fmt: skip
    counts = gathered.counts
    silent = counts == 0
    last = np.maximum(counts - 1, 0)
    at = np.array(list(QUANTILES.values())) * last[:, None]
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, last[:, None])
    ranks = np.stack([below, above], axis=2).reshape(len(counts), -1)
    values, sums, bins = gathered.facts(np.append(ranks, last[:, None], axis=1))
    left, right = values[:, 0:-1:2].astype(np.float64), values[:, 1:-1:2].astype(np.float64)
    quantiles = left + (right - left) * (at - below)
    columns: dict[str, Any] = {
        "feature": np.arange(low, high, dtype=np.int32),
        "firings": counts,
        "density": counts / n_tokens,
        "mean": _column(sums / np.maximum(counts, 1), silent),
        "max": _column(values[:, -1], silent),
    }
    for name, found in zip(QUANTILES, quantiles.T, strict=True):
        columns[name] = _column(found, silent)
    offsets = pa.array(np.arange(high - low + 1) * BANDS, pa.int32())
    columns["histogram"] = pa.ListArray.from_arrays(offsets, pa.array(bins.ravel()))
    columns["n_tokens"] = np.full(high - low, n_tokens, dtype=np.int64)
    schema = pa.schema([SCHEMAS["features"].field(name) for name in columns])
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema)


def _column(values: npt.NDArray[Any], silent: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=silent)
