"""One shard: forward, capture, encode; token ids in, firings and dense activations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from scopelake.ingest.capture import PaddingSide, capture
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import LoadedModel
from scopelake.ingest.plan import Shard
from scopelake.kernels.encode import encode, encode_many
from scopelake.kernels.weights import EncoderWeights, SparseCodes, join_layers
from scopelake.names import SiteLayer
from scopelake.store.firings import Firings


@dataclass(frozen=True)
class ShardTokens:
    """The contexts of a shard."""

    first_context: int
    token_ids: tuple[npt.NDArray[np.int32], ...]
    kinds: tuple[npt.NDArray[np.int8], ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens, BOS included."""
        return sum(len(ids) for ids in self.token_ids)


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
    model: LoadedModel,
    weights: Mapping[str, tuple[EncoderWeights, ...]],
    *,
    context_length: int,
    batch_tokens: int,
    padding_side: PaddingSide = "right",
    on_batch: Callable[[int, int], None] | None = None,
) -> ShardResult:
    """Run the model over a shard once and encode every coder of it.

    Args:
        shard: which coders and dense sites are wanted.
        tokens: the shard's contexts.
        model: the model.
        weights: by coder name, an encoder for each of its sites, on the model's device.
        context_length: the corpus's, the length of a dense row.
        batch_tokens: most tokens in one forward pass, padding included.
        padding_side: does not change the result.
        on_batch: called with (tokens, firings) after each batch.
    """
    sites = sorted({s for c in shard.coders for s in c.sites} | set(shard.dense), key=str)
    parts: dict[str, list[Firings]] = {c.name: [] for c in shard.coders}
    dense = {
        site: np.zeros((len(tokens.token_ids), context_length, width), dtype=ml_dtypes.bfloat16)
        for site, width in _dense_widths(shard, model).items()
    }
    for group in batches([len(ids) for ids in tokens.token_ids], batch_tokens):
        found = capture(
            model, [tokens.token_ids[i] for i in group], sites, padding_side=padding_side
        )
        for site in shard.dense:
            _keep_dense(dense[site], found[site], tokens, group)
        address = _address(tokens, group)
        n_firings = 0
        for name, codes in _encode(shard.coders, weights, found):
            firings = _firings(codes, address)
            parts[name].append(firings)
            n_firings += len(firings.feature)
        if on_batch is not None:
            on_batch(len(address.context), n_firings)
    merged = {name: Firings.concat(several).token_major() for name, several in parts.items()}
    return ShardResult(merged, dense)


@dataclass(frozen=True)
class _Address:
    context: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]


def _address(tokens: ShardTokens, group: list[int]) -> _Address:
    lengths = [len(tokens.token_ids[i]) for i in group]
    contexts = np.array([tokens.first_context + i for i in group], dtype=np.int64)
    return _Address(
        np.repeat(contexts, lengths),
        np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        np.concatenate([tokens.kinds[i] for i in group]),
    )


def _encode(
    coders: Sequence[CoderFiles],
    weights: Mapping[str, tuple[EncoderWeights, ...]],
    found: Mapping[SiteLayer, torch.Tensor],
) -> Iterator[tuple[str, SparseCodes]]:
    """Yield the codes of each coder; what several read at one site is checked and packed once."""
    alone: dict[SiteLayer, list[CoderFiles]] = {}
    for coder in coders:
        if len(coder.sites) == 1:
            alone.setdefault(coder.sites[0], []).append(coder)
            continue
        encoders = weights[coder.name]
        codes = [encode(found[s], e) for s, e in zip(coder.sites, encoders, strict=True)]
        yield coder.name, join_layers(codes, [e.width for e in encoders])
    for site, several in alone.items():
        encoded = encode_many(found[site], [weights[c.name][0] for c in several])
        yield from zip((c.name for c in several), encoded, strict=True)


def _firings(codes: SparseCodes, address: _Address) -> Firings:
    token = codes.token_index().cpu().numpy()
    return Firings(
        context=address.context[token],
        position=address.position[token],
        feature=codes.features.cpu().numpy(),
        activation=codes.activations.cpu().numpy(),
        kind=address.kind[token],
    )


def _dense_widths(shard: Shard, model: LoadedModel) -> dict[SiteLayer, int]:
    return {
        site: model.attention_width if site.site == "attn_out" else model.d_model
        for site in shard.dense
    }


def _keep_dense(
    out: npt.NDArray[ml_dtypes.bfloat16],
    values: torch.Tensor,
    tokens: ShardTokens,
    group: list[int],
) -> None:
    # numpy has no bfloat16 of its own: torch rounds, the bits travel as int16.
    bits = values.to(torch.bfloat16).view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    start = 0
    for index in group:
        n_tokens = len(tokens.token_ids[index])
        out[index, :n_tokens] = bits[start : start + n_tokens]
        start += n_tokens
