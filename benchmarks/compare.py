"""A comparison of two sets of tokens: seconds and memory, by number of firings.

    make bench-compare         1e7 and 1e8 firings of 16,384 features, the lakes of bench-query

Each size is asked in a process of its own, so that its peak of memory is its own. Beside it stands
what a user would write in SQL for the counts alone, of one set, by feature and document.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from query_lake import build
from record import Measure, peak_mib, write_results

import scopelake

REPEATS: Final = 3
_SETS: Final = {
    "within documents": ("role = 'user'", "role = 'model'"),
    "between documents": ("document_index % 2 = 0", "document_index % 2 = 1"),
}
_SQL: Final = (
    "SELECT feature, document, count(*) AS n FROM postings JOIN tokens "
    "USING (corpus, context, position, kind) WHERE role = 'user' AND kind <> 'bos' GROUP BY ALL"
)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ask(root: Path) -> dict[str, list[float]]:
    """Return seconds of each repeat by question, and the peak of memory of the comparisons."""
    lake = scopelake.open(root)
    # Files are hashed once, before they are first read.
    lake.compare(*_SETS["within documents"])
    found = {
        f"compare {name}": [seconds(lambda s=sets: lake.compare(*s)) for _ in range(REPEATS)]
        for name, sets in _SETS.items()
    }
    found["peak memory"] = [peak_mib()]
    found["counts of one set in SQL"] = [seconds(lambda: lake.sql(_SQL)) for _ in range(REPEATS)]
    return found


def measures_of(root: Path, n_firings: float) -> list[Measure]:
    """Ask in a process of its own."""
    command = [sys.executable, __file__, "--ask", str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return [
        Measure(f"{name}, {n_firings:.0e} firings", tuple(values),
                "MiB" if name == "peak memory" else "s")
        for name, values in found.items()
    ]  # fmt: skip


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", type=float, nargs="+", default=[1e7, 1e8])
    parser.add_argument("--keep", type=Path, help="folder of the lakes, which are kept there")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask is not None:
        print(json.dumps(ask(arguments.ask)))
        return 0
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        measures = []
        for n_firings in arguments.firings:
            root = folder / f"{n_firings:.0e}"
            if not root.exists():
                build(root, int(n_firings))
            measures += measures_of(root, n_firings)
        write_results("compare", measures, "16,384 features, synthetic chats")
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
