"""A pilot: one shard through the real ingest, in a lake of its own, and what it foretells.

The shard's contexts are copied to a scratch lake in a temporary folder, which is removed. What is
once (loading, the first pass, a file's constant part) is told apart from what each token, firing
and shard costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import ModelError
from scopelake.ingest.activations import LiveActivations, ShardTokens
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.cost_plan import Compared, CostPlan
from scopelake.ingest.crews import Here
from scopelake.ingest.devices import Device
from scopelake.ingest.encode_shard import batches
from scopelake.ingest.estimate import CoderMeasure, Measures, Work, estimate
from scopelake.ingest.machine import peak_memory
from scopelake.ingest.model import DeviceMap, LoadedModel, ModelFiles, load_model
from scopelake.ingest.pipeline import Hooks, ingest
from scopelake.ingest.plan import IngestConfig, check_tokenizer, find_corpus
from scopelake.ingest.report import IngestSummary, Progress
from scopelake.ingest.rows_law import Profile
from scopelake.ingest.shapes import ModelShape
from scopelake.ingest.stored_sizes import FILE_OVERHEAD, FIRING_TABLES
from scopelake.ingest.time_need import Stages, commit_growth
from scopelake.names import KIND_BOS, SiteLayer, counted
from scopelake.store.commit import Writer
from scopelake.store.firings import BANDS, band
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import write_contexts

_LEAST_SHARE = 0.3
"""Of a file's bytes that are its rows' at least, where a constant part is taken off."""

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class PilotConfig:
    """What a pilot runs."""

    store: LakeStore
    """The lake's; it is only read."""
    snapshot: Snapshot
    work: Work
    files: ModelFiles
    coders: tuple[CoderFiles, ...]
    device: str
    dtype: str
    device_map: DeviceMap = None


def run_pilot(
    config: PilotConfig,
    device: Device,
    plain: CostPlan,
    tokens_per_second: float | None = None,
    on_progress: OnProgress | None = None,
) -> CostPlan:
    """Run the first shard that is left, and return the plan with what was measured.

    Args:
        config: what to run.
        device: where.
        plain: the plan without a pilot, whose guesses are compared.
        tokens_per_second: a stated throughput, which the time follows all the same.
        on_progress: called after every batch of the pilot.

    Raises:
        CoderMismatchError, ModelError: as the ingest would.
    """
    check_tokenizer(find_corpus(config.store, config.snapshot, config.work.corpus.name),
                    config.files)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="scopelake-pilot-") as folder:
        store = _scratch(config, Path(folder) / "lake")
        ran = _run(config, store, on_progress)
        measures = Measures(
            {c.name: _coder(store, c, ran.tokens) for c in _coders(config)},
            _dense_ratios(store, config.work.model, ran.tokens),
            _foretell(config.work, device, ran),
        )
    notes = [
        *plain.notes,
        f"the pilot ran shard {config.work.first_shard}: {counted(ran.tokens, 'token')}",
    ]
    found = estimate(config.work, device, tokens_per_second, measures, notes)
    return replace(found, compared=_compare(plain, found, ran))


@dataclass(frozen=True)
class _Ran:
    """What a pilot's run took."""

    tokens: int
    load: float
    """Seconds of what is done once: model, coders, the first pass."""
    summary: IngestSummary
    compute_cores: float
    store_cores: float
    peak: int | None
    """Bytes of memory of this process."""


def _scratch(config: PilotConfig, path: Path) -> LakeStore:
    """Return a lake with a corpus of the shard's contexts, which is one shard."""
    name = config.work.corpus.name
    row = find_corpus(config.store, config.snapshot, name)
    start = config.work.first_shard * int(row["shard_contexts"])
    filters = [
        ("corpus", "=", name),
        ("context", ">=", start),
        ("context", "<", start + int(row["shard_contexts"])),
    ]
    table = config.store.read("contexts", config.snapshot, filters=filters).sort_by("context")
    moved = pc.subtract(table["context"], pa.scalar(start, pa.int64()))
    table = table.set_column(table.column_names.index("context"), "context", moved)
    row |= {
        "n_contexts": table.num_rows,
        "context_ends": [table.num_rows],
        "n_bos": pc.sum(pc.equal(pc.list_flatten(table["kinds"]), KIND_BOS)).as_py() or 0,
        "n_tokens": pc.sum(table["n_tokens"]).as_py(),
    }
    store = LakeStore.create(path)
    with Writer(store) as writer:
        corpora = pa.Table.from_pylist([row], schema=SCHEMAS["corpora"])
        receipts = write_contexts(store.root, table, corpus=name, run="pilot")
        writer.commit(receipts, transaction="pilot", reason="pilot", rows={"corpora": corpora})
    return store


def _coders(config: PilotConfig) -> list[CoderFiles]:
    """Return the coders that have work left."""
    left = {shape.name for shape, shards in config.work.coders if len(shards)}
    return [coder for coder in config.coders if coder.name in left]


def _run(config: PilotConfig, store: LakeStore, on_progress: OnProgress | None) -> _Ran:
    work, start = config.work, time.perf_counter()
    model = load_model(
        config.files, device=config.device, dtype=config.dtype, device_map=config.device_map
    )
    _warm_up(store, model, work)
    loaded = time.perf_counter() - start
    marks = [_Mark(0, 0, time.perf_counter(), time.process_time())]

    def mark(now: Progress) -> None:
        marks.append(_Mark(now.tokens, now.n_bytes, time.perf_counter(), time.process_time()))
        if on_progress is not None:
            on_progress(now)

    dense = tuple(site for site, shards in work.dense if len(shards))
    # All firings are kept: how often features fire is counted from them.
    made = IngestConfig(
        work.corpus.name, dense, work.activation_bits, work.batch_tokens, memory=work.memory
    )
    summary = ingest(store, made, Here(LiveActivations(model)), _coders(config), Hooks(mark))
    if summary.failed:
        raise ModelError(
            f"a pilot of {work.corpus.name} was asked for; {summary.failed[0]}; check the model, "
            "its dtype and the coders"
        )
    row = find_corpus(store, store.snapshot(), work.corpus.name)
    encoded = next(m for m in marks if m.tokens == summary.tokens)
    stored = next(m for m in marks if m.n_bytes > 0)
    once = summary.seconds - sum(summary.stages.values())  # one shard: nothing runs beside
    return _Ran(
        int(row["n_tokens"]), loaded + max(once, 0.0), summary,
        _cores(marks[0], encoded), _cores(encoded, stored), peak_memory(),
    )  # fmt: skip


def _warm_up(store: LakeStore, model: LoadedModel, work: Work) -> None:
    """Run the first batch once: what only a first pass costs is not counted for each token."""
    rows = store.read("contexts", store.snapshot(), ["context", "token_ids"]).sort_by("context")
    ids = [np.array(v, dtype=np.int32) for v in rows["token_ids"].to_pylist()]
    group = next(batches([len(i) for i in ids], work.batch_tokens))
    tokens = ShardTokens(0, tuple(ids), ())
    source = LiveActivations(model)
    source.check(tokens, work.corpus.name)
    for _ in source.batches(tokens, [group], sorted(work.sites, key=str)):
        pass


@dataclass(frozen=True)
class _Mark:
    """Where a run was at a time."""

    tokens: int
    n_bytes: int
    wall: float
    cpu: float
    """Seconds of all threads of this process."""


def _cores(start: _Mark, stop: _Mark) -> float:
    return (stop.cpu - start.cpu) / max(stop.wall - start.wall, 1e-9)


def _foretell(work: Work, device: Device, ran: _Ran) -> Stages:
    """Return the seconds of the whole ingest's stages."""
    took, tokens = ran.summary.stages, max(ran.tokens, 1)
    scale = work.shards.n_tokens / tokens
    n_coders = sum(1 for _, shards in work.coders if len(shards))
    of_coders = sum(shards.n_tokens for _, shards in work.coders) / max(tokens * n_coders, 1)
    write_scale = of_coders if n_coders else scale
    return Stages(
        load=ran.load,
        forward=took["activations"] * scale,
        encode=took["encode"] * of_coders,
        gather=(took["gather"] + took["read"]) * scale,
        write=took["write"] * write_scale,
        commit=took["commit"] * len(work.shards) + commit_growth(len(work.shards), work.n_files),
        readout=took["readout"],
        finish=took["finish"] * write_scale,
        store_cores=ran.store_cores,
        compute_cores=ran.compute_cores,
    )


def _coder(store: LakeStore, coder: CoderFiles, n_tokens: int) -> CoderMeasure:
    """Return what the pilot's files say of a coder."""
    snapshot = store.snapshot()
    filters = [("sae", "=", coder.name)]
    files = store.read("files", snapshot, ["kind", "n_rows", "n_bytes"], filters).to_pylist()
    by_table = {
        table: {
            column: sum(f[column] for f in files if f["kind"] == table)
            for column in ("n_rows", "n_bytes")
        }
        for table in FIRING_TABLES
    }
    columns = ["feature", "context", "activation", "kind"]
    rows = store.read("postings", snapshot, columns, filters)
    n_contexts = int(store.read("corpora", snapshot, ["n_contexts"])["n_contexts"][0].as_py())
    bytes_a_row = {table: _bytes_a_row(table, by_table[table]) for table in FIRING_TABLES}
    profile = measured_profile(
        *(rows[c].to_numpy() for c in columns),
        n_contexts=n_contexts, n_tokens=n_tokens, width=coder.width,
    )  # fmt: skip
    return CoderMeasure(rows.num_rows / max(n_tokens, 1), profile, bytes_a_row)


def _bytes_a_row(table: str, file: Mapping[str, Any]) -> float:
    n_bytes = max(file["n_bytes"] - FILE_OVERHEAD[table], _LEAST_SHARE * file["n_bytes"])
    return float(n_bytes / max(file["n_rows"], 1))


def measured_profile(
    feature: npt.NDArray[np.int32],
    context: npt.NDArray[np.int64],
    activation: npt.NDArray[np.float32],
    kind: npt.NDArray[np.int8],
    *,
    n_contexts: int,
    n_tokens: int,
    width: int,
) -> Profile:
    """Return how often each feature fires, from a shard's firings sorted by feature and context."""
    kept = kind != KIND_BOS
    feature, context, activation = feature[kept], context[kept], activation[kept]
    is_new = np.ones(len(feature), bool)
    is_new[1:] = (feature[1:] != feature[:-1]) | (context[1:] != context[:-1])
    in_contexts = np.bincount(feature[is_new], minlength=width)
    key = feature.astype(np.int64) * BANDS + band(activation)
    _, firings = np.unique(key, return_counts=True)
    return Profile(
        in_contexts[in_contexts > 0] / max(n_contexts, 1), 1.0, firings / max(n_tokens, 1), 1.0
    )


def _dense_ratios(store: LakeStore, model: ModelShape, n_tokens: int) -> dict[SiteLayer, float]:
    filters = [("kind", "=", "dense")]
    columns = ["site", "layer", "n_bytes"]
    files = store.read("files", store.snapshot(), columns, filters).to_pylist()
    sites = {SiteLayer(f["site"], f["layer"]): f["n_bytes"] for f in files}
    return {s: n_bytes / (2 * model.width(s) * n_tokens) for s, n_bytes in sites.items()}


def _compare(plain: CostPlan, found: CostPlan, ran: _Ran) -> tuple[Compared, ...]:
    """Return each guess beside what took its place."""
    tokens = max(plain.tokens, 1)
    pairs = [
        Compared("throughput", plain.tokens_per_second.value, found.tokens_per_second.value,
                 "tokens/s"),
        Compared("firings a token", plain.firings.value / tokens, found.firings.value / tokens, ""),
    ]  # fmt: skip
    both = list(zip(plain.coders, found.coders, strict=True))
    if worst := max(both, key=lambda pair: _off(pair[0].firings, pair[1].firings), default=None):
        name = worst[0].sae.split("/", 1)[-1]
        pairs.append(Compared(f"of {name}", worst[0].firings_a_token.value,
                              worst[1].firings_a_token.value, ""))  # fmt: skip
    for table in (*FIRING_TABLES, "dense"):
        guess, real = plain.table(table), found.table(table)
        if real.n_bytes:
            pairs.append(Compared(table, guess.n_bytes / 1e6, real.n_bytes / 1e6, "MB"))
    if ran.peak is not None:
        parts = (*plain.device_memory, *plain.host_memory)
        halved = sum(p.n_bytes / (2 if " of two " in p.what else 1) for p in parts)
        pairs.append(Compared("peak memory, one shard", halved / 1e6, ran.peak / 1e6, "MB"))
    return tuple(pairs)


def _off(guess: float, real: float) -> float:
    """How far apart two numbers are, whichever is larger."""
    if not guess or not real:
        return 0.0 if guess == real else float("inf")
    return max(guess / real, real / guess)
