"""Training reads: shuffled batches of one site's stored activations, BOS left out.

An epoch's contexts come in an order drawn from the seed. Their tokens, one context after the other,
are cut into blocks of `shuffle_tokens`; a block is read whole, its tokens are shuffled, and batches
are cut from it, while the next block is read. Where a batch lies follows from its number alone, so
that going on from batch n reads nothing of those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from scopelake.errors import InvalidArgumentError
from scopelake.names import KIND_BOS, check_whole
from scopelake.store.dense import DenseArray, StoredSite, find_whole, open_stored, read_context
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_READERS: Final = 4


@dataclass(frozen=True)
class StreamConfig:
    """What is streamed; everything that decides which tokens are in which batch."""

    batch_tokens: int = 4096
    shuffle_tokens: int = 1 << 17
    """Tokens that are shuffled with each other; a multiple of `batch_tokens` at least as large is
    taken. Two such blocks are in memory."""
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("seed", "rank") else 1
            if check_whole(name, value) < least:
                raise InvalidArgumentError(f"{name}={value} was asked for; give {least} or more")
        if self.rank >= self.world_size:
            raise InvalidArgumentError(
                f"rank {self.rank} of {self.world_size} was asked for; ranks count from 0; give "
                f"0 to {self.world_size - 1}"
            )

    @property
    def block_tokens(self) -> int:
        """Tokens of a block: whole batches."""
        return max(1, self.shuffle_tokens // self.batch_tokens) * self.batch_tokens


@dataclass(frozen=True)
class Tokens:
    """Which cells of an array hold tokens to train on."""

    counts: npt.NDArray[np.int64]
    """[n_contexts]: how many."""
    skipped: Mapping[int, npt.NDArray[np.int64]]
    """By context, the positions of BOS, where they are not the first alone."""
    n_first: npt.NDArray[np.bool_]
    """[n_contexts]: whether the first position, and no other, is BOS."""

    @classmethod
    def read(cls, store: LakeStore, snapshot: Snapshot, corpus: str) -> Tokens:
        """Read the kinds of a corpus's tokens."""
        table = store.read("contexts", snapshot, ["context", "kinds"], [("corpus", "=", corpus)])
        table = table.sort_by("context").combine_chunks()
        kinds = table["kinds"].combine_chunks()
        offsets = kinds.offsets.to_numpy()
        is_bos = kinds.values.to_numpy() == KIND_BOS
        sums = np.concatenate([[0], np.cumsum(is_bos)])
        n_bos = sums[offsets[1:]] - sums[offsets[:-1]]
        lengths = np.diff(offsets)
        is_first = np.zeros(len(lengths), bool)
        is_first[lengths > 0] = is_bos[offsets[:-1][lengths > 0]]
        odd = np.flatnonzero(n_bos > is_first)
        skipped = {int(c): np.flatnonzero(is_bos[offsets[c] : offsets[c + 1]]) for c in odd}
        return cls((lengths - n_bos).astype(np.int64), skipped, is_first & (n_bos == 1))

    def take(
        self, values: npt.NDArray[Any], context: int, start: int, stop: int
    ) -> npt.NDArray[Any]:
        """Return tokens [start, stop) of a context, BOS not counted, from its cells."""
        if context in self.skipped:
            gone = self.skipped[context]
            n_cells = int(self.counts[context]) + len(gone)
            return np.delete(values[:n_cells], gone, axis=0)[start:stop]
        first = int(self.n_first[context])
        return values[first + start : first + stop]


class ActivationStream(IterableDataset[torch.Tensor]):
    """Batches [batch_tokens, width] bfloat16, shuffled; each iteration is one epoch.

    On the CPU they are views of the block that they are cut from: copy what is to be kept.

    Equal arguments give equal batches; every epoch has an order of its own. Ranks, and workers of a
    DataLoader, get as many batches each and no token twice; what does not fill a batch on every one
    of them is left out, in each epoch something else. In a DataLoader with workers call `set_epoch`
    before each epoch, since what its workers iterate are copies.

    Args:
        array: bfloat16 [context, position, width].
        tokens: which of its cells are tokens.
        config: what is streamed.
        device: where the batches go.
    """

    def __init__(
        self,
        array: DenseArray,
        tokens: Tokens,
        config: StreamConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self._array, self._tokens, self._config = array, tokens, config
        self._device = torch.device(device)
        self._epoch = self._batch = 0

    @property
    def width(self) -> int:
        """Values of a token."""
        return int(self._array.shape[2])

    @property
    def n_tokens(self) -> int:
        """Tokens of the corpus, BOS left out."""
        return int(self._tokens.counts.sum())

    def __len__(self) -> int:
        """Return the batches of this rank in an epoch."""
        n_rounds, tail = self._split(self._config.world_size)
        config = self._config
        return (n_rounds * config.block_tokens + tail) // config.batch_tokens

    def set_epoch(self, epoch: int) -> None:
        """Begin at the start of an epoch, counted from 0."""
        self._epoch, self._batch = check_whole("epoch", epoch), 0

    def state_dict(self) -> dict[str, int]:
        """Return where the stream is."""
        return {**asdict(self._config), "n_tokens": self.n_tokens, "epoch": self._epoch,
                "batch": self._batch}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where another stream of the same arguments was.

        Raises:
            InvalidArgumentError: its arguments, or its tokens, are others.
        """
        mine = self.state_dict()
        other = [k for k in mine if k not in ("epoch", "batch") and state.get(k) != mine[k]]
        if other or not {"epoch", "batch"} <= state.keys():
            raise InvalidArgumentError(
                f"a stream of state {dict(state)} was to go on; this one has {mine}; make it with "
                "the same arguments"
            )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the batches that are left of the epoch; then the next one begins.

        Raises:
            DamagedFileError: stored activations are not what was written.
        """
        rank, world_size = self._config.rank, self._config.world_size
        worker = get_worker_info()
        if worker is not None:
            rank = rank * worker.num_workers + worker.id
            world_size *= worker.num_workers
        for batch in self._batches(list(self._blocks(rank, world_size))):
            self._batch += 1
            yield batch
        self._epoch, self._batch = self._epoch + 1, 0

    def _split(self, world_size: int) -> tuple[int, int]:
        """Return how many whole blocks each rank gets, and how many tokens besides."""
        size, batch = self._config.block_tokens, self._config.batch_tokens
        n_rounds = self.n_tokens // (size * world_size)
        rest = self.n_tokens - n_rounds * size * world_size
        return n_rounds, rest // (batch * world_size) * batch

    def _blocks(self, rank: int, world_size: int) -> Iterator[_Block]:
        """Yield what is left of a rank's epoch."""
        size, batch = self._config.block_tokens, self._config.batch_tokens
        n_rounds, tail = self._split(world_size)
        first, skipped = divmod(self._batch, size // batch)
        for index in range(first, n_rounds + (tail > 0)):
            is_whole = index < n_rounds
            start = (
                (index * world_size + rank) * size
                if is_whole
                else (n_rounds * world_size * size + rank * tail)
            )
            yield _Block(start, size if is_whole else tail, skipped if index == first else 0)

    def _batches(self, blocks: Sequence[_Block]) -> Iterator[torch.Tensor]:
        draw = np.random.default_rng([self._config.seed, self._epoch])
        order = draw.permutation(len(self._tokens.counts))
        ends = np.cumsum(self._tokens.counts[order])
        size = self._config.batch_tokens
        with (
            ThreadPoolExecutor(_READERS, thread_name_prefix="scopelake-read") as readers,
            ThreadPoolExecutor(1, thread_name_prefix="scopelake-block") as ahead,
        ):
            read = partial(self._read, order, ends, readers)
            following = ahead.submit(read, blocks[0]) if blocks else None
            for index, block in enumerate(blocks):
                assert following is not None
                values = following.result()
                if index + 1 < len(blocks):
                    following = ahead.submit(read, blocks[index + 1])
                for batch in range(block.n_skipped, block.n_tokens // size):
                    rows = values[batch * size : (batch + 1) * size]
                    yield rows.to(self._device, non_blocking=True)

    def _read(
        self,
        order: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        readers: ThreadPoolExecutor,
        block: _Block,
    ) -> torch.Tensor:
        """Return a block's tokens, shuffled, [n_tokens, width].

        Args:
            order: contexts of the epoch.
            ends: where each of them ends in the epoch's tokens.
            readers: threads.
            block: which tokens.
        """
        start, stop = block.start, block.start + block.n_tokens
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        draw = np.random.default_rng([self._config.seed, self._epoch, start])
        place_of = torch.from_numpy(draw.permutation(block.n_tokens))
        values = torch.empty(block.n_tokens, self.width, dtype=torch.int16)

        def fill(place: int) -> None:
            context = int(order[place])
            end = int(ends[place])
            begin = end - int(self._tokens.counts[context])
            low, high = max(start, begin), min(stop, end)
            if low < high:
                cells = read_context(self._array, context).view(np.int16)
                some = self._tokens.take(cells, context, low - begin, high - begin)
                # torch lets other threads run meanwhile; numpy would not.
                places = place_of[low - start : high - start]
                values.index_copy_(0, places, torch.from_numpy(np.ascontiguousarray(some)))

        list(readers.map(fill, range(first, last + 1)))
        return values.view(torch.bfloat16)


@dataclass(frozen=True)
class _Block:
    """Tokens that are shuffled with each other."""

    start: int
    """In the epoch's tokens."""
    n_tokens: int
    n_skipped: int
    """Batches that were there before."""


def stream(
    store: LakeStore,
    snapshot: Snapshot,
    layer: int,
    site: str,
    config: StreamConfig,
    *,
    model: str | None = None,
    corpus: str | None = None,
    device: torch.device | str = "cpu",
) -> ActivationStream:
    """Return a stream over the dense activations of a site.

    Raises:
        LayerNotFoundError, InvalidArgumentError: as in `find_whole`.
    """
    found: StoredSite = find_whole(store, snapshot, layer, site, model=model, corpus=corpus)
    tokens = Tokens.read(store, snapshot, found.corpus)
    return ActivationStream(open_stored(store, snapshot, found), tokens, config, device)
