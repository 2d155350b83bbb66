"""Encoding on CPUs: ours, torch's own operators and peers side by side, as ratios to `torch.mm`.

    make bench-encode           with SAELens, in the environment of the comparison with it
    python benchmarks/encode.py [--tokens 2048] [--repeats 7]

The encoder's tests run first, then firings are compared with a float64 oracle on 100 million
pre-activations each of random and of Gemma-like input; nothing is reported if either fails.
Input and weights are random, thresholds such that about 60 features fire on a token.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import torch
from record import Measure, write_results

from scopelake.kernels import cpu, tiled
from scopelake.kernels.encode import encode
from scopelake.kernels.weights import EncoderWeights

SHAPES = ((640, 16_384), (1_152, 16_384), (1_152, 65_536), (2_560, 16_384), (5_376, 16_384))
L0 = 60
UNIT = 2.0**-24
"""Half a unit in the last place of float32, relative."""

Encode = Callable[[torch.Tensor, EncoderWeights], object]


def make_coder(d_in: int, width: int, seed: int = 0) -> EncoderWeights:
    """Random weights; pre-activations of inputs of norm sqrt(d_in) are about standard normal."""
    draw = torch.Generator().manual_seed(seed)
    threshold = NormalDist().inv_cdf(1 - L0 / width)
    return EncoderWeights(
        torch.randn(d_in, width, generator=draw) / d_in**0.5,
        0.1 * torch.randn(width, generator=draw),
        torch.full((width,), threshold),
    )


def make_tokens(n: int, d_in: int, *, gemma_like: bool = False, seed: int = 1) -> torch.Tensor:
    """Random tokens; Gemma-like ones have a mean of their own and a few channels 100 times up."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=draw)
    if gemma_like:
        x += torch.randn(d_in, generator=draw)
        x[:, torch.randperm(d_in, generator=draw)[:4]] *= 100
        x *= (d_in / x.square().sum(dim=1, keepdim=True)) ** 0.5
    return x


def product(x: torch.Tensor, coder: EncoderWeights) -> object:
    """The matrix product alone."""
    return torch.mm(x, coder.w_enc)


def dense(x: torch.Tensor, coder: EncoderWeights) -> object:
    """What a notebook does with torch."""
    pre = torch.addmm(coder.b_enc, x, coder.w_enc)
    at = (pre > coder.threshold).nonzero(as_tuple=True)
    return at, pre[at]


def delphi_like(x: torch.Tensor, coder: EncoderWeights) -> object:
    """Dense codes, then what is not near zero of them, as delphi's cache takes it."""
    pre = x @ coder.w_enc + coder.b_enc
    codes = torch.relu(pre) * (pre > coder.threshold)
    mask = codes.abs() > 1e-5
    return mask.nonzero(), codes[mask]


def saelens() -> Encode | None:
    """SAELens's JumpReLU encoder, if it is installed: dense codes, nothing made sparse."""
    if importlib.util.find_spec("sae_lens") is None:
        return None
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    made: dict[int, object] = {}

    def run(x: torch.Tensor, coder: EncoderWeights) -> object:
        if id(coder) not in made:
            made.clear()
            config = JumpReLUSAEConfig(d_in=coder.d_in, d_sae=coder.width, dtype="float32")
            sae = JumpReLUSAE(config)
            with torch.no_grad():
                sae.W_enc.copy_(coder.w_enc)
                sae.b_enc.copy_(coder.b_enc)
                sae.threshold.copy_(coder.threshold)
            made[id(coder)] = sae
        return made[id(coder)].encode(x)  # type: ignore[attr-defined]

    return run


def rivals() -> dict[str, Encode]:
    """What is timed, by name; the product first."""
    found: dict[str, Encode] = {
        "torch.mm alone": product,
        "ours": lambda x, c: encode(x, c, "cpu"),
        "ours, torch's operators in tiles": tiled.encode,
        "dense torch and nonzero": dense,
        "delphi-like": delphi_like,
    }
    if (peer := saelens()) is not None:
        found["SAELens encode (dense codes)"] = peer
    return found


def compare(d_in: int, width: int, n_tokens: int, repeats: int) -> list[Measure]:
    """Time all rivals in turn; times over that of the product in the same round."""
    coder, x = make_coder(d_in, width), make_tokens(n_tokens, d_in)
    todo = rivals()
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for name, act in todo.items():
                start = time.perf_counter()
                act(x, coder)
                if repeat:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    base = seconds["torch.mm alone"]
    what = f"d={d_in} F={width}"
    flop = 2 * d_in * width * n_tokens
    return [
        Measure(f"{what}: torch.mm alone", tuple(flop / s / 1e9 for s in base), "GFLOP/s"),
        Measure(f"{what}: ours", tuple(flop / s / 1e9 for s in seconds["ours"]), "GFLOP/s"),
        *(
            Measure(f"{what}: {name}", tuple(a / b for a, b in zip(s, base, strict=True)), "x mm")
            for name, s in seconds.items()
            if name != "torch.mm alone"
        ),
    ]


def check(*, gemma_like: bool, n_wanted: int = 100_000_000) -> tuple[int, int, int]:
    """Compare firings with a float64 oracle.

    Returns:
        Pre-activations looked at; those within the rounding error of their threshold; firings
        that differ outside of that.
    """
    d_in, width, step = 1_152, 16_384, 256
    coder = make_coder(d_in, width)
    w, b, threshold = coder.w_enc.double(), coder.b_enc.double(), coder.threshold.double()
    looked = near = wrong = 0
    while looked < n_wanted:
        x = make_tokens(step, d_in, gemma_like=gemma_like, seed=looked)
        found = encode(x, coder, "cpu").to_dense(width) > 0
        distance = torch.addmm(b, x.double(), w) - threshold
        # A chain of 256 products, five such blocks, the bias: every step rounds once.
        size = torch.addmm(b.abs(), x.double().abs(), w.abs())
        is_near = distance.abs() <= (256 + d_in // 256 + 2) * UNIT * size
        looked += step * width
        near += int(is_near.sum())
        wrong += int(((found != (distance > 0)) & ~is_near).sum())
    return looked, near, wrong


def peak_memory(n_tokens: int = 16_384, d_in: int = 1_152, width: int = 16_384) -> float:
    """Return by how many MiB the peak of a process grows when it encodes so many tokens."""
    code = (
        "import pathlib, re, torch, encode as bench\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024\n"
        f"coder, x = bench.make_coder({d_in}, {width}), bench.make_tokens({n_tokens}, {d_in})\n"
        "bench.encode(x[:64], coder, 'cpu')\n"
        "pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak is what there is now\n"
        "before = peak()\n"
        "codes = bench.encode(x, coder, 'cpu')\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    return float(done.stdout)


def main() -> int:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    tests = Path(__file__).resolve().parents[1] / "tests" / "kernels"
    subprocess.run([sys.executable, "-m", "pytest", "-q", str(tests)], check=True)
    measures: list[Measure] = []
    for kind in ("random", "Gemma-like"):
        looked, near, wrong = check(gemma_like=kind != "random")
        if wrong:
            print(f"{wrong} firings of {kind} input differ from the float64 oracle")
            return 1
        measures += [
            Measure(f"{kind} input: compared with float64", (looked,), "pre-activations"),
            Measure(f"{kind} input: too near to tell", (near,), "pre-activations"),
            Measure(f"{kind} input: firings that differ otherwise", (wrong,), "firings"),
        ]
    for d_in, width in SHAPES:
        measures += compare(d_in, width, args.tokens, args.repeats)
    measures.append(
        Measure("16,384 tokens, d=1152 F=16384: peak grows by", (peak_memory(),), "MiB")
    )
    config = (
        f"{args.tokens} tokens, float32, about {L0} firings a token, {torch.get_num_threads()} "
        f"threads, {cpu._native.sets()[0]}"
    )
    write_results("encode", measures, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
