"""Memory that an ingest needs on the device and on the host, part by part, in bytes.

What shards take on the host says the ingest's own `Budget`; here is what the process takes besides,
which an ingest looks up when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from scopelake.errors import TooLittleMemoryError
from scopelake.ingest.activations import live_token_bytes
from scopelake.ingest.budget import PIECES, Budget, Needs, parse_memory, writers
from scopelake.ingest.decoder_rows import readout_need
from scopelake.ingest.devices import Device
from scopelake.ingest.shapes import CoderShape, CorpusShape, ModelShape, Shards
from scopelake.names import SiteLayer
from scopelake.store.writing import PROCESS_BYTES

_PROCESS: Final = 600 * 2**20
"""Of a process that has imported torch, transformers and Arrow, on a CPU: 575 and 590 measured."""

_MAPPED: Final = 4 * 2**30
"""Encoders of so many bytes stay in their files on CPUs."""

_ENCODING: Final = 2**30
"""Bits of what may fire on a GPU, at most 512 MiB, and as much again for what is listed."""

_MANY: Final = 1_000_000
"""Tokens that a coder's rate is told of."""


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    what: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is in memory while an ingest runs."""

    model: ModelShape
    coders: tuple[CoderShape, ...]
    """All that are asked for."""
    loaded: tuple[CoderShape, ...]
    """Those with work left."""
    dense: tuple[SiteLayer, ...]
    corpus: CorpusShape
    batch_tokens: int
    value_bytes: int
    """Of a weight and an activation of the model."""
    firings_a_token: Mapping[str, float]
    """By coder."""
    shard_tokens: int
    """Of the largest shard."""
    memory: str | int | None = None
    """What the process may take, as `parse_memory` reads it."""
    is_spread: bool = False
    """Whether a device map puts what a GPU does not hold of the model into the host's memory."""

    @property
    def sites(self) -> set[SiteLayer]:
        """What is captured."""
        return {s for c in self.loaded for s in c.sites} | set(self.dense)


@dataclass(frozen=True)
class Cut:
    """How the budget cuts shards into pieces, each of which is a file of each table of firings."""

    first: int
    """Most tokens of a coder's first piece, before it is known how often it fires."""
    others: int
    context_length: int

    def pieces(self, shards: Shards) -> int:
        """Return how many pieces all of a coder's shards make."""
        per = self._contexts(self.others)
        whole = sum(-(-n // per) for n in shards.contexts)
        if not len(shards):
            return 0
        begun = shards.contexts[0]
        rest = max(0, begun - self._contexts(self.first))
        return whole - -(-begun // per) + 1 + -(-rest // per)

    def _contexts(self, n_tokens: int) -> int:
        return max(1, n_tokens // self.context_length)


@dataclass(frozen=True)
class MemoryNeed:
    """What an ingest takes in memory."""

    device: tuple[Part, ...]
    """Of a GPU; empty: there is none, and all is the host's."""
    host: tuple[Part, ...]
    limit: int
    """Bytes that the process may take."""
    refusal: str | None
    """What the ingest would say of a limit that is too small."""
    cut: Cut


def memory_need(load: Load, device: Device) -> MemoryNeed:
    """Return what an ingest takes on a device and on its host."""
    on_device = _device_parts(load, device)
    held = _held(load, device)
    limit = parse_memory(load.memory, device.host_memory)
    budget = Budget(limit, load.coders, load.batch_tokens, device.cores)
    refusal = None
    try:
        taken = sum(p.n_bytes for p in held)
        budget.expect_readout(_readout(load, device))
        budget.begin(_needs(load, device), taken)
        budget.check_readout(taken)
    except TooLittleMemoryError as error:
        refusal = str(error)
    first = budget.piece_tokens()
    for name, rate in load.firings_a_token.items():
        budget.measured(name, round(rate * _MANY), _MANY)
    shards = [Part(what, n_bytes) for what, n_bytes in budget.takes(load.shard_tokens).items()]
    cut = Cut(first, budget.piece_tokens(), load.corpus.context_length)
    return MemoryNeed(on_device, (*held, *_peak(load, device, shards)), limit, refusal, cut)


def _needs(load: Load, device: Device) -> Needs:
    """Return what `Worker.begin` tells the budget."""
    model, corpus = load.model, load.corpus
    widths = [model.width(site) for site in load.sites]
    token = live_token_bytes(widths, model.layer_floats) if device.kind == "cpu" else 0
    dense_width = sum(model.width(site) for site in load.dense)
    return Needs.of(
        token, dense_width, corpus.context_length, corpus.shard_contexts, corpus.n_tokens
    )


def _held(load: Load, device: Device) -> tuple[Part, ...]:
    """Return what the host's memory has besides shards."""
    process, weights = Part("the process", _PROCESS), load.model.n_params * load.value_bytes
    if device.kind == "cpu":
        encoders = sum(n for n in _encoders(load) if n < _MAPPED)
        return (
            process, Part("the model's weights", weights), Part("encoders of all coders", encoders),
        )  # fmt: skip
    spread = weights - _weights_there(load, device)
    beside = min(writers(device.cores), PIECES * len(load.loaded)) * PROCESS_BYTES
    return (
        process, Part("processes that write", beside),
        Part("the model's weights that are not on the device", spread),
    )  # fmt: skip


def _peak(load: Load, device: Device, shards: list[Part]) -> list[Part]:
    """Return what is in memory beside what is held, when it is most: shards, or statistics."""
    kept = [p for p in shards if p.what.startswith(("writing", "what peaks"))]
    passing = [p for p in shards if p not in kept]
    logits = _readout(load, device)
    if logits <= sum(p.n_bytes for p in passing):
        return shards
    return [*kept, Part("unembedding, for the tokens that features promote", logits)]


def _readout(load: Load, device: Device) -> int:
    """Return what is taken of the host at the end for the tokens that features promote."""
    if device.kind != "cpu" or not any(coder.has_readout for coder in load.loaded):
        return 0
    return readout_need(load.model.d_model, load.model.vocab, device.cores)


def _device_parts(load: Load, device: Device) -> tuple[Part, ...]:
    if device.kind == "cpu":
        return ()
    return (
        Part("the model's weights", _weights_there(load, device)),
        Part("encoders of all coders", sum(map(_there, load.loaded))),
        Part("loading and encoding", _working(load)),
        Part("activations of one batch", _batch(load)),
    )


def _weights_there(load: Load, device: Device) -> int:
    """Return the bytes of the model's weights that a GPU holds."""
    weights = load.model.n_params * load.value_bytes
    if not load.is_spread or device.memory is None:
        return weights
    others = sum(map(_there, load.loaded)) + _working(load) + _batch(load)
    return min(weights, max(0, device.memory - others))


def _working(load: Load) -> int:
    """Return what a GPU needs besides: the largest encoder comes before it is turned."""
    return _ENCODING + max(_encoders(load)) if load.loaded else 0


def _there(coder: CoderShape) -> int:
    """Return the bytes of a coder's encoders on a GPU: in float32, and in bfloat16 besides."""
    return coder.encoder_bytes * 3 // 2


def _encoders(load: Load) -> list[int]:
    """Return the bytes of each encoder as it is loaded."""
    return [c.encoder_bytes // len(c.sites) for c in load.loaded for _ in c.sites]


def misfits(
    load: Load, device: Device, need: MemoryNeed, disk: tuple[float, int | None]
) -> tuple[str, ...]:
    """Return in words what would not fit, and what to do.

    Args:
        load: what is in memory.
        device: where.
        need: how much of it.
        disk: bytes that the ingest adds, and those that are free, if known.
    """
    on_device, on_host = (sum(p.n_bytes for p in parts) for parts in (need.device, need.host))
    found = [
        *_over("the device's memory", on_device, device.memory, _device_advice(load, device)),
        *([f"the host's memory: {need.refusal}"] if need.refusal is not None else []),
    ]
    if need.refusal is None:
        found += _over("the host's memory", on_host, device.host_memory, "give less as memory")
    found += _over("the lake's disk", disk[0], disk[1], "free some, or use an object store")
    return tuple(found)


def _over(what: str, needed: float, there: int | None, advice: str) -> Iterable[str]:
    if there is None or needed <= there:
        return []
    return [f"{what}: {needed / 1e9:,.1f} GB are needed, {there / 1e9:,.1f} GB are there; {advice}"]


def _device_advice(load: Load, device: Device) -> str:
    a_token = _batch(load) / load.batch_tokens
    free = (device.memory or 0) - _weights_there(load, device) - _working(load)
    room = free - a_token * load.corpus.context_length
    encoders = sum(map(_there, load.loaded))
    if room < max(map(_there, load.loaded), default=0):
        larger = "use a larger device"
        return larger if load.is_spread else f"{larger}, or --device-map auto, which spreads it"
    if encoders <= room:
        return f"use --batch-tokens {int((free - encoders) / a_token) // 1024 * 1024 or 1024}"
    passes = int(-(-encoders // room))
    least = load.corpus.context_length
    return (
        f"give the coders in {passes} ingests of {max(1, len(load.loaded) // passes)} or fewer "
        f"each, with --batch-tokens {least}"
    )


def _batch(load: Load) -> int:
    """Captured sites, and what a layer works with, of one batch on a GPU."""
    captured = sum(load.model.width(site) for site in load.sites)
    working = 3 * load.model.ffn + 6 * load.model.d_model + 3 * load.model.attention_width
    return load.batch_tokens * (captured + working) * load.value_bytes
