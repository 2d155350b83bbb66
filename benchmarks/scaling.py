"""Ingest by one and by two worker processes of a dask cluster on this machine.

    make bench-scaling        the tiny model, all its coders, a thread a worker

One and two workers alternate. Starting workers and loading the model are not counted; two workers
share this machine's caches and memory, as two machines would not.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from record import Measure, write_results

import scopelake
from scopelake import tiny

N_BYTES, REPEATS = 400_000, 3


def build(folder: Path) -> scopelake.Lake:
    """Make a lake with some of the standard library's source."""
    files, n_bytes = [], 0
    for path in tiny.stdlib_files(held_out=True):
        text = path.read_text(encoding="utf-8")
        if n_bytes < N_BYTES:
            n_bytes += len(text)
            files.append(folder / f"{path.parent.name}-{path.name}.txt")
            files[-1].write_text(text, encoding="utf-8")
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("text", files, tokenizer=tiny.MODEL_NAME, context_length=128, shard_contexts=64)
    return lake


def main() -> None:
    """Measure and write the CSV."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(REPEATS):
        for n_workers in rates:
            folder = Path(tempfile.mkdtemp())
            try:
                done = build(folder).ingest(
                    "text", model=tiny.MODEL_NAME, saes=[tiny.coders_path()], device="cpu",
                    scheduler=f"local:{n_workers}",
                )  # fmt: skip
                rates[n_workers].append(done.tokens / done.seconds)
            finally:
                shutil.rmtree(folder)
    ratios = tuple(two / one for one, two in zip(rates[1], rates[2], strict=True))
    measures = [
        Measure("1 worker", tuple(rates[1]), "tokens/s"),
        Measure("2 workers", tuple(rates[2]), "tokens/s"),
        Measure("2 workers over 1", ratios, "ratio"),
    ]
    write_results("scaling", measures, "tiny model, 14 coders, shards of 64 contexts of 128")


if __name__ == "__main__":
    main()
