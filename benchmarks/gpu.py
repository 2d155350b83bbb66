"""Encoding on a GPU: checked on it with fresh random input, then timed against two ceilings.

    python benchmarks/gpu.py [--tokens 8192] [--repeats 20]

The ceilings are cuBLAS's product of the same operands alone, and eager torch doing the whole job
(product, comparison, `nonzero`, gather). Nothing is reported if a check fails. Without a GPU it
says so and ends with status 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from statistics import NormalDist

import torch
from encode import L0, make_tokens
from record import Measure, write_results

from scopelake.kernels import tiled
from scopelake.kernels.weights import DecoderWeights, EncoderWeights, SparseCodes

WIDTHS = (16_384, 65_536, 262_144)
D_IN = (640, 1_152, 2_560, 3_840, 5_376)
UNIT = 2.0**-24


def make_coder(d_in: int, width: int, seed: int) -> EncoderWeights:
    """A random coder in float32 on the GPU, made there."""
    draw = torch.Generator("cuda").manual_seed(seed)
    w_enc = torch.randn(d_in, width, generator=draw, device="cuda", dtype=torch.float32)
    threshold = NormalDist().inv_cdf(1 - L0 / width)
    return EncoderWeights(
        w_enc / d_in**0.5,
        0.1 * torch.randn(width, generator=draw, device="cuda"),
        torch.full((width,), threshold, device="cuda"),
    )


def check(d_in: int, width: int, *, gemma_like: bool, seed: int) -> None:
    """Compare with float64, for every dtype of input and weights.

    Raises:
        AssertionError: they differ.
    """
    from scopelake.kernels.triton_encode import encode

    whole = make_coder(d_in, width, seed)
    tokens = make_tokens(500, d_in, gemma_like=gemma_like, seed=seed).cuda()
    for dtype, of_weights in product((torch.bfloat16, torch.float32), repeat=2):
        x, w_enc = tokens.to(dtype), whole.w_enc.to(of_weights)
        coder = EncoderWeights(w_enc, whole.b_enc, whole.threshold)
        codes = encode(x, coder)
        pre = torch.addmm(coder.b_enc.double(), x.double(), w_enc.double())
        size = torch.addmm(coder.b_enc.double().abs(), x.double().abs(), w_enc.double().abs())
        distance = pre - coder.threshold.double()
        dense = codes.to_dense(width)
        fired = dense != 0
        wrong = (fired != (distance > 0)) & (distance.abs() > 64 * UNIT * size)
        assert not bool(wrong.any()), f"{int(wrong.sum())} firings differ"
        far = fired & ((dense - pre).abs() > 64 * UNIT * size)
        assert not bool(far.any()), f"{int(far.sum())} activations differ"
        keys = codes.token_index() * width + codes.features
        assert bool((keys.diff() > 0).all()), "firings are not in order"


def check_ring(seed: int) -> None:
    """Send batches to the host while the GPU computes others, and compare.

    Raises:
        AssertionError: one did not arrive as it was sent.
    """
    from scopelake.kernels.to_host import HostRing

    device = torch.device("cuda")
    ring, draw, waiting = HostRing.of(device), torch.Generator("cuda").manual_seed(seed), []
    for n in torch.randint(0, 2_000_000, (40,)).tolist():
        sent = torch.randint(1 << 30, (n,), generator=draw, device=device)
        waiting.append((ring.send([sent, sent.float()]), sent.clone()))
        del sent  # its memory may go to the next batch at once
        if len(waiting) > 2:
            arrival, expected = waiting.pop(0)
            whole, rounded = arrival.take()
            assert torch.equal(whole, expected.cpu())
            assert torch.equal(rounded, expected.float().cpu())


def compare_decode(d_in: int, width: int, n_tokens: int, repeats: int) -> Measure:
    """Time decoding against copying as many bytes as it gathers."""
    from scopelake.kernels.decode import decode

    coder = make_coder(d_in, width, 0)
    codes = tiled.encode(make_tokens(n_tokens, d_in).cuda().bfloat16(), coder)
    decoder = DecoderWeights(
        (coder.w_enc.T.contiguous().bfloat16()[:, None, :],), torch.zeros(1, d_in, device="cuda")
    )
    n_values = len(codes.features) * d_in
    source = torch.zeros(n_values, dtype=torch.bfloat16, device="cuda")
    ratios = []
    for repeat in range(repeats + 3):
        ours, copied = timed(lambda: decode(codes, decoder)), timed(lambda: source.clone())
        if repeat >= 3:
            ratios.append(ours / copied)
    what = f"d={d_in} F={width}: decode"
    return Measure(what, tuple(ratios), "x a copy of the rows gathered (a read and a write)")


def timed(act: Callable[[], object]) -> float:
    """Milliseconds of one call, by the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    act()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def compare(d_in: int, width: int, n_tokens: int, repeats: int) -> list[Measure]:
    """Time the product in bfloat16 alone, eager torch on it, and ours, exact, in turn."""
    from scopelake.kernels.triton_encode import encode, prepare

    coder = prepare(make_coder(d_in, width, 0))
    x, w_enc = make_tokens(n_tokens, d_in).cuda().bfloat16(), coder.w_enc.bfloat16().contiguous()

    def eager() -> object:
        pre = torch.addmm(coder.b_enc.bfloat16(), x, w_enc)
        at = (pre > coder.threshold).nonzero(as_tuple=True)
        return at, pre[at]

    def ours() -> SparseCodes:
        return encode(x, coder)

    todo: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(x, w_enc), "eager": eager, "ours": ours,
        "float32": lambda: tiled.encode(x, coder),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in todo}
    for repeat in range(repeats + 3):
        for name, act in todo.items():
            ms = timed(act)
            if repeat >= 3:
                found[name].append(ms)
    base, what = found["product"], f"d={d_in} F={width}"
    ratios = {n: [a / b for a, b in zip(found[n], base, strict=True)] for n in todo}
    return [
        Measure(f"{what}: cuBLAS product alone", tuple(base), "ms"),
        Measure(f"{what}: eager torch, bfloat16", tuple(ratios["eager"]), "x product"),
        Measure(f"{what}: torch's operators, float32", tuple(ratios["float32"]), "x product"),
        Measure(f"{what}: ours", tuple(ratios["ours"]), "x product"),
    ]


def card() -> str:
    """The card, its clocks and its driver."""
    asked = "name,driver_version,clocks.sm,clocks.max.sm,power.limit"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout.strip().splitlines()[0]


def main() -> int:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("a GPU was asked for; torch finds none here; run it on a machine with one")
        return 2
    import triton

    seed = int(torch.randint(1 << 30, ()))
    for d_in, width in [(640, 1_000), (1_152, 16_384), (97, 513)]:
        for gemma_like in (False, True):
            check(d_in, width, gemma_like=gemma_like, seed=seed)
    check_ring(seed)
    print(f"checks passed, seed {seed}")
    measures = [
        measure
        for width in WIDTHS
        for d_in in D_IN
        for measure in compare(d_in, width, args.tokens, args.repeats)
    ]
    measures += [compare_decode(d_in, 65_536, args.tokens, args.repeats) for d_in in D_IN]
    config = f"{args.tokens} tokens, bfloat16, {card()}, triton {triton.__version__}, seed {seed}"
    write_results("gpu", measures, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
