"""Seconds that an ingest takes: its stages alone, and what overlaps.

While a shard is encoded the one before is written and committed. On a GPU the slower of both
counts, writing and committing taken as if they came one after the other, which bounds them; on a
CPU both want the same cores, so that their work adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scopelake.ingest.budget import writers
from scopelake.ingest.devices import Device

_FIRINGS_A_CORE: Final = 7.0e6
"""Firings that a core rounds, sorts and writes in both orders in a second, with peaks and samples;
assumed from docs/performance.md."""

_STORING_CORES: Final = 3
"""Cores that storing keeps busy: two coders at once, either order in a thread, not all the time."""

_STATISTICS_A_CORE: Final = 5.0e7
"""Firings whose statistics a core computes in a second; assumed from docs/performance.md."""

_FIRINGS_A_WRITER: Final = 4.5e6
"""The same beside a GPU, for each of `budget.writers`, two cores each: assumed of processes, from
36 million a second of four with two threads each, on 16 cores (docs/performance.md)."""

_STATISTICS_A_HOST_CORE: Final = 1.5e7
"""The same on a GPU's host: 8 threads made 117 and 163 million a second there in two ingests, the
way it was done before; how many 16 make now was not measured."""

DENSE_RATE: Final = 420e6
"""Bytes of dense activations written in a second by one thread (docs/performance.md)."""

_COMMIT: Final = 0.08
_COMMIT_CODER: Final = 0.45e-3
_COMMIT_FILE: Final = 2.0e-5
"""Seconds of a commit, for each coder's shard in it, and for each file that `codes` has already
(benchmarks/committer.py)."""

LOAD_RATE: Final = 0.5e9
"""Bytes of weights loaded in a second; assumed."""


def commit_seconds(n_shards: int, n_files: int) -> float:
    """Return the seconds of committing shards one by one, with `n_files` of codes in all."""
    return (n_shards + 2) * _COMMIT + n_files * _COMMIT_CODER + commit_growth(n_shards, n_files)


def commit_growth(n_shards: int, n_files: int) -> float:
    """Return what of that is due to the files of shards before: half of all on average."""
    return n_shards * n_files / 2 * _COMMIT_FILE


@dataclass(frozen=True)
class StoringRates:
    """Firings a second."""

    firings: float
    """Written in both orders, with peaks and samples."""
    statistics: float
    """Of which statistics are made."""
    cores: float
    """That writing keeps busy."""


def storing_rates(device: Device) -> StoringRates:
    """Return how fast a device's host stores."""
    if device.kind == "gpu":
        n = writers(device.cores)
        return StoringRates(n * _FIRINGS_A_WRITER, device.cores * _STATISTICS_A_HOST_CORE, 2 * n)
    cores = min(device.cores, _STORING_CORES)
    return StoringRates(cores * _FIRINGS_A_CORE, device.cores * _STATISTICS_A_CORE, cores)


@dataclass(frozen=True)
class Stages:
    """Seconds of the stages of an ingest, each as if it ran alone."""

    load: float
    """Model and coders, once."""
    forward: float
    encode: float
    gather: float
    write: float
    """Files, on as many cores as storing keeps busy."""
    commit: float
    readout: float
    """Logits of decoders, once for each coder."""
    finish: float
    """Statistics of features, once for each coder."""
    store_cores: float = _STORING_CORES
    """Cores that writing keeps busy."""
    compute_cores: float | None = None
    """Cores that the forward pass and encoding keep busy on a CPU; None: all."""

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        names = ("load", "forward", "encode", "gather", "write", "commit", "readout", "finish")
        return {name: getattr(self, name) for name in names}

    @property
    def compute(self) -> float:
        """Seconds of the thread that feeds the device."""
        return self.forward + self.encode + self.gather

    def total(self, device: Device, n_shards: int) -> float:
        """Return the seconds of the whole ingest."""
        store = self.write + self.commit
        if device.kind == "cpu":
            computing = min(self.compute_cores or device.cores, device.cores)
            writing = min(self.store_cores, device.cores)
            work = self.compute * computing + self.write * writing + self.commit
            busy = max(work / device.cores, store)
        else:
            busy = max(self.compute, store)
        # The last shard is written when nothing is left to be encoded, beside the readout.
        first_and_last = min(self.compute, store) / max(n_shards, 1)
        busy = max(busy, first_and_last + max(self.compute, store))
        beside = 0.0 if device.kind == "cpu" else min(first_and_last, self.readout)
        return self.load + busy + self.readout - beside + self.finish
