"""How fast a machine computes and stores, measured in a moment or assumed, and what it holds.

Every rate says which it is. What a product of matrices reaches is measured here; what share of it a
forward pass and an encoding reach is assumed, by the width of the model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

import torch

from scopelake.ingest.machine import machine_memory, n_cores

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
    gemm_bfloat16: float | None = None
    """FLOP/s of a product in bfloat16, with which a GPU encodes; None: as `gemm`."""


H100: Final = Device("h100", "gpu", 720e12, 44e12, "assumed", 80 * 10**9, 128 * _GIB, 16)
"""An H100 with 16 cores and 128 GiB of memory beside it, from what was measured on one: products in
bfloat16 ran at 535 to 797 TFLOP/s by their shapes (docs/performance.md), in float32 at 41 to 46.
Other machines with that card differ."""

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
        n_cores(),
        _gemm(device, torch.bfloat16) if is_gpu else None,
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

    On CPUs 0.3 was measured with the tiny model, 128 wide; on an H100 0.29 with 1,152 (1b; 0.22 in
    another run) and 0.44 with 2,560 (4b), in batches of 16,384 tokens. Other widths lie on a curve
    through these.
    """
    if device.kind == "gpu":
        return 0.76 * d_model / (d_model + 1_880)
    return 0.8 * d_model / (d_model + 213)


def encode_rate(device: Device, d_in: int, width: int) -> float:
    """Return the FLOP/s that encoding is assumed to reach.

    On CPUs about 1.15 of the product in float32 was measured from 640 wide on, less where narrower.
    On an H100 Triton's kernels took 3.1 to 4.3 times as long as the product in bfloat16 with 16,384
    features, 2.0 to 3.1 with 65,536 and 1.8 to 2.2 with 262,144 (docs/performance.md); without them
    it is 4 to 10 times as slow.
    """
    if device.kind == "gpu":
        return (device.gemm_bfloat16 or device.gemm) * 0.52 * width / (width + 14_000)
    return device.gemm_float32 * 1.2 * d_in / (d_in + 200)
