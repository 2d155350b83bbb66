"""The nearest features of each feature by the cosine of their directions, tile by tile.

A feature's direction is what it adds to the residual stream (`decoder_rows.direction_of`). A zero
direction has no cosine: such a feature has no neighbors and is nobody's. Of equal cosines the lower
feature comes first. `nearest_plain` is the definition; `nearest` gives the same without an array of
features by features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from scopelake.ingest.coder_weights import decoder_rows
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.decoder_rows import direction_of
from scopelake.store.schema import file_schema

BLOCK_BYTES: Final = 1 << 30
"""Directions of the first coder that are held at once; the second one is read once for each."""

TILE: Final = 1 << 24
"""Cosines that are held at once."""


@dataclass(frozen=True)
class Sizes:
    """What is held in memory."""

    block_bytes: int = BLOCK_BYTES
    tile: int = TILE


def nearest_plain(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32], k: int, *, is_same: bool
) -> pa.Table:
    """Return the `k` nearest of `others` for each of `rows`, by the whole matrix of cosines.

    Args:
        rows: directions [n, d].
        others: directions [m, d].
        k: neighbors of each, 1 or more; fewer where there are fewer.
        is_same: whether both are those of one coder, so that nobody is its own neighbor.

    Returns:
        feature, rank, other_feature, cosine, sorted by feature and rank.
    """
    mine, theirs = (unit(torch.from_numpy(np.ascontiguousarray(x))) for x in (rows, others))
    cosines = (mine @ theirs.T).clamp(-1.0, 1.0).numpy()
    found: dict[str, list[Any]] = {name: [] for name in file_schema("neighbors").names}
    for i, row in enumerate(cosines):
        order = sorted(
            (-float(row[j]), j)
            for j in range(len(theirs))
            if mine[i].any() and theirs[j].any() and not (is_same and i == j)
        )[:k]
        for rank, (negative, j) in enumerate(order):
            for name, value in zip(found, (i, rank, j, -negative), strict=True):
                found[name].append(value)
    return pa.table(found, schema=file_schema("neighbors"))


def nearest(
    coder: CoderFiles,
    other: CoderFiles,
    k: int,
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
    sizes: Sizes | None = None,
) -> pa.Table:
    """Return the `k` nearest features of `other` for each feature of `coder`.

    Args:
        coder: whose features have neighbors.
        other: whose features they are; may be the same one: nobody is its own neighbor.
        k: neighbors of each, 1 or more; fewer where there are fewer.
        device: where it is computed, in float32.
        on_progress: called with the features of `coder` that are done.
        sizes: of what is in memory at once.

    Returns:
        As `nearest_plain`.

    Raises:
        CoderFileError: a value is not finite.
    """
    sizes = sizes or Sizes()
    parts = [file_schema("neighbors").empty_table()]
    with torch.inference_mode():
        for first, block in _blocks(coder, device, sizes.block_bytes):
            best = _Best(len(block), k, device)
            for start, rows in _unit_directions(other, device):
                own = first - start if other.name == coder.name else None
                best.add(block, rows, start, own, sizes.tile)
            parts.append(best.table(first, block))
            if on_progress is not None:
                on_progress(first + len(block))
    return pa.concat_tables(parts).combine_chunks()


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [n, d] at length 1; rows of zeros stay."""
    # Squares of very large or small values would overflow or vanish.
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = torch.where(largest > 0, rows / largest, 0.0)
    norms = scaled.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, scaled / norms, 0.0)


class _Best:
    """The best cosines so far of a block of features.

    Args:
        n: features.
        k: neighbors of each.
        device: where they are.
    """

    def __init__(self, n: int, k: int, device: torch.device) -> None:
        self.k = k
        self.cosines = torch.full((n, 0), -torch.inf, device=device)
        self.ids = torch.zeros((n, 0), dtype=torch.int64, device=device)

    def add(
        self, block: torch.Tensor, rows: torch.Tensor, start: int, own: int | None, tile: int
    ) -> None:
        """Take in the other coder's features from `start` on.

        Args:
            block: unit directions [n, d].
            rows: unit directions of those [m, d].
            start: the first of them.
            own: of one coder, the number in `rows` of the block's first feature; may lie outside.
            tile: cosines to hold at once.
        """
        nothing = ~rows.any(dim=1)
        step = max(1, tile // len(rows))
        found = []
        for low in range(0, len(block), step):
            cosines = (block[low : low + step] @ rows.T).clamp_(-1.0, 1.0)
            cosines[:, nothing] = -torch.inf
            if own is not None:
                at = torch.arange(len(cosines), device=rows.device)
                inside = (at + low + own >= 0) & (at + low + own < len(rows))
                cosines[at[inside], (at + low + own)[inside]] = -torch.inf
            found.append(_largest(cosines, self.k))
        cosines, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.cosines, self.ids = _in_order(
            torch.cat([self.cosines, cosines], dim=1),
            torch.cat([self.ids, ids + start], dim=1),
            self.k,
        )

    def table(self, first: int, block: torch.Tensor) -> pa.Table:
        """Return the rows of the table, of features from `first` on."""
        cosines = self.cosines.cpu().numpy()
        is_there = np.isfinite(cosines) & block.any(dim=1).cpu().numpy()[:, None]
        feature, rank = np.nonzero(is_there)  # by feature, then rank
        columns = [
            (feature + first).astype(np.int32),
            rank.astype(np.int32),
            self.ids.cpu().numpy()[is_there].astype(np.int32),
            cosines[is_there],
        ]
        return pa.table([pa.array(c) for c in columns], schema=file_schema("neighbors"))


def _largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `k` largest of each row and where they are; of equal ones the first, any order."""
    if k >= values.shape[1]:
        every = torch.arange(values.shape[1], device=values.device)
        return values, every.expand(values.shape)
    top, at = values.topk(k + 1, dim=1)
    # topk takes any of equal values: where it had to choose, sorting does.
    tied = torch.nonzero(top[:, k - 1] == top[:, k]).flatten()
    top, at = top[:, :k], at[:, :k]
    if len(tied):
        ordered = values[tied].sort(dim=1, descending=True, stable=True)
        top[tied], at[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return top, at


def _in_order(
    cosines: torch.Tensor, ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `k` best of each row, the best first; of equal ones the lower feature first."""
    by_id = ids.argsort(dim=1)
    cosines, ids = cosines.gather(1, by_id), ids.gather(1, by_id)
    order = cosines.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return cosines.gather(1, order), ids.gather(1, order)


def _unit_directions(coder: CoderFiles, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first feature and the unit directions [some features, d_out], in order."""
    first = 0
    for rows in decoder_rows(coder, device):
        yield first, unit(direction_of(coder, rows))
        first += len(rows)


def _blocks(
    coder: CoderFiles, device: torch.device, most_bytes: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the same in blocks of `most_bytes`; a block is overwritten by the next one."""
    n_rows = min(coder.width, max(1, most_bytes // (4 * coder.d_out)))
    block = torch.empty(n_rows, coder.d_out, device=device)
    first = held = 0
    for _, rows in _unit_directions(coder, device):
        while len(rows):
            taken = min(n_rows - held, len(rows))
            block[held : held + taken] = rows[:taken]
            rows, held = rows[taken:], held + taken
            if held == n_rows:
                yield first, block
                first, held = first + n_rows, 0
    if held:
        yield first, block[:held]
