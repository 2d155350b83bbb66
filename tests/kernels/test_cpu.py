"""The compiled encoder: the same bits however it is split, in memory of its tiles."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels import _native, cpu
from scopelake.kernels.encode import Choice, Task, choose, encode, encode_all
from scopelake.kernels.weights import EncoderWeights, Operands

SETS = _native.sets()


def coder(d_in=70, width=1100, seed=0, threshold=6.0):
    draw = torch.Generator().manual_seed(seed)
    return EncoderWeights(
        torch.randn(d_in, width, generator=draw),
        torch.randn(width, generator=draw),
        torch.rand(width, generator=draw) * 2 * threshold,
    )


def tokens(n, d_in=70, seed=1):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


def bits(codes):
    return [t.numpy().tobytes() for t in (codes.indptr, codes.features, codes.activations)]


def by_definition(x, weights, depth=256):
    """Sums as the compiled encoder states them: fused multiply-adds in order, in blocks."""
    pre = np.zeros((len(x), weights.width), np.float32)
    w, values = weights.w_enc.numpy(), x.numpy()
    for start in range(0, x.shape[1], depth):
        block = np.zeros_like(pre)
        for p in range(start, min(start + depth, x.shape[1])):
            # A product of two float32 is exact in float64; so is what a fused add rounds once,
            # but for double rounding, which the values here are checked not to meet.
            exact = values[:, p : p + 1].astype(np.float64) * w[p].astype(np.float64)
            block = (exact + block).astype(np.float32)
        pre = block if start == 0 else pre + block
    return pre + weights.b_enc.numpy()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("n", "d_in", "width"), [(5, 3, 40), (17, 300, 33), (1, 513, 7)])
def test_sums_are_taken_in_the_order_that_is_stated(name, n, d_in, width):
    weights, x = coder(d_in, width, threshold=0.0), tokens(n, d_in)
    (codes,) = cpu.encode_all([Operands(x, weights)], name)
    found = codes.to_dense(width).numpy()
    pre = by_definition(x, weights)
    if name == "plain":  # multiplies and adds round apart
        np.testing.assert_allclose(found, np.maximum(pre, 0), rtol=1e-5, atol=1e-4)
    else:
        assert np.mean(found != np.maximum(pre, 0)) < 1e-3  # double roundings of the oracle


@pytest.mark.parametrize("n", [0, 1, 13, 14, 15, 63, 1023])
def test_every_split_gives_the_same_bits(n, monkeypatch):
    weights, x = coder(), tokens(n)
    whole = bits(encode(x, weights, "cpu"))
    for name in SETS[:-1]:
        assert bits(cpu.encode_all([Operands(x, weights)], name)[0]) == whole
    for at_once, block, chunk, threads in [(64, 33, 7, 1), (500, 14, 600, 3), (1, 1, 1100, 2)]:
        monkeypatch.setattr(cpu, "TOKENS_AT_ONCE", at_once)
        monkeypatch.setattr(cpu, "_BLOCK", block)
        monkeypatch.setattr(cpu, "_CHUNK", chunk)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert bits(encode(x, weights, "cpu")) == whole
        finally:
            torch.set_num_threads(before)
    parts = [encode(x[i : i + 100], weights, "cpu") for i in range(0, n, 100)]
    if parts:
        joined = torch.cat([p.activations for p in parts])
        assert joined.numpy().tobytes() == whole[2]


def test_what_fires_everywhere_and_nowhere():
    weights, x = coder(), tokens(300)
    floor = torch.full((weights.width,), -torch.inf)
    everywhere = encode(x, EncoderWeights(weights.w_enc, weights.b_enc, floor), "cpu")
    assert torch.equal(everywhere.features.view(300, -1)[7], torch.arange(1100, dtype=torch.int32))
    assert len(everywhere.activations) == 300 * 1100
    nowhere = encode(x, EncoderWeights(weights.w_enc, weights.b_enc, -floor), "cpu")
    assert nowhere.indptr.tolist() == [0] * 301


@pytest.mark.parametrize("impl", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("chosen", [[], [0], [1099], range(33), range(0, 1100, 7), range(1100)])
def test_some_features_fire_as_in_the_whole_coder(impl, chosen):
    weights, x = coder(), tokens(200)
    whole = encode(x, weights, impl).to_dense(1100)
    some = encode(x, weights, impl, features=chosen)
    wanted = torch.zeros_like(whole)
    wanted[:, list(chosen)] = whole[:, list(chosen)]
    if impl == "cpu":
        assert torch.equal(some.to_dense(1100), wanted)
    torch.testing.assert_close(some.to_dense(1100), wanted, rtol=1e-4, atol=1e-4)
    for token in range(200):
        features = some.features[some.indptr[token] : some.indptr[token + 1]]
        assert bool((features.diff() > 0).all())


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([3, 2], "do not ascend"),
        ([2, 2], "do not ascend"),
        ([-1], "the coder has 0 to 1099"),
        ([1100], "the coder has 0 to 1099"),
        ([0.5], "whole numbers"),
        ([[1, 2]], "whole numbers"),
    ],
)
def test_features_that_cannot_be_asked_for_are_refused(chosen, message):
    with pytest.raises(InvalidArgumentError, match=message):
        encode(tokens(2), coder(), features=chosen)


def test_several_coders_at_once_are_as_one_by_one():
    coders = [coder(seed=seed, width=width) for seed, width in enumerate([40, 1100, 513])]
    x = tokens(150)
    tasks = [Task(x, c, f) for c, f in zip(coders, [None, range(100), [5, 9]], strict=True)]
    tasks.insert(1, Task(tokens(70, 33, seed=9), coder(33, 513)))  # of another site
    for impl in ("cpu", "torch", "reference"):
        for codes, task in zip(encode_all(tasks, impl), tasks, strict=True):
            assert bits(codes) == bits(encode(task.x, task.coder, impl, task.features))
    assert encode_all([]) == []


def test_nothing_is_encoded_if_one_of_several_cannot_be(monkeypatch):
    monkeypatch.setattr(cpu, "encode_all", lambda operands: pytest.fail("encoded"))
    x = tokens(4)
    bad = x.clone()
    bad[2, 3] = float("nan")
    with pytest.raises(InvalidArgumentError, match="NaN"):
        encode_all([Task(x, coder()), Task(bad, coder())])


def test_weights_of_other_types_and_layouts_are_taken_as_they_are():
    weights, x = coder(), tokens(50)
    turned = EncoderWeights(weights.w_enc.t().contiguous().t(), weights.b_enc, weights.threshold)
    assert bits(encode(x, turned, "cpu")) == bits(encode(x, weights, "cpu"))
    half = EncoderWeights(weights.w_enc.bfloat16(), weights.b_enc, weights.threshold)
    full = EncoderWeights(half.w_enc.float(), weights.b_enc, weights.threshold)
    assert bits(encode(x, half, "cpu")) == bits(encode(x, full, "cpu"))
    assert bits(encode(x.bfloat16(), full)) == bits(encode(x.bfloat16().float(), full))


def test_the_reason_for_the_choice_can_be_asked(monkeypatch):
    assert choose(torch.device("cpu")) == Choice("cpu", "the fastest on cpu")
    with pytest.raises(InvalidArgumentError, match=r"'cpu' was asked for on meta; it encodes on"):
        choose(torch.device("meta"), "cpu")
    monkeypatch.setattr(cpu, "WHY_NOT", "the compiled encoder is not built (no compiler)")
    assert choose(torch.device("cpu")) == Choice(
        "torch", "'cpu' cannot run: the compiled encoder is not built (no compiler)"
    )
    assert encode(tokens(3), coder()).n_tokens == 3


def test_without_triton_it_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scopelake.kernels.triton_encode", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'scopelake\[gpu\]'"):
        choose(torch.device("cuda", 0), "triton")


def test_the_package_works_where_the_extension_is_not_built():
    code = (
        "import sys; sys.modules['scopelake.kernels._native'] = None\n"
        "import torch\n"
        "from scopelake.kernels.encode import choose\n"
        "choice = choose(torch.device('cpu'))\n"
        "assert choice.impl == 'torch' and 'not built' in choice.reason, choice\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize(
    "change",
    [
        {"packed": b"1234"},
        {"n": 30},
        {"n": -1},
        {"n": 2**62, "packed": b""},
        {"weights": b""},
        {"threshold": b"12"},
        {"first": -1},
        {"first": 1},
        {"n_features": 6, "first": 0},
        {"names": np.array([0, 1, 2, 3, 9], np.int32)},
        {"set": "mmx"},
    ],
)
def test_the_extension_refuses_what_does_not_fit(change):
    d, width, n = 3, 5, 2
    x, w = np.ones((n, d), np.float32), np.ones((d, width), np.float32)
    given = {
        "set": SETS[0], "packed": _native.pack(SETS[0], x, n, d), "n": n, "d": d, "weights": w,
        "bias": np.zeros(width, np.float32), "threshold": np.zeros(width, np.float32),
        "width": width, "first": 0, "n_features": width, "names": b"",
    }  # fmt: skip
    counts, _, _ = _native.encode(*given.values())
    assert np.frombuffer(counts, np.int32).tolist() == [5, 5]
    with pytest.raises(ValueError, match=r"bytes were given|features \[|feature 9|no instruction"):
        _native.encode(*(given | change).values())
    with pytest.raises(ValueError, match="cut short"):
        _native.join([(counts, bytearray(), bytearray())], n)


@pytest.mark.slow
def test_memory_is_that_of_tiles_and_output(tmp_path):
    """16,384 wide: dense pre-activations of these tokens would be 512 MiB."""
    path = tmp_path / "w"
    np.random.default_rng(0).standard_normal((64, 16_384), dtype=np.float32).tofile(path)
    code = (
        "import sys, numpy as np, torch\n"
        "from scopelake.kernels.encode import encode\n"
        "from scopelake.kernels.weights import EncoderWeights\n"
        "w = torch.from_numpy(np.memmap(sys.argv[1], np.float32, 'c', shape=(64, 16_384)))\n"
        "coder = EncoderWeights(w, torch.zeros(16_384), torch.full((16_384,), 24.0))\n"
        "encode(torch.randn(64, 64), coder)\n"
        "x = torch.randn(8_192, 64)\n"
        "from pathlib import Path\n"
        "def peak():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(x for x in lines if x.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "assert 8_192 < len(encode(x, coder).features) < 10_000_000\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, path], check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ,
    )  # fmt: skip
    assert int(done.stdout) < 64 << 10  # KiB


def test_coders_without_inputs_or_features_and_sums_that_overflow():
    nothing = EncoderWeights(torch.zeros(0, 600), torch.ones(600), torch.zeros(600))
    for impl in ("reference", "torch", "cpu"):
        codes = encode(torch.zeros(3, 0), nothing, impl)
        assert codes.activations.tolist() == [1.0] * 1800
        empty = encode(tokens(3), coder(width=0), impl)
        assert (empty.indptr.tolist(), len(empty.features)) == ([0] * 4, 0)
        large = EncoderWeights(torch.full((1, 2), 2.0), torch.zeros(2), torch.zeros(2))
        codes = encode(torch.tensor([[3e38]]), large, impl, features=[1])
        assert (codes.features.tolist(), codes.activations.tolist()) == ([1], [float("inf")])


@pytest.mark.parametrize("impl", ["reference", "torch", "cpu"])
def test_what_is_below_zero_fires_if_its_threshold_is_lower(impl):
    weights = EncoderWeights(torch.ones(1, 1), torch.zeros(1), torch.full((1,), -2.0))
    codes = encode(torch.tensor([[-1.0], [-2.0]]), weights, impl)
    assert codes.indptr.tolist() == [0, 1, 1]
    assert codes.activations.tolist() == [-1.0]
