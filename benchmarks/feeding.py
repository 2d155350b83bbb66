"""How much those who write firings hold up a thread that feeds a device with small calls.

    make bench-feeding

The calls are additions of four numbers by torch, which takes the interpreter's lock after each, as
after every launch of a kernel. Alone, beside threads and beside processes alternate.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from record import Measure, write_results

import scopelake
from scopelake.store.context_codes import ContextCodes, ContextPart
from scopelake.store.running import Running
from scopelake.store.writing import Beside, Inside, WriteJob, Writing

CONTEXTS, LENGTH, WIDTH, L0 = 32, 1_024, 16_384, 60
SECONDS, REPEATS = 5.0, 3


def make_codes(contexts: int = CONTEXTS, seed: int = 0) -> ContextCodes:
    """Return synthetic firings of skewed frequency."""
    rng = np.random.default_rng(seed)
    often = 1 / (np.arange(WIDTH) + 200)
    parts = []
    for index in range(contexts):
        fires = rng.random((LENGTH, WIDTH)) < L0 * often / often.sum()
        features = np.nonzero(fires)[1].astype(np.int32)
        activations = rng.exponential(3, len(features)).astype(np.float32) + 0.5
        parts.append(ContextPart(index, fires.sum(axis=1).astype(np.int32), features, activations))
    return ContextCodes(0, [np.zeros(LENGTH, np.int8)] * contexts, parts)


def calls(seconds: float) -> float:
    """Return how many calls a second this thread makes."""
    one, n = torch.zeros(4), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(10):
            one.add(1)
        n += 10
    return n / seconds


def beside(job: WriteJob, writing: Writing, n_writers: int) -> tuple[float, float]:
    """Return calls, and firings written, a second."""
    stop, written = threading.Event(), [0] * n_writers

    def write(number: int) -> None:
        while not stop.is_set():
            for receipt in writing.write(job, Running(WIDTH))[:1]:
                written[number] += receipt.n_rows

    threads = [threading.Thread(target=write, args=(number,)) for number in range(n_writers)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)  # processes start
    before, start = sum(written), time.perf_counter()
    rate = calls(SECONDS)
    firings = (sum(written) - before) / (time.perf_counter() - start)
    stop.set()
    for thread in threads:
        thread.join()
    writing.close()
    return rate, firings


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = scopelake.create(Path(folder) / "lake")._store.root  # noqa: SLF001
        codes = make_codes()
        with root.scratch() as scratch:
            job = WriteJob(root, codes, "a/b", "c", 0, "r", 10, None, scratch)
            for _ in range(REPEATS):
                alone = calls(SECONDS)
                for n in (1, 2):
                    for name, writing in (("threads", Inside()), ("processes", Beside(n))):
                        rate, firings = beside(job, writing, n)
                        found.setdefault(f"calls beside {n} {name}, share", []).append(rate / alone)
                        found.setdefault(f"firings by {n} {name}", []).append(firings / 1e6)
    measures = [
        Measure(key, tuple(values), "of alone" if "share" in key else "million/s")
        for key, values in found.items()
    ]
    write_results("feeding", measures, f"{CONTEXTS} contexts of {LENGTH}, {WIDTH} features, L0 60")


if __name__ == "__main__":
    main()
