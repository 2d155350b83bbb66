"""Where the time of an ingest goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

IN_TURN: Final = ("read", "activations", "encode", "gather", "wait", "finish")
"""Stages of the thread that feeds the device: contexts read; forward passes, or stored activations
read; encoding; putting firings in order; waiting for the shard before to be stored; statistics."""

BESIDE: Final = ("write", "commit")
"""Stages of the thread that stores, while the next shard is encoded."""


class Stages:
    """Seconds of each stage. A GPU works on while the host is in the next one."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys((*IN_TURN, *BESIDE), 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time within as `stage`'s; each stage belongs to one thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    def timing(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, counting the time that each takes to come."""
        source = iter(items)
        while True:
            with self.timed(stage):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage."""
        return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}


def stages_text(seconds: Mapping[str, float], whole: float) -> str:
    """Return the share of each stage in the whole time, on one line."""

    def share(stage: str) -> str:
        return f"{stage} {seconds[stage] / max(whole, 1e-9):.0%}"

    rest = max(0.0, whole - sum(seconds[stage] for stage in IN_TURN)) / max(whole, 1e-9)
    in_turn, beside = ", ".join(map(share, IN_TURN)), ", ".join(map(share, BESIDE))
    return f"{in_turn}, other {rest:.0%}; beside these {beside}"
