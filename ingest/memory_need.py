"""Memory that an ingest needs on the device and on the host, part by part, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from scopelake.ingest.devices import Device
from scopelake.ingest.shapes import CoderShape, CorpusShape, ModelShape
from scopelake.names import SiteLayer

FIRING: Final = 21
"""Bytes of a firing in columns: context 8, position, feature and activation 4 each, kind 1."""

_ARRIVED: Final = 8
"""Bytes of a firing as it comes from the encoder: feature and activation."""

_SORTING: Final = 60
"""Bytes of a firing beside its columns while it is rounded, sorted and written."""

_WRITERS: Final = 2
"""Coders that are written at once."""

_LOOK_BACK: Final = 800
"""Bytes of a feature that are held of what the lake has: 256 peaks of 2 bytes, counts and samples
of 32 bands."""

_PROCESS: Final = 450 * 2**20
"""Of a process that has imported torch, transformers and Arrow."""

_PACKED: Final = 72 * 2**20
"""What encoding takes beside its input: tiles and packed weights."""

_MAPPED: Final = 4 * 2**30
"""Encoders of so many bytes stay in their files on CPUs."""


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    what: str
    n_bytes: int


@dataclass(frozen=True)
class Load:
    """What is in memory while an ingest runs."""

    model: ModelShape
    coders: tuple[CoderShape, ...]
    dense: tuple[SiteLayer, ...]
    corpus: CorpusShape
    batch_tokens: int
    value_bytes: int
    """Of a weight and an activation of the model."""
    firings_a_token: Mapping[str, float]
    """By coder."""
    shard_tokens: int
    """Of the largest shard."""


def device_memory(load: Load, device: Device) -> tuple[Part, ...]:
    """Return what the device holds: on a CPU these parts are the host's."""
    encoders = (
        4 * c.features_per_layer * (c.d_in + 2)
        for c in load.coders
        for _ in c.sites
    )  # fmt: skip
    held = (n for n in encoders if device.kind == "gpu" or n < _MAPPED)
    return (
        Part("the model's weights", load.model.n_params * load.value_bytes),
        Part("encoders of all coders", sum(held)),
        Part("activations of one batch", _batch(load)),
    )


def host_memory(load: Load, device: Device) -> tuple[Part, ...]:
    """Return what the host holds beside the device's parts."""
    firings = [load.shard_tokens * rate for rate in load.firings_a_token.values()]
    # One shard is gathered, coder by coder, while the one before is written.
    arriving = sum(firings) * FIRING + max(firings, default=0) * _ARRIVED
    writing = sum(firings) * FIRING
    sorting = sum(sorted(firings)[-_WRITERS:]) * _SORTING
    per_shard = load.corpus.shard_contexts * load.corpus.context_length
    dense = sum(2 * per_shard * load.model.width(site) for site in load.dense)
    return (
        Part("the process", _PROCESS + _PACKED),
        Part("firings of two shards", int(arriving + writing)),
        Part("sorting what is written", int(sorting)),
        Part("dense activations of two shards", 2 * dense),
        Part("what peaks and samples look back at", sum(c.width for c in load.coders) * _LOOK_BACK),
    )


def misfits(
    load: Load,
    device: Device,
    parts: Mapping[str, tuple[Part, ...]],
    disk: tuple[float, int | None],
) -> tuple[str, ...]:
    """Return in words what would not fit, and what to do.

    Args:
        load: what is in memory.
        device: where.
        parts: memory by ``device`` and ``host``.
        disk: bytes that the ingest adds, and those that are free, if known.
    """
    found: list[str] = []
    on_device = sum(p.n_bytes for p in parts["device"])
    on_host = sum(p.n_bytes for p in parts["host"])
    if device.kind == "gpu":
        found += _over(
            "the device's memory", on_device, device.memory, _device_advice(load, device)
        )
        found += _over("the host's memory", on_host, device.host_memory, _host_advice(load))
    else:
        total = on_device + on_host
        found += _over("the machine's memory", total, device.host_memory, _host_advice(load))
    found += _over("the lake's disk", disk[0], disk[1], "free some, or use an object store")
    return tuple(found)


def _over(what: str, needed: float, there: int | None, advice: str) -> Iterable[str]:
    if there is None or needed <= there:
        return []
    return [f"{what}: {needed / 1e9:,.1f} GB are needed, {there / 1e9:,.1f} GB are there; {advice}"]


def _device_advice(load: Load, device: Device) -> str:
    a_token = _batch(load) / load.batch_tokens
    free = (device.memory or 0) - load.model.n_params * load.value_bytes
    room = free - a_token * load.corpus.context_length
    encoders = sum(c.encoder_bytes for c in load.coders)
    if room < max((c.encoder_bytes for c in load.coders), default=0):
        return "use --device-map auto, which spreads the model, or a larger device"
    if encoders <= room:
        return f"use --batch-tokens {int((free - encoders) / a_token) // 1024 * 1024 or 1024}"
    passes = int(-(-encoders // room))
    least = load.corpus.context_length
    return (
        f"give the coders in {passes} ingests of {max(1, len(load.coders) // passes)} or fewer "
        f"each, with --batch-tokens {least}"
    )


def _host_advice(load: Load) -> str:
    contexts = load.corpus.shard_contexts
    return (
        f"add the corpus with fewer contexts a shard than {contexts}, or give fewer coders at a "
        "time"
    )


def _batch(load: Load) -> int:
    """Captured sites, and what a layer works with, of one batch."""
    sites = {s for c in load.coders for s in c.sites} | set(load.dense)
    captured = sum(load.model.width(site) for site in sites)
    working = 3 * load.model.ffn + 6 * load.model.d_model + 3 * load.model.attention_width
    return load.batch_tokens * (captured + working) * load.value_bytes
