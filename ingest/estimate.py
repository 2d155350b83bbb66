"""The cost of an ingest from shapes alone, or with what a pilot measured in place of guesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scopelake.ingest.cost_plan import CoderCost, CostPlan, Quantity, total
from scopelake.ingest.devices import Basis, Device, encode_rate, forward_share
from scopelake.ingest.flops import encode_flops_a_token, forward_flops, layers_run, readout_flops
from scopelake.ingest.memory_need import Cut, Load, memory_need, misfits
from scopelake.ingest.rows_law import Profile, guessed_profile
from scopelake.ingest.shapes import CoderShape, CorpusShape, ModelShape, Shards
from scopelake.ingest.stored_sizes import (
    CONTEXT_TOKEN,
    FIRING_TABLES,
    TABLES,
    CommitCounts,
    TableSize,
    catalogue_size,
    codes_bytes,
    dense_bytes,
    features_bytes,
    log_size,
    name_bytes,
    overhead,
    peaks_bytes,
    postings_bytes,
    samples_bytes,
    tallies_bytes,
)
from scopelake.ingest.time_need import (
    DENSE_RATE,
    LOAD_RATE,
    Stages,
    commit_seconds,
    storing_rates,
)
from scopelake.names import SiteLayer
from scopelake.store.keeping import KEEP_ALL, Keep


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be ingested."""

    model: ModelShape
    coders: tuple[tuple[CoderShape, Shards], ...]
    """Each with the shards that the lake lacks of it."""
    dense: tuple[tuple[SiteLayer, Shards], ...]
    corpus: CorpusShape
    """The contexts with any work left."""
    shards: Shards
    """Those with any work left."""
    activation_bits: int = 10
    batch_tokens: int = 16_384
    value_bytes: int = 4
    """Of the model's weights and activations."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """Of the lake's Delta tables."""
    is_new_run: bool = True
    """Whether the catalogue lacks the model or a coder."""
    first_shard: int = 0
    """Number of the first shard with work left."""
    new_arrays: int = 0
    """Dense arrays that the lake lacks."""
    disk_free: int | None = None
    keep: Keep = KEEP_ALL
    memory: str | int | None = None
    """What the process may take, as of `ingest`."""
    is_spread: bool = False
    """Whether a device map spreads the model."""

    @property
    def n_files(self) -> int:
        """Files of codes that come."""
        return sum(len(shards) for _, shards in self.coders)

    @property
    def sites(self) -> set[SiteLayer]:
        """What is read of the model."""
        found = {site for coder, shards in self.coders if len(shards) for site in coder.sites}
        return found | {site for site, shards in self.dense if len(shards)}


@dataclass(frozen=True)
class CoderMeasure:
    """What a pilot found of one coder."""

    firings_a_token: float
    profile: Profile
    bytes_a_row: Mapping[str, float]
    """By table, without what a file of no rows takes."""


@dataclass(frozen=True)
class Measures:
    """What a pilot found."""

    coders: Mapping[str, CoderMeasure]
    dense_ratio: Mapping[SiteLayer, float]
    """Stored bytes over those of bfloat16."""
    stages: Stages
    """Seconds of the whole ingest's stages, as the pilot's shard foretells them."""


def estimate(
    work: Work,
    device: Device,
    tokens_per_second: float | None = None,
    measures: Measures | None = None,
    notes: Sequence[str] = (),
) -> CostPlan:
    """Return what an ingest will cost.

    Args:
        work: what is to be ingested.
        device: where.
        tokens_per_second: a stated throughput, in the place of one that is worked out.
        measures: what a pilot found.
        notes: more to say.
    """
    load = _load(work, measures)
    need = memory_need(load, device)
    coders = [_coder(work, coder, shards, measures, need.cut) for coder, shards in work.coders]
    firings = sum(cost.firings for cost, _ in coders)
    tables = _tables(work, [sizes for _, sizes in coders], measures)
    stages = measures.stages if measures else guess_stages(work, device, firings, tables)
    n_layers = layers_run(work.sites)
    seconds, rate, basis = _time(work, device, stages, tokens_per_second, measures)
    found: Basis = "measured" if measures else "guessed"
    return CostPlan(
        corpus=work.corpus.name,
        model=work.model.name,
        device=device.name,
        n_shards=len(work.shards),
        n_contexts=work.shards.n_contexts,
        tokens=work.shards.n_tokens,
        layers_run=n_layers,
        n_layers=work.model.n_layers,
        forward_flops=Quantity(forward_flops(work.model, work.corpus, n_layers), "FLOP", "exact"),
        encode_flops=Quantity(_encode_flops(work), "FLOP", "exact"),
        firings=Quantity(firings, "firings", _firings_basis(coders)),
        tokens_per_second=Quantity(rate, "tokens/s", basis),
        seconds=Quantity(seconds, "s", basis),
        stages=stages.seconds,
        coders=tuple(cost for cost, _ in coders),
        tables=tuple(tables),
        bytes_basis=found,
        keep=str(work.keep),
        device_memory=need.device,
        host_memory=need.host,
        device_memory_there=device.memory,
        host_memory_there=device.host_memory,
        memory=need.limit,
        misfits=misfits(load, device, need, (sum(t.n_bytes for t in tables), work.disk_free)),
        notes=tuple(notes),
    )


def _rate(coder: CoderShape, measures: Measures | None) -> float:
    """Return a coder's firings a token."""
    known = measures.coders.get(coder.name) if measures else None
    return known.firings_a_token if known else coder.l0


def _load(work: Work, measures: Measures | None) -> Load:
    return Load(
        model=work.model,
        coders=tuple(coder for coder, _ in work.coders),
        loaded=tuple(coder for coder, shards in work.coders if len(shards)),
        dense=tuple(site for site, _ in work.dense),
        corpus=work.corpus,
        batch_tokens=work.batch_tokens,
        value_bytes=work.value_bytes,
        firings_a_token={coder.name: _rate(coder, measures) for coder, _ in work.coders},
        shard_tokens=work.shards.largest,
        memory=work.memory,
        is_spread=work.is_spread,
    )


def _coder(
    work: Work, coder: CoderShape, shards: Shards, measures: Measures | None, cut: Cut
) -> tuple[CoderCost, list[TableSize]]:
    """Return what a coder costs, and its part of each table."""
    n, length, bits = cut.pieces(shards), work.corpus.context_length, work.activation_bits
    known = measures.coders.get(coder.name) if measures else None
    rate = _rate(coder, measures)
    profile = known.profile if known else guessed_profile(coder.width, coder.l0, length)
    firings = rate * shards.n_tokens
    rows = {
        "codes": firings * work.keep.share,
        "postings": firings * work.keep.share,
        "peaks": profile.peaks(shards) if n else 0.0,
        "samples": profile.samples(shards) if n else 0.0,
    }
    n_bytes = {
        "codes": codes_bytes(coder, rows["codes"], n, bits),
        "postings": postings_bytes(coder, rows["postings"], n, bits, length),
        "peaks": peaks_bytes(coder, rows["peaks"], n, bits),
        "samples": samples_bytes(rows["samples"], n, bits),
    }
    if known:
        n_bytes = {
            table: rows[table] * known.bytes_a_row[table] + overhead(table, rows[table], n)
            for table in FIRING_TABLES
        }
    sizes = [TableSize(table, rows[table], n_bytes[table], n) for table in FIRING_TABLES]
    if n and not work.keep.is_all:
        tallied, bins = profile.tallied(shards)
        sizes.append(TableSize("tallies", tallied, tallies_bytes(tallied, bins, n), n))
    if n:
        sizes.append(TableSize("features", coder.width, features_bytes(coder), 1))
    basis: Basis = "measured" if known else _l0_basis(coder)
    cost = CoderCost(
        coder.name, coder.width, Quantity(rate, "firings/token", basis), len(shards),
        shards.n_tokens, firings, sum(one.n_bytes for one in sizes),
    )  # fmt: skip
    return cost, sizes


def _l0_basis(coder: CoderShape) -> Basis:
    return {"stated": "stated", "grid": "grid"}.get(coder.l0_basis, "guessed")  # type: ignore[return-value]


def _firings_basis(coders: Sequence[tuple[CoderCost, object]]) -> Basis:
    found = {cost.firings_a_token.basis for cost, _ in coders}
    return found.pop() if len(found) == 1 else "mixed"


def _tables(
    work: Work, coders: Sequence[Sequence[TableSize]], measures: Measures | None
) -> list[TableSize]:
    """Return all that comes, by table."""
    sizes = [one for of_coder in coders for one in of_coder]
    tables = [total([s for s in sizes if s.table == name], name) for name in TABLES]
    tables.append(total([_dense(work, s, shards, measures) for s, shards in work.dense], "dense"))
    files = {t.table: t.objects for t in tables}
    if not work.corpus.is_stored:
        n_bytes = CONTEXT_TOKEN * work.corpus.n_tokens
        tables.append(TableSize("contexts", work.corpus.n_contexts, n_bytes,
                                -(-work.corpus.n_contexts // 4096)))  # fmt: skip
    mean = name_bytes([coder for coder, _ in work.coders])
    counts = CommitCounts(
        len(work.shards), files, dict.fromkeys(TABLES, mean), dict(work.versions), work.is_new_run
    )
    catalogue = catalogue_size(counts)
    # The metadata of an array and of the folders above it.
    arrays = work.new_arrays + (4 if work.new_arrays else 0)
    catalogue += TableSize("", 0, 700 * arrays, arrays)
    return [*tables, catalogue, *_named(log_size(counts))]


def _named(sizes: Sequence[TableSize]) -> list[TableSize]:
    names = ("delta logs", "delta checkpoints")
    return [total([one], name) for one, name in zip(sizes, names, strict=True)]


def _dense(work: Work, site: SiteLayer, shards: Shards, measures: Measures | None) -> TableSize:
    width = work.model.width(site)
    n_bytes = dense_bytes(width, shards.n_tokens)
    if measures and site in measures.dense_ratio:
        n_bytes = 2 * width * shards.n_tokens * measures.dense_ratio[site]
    return TableSize("dense", shards.n_contexts, n_bytes, len(shards))


def _encode_flops(work: Work) -> int:
    return sum(encode_flops_a_token(coder) * shards.n_tokens for coder, shards in work.coders)


def guess_stages(work: Work, device: Device, firings: float, tables: Sequence[TableSize]) -> Stages:
    """Return the seconds of each stage from rates of the device, before anything has run."""
    n_layers = layers_run(work.sites)
    forward_rate = device.gemm * forward_share(device, work.model.d_model)
    encode = sum(
        encode_flops_a_token(c) * s.n_tokens / encode_rate(device, c.d_in, c.features_per_layer)
        for c, s in work.coders
    )
    storing = storing_rates(device)
    dense = sum(t.n_bytes for t in tables if t.table == "dense")
    active = [coder for coder, shards in work.coders if len(shards)]
    logits = sum(readout_flops(work.model, coder) for coder in active)
    weights = work.model.n_params * work.value_bytes + sum(c.encoder_bytes for c in active)
    return Stages(
        load=weights / LOAD_RATE,
        forward=forward_flops(work.model, work.corpus, n_layers) / forward_rate,
        encode=encode,
        gather=0.0,
        write=firings / storing.firings + dense / DENSE_RATE,
        commit=commit_seconds(len(work.shards), work.n_files),
        readout=logits / device.gemm_float32,
        finish=firings / storing.statistics,
        store_cores=storing.cores,
    )


def _time(
    work: Work,
    device: Device,
    stages: Stages,
    stated: float | None,
    measures: Measures | None,
) -> tuple[float, float, Basis]:
    """Return seconds, tokens a second, and where they come from."""
    n_tokens = work.shards.n_tokens
    if stated is not None:
        return n_tokens / stated, stated, "stated"
    seconds = stages.total(device, len(work.shards))
    basis: Basis = "measured" if measures else "guessed"
    return seconds, n_tokens / seconds if seconds else 0.0, basis
