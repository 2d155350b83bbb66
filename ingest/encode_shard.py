"""One shard: forward, capture, encode; token ids in, firings and dense activations out.

It comes piece by piece, as much as fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from scopelake.ingest.activations import ActivationSource, ShardTokens
from scopelake.ingest.budget import Budget
from scopelake.ingest.capture import site_width
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.plan import Shard
from scopelake.ingest.stages import Stages
from scopelake.kernels.encode import Task, encode_all
from scopelake.kernels.to_host import Arrival, HostRing
from scopelake.kernels.weights import EncoderWeights, SparseCodes, join_layers
from scopelake.names import SiteLayer
from scopelake.store.context_codes import ContextCodes, ContextPart

Dense = dict[SiteLayer, npt.NDArray[ml_dtypes.bfloat16]]


class Piece:
    """What consecutive contexts of a shard gave.

    Args:
        tokens: those contexts.
        parts: by coder name, its firings in each context, in any order.
        dense: of the whole shard, in its last piece: [n_contexts, context_length, width] by site;
            zero behind the end of a context.
    """

    def __init__(
        self, tokens: ShardTokens, parts: dict[str, list[ContextPart]], dense: Dense | None
    ) -> None:
        self._tokens, self._parts, self.dense = tokens, parts, dense

    @property
    def is_last(self) -> bool:
        """Whether the shard ends with it."""
        return self.dense is not None

    @property
    def coders(self) -> list[str]:
        """Names of the coders whose firings are still here."""
        return list(self._parts)

    def codes(self, coder: str) -> ContextCodes:
        """Return a coder's firings, and let go of them: they are taken once."""
        return ContextCodes(self._tokens.first_context, self._tokens.kinds, self._parts.pop(coder))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield groups of contexts, longest first, whose padded size is at most `batch_tokens`."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    group: list[int] = []
    for index in order:
        if group and lengths[group[0]] * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def encode_shard(
    shard: Shard,
    tokens: ShardTokens,
    source: ActivationSource,
    weights: Mapping[str, tuple[EncoderWeights, ...]],
    budget: Budget,
    *,
    context_length: int,
    stages: Stages | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """Take a shard's activations once and encode them with every coder of it.

    Args:
        shard: which coders and dense sites are wanted.
        tokens: the shard's contexts.
        source: what gives their activations.
        weights: by coder name, an encoder for each of its sites, on the source's device.
        budget: how much fits into memory; it has begun.
        context_length: the corpus's, the length of a dense row.
        stages: counts the time.
        on_batch: called with (tokens, firings) after each batch.

    Yields:
        Pieces in order of their contexts; at least one, also of a shard without contexts.
    """
    stages = stages or Stages()
    dense: Dense = {
        site: np.zeros(
            (len(tokens.token_ids), context_length, site_width(source.model, site)),
            ml_dtypes.bfloat16,
        )
        for site in shard.dense
    }
    ring, start = HostRing.of(source.model.device), 0
    while True:
        stop = start + _n_fitting(tokens.token_ids[start:], budget.piece_tokens())
        part = tokens.between(start, stop)
        gathered = _Gathered(shard, part, {site: dense[site][start:stop] for site in dense})
        for n_tokens, n_firings in gathered.fill(source, weights, budget, ring, stages):
            if on_batch is not None:
                on_batch(n_tokens, n_firings)
        is_last = stop == len(tokens.token_ids)
        yield Piece(part, gathered.parts, dense if is_last else None)
        if is_last:
            return
        start = stop


def _n_fitting(contexts: Sequence[npt.NDArray[np.int32]], most_tokens: int) -> int:
    """Return how many contexts have no more than `most_tokens` together, 1 at least."""
    ends = np.cumsum([len(ids) for ids in contexts])
    return min(len(contexts), max(1, int(np.searchsorted(ends, most_tokens, side="right"))))


@dataclass(frozen=True)
class _Sent:
    """A batch on its way to the host: the dense sites' tensors, then each coder's."""

    group: list[int]
    arrival: Arrival


def _tensors(
    shard: Shard, found: Mapping[SiteLayer, torch.Tensor], codes: Mapping[str, SparseCodes]
) -> list[torch.Tensor]:
    # numpy has no bfloat16 of its own: torch rounds, the bits travel as int16.
    dense = [found[site].to(torch.bfloat16).view(torch.int16) for site in shard.dense]
    sparse = (codes[coder.name] for coder in shard.coders)
    return dense + [t for c in sparse for t in (c.indptr, c.features, c.activations)]


class _Gathered:
    """What has arrived of a piece."""

    def __init__(self, shard: Shard, tokens: ShardTokens, dense: Dense) -> None:
        self._shard, self._tokens, self._dense = shard, tokens, dense
        self.parts: dict[str, list[ContextPart]] = {c.name: [] for c in shard.coders}

    def fill(
        self,
        source: ActivationSource,
        weights: Mapping[str, tuple[EncoderWeights, ...]],
        budget: Budget,
        ring: HostRing,
        stages: Stages,
    ) -> Iterator[tuple[int, int]]:
        """Gather all batches; yield tokens and firings of each once it is encoded."""
        shard, ids = self._shard, self._tokens.token_ids
        sites = sorted({s for c in shard.coders for s in c.sites} | set(shard.dense), key=str)
        groups = list(batches([len(one) for one in ids], budget.batch_tokens()))
        arriving = stages.timing("activations", source.batches(self._tokens, groups, sites))
        waiting, n_firings = None, dict.fromkeys(weights, 0)
        for group, found in zip(groups, arriving, strict=True):
            with stages.timed("encode"):
                codes = dict(_encode(shard.coders, weights, found))
                sent = _Sent(group, ring.send(_tensors(shard, found, codes)))
            for name, of_coder in codes.items():
                n_firings[name] += len(of_coder.features)
            yield sum(len(ids[i]) for i in group), sum(len(c.features) for c in codes.values())
            # A batch has a whole forward pass to arrive in.
            with stages.timed("gather"):
                if waiting is not None:
                    self._add(waiting)
            waiting = sent
            del found, codes, sent  # else they stay through the next forward pass
        with stages.timed("gather"):
            if waiting is not None:
                self._add(waiting)
        for coder in shard.coders:
            budget.measured(coder.name, n_firings[coder.name], self._tokens.n_tokens)

    def _add(self, sent: _Sent) -> None:
        """Take a batch in, once it has arrived."""
        arrived = iter(t.numpy() for t in sent.arrival.take())
        lengths = [len(self._tokens.token_ids[i]) for i in sent.group]
        ends = np.cumsum([0, *lengths]).tolist()
        for site in self._shard.dense:
            values = next(arrived).view(ml_dtypes.bfloat16)
            for index, (start, stop) in zip(sent.group, pairwise(ends), strict=True):
                self._dense[site][index, : stop - start] = values[start:stop]
        for coder in self._shard.coders:
            indptr, features, activations = next(arrived), next(arrived), next(arrived)
            for index, (start, stop) in zip(sent.group, pairwise(ends), strict=True):
                at = slice(int(indptr[start]), int(indptr[stop]))
                counts = np.diff(indptr[start : stop + 1]).astype(np.int32)
                part = ContextPart(index, counts, features[at], activations[at])
                self.parts[coder.name].append(part)


def _encode(
    coders: Sequence[CoderFiles],
    weights: Mapping[str, tuple[EncoderWeights, ...]],
    found: Mapping[SiteLayer, torch.Tensor],
) -> Iterator[tuple[str, SparseCodes]]:
    """Yield the codes of each coder; what several read at one site is checked and packed once."""
    tasks = [
        Task(found[site], encoder)
        for coder in coders
        for site, encoder in zip(coder.sites, weights[coder.name], strict=True)
    ]
    codes = iter(encode_all(tasks))
    for coder in coders:
        encoders = weights[coder.name]
        of_coder = list(islice(codes, len(encoders)))
        yield coder.name, join_layers(of_coder, [e.width for e in encoders])
