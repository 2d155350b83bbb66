"""Results on their way from a GPU to the host, while the GPU goes on.

Copies run on a stream of their own into pinned buffers, a ring of them: a copy into memory that is
not pinned would hold up both sides. On a CPU results are there already; from other devices they are
copied at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch

_SLOTS: Final = 2
"""Batches on their way at once: one arrives while the next is computed."""

_ALIGNMENT: Final = 16
"""Bytes; tensors of any dtype may begin there."""


class Copier(Protocol):
    """What moves bytes from a device to the host."""

    def buffer(self, n_bytes: int) -> torch.Tensor:
        """Return memory of the host, uint8 [n_bytes], that copies go to."""

    def start(self, copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Begin to copy, for each pair, the second to the first, once what was asked is done.

        Returns:
            A function that waits until all of it is there.
        """


class CudaCopier:
    """Copies on a stream beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, n_bytes: int) -> torch.Tensor:
        """Return pinned memory."""
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def start(self, copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Begin to copy once what is computed now is done."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for to, of in copies:
                to.copy_(of, non_blocking=True)
                # Its memory must not be used again before the copy has read it.
                of.record_stream(self._stream)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return done.synchronize


@dataclass
class _Slot:
    """A buffer, and the tensors that are on their way into it."""

    buffer: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    arrival: Arrival | None = None


class Arrival:
    """Tensors that arrive on the host."""

    def __init__(self, there: Sequence[torch.Tensor], wait: Callable[[], None] | None) -> None:
        self._tensors, self._wait = list(there), wait

    def take(self) -> list[torch.Tensor]:
        """Wait for the tensors and return them, in memory of their own."""
        if self._wait is not None:
            self._wait()
            self._tensors = [tensor.clone() for tensor in self._tensors]
            self._wait = None
        return self._tensors


class HostRing:
    """A ring of buffers that results pass on their way to the host.

    Args:
        copier: moves them; None where nothing moves them by itself.
        slots: how many lots may be on their way.
    """

    def __init__(self, copier: Copier | None, slots: int = _SLOTS) -> None:
        self._copier, self._slots, self._next = copier, [_Slot() for _ in range(slots)], 0

    @classmethod
    def of(cls, device: torch.device) -> HostRing:
        """Return a ring for results of `device`."""
        return cls(CudaCopier(device) if device.type == "cuda" else None)

    def send(self, tensors: Sequence[torch.Tensor]) -> Arrival:
        """Send tensors on their way; the caller does not wait, unless the ring is full.

        Args:
            tensors: on the device, of any shape and dtype; not to be written to any more.
        """
        if self._copier is None:
            return Arrival([tensor.cpu() for tensor in tensors], None)
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        if slot.arrival is not None:
            slot.arrival.take()  # whoever waits for them has them then
        sizes = [t.numel() * t.element_size() for t in tensors]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        if len(slot.buffer) < starts[-1]:
            slot.buffer = self._copier.buffer(starts[-1] + starts[-1] // 2)
        there = [
            slot.buffer[start : start + size].view(t.dtype).view(t.shape)
            for t, start, size in zip(tensors, starts, sizes, strict=False)
        ]
        wait = self._copier.start(list(zip(there, tensors, strict=True)))
        slot.arrival = Arrival(there, wait)
        return slot.arrival
