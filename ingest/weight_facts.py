"""What coders' weights say of their features, computed once, and ahead while the device is idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import torch

from scopelake.ingest.budget import Budget
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.stages import Stages
from scopelake.ingest.statistics import WeightColumns, weight_columns

if TYPE_CHECKING:
    from scopelake.ingest.crews import Origin

_MOST: Final = 128 << 20
"""Bytes of columns that wait for the statistics beside which they are stored."""


class WeightFacts:
    """The `weight_columns` of coders; any thread may ask.

    Args:
        source: whose device computes them, with the readout that it gives.
        budget: of the host's memory.
        stages: counts the time as that of ``readout``.
        kept: columns that are known, to which those that are computed are added. None: none are
            known, and none kept.
    """

    def __init__(
        self, source: Origin, budget: Budget, stages: Stages, kept: WeightColumns | None
    ) -> None:
        self._source, self._budget, self._stages = source, budget, stages
        self._is_kept = kept is not None
        self._held: WeightColumns = {} if kept is None else kept
        self._lock = threading.Lock()
        self._readout: list[torch.Tensor | None] = []

    def of(self, coder: CoderFiles) -> Mapping[str, pa.Array]:
        """Return those of a coder.

        Raises:
            CoderFileError: a weight is not finite.
        """
        with self._lock:
            if coder.name not in self._held:
                self._held[coder.name] = self._compute(coder)
            return self._held[coder.name] if self._is_kept else self._held.pop(coder.name)

    def ahead(self, coders: Iterable[CoderFiles], is_over: Callable[[], bool]) -> None:
        """Compute those of coders, one after the other, as far as memory and time allow.

        Args:
            coders: in the order in which they will be asked for.
            is_over: whether there is other work.

        Raises:
            CoderFileError: a weight is not finite.
        """
        for coder in coders:
            with self._lock:
                if is_over() or not self._fits():
                    return
                if coder.name not in self._held:
                    self._held[coder.name] = self._compute(coder)

    def _compute(self, coder: CoderFiles) -> Mapping[str, pa.Array]:
        with self._stages.timed("readout"):
            if not self._readout:
                self._readout.append(self._source.readout())
            return weight_columns(coder, self._source.device, self._readout[0])

    def _fits(self) -> bool:
        """Return whether the readout and the columns fit beside what is being written."""
        held = sum(column.nbytes for of in self._held.values() for column in of.values())
        needs = 0 if self._readout else self._source.readout_need()
        return held <= _MOST and needs <= self._budget.spare() / 2
