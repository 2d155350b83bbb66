"""What an ingest will cost, as numbers that say where they come from, and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from scopelake.ingest.devices import Basis
from scopelake.ingest.memory_need import Part
from scopelake.ingest.stored_sizes import TableSize
from scopelake.names import counted


@dataclass(frozen=True)
class Quantity:
    """A number, its unit and where it comes from."""

    value: float
    unit: str
    basis: Basis


@dataclass(frozen=True)
class CoderCost:
    """What one coder brings."""

    sae: str
    width: int
    firings_a_token: Quantity
    n_shards: int
    """With work left."""
    tokens: int
    """Of these."""
    firings: float
    n_bytes: float
    """Of its firings, peaks, samples and statistics."""


@dataclass(frozen=True)
class Compared:
    """A guess beside what the pilot measured."""

    what: str
    guess: float
    measured: float
    unit: str

    @property
    def ratio(self) -> float | None:
        """Guess over measured; None where nothing was measured."""
        return self.guess / self.measured if self.measured else None


@dataclass(frozen=True)
class CostPlan:
    """What an ingest will do and cost; nothing has been done, but for a pilot's shard."""

    corpus: str
    """Empty: a corpus that is not there, of so many tokens."""
    model: str
    device: str
    n_shards: int
    """With work left."""
    n_contexts: int
    """Of these."""
    tokens: int
    """Of these, BOS included."""
    layers_run: int
    """Of the model, up to the highest that is read."""
    n_layers: int
    forward_flops: Quantity
    encode_flops: Quantity
    firings: Quantity
    tokens_per_second: Quantity
    seconds: Quantity
    stages: dict[str, float]
    """Seconds of each stage, as if it ran alone; some overlap."""
    coders: tuple[CoderCost, ...]
    tables: tuple[TableSize, ...]
    """Rows, bytes and objects that come, by table; dense activations and catalogue too."""
    bytes_basis: Basis
    """Of the bytes of firings."""
    keep: str
    """Which firings are stored."""
    device_memory: tuple[Part, ...]
    """Of a GPU; empty on a CPU, where all is in `host_memory`."""
    host_memory: tuple[Part, ...]
    """The most that the process takes, within `memory`."""
    device_memory_there: int | None
    """Bytes; None: no GPU, or not known."""
    host_memory_there: int
    memory: int
    """Bytes that the process may take."""
    misfits: tuple[str, ...]
    """What would not fit, and what to do."""
    notes: tuple[str, ...]
    compared: tuple[Compared, ...] = ()
    """Guesses beside what the pilot measured; empty without a pilot."""

    @property
    def already_complete(self) -> bool:
        """Whether there is nothing to do."""
        return self.tokens == 0

    @property
    def n_bytes(self) -> float:
        """Bytes that come."""
        return sum(t.n_bytes for t in self.tables)

    @property
    def n_objects(self) -> int:
        """Files or objects that come, until a compaction or a vacuum."""
        return sum(t.objects for t in self.tables)

    def table(self, name: str) -> TableSize:
        """Return what comes to one table; nothing for another name."""
        return next((t for t in self.tables if t.table == name), TableSize(name, 0, 0, 0))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            **asdict(self),
            "n_bytes": self.n_bytes,
            "n_objects": self.n_objects,
            "compared": [{**asdict(c), "ratio": c.ratio} for c in self.compared],
        }

    def to_text(self) -> str:
        """Return it as a table of a few lines for each question."""
        if self.already_complete:
            return f"{self.corpus}: complete already, nothing to do"
        return "\n".join([*_work(self), *_stored(self), *_memory(self), *_rest(self)])

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.to_text())}</pre>"


_UNITS = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def scaled(value: float, unit: str) -> str:
    """Return a number with three digits and a prefix: 1.23 TB."""
    for prefix, size in _UNITS:
        if abs(value) >= size:
            return f"{value / size:,.3g} {prefix}{unit}"
    return f"{value:,.3g} {unit}"


def lasting(seconds: float) -> str:
    """Return a time with two parts at most: 3 d 4 h."""
    parts = (("d", 86_400), ("h", 3_600), ("min", 60))
    for (name, size), (smaller, less) in zip(parts, (*parts[1:], ("s", 1)), strict=True):
        if seconds >= size:
            return f"{int(seconds // size)} {name} {int(seconds % size // less)} {smaller}"
    return f"{seconds:.3g} s"


def _row(what: str, value: str, basis: str) -> str:
    return f"  {what:<34}{value:>16}  {basis}".rstrip()


def _work(plan: CostPlan) -> list[str]:
    of = f"corpus {plan.corpus}" if plan.corpus else "a corpus that is not there yet"
    kept = "" if plan.keep == "all" else f", keep {plan.keep}"
    lines = [f"{of}, {plan.model}, {counted(len(plan.coders), 'SAE')}, on {plan.device}{kept}"]
    lines.append(_row("tokens", f"{plan.tokens:,}", "exact"))
    lines.append(_row("contexts in shards", f"{plan.n_contexts:,} in {plan.n_shards:,}", "exact"))
    layers = f"{plan.layers_run} of {plan.n_layers}"
    lines.append(_row("layers that run", layers, "exact"))
    for what, one in (("forward", plan.forward_flops), ("encode", plan.encode_flops)):
        lines.append(_row(what, scaled(one.value, one.unit), one.basis))
    if plan.coders:
        lines.append(_row("firings", scaled(plan.firings.value, "").strip(), plan.firings.basis))
    rate, time = plan.tokens_per_second, plan.seconds
    lines.append(_row("throughput", f"{rate.value:,.0f} tokens/s", rate.basis))
    lines.append(_row("time", lasting(time.value), time.basis))
    stages = ", ".join(f"{k} {lasting(v)}" for k, v in plan.stages.items() if v >= time.value / 1e3)
    return [*lines, f"  of it, each alone: {stages}"] if stages else lines


def _stored(plan: CostPlan) -> list[str]:
    lines = [f"  {'stored':<24}{'rows':>16}{'bytes':>12}{'objects':>14}"]
    for one in plan.tables:
        if one.objects or one.n_bytes:
            rows = f"{one.rows:,.0f}" if one.rows else ""
            size = scaled(one.n_bytes, "B")
            lines.append(f"    {one.table:<22}{rows:>16}{size:>12}{one.objects:>14,}")
    total = scaled(plan.n_bytes, "B")
    return [*lines, f"    {'together':<38}{total:>12}{plan.n_objects:>14,}  {plan.bytes_basis}"]


def _memory(plan: CostPlan) -> list[str]:
    lines = []
    for what, parts, there in (
        ("device", plan.device_memory, plan.device_memory_there),
        ("host", plan.host_memory, plan.host_memory_there),
    ):
        total = sum(p.n_bytes for p in parts)
        if not parts:
            continue
        has = "" if there is None else f" of {scaled(there, 'B')}"
        has += f"; the process may take {scaled(plan.memory, 'B')}" if what == "host" else ""
        lines.append(f"  memory, {what}: {scaled(total, 'B')}{has}")
        lines += [f"    {p.what:<38}{scaled(p.n_bytes, 'B'):>12}" for p in parts if p.n_bytes]
    return lines


def _rest(plan: CostPlan) -> list[str]:
    lines = [f"  does not fit: {one}" for one in plan.misfits] or ["  all of it fits"]
    if plan.compared:
        lines.append(f"  {'the pilot':<40}{'guess':>12}{'measured':>12}{'ratio':>8}")
        lines += [_compared(one) for one in plan.compared]
    return [*lines, *(f"  {note}" for note in plan.notes)]


def _compared(one: Compared) -> str:
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    what = f"{one.what}, {one.unit}" if one.unit else one.what
    return f"    {what:<38}{one.guess:>12,.4g}{one.measured:>12,.4g}{ratio:>8}"


def total(tables: Sequence[TableSize], name: str) -> TableSize:
    """Return several tables' sizes as one of that name."""
    found = TableSize(name, 0, 0, 0)
    for one in tables:
        found += one
    return found
