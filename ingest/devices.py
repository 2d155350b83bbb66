"""How fast a machine computes and stores, measured in a moment or assumed, and what it holds.

Every rate says which it is. What a product of matrices reaches is measured here; what share of it a
forward pass and an encoding reach is assumed, by the width of the model.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final, Literal

import torch

from scopelake.ingest.machine import machine_memory

Basis = Literal["exact", "stated", "grid", "measured", "assumed", "guessed", "mixed"]
"""Where a number comes from."""

_SIZE: Final = 1_024
_SECONDS: Final = 0.15
_LEAST_RUNS: Final = 3

_GIB: Final = 2**30


@dataclass(frozen=True)
class Device:
    """A machine with what computes on it."""

    name: str
    kind: Literal["cpu", "gpu"]
    gemm: float
    """FLOP/s of a product of matrices in the model's precision."""
    gemm_float32: float
    """The same in float32, in which coders encode."""
    basis: Basis
    """Of these rates."""
    memory: int | None
    """Bytes of the GPU; None: there is none, or it is not known."""
    host_memory: int
    """Bytes of the machine's memory."""
    cores: int
    """Of the machine, that this process may use."""


H100: Final = Device("h100", "gpu", 790e12, 50e12, "assumed", 80 * 10**9, 128 * _GIB, 16)
"""An H100-class card. 790 TFLOP/s in bfloat16 is a ceiling that was measured on an H200; 50 TFLOP/s
in float32 is three quarters of the 67 in NVIDIA's data sheet (SXM, no tensor cores).
16 cores and 128 GiB of memory are an assumption."""

PROFILES: Final = {"h100": H100}
"""Devices that a plan can be made for without having them."""


def this_device(device: torch.device, dtype: torch.dtype) -> Device:
    """Return the device with its rates measured in a fraction of a second."""
    same = _gemm(device, dtype)
    is_gpu = device.type == "cuda"
    return Device(
        str(device),
        "gpu" if is_gpu else "cpu",
        same,
        same if dtype == torch.float32 else _gemm(device, torch.float32),
        "measured",
        int(torch.cuda.get_device_properties(device).total_memory) if is_gpu else None,
        machine_memory(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def _gemm(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one product, the fastest of as many as a moment allows."""
    a = torch.randn(_SIZE, _SIZE, device=device).to(dtype)
    b = torch.randn(_SIZE, _SIZE, device=device).to(dtype)
    torch.mm(a, b)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _LEAST_RUNS or time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / min(times)


def forward_share(device: Device, d_model: int) -> float:
    """Return what share of the product's rate a forward pass is assumed to reach.

    On CPUs 0.3 was measured with the tiny model, 128 wide; 0.4 on GPUs is an assumption.
    """
    return 0.4 if device.kind == "gpu" else 0.8 * d_model / (d_model + 213)


def encode_share(device: Device, d_in: int) -> float:
    """Return what share of the product's rate encoding is assumed to reach.

    On CPUs about 1.15 was measured from 640 wide on (docs/performance.md), less where narrower; on
    GPUs torch's operators in float32 are assumed to lose a tenth to reading and writing.
    """
    return 0.9 if device.kind == "gpu" else 1.2 * d_in / (d_in + 200)
