"""The GPU's kernels in Triton's interpreter, at small awkward shapes, against a float64 oracle.

The interpreter runs programs one after another: races and the order of a real GPU do not show here;
`benchmarks/gpu.py` checks on one.
"""

import numpy as np
import pytest
import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels import triton_encode
from scopelake.kernels.encode import choose, encode
from scopelake.kernels.triton_encode import Tiles
from scopelake.kernels.weights import EncoderWeights, Operands

TILES = Tiles(16, 32, 16)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel does not write is seen: empty tensors are full of wrong values."""
    plain = torch.empty

    def poison(*size, **options):
        made = plain(*size, **options)
        return made.fill_(-77 if made.dtype == torch.int32 else float("nan"))

    monkeypatch.setattr(triton_encode.torch, "empty", poison)


def build(d_in=40, width=100, seed=0, dtype=torch.float32, threshold=9.0):
    draw = torch.Generator().manual_seed(seed)
    return EncoderWeights(
        torch.randn(d_in, width, generator=draw).to(dtype),
        torch.randn(width, generator=draw),
        torch.rand(width, generator=draw) * 2 * threshold,
    )


def draw_tokens(n, d_in=40):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(1))


def check(codes, x, weights):
    """Compare with float64: sums of 40 to 100 products of order 1 err by less than 1e-4."""
    pre = x.double() @ weights.w_enc.double() + weights.b_enc.double()
    distance = pre - weights.threshold.double()
    dense = codes.to_dense(weights.width)
    differs = (dense != 0) != (distance > 0)
    assert not bool((differs & (distance.abs() > 1e-4)).any())
    fired = dense != 0
    torch.testing.assert_close(dense[fired].double(), pre[fired], rtol=1e-5, atol=1e-4)
    assert int(codes.indptr[-1]) == len(codes.features) == int(fired.sum())
    keys = codes.token_index() * weights.width + codes.features
    assert bool((keys.diff() > 0).all())
    assert (codes.features.dtype, codes.activations.dtype) == (torch.int32, torch.float32)


@pytest.mark.parametrize("n", [0, 1, 63, 100])
@pytest.mark.parametrize(("d_in", "width"), [(40, 100), (33, 65), (17, 1)])
def test_firings_equal_the_oracle(n, d_in, width):
    weights, x = build(d_in, width), draw_tokens(n, d_in)
    check(triton_encode.encode(x, weights, tiles=TILES), x, weights)


@pytest.mark.slow
def test_many_tokens_and_features():
    weights, x = build(24, 513), draw_tokens(1023, 24)
    check(triton_encode.encode(x, weights, tiles=Tiles(128, 128, 32)), x, weights)


def test_bfloat16_multiplies_what_bfloat16_holds():
    weights, x = build(dtype=torch.bfloat16), draw_tokens(50)
    codes = triton_encode.encode(x, weights, tiles=TILES)
    check(codes, x.bfloat16(), weights)


def test_all_and_none_fire():
    weights, x = build(), draw_tokens(50)
    always = EncoderWeights(weights.w_enc, weights.b_enc, torch.full((100,), -torch.inf))
    codes = triton_encode.encode(x, always, tiles=TILES)
    assert codes.features.tolist() == list(range(100)) * 50
    never = EncoderWeights(weights.w_enc, weights.b_enc, torch.full((100,), torch.inf))
    assert triton_encode.encode(x, never, tiles=TILES).indptr.tolist() == [0] * 51


@pytest.mark.parametrize("room", [0, 1, 999, 1_000_000])
def test_what_does_not_fit_is_done_again(room, monkeypatch):
    weights, x = build(threshold=0.1), draw_tokens(30)
    launches = []
    plain = triton_encode._Job.launch

    def counted(job, room):
        launches.append(room)
        return plain(job, room)

    monkeypatch.setattr(triton_encode._Job, "launch", counted)
    codes = triton_encode.encode(x, weights, tiles=TILES, room=room)
    check(codes, x, weights)
    assert len(launches) == (1 if room > len(codes.features) else 2)


@pytest.mark.parametrize("room", [1, 3000])
def test_several_are_launched_before_the_first_is_waited_for(room, monkeypatch):
    """Of two sites; some have no room at first."""
    x, other = draw_tokens(30), draw_tokens(21, 24)
    operands = [
        Operands(x, build(threshold=0.1)),
        Operands(x, build(width=33, seed=4), torch.tensor([3, 4, 30])),
        Operands(other, build(24, 70, seed=5)),
        Operands(other[:0], build(24, 70, seed=5)),
    ]
    events, launch, sort = [], triton_encode._Job.launch, triton_encode._Job.sorted

    def launched(job, room):
        events.append("launch")
        return launch(job, room)

    def sorted_(job, launched, n):
        events.append("sort")
        return sort(job, launched, n)

    monkeypatch.setattr(triton_encode._Job, "launch", launched)
    monkeypatch.setattr(triton_encode._Job, "sorted", sorted_)
    found = triton_encode.encode_all(operands, tiles=TILES, room=room)
    n_again = sum(len(c.features) > room for c in found)
    assert events == ["launch"] * (4 + n_again) + ["sort"] * 4
    for codes, one in zip(found, operands, strict=True):
        alone = triton_encode.encode(one.x, one.weights, one.features, tiles=TILES)
        for name in ("indptr", "features", "activations"):
            assert torch.equal(getattr(codes, name), getattr(alone, name))
    check(found[0], x, operands[0].weights)
    check(found[2], other, operands[2].weights)


def test_threshold_is_strict():
    weights = EncoderWeights(torch.eye(3), torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]))
    next_up = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    x = torch.tensor([[1.0, float(next_up), 0.0]])
    codes = triton_encode.encode(x, weights, tiles=TILES)
    assert codes.features.tolist() == [1]
    assert codes.activations.tolist() == [float(next_up)]


@pytest.mark.parametrize("chosen", [[], [99], list(range(10, 60)), list(range(0, 100, 9))])
def test_some_features(chosen):
    weights, x = build(), draw_tokens(40)
    codes = triton_encode.encode(x, weights, torch.tensor(chosen, dtype=torch.int64), tiles=TILES)
    whole = triton_encode.encode(x, weights, tiles=TILES).to_dense(100)
    wanted = torch.zeros_like(whole)
    wanted[:, chosen] = whole[:, chosen]
    torch.testing.assert_close(codes.to_dense(100), wanted)


@pytest.mark.parametrize("outliers", [False, True])
def test_rescoring_gives_what_float32_gives(outliers):
    exact, x = build(d_in=300, width=70, threshold=30.0), draw_tokens(300, 300)
    if outliers:
        x[:, 7] *= 100
    half = EncoderWeights(exact.w_enc.bfloat16(), exact.b_enc, exact.threshold)
    rough = triton_encode.encode(x, half, tiles=TILES)
    codes = triton_encode.encode(x, half, tiles=TILES, exact=exact)
    check(codes, x, exact)
    cpu = encode(x, exact, "cpu")
    assert torch.equal(codes.indptr, cpu.indptr)
    assert torch.equal(codes.features, cpu.features)
    assert not torch.equal(rough.features, cpu.features)  # there was something to mend


def test_the_seam_takes_it_where_it_runs():
    weights, x = build(), draw_tokens(20)
    check(encode(x, weights, "triton"), x, weights)
    assert choose(torch.device("cuda", 0), "triton").impl == "triton"
    choice = choose(torch.device("cuda", 0))
    assert (choice.impl, "not checked on a GPU" in choice.reason) == ("torch", True)
    with pytest.raises(InvalidArgumentError, match="'triton' was asked for on meta"):
        choose(torch.device("meta"), "triton")


def test_padding_reads_nothing_that_is_not_there():
    """Rows of the arrays behind the last are NaN: one that is read shows in every sum."""
    store = torch.full((64, 64), torch.nan)
    store[:21, :40] = draw_tokens(21)
    weights = build()
    wide = torch.full((40, 160), torch.nan)
    wide[:, :100] = weights.w_enc
    view = EncoderWeights(wide[:, :100], weights.b_enc, weights.threshold)
    check(triton_encode.encode(store[:21, :40], view, tiles=TILES), store[:21, :40], weights)
    assert np.isnan(wide[:, 100:].numpy()).all()


def test_rescoring_finds_what_rounding_took_from_input_and_weights_alike():
    """Each value lies half a unit above what bfloat16 makes of it; so do bias and threshold."""
    d_in = 96
    step = 1 + 2.0**-8
    exact = EncoderWeights(
        torch.full((d_in, 3), step), torch.tensor([0.0, step, 0.0]),
        torch.tensor([1.007 * d_in, 1.007 * d_in + 1, 1.01 * d_in]),
    )  # fmt: skip
    x = torch.full((2, d_in), step)
    half = EncoderWeights(*(t.bfloat16() for t in (exact.w_enc, exact.b_enc, exact.threshold)))
    codes = triton_encode.encode(x, half, exact=exact, tiles=TILES)
    assert codes.features.tolist() == [0, 1, 0, 1]
    columns = exact.w_enc.T.contiguous().T
    turned = EncoderWeights(columns, exact.b_enc, exact.threshold)
    again = triton_encode.encode(x, half, exact=turned, tiles=TILES)
    assert torch.equal(again.activations, codes.activations)
