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
from scopelake.names import KIND_BOS, check_whole, counted
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.dense import StoredSite
from scopelake.store.dense_reader import DenseReader, find_whole, open_reader
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_READERS: Final = 4

_KINDS_AT_ONCE: Final = 1 << 22
"""Tokens whose kinds are in memory at once, about."""


@dataclass(frozen=True)
class StreamConfig:
    """What is streamed; everything that decides which tokens are in which batch."""

    batch_tokens: int = 4096
    shuffle_tokens: int = 1 << 17
    """Tokens that are shuffled with each other, rounded down to whole batches, one at least. Two
    such blocks are in memory."""
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
    """[n_contexts]: how many; none at numbers that no context has."""
    skipped: Mapping[int, npt.NDArray[np.int64]]
    """By context, the positions of BOS, where they are not the first alone."""
    begins_with_bos: npt.NDArray[np.bool_]
    """[n_contexts]: whether the first position, and no other, is BOS."""

    @classmethod
    def read(cls, store: LakeStore, snapshot: Snapshot, corpus: str) -> Tokens:
        """Read the kinds of a corpus's tokens."""
        (row,) = store.read("corpora", snapshot, [*NUMBER_COLUMNS, "context_length"],
                            [("corpus", "=", corpus)]).to_pylist()  # fmt: skip
        n_contexts = ContextNumbers.of(row).end
        counts, is_first = np.zeros(n_contexts, np.int64), np.zeros(n_contexts, bool)
        skipped: dict[int, npt.NDArray[np.int64]] = {}
        step = max(1, _KINDS_AT_ONCE // int(row["context_length"]))
        for start in range(0, n_contexts, step):
            table = store.read(
                "contexts", snapshot, ["context", "kinds"],
                [("corpus", "=", corpus), ("context", ">=", start), ("context", "<", start + step)],
            ).sort_by("context")  # fmt: skip
            # Numbers that no context has, before what was appended, stay without tokens.
            kinds_of = (kinds for chunk in table["kinds"].chunks for kinds in chunk)
            for context, kinds in zip(table["context"].to_pylist(), kinds_of, strict=True):
                is_bos = np.asarray(kinds.values) == KIND_BOS
                n_bos = int(np.count_nonzero(is_bos))
                counts[context] = len(is_bos) - n_bos
                is_first[context] = n_bos == 1 and bool(is_bos[0])
                if n_bos and not is_first[context]:
                    skipped[context] = np.flatnonzero(is_bos)
        return cls(counts, skipped, is_first)

    def take(
        self, values: npt.NDArray[Any], context: int, start: int, stop: int
    ) -> npt.NDArray[Any]:
        """Return tokens [start, stop) of a context, BOS not counted, from its cells."""
        if context in self.skipped:
            gone = self.skipped[context]
            n_cells = int(self.counts[context]) + len(gone)
            return np.delete(values[:n_cells], gone, axis=0)[start:stop]
        first = int(self.begins_with_bos[context])
        return values[first + start : first + stop]


class ActivationStream(IterableDataset[torch.Tensor]):
    """Batches [batch_tokens, width] bfloat16, shuffled; each iteration is one epoch.

    On the CPU they are views of the block that they are cut from: copy what is to be kept.

    Equal arguments give equal batches; every epoch has an order of its own. Ranks, and workers of a
    DataLoader, get as many batches each and no token twice; what does not fill a batch on every one
    of them is left out, in each epoch something else. In a DataLoader with workers call `set_epoch`
    before each epoch, since what its workers iterate are copies.

    Args:
        reader: reads the site.
        tokens: which of its cells are tokens.
        config: what is streamed.
        device: where the batches go.
    """

    def __init__(
        self, reader: DenseReader, tokens: Tokens, config: StreamConfig, device: torch.device
    ) -> None:
        super().__init__()
        self._reader, self._tokens, self._config = reader, tokens, config
        self._device = device
        self._epoch = self._batch = self._iterations = 0

    @property
    def width(self) -> int:
        """Values of a token."""
        return int(self._reader.array.shape[2])

    @property
    def n_tokens(self) -> int:
        """Tokens of the corpus, BOS left out."""
        return int(self._tokens.counts.sum())

    def __len__(self) -> int:
        """Return the batches of this rank in an epoch; workers of a DataLoader may give fewer."""
        n_rounds, tail = self._split(self._config.world_size)
        config = self._config
        return (n_rounds * config.block_tokens + tail) // config.batch_tokens

    def set_epoch(self, epoch: int) -> None:
        """Begin at the start of an epoch, counted from 0.

        Raises:
            InvalidArgumentError: it is below 0.
        """
        if check_whole("epoch", epoch) < 0:
            raise InvalidArgumentError(f"epoch {epoch} was asked for; give 0 or more")
        self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is: plain values."""
        return {"site": self._reader.name, **asdict(self._config), "n_tokens": self.n_tokens,
                "epoch": self._epoch, "batch": self._batch}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream of the same arguments was.

        Raises:
            InvalidArgumentError: its site or arguments are others, or it is nowhere in an epoch.
        """
        mine = self.state_dict()
        other = [k for k in mine if k not in ("epoch", "batch") and state.get(k) != mine[k]]
        epoch, batch = state.get("epoch"), state.get("batch")
        is_place = isinstance(epoch, int) and isinstance(batch, int) and 0 <= batch <= len(self)
        if other or not is_place or epoch is None or batch is None or epoch < 0:
            raise InvalidArgumentError(
                f"a stream of state {dict(state)} was to go on; this one has {mine} and "
                f"{len(self)} batches in an epoch; make it with the same arguments"
            )
        self._go_to(epoch, batch)

    def _go_to(self, epoch: int, batch: int) -> None:
        self._epoch, self._batch = epoch, batch
        self._iterations += 1  # those that run no longer say where the stream is

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the batches that are left of the epoch, or the next one's if none are.

        Raises:
            DamagedFileError: stored activations are not what was written.
            InvalidArgumentError: workers were to go on in the middle of an epoch.
        """
        rank, world_size = self._config.rank, self._config.world_size
        worker = get_worker_info()
        if worker is not None:
            if self._batch:
                raise InvalidArgumentError(
                    f"an epoch was to go on at batch {self._batch} in a DataLoader with workers, "
                    "whose parts of it are others; use num_workers=0, or set_epoch"
                )
            rank = rank * worker.num_workers + worker.id
            world_size *= worker.num_workers
            if self.n_tokens < self._config.batch_tokens * world_size:
                raise InvalidArgumentError(
                    f"an epoch of {counted(self.n_tokens, 'token')} was to be shared by "
                    f"{counted(world_size, 'worker')} "
                    f"in batches of {self._config.batch_tokens}; no batch is left; use fewer"
                )
        elif self._batch and self._batch == len(self):
            self._go_to(self._epoch + 1, 0)
        self._iterations += 1
        mine, epoch, batch = self._iterations, self._epoch, self._batch
        for rows in self._batches(epoch, list(self._blocks(rank, world_size, batch))):
            batch += 1
            if mine == self._iterations:
                self._batch = batch
            # What a worker sends takes all memory that it is a view of along.
            yield rows if worker is None else rows.clone()
        if mine == self._iterations:
            self._epoch, self._batch = epoch + 1, 0

    def _split(self, world_size: int) -> tuple[int, int]:
        """Return how many whole blocks each rank gets, and how many tokens besides."""
        size, batch = self._config.block_tokens, self._config.batch_tokens
        n_rounds = self.n_tokens // (size * world_size)
        rest = self.n_tokens - n_rounds * size * world_size
        return n_rounds, rest // (batch * world_size) * batch

    def _blocks(self, rank: int, world_size: int, n_done: int) -> Iterator[_Block]:
        """Yield what is left of a rank's epoch after so many batches."""
        size, batch = self._config.block_tokens, self._config.batch_tokens
        n_rounds, tail = self._split(world_size)
        first, skipped = divmod(n_done, size // batch)
        for index in range(first, n_rounds + (tail > 0)):
            is_whole = index < n_rounds
            start = (
                (index * world_size + rank) * size
                if is_whole
                else (n_rounds * world_size * size + rank * tail)
            )
            yield _Block(start, size if is_whole else tail, skipped if index == first else 0)

    def _batches(self, epoch: int, blocks: Sequence[_Block]) -> Iterator[torch.Tensor]:
        draw = np.random.default_rng([self._config.seed, epoch])
        order = draw.permutation(len(self._tokens.counts))
        ends = np.cumsum(self._tokens.counts[order])
        size = self._config.batch_tokens
        with (
            ThreadPoolExecutor(_READERS, thread_name_prefix="scopelake-read") as readers,
            ThreadPoolExecutor(1, thread_name_prefix="scopelake-block") as ahead,
        ):
            read = partial(self._read, epoch, order, ends, readers)
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
        epoch: int,
        order: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        readers: ThreadPoolExecutor,
        block: _Block,
    ) -> torch.Tensor:
        """Return a block's tokens, shuffled, [n_tokens, width].

        Args:
            epoch: which.
            order: its contexts.
            ends: where each of them ends in the epoch's tokens.
            readers: threads.
            block: which tokens.
        """
        start, stop = block.start, block.start + block.n_tokens
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        draw = np.random.default_rng([self._config.seed, epoch, start])
        place_of = torch.from_numpy(draw.permutation(block.n_tokens))
        values = torch.empty(block.n_tokens, self.width, dtype=torch.int16)

        def fill(place: int) -> None:
            context = int(order[place])
            end = int(ends[place])
            begin = end - int(self._tokens.counts[context])
            low, high = max(start, begin), min(stop, end)
            if low < high:
                cells = self._reader.read(context).view(np.int16)
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
    device: torch.device,
) -> ActivationStream:
    """Return a stream over the dense activations of a site.

    Raises:
        LayerNotFoundError, InvalidArgumentError: as in `find_whole`; or there is no whole batch.
    """
    found: StoredSite = find_whole(store, snapshot, layer, site, model=model, corpus=corpus)
    tokens = Tokens.read(store, snapshot, found.corpus)
    made = ActivationStream(open_reader(store, snapshot, found), tokens, config, device)
    if not len(made):
        most = made.n_tokens // config.world_size
        raise InvalidArgumentError(
            f"batches of {counted(config.batch_tokens, 'token')} on each of {config.world_size} "
            f"ranks were "
            f"asked for; {found.corpus} has {counted(made.n_tokens, 'token')} without BOS; give "
            f"batch_tokens "
            f"{most} at most"
        )
    return made
