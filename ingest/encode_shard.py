"""One shard: forward, capture, encode; token ids in, firings and dense activations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from scopelake.ingest.activations import ActivationSource, ShardTokens
from scopelake.ingest.capture import site_width
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.plan import Shard
from scopelake.ingest.stages import Stages
from scopelake.kernels.encode import Task, encode_all
from scopelake.kernels.to_host import Arrival, HostRing
from scopelake.kernels.weights import EncoderWeights, SparseCodes, join_layers
from scopelake.names import SiteLayer
from scopelake.store.firings import Firings


@dataclass(frozen=True)
class ShardResult:
    """What a shard's forward pass gave."""

    firings: Mapping[str, Firings]
    """By coder name, token-major."""
    dense: Mapping[SiteLayer, npt.NDArray[ml_dtypes.bfloat16]]
    """[n_contexts, context_length, width]; zero behind the end of a context."""


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
    *,
    context_length: int,
    batch_tokens: int,
    stages: Stages | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> ShardResult:
    """Take a shard's activations once and encode them with every coder of it.

    Args:
        shard: which coders and dense sites are wanted.
        tokens: the shard's contexts.
        source: what gives their activations.
        weights: by coder name, an encoder for each of its sites, on the source's device.
        context_length: the corpus's, the length of a dense row.
        batch_tokens: most tokens at once, padding included.
        stages: counts the time.
        on_batch: called with (tokens, firings) after each batch.
    """
    sites = sorted({s for c in shard.coders for s in c.sites} | set(shard.dense), key=str)
    widths = {site: site_width(source.model, site) for site in shard.dense}
    gathered = _Gathered(shard, tokens, context_length, widths)
    ring, waiting = HostRing.of(source.model.device), None
    groups = list(batches([len(ids) for ids in tokens.token_ids], batch_tokens))
    stages = stages or Stages()
    arriving = stages.timing("activations", source.batches(tokens, groups, sites))
    for group, found in zip(groups, arriving, strict=True):
        with stages.timed("encode"):
            codes = dict(_encode(shard.coders, weights, found))
            sent = _Sent(group, ring.send(_tensors(shard, found, codes)))
        if on_batch is not None:
            n_tokens = sum(len(tokens.token_ids[i]) for i in group)
            on_batch(n_tokens, sum(len(c.features) for c in codes.values()))
        # A batch has a whole forward pass to arrive in.
        with stages.timed("gather"):
            if waiting is not None:
                gathered.add(waiting)
        waiting = sent
        del found, codes, sent  # else they stay through the next forward pass
    with stages.timed("gather"):
        if waiting is not None:
            gathered.add(waiting)
        return gathered.result()


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
    """What has arrived of a shard."""

    def __init__(
        self, shard: Shard, tokens: ShardTokens, context_length: int, widths: dict[SiteLayer, int]
    ) -> None:
        self._shard, self._tokens = shard, tokens
        self._parts: dict[str, list[_Part]] = {c.name: [] for c in shard.coders}
        self._dense = {
            site: np.zeros((len(tokens.token_ids), context_length, width), ml_dtypes.bfloat16)
            for site, width in widths.items()
        }

    def add(self, sent: _Sent) -> None:
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
                counts = np.diff(indptr[start : stop + 1])
                part = _Part(index, counts, features[at], activations[at])
                self._parts[coder.name].append(part)

    def result(self) -> ShardResult:
        """Return the whole shard, in order; nothing is left here."""
        # Coder by coder what has arrived is let go of, so that it is in memory once.
        names = list(self._parts)
        return ShardResult({n: self._firings(self._parts.pop(n)) for n in names}, self._dense)

    def _firings(self, parts: list[_Part]) -> Firings:
        """Return a coder's firings, token-major: contexts are put in order, nothing is sorted."""
        parts.sort(key=lambda part: part.index)
        first, kinds = self._tokens.first_context, self._tokens.kinds
        n_firings = [len(part.features) for part in parts]
        empty = np.empty(0, np.int64)
        counts = np.concatenate([empty, *(p.counts for p in parts)])
        contexts = np.array([first + p.index for p in parts], dtype=np.int64)
        positions = np.concatenate(
            [empty.astype(np.int32), *(np.arange(len(p.counts), dtype=np.int32) for p in parts)]
        )
        of_token = np.concatenate([empty.astype(np.int8), *(kinds[p.index] for p in parts)])
        return Firings(
            context=np.repeat(contexts, n_firings),
            position=np.repeat(positions, counts),
            feature=np.concatenate([empty.astype(np.int32), *(p.features for p in parts)]),
            activation=np.concatenate([empty.astype(np.float32), *(p.activations for p in parts)]),
            kind=np.repeat(of_token, counts),
        )


@dataclass(frozen=True)
class _Part:
    """A coder's firings in one context."""

    index: int
    """Of the context in its shard."""
    counts: npt.NDArray[np.int64]
    """Firings of each token."""
    features: npt.NDArray[np.int32]
    activations: npt.NDArray[np.float32]


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
