"""Results of a benchmark as CSV rows that carry the machine and the versions they came from."""

from __future__ import annotations

import csv
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("torch", "transformers", "duckdb", "deltalake", "pyarrow", "zarr", "zarrs", "numpy")


@dataclass(frozen=True)
class Measure:
    """Repeated values of one quantity."""

    name: str
    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """Median over the repeats."""
        return statistics.median(self.values)

    def quantile(self, share: float) -> float:
        """Nearest-rank quantile over the repeats."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def peak_mib() -> float:
    """Peak resident memory of this process since it began, MiB (Linux).

    What ``getrusage`` says of a process that was just started is its parent's.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [ln for ln in status.splitlines() if ln.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def machine() -> str:
    """Processor, cores and memory in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [ln for ln in info.read_text().splitlines() if ln.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, python {platform.python_version()}"


def _versioned(package: str) -> str:
    try:
        return f"{package}={version(package)}"
    except PackageNotFoundError:
        return f"{package}=none"


def write_results(
    name: str, measures: Sequence[Measure], config: str, packages: Sequence[str] = ()
) -> Path:
    """Write `measures` to results/<name>.csv with versions, also of `packages`, and print them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    versions = " ".join(map(_versioned, (*_PACKAGES, *packages)))
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["measure", "median", "p95", "unit", "repeats", "config", "machine",
                      "versions", "date"])  # fmt: skip
        for m in measures:
            row = [m.name, f"{m.median:.6g}", f"{m.quantile(0.95):.6g}", m.unit, len(m.values)]
            out.writerow([*row, config, machine(), versions, when])
            print(f"{m.name:<44} {m.median:>12,.4g} {m.unit:<10} (p95 {m.quantile(0.95):,.4g})")
    print(f"\n{config}; {machine()}\nwritten to {path}")
    return path
