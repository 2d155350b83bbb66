"""Where the time of an ingest goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

DEVICE: Final = ("activations", "encode", "evaluate", "readout")
"""Stages in which the device works: forward passes, or stored activations read; encoding;
evaluations; logits of decoders, some of them while the last shard is written."""

IN_TURN: Final = (*DEVICE, "gather", "finish")
"""Stages that come one after the other; gather: firings arrive on the host; finish: statistics."""

BESIDE: Final = ("read", "write", "commit")
"""Stages beside them: contexts of the next shard read, files of the last one written, commits."""


class Stages:
    """Seconds of each stage. A GPU works on while the host is in the next one."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._seconds = dict.fromkeys((*IN_TURN, *BESIDE), 0.0) | dict(seconds or {})
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: str, beside: str | None = None) -> Iterator[None]:
        """Count the time within as `stage`'s; threads that share one add up.

        Args:
            stage: which.
            beside: a stage whose time within is not to be counted as this one's too.
        """
        start, other = time.perf_counter(), self._of(beside)
        try:
            yield
        finally:
            taken = time.perf_counter() - start - (self._of(beside) - other)
            self.add({stage: max(taken, 0.0)})

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

    def _of(self, stage: str | None) -> float:
        with self._lock:
            return 0.0 if stage is None else self._seconds[stage]

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count these too."""
        with self._lock:
            for stage, more in seconds.items():
                self._seconds[stage] += more

    def drain(self) -> Mapping[str, float]:
        """Return the seconds since this was asked last."""
        with self._lock:
            found = dict(self._seconds)
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            return found

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage."""
        with self._lock:
            return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}


def device_idle(seconds: Mapping[str, float], whole: float, devices: int = 1) -> float:
    """Return the share of the time in which a device had nothing to do, as the host sees it."""
    busy = sum(seconds[stage] for stage in DEVICE) / devices
    return max(0.0, 1 - busy / max(whole, 1e-9))


def stages_text(seconds: Mapping[str, float], whole: float, devices: int = 1) -> str:
    """Return the share of each stage in the whole time, on one line.

    Args:
        seconds: by stage, of all devices together.
        whole: seconds from begin to end.
        devices: how many worked.
    """

    def share(stage: str) -> str:
        return f"{stage} {seconds[stage] / max(whole * devices, 1e-9):.0%}"

    in_turn, beside = ", ".join(map(share, IN_TURN)), ", ".join(map(share, BESIDE))
    idle = device_idle(seconds, whole, devices)
    return f"{in_turn}; beside these {beside}; device idle {idle:.0%}"
