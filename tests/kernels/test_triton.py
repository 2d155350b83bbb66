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
    weights, x = build(24, 513, threshold=30.0), draw_tokens(1023, 24)
    check(triton_encode.encode(x, weights, tiles=Tiles(128, 128, 32)), x, weights)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("of_input", DTYPES)
def test_products_are_of_what_is_given_in_float32(of_input):
    weights, x = build(dtype=torch.bfloat16), draw_tokens(50).to(of_input)
    check(triton_encode.encode(x, weights, tiles=TILES), x, weights)
    weights = build()
    check(triton_encode.encode(x, weights, tiles=TILES), x, weights)


def test_all_and_none_fire():
    weights, x = build(), draw_tokens(50)
    always = EncoderWeights(weights.w_enc, weights.b_enc, torch.full((100,), -torch.inf))
    codes = triton_encode.encode(x, always, tiles=TILES)
    assert codes.features.tolist() == list(range(100)) * 50
    never = EncoderWeights(weights.w_enc, weights.b_enc, torch.full((100,), torch.inf))
    assert triton_encode.encode(x, never, tiles=TILES).indptr.tolist() == [0] * 51


def several():
    """Of two sites; one has no tokens, one some features only."""
    x, other = draw_tokens(30), draw_tokens(21, 24)
    return [
        Operands(x, build(threshold=0.1)),
        Operands(x, build(width=33, seed=4), torch.tensor([3, 4, 30])),
        Operands(other, build(24, 70, seed=5)),
        Operands(other[:0], build(24, 70, seed=5)),
    ]


def assert_same(found, expected):
    for name in ("indptr", "features", "activations"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_several_are_screened_before_the_first_is_waited_for(monkeypatch):
    events = []

    def note(name):
        plain = getattr(triton_encode._Job, name)

        def noted(job, *args):
            events.append(name)
            return plain(job, *args)

        monkeypatch.setattr(triton_encode._Job, name, noted)

    for name in ("screen", "score", "fired"):
        note(name)
    operands = several()
    found = triton_encode.encode_all(operands, tiles=TILES)
    assert events == ["screen"] * 4 + ["score"] * 4 + ["fired"] * 4
    for codes, one in zip(found, operands, strict=True):
        assert_same(codes, triton_encode.encode(one.x, one.weights, one.features, tiles=TILES))
    check(found[0], operands[0].x, operands[0].weights)
    check(found[2], operands[2].x, operands[2].weights)


@pytest.mark.parametrize("n_bytes", [1, 400])
def test_many_tokens_are_encoded_in_several_goes(n_bytes, monkeypatch):
    whole = triton_encode.encode_all(several(), tiles=TILES)
    monkeypatch.setattr(triton_encode, "_BITS_BYTES", n_bytes)
    for codes, expected in zip(
        triton_encode.encode_all(several(), tiles=TILES), whole, strict=True
    ):
        assert_same(codes, expected)


def test_features_are_scored_in_parts(monkeypatch):
    weights, x = build(width=2_000, threshold=5.0), draw_tokens(7)
    whole = triton_encode.encode(x, weights, tiles=TILES)
    monkeypatch.setattr(triton_encode, "_CACHED_BYTES", 1)
    assert_same(triton_encode.encode(x, weights, tiles=TILES), whole)
    check(whole, x, weights)


def test_prepared_weights_give_the_same():
    weights, x = build(), draw_tokens(40)
    prepared = triton_encode.prepare(weights)
    assert torch.equal(prepared.w_enc, weights.w_enc)
    plain = triton_encode.encode(x, weights, tiles=TILES)
    assert_same(triton_encode.encode(x, prepared, tiles=TILES), plain)
    chosen = torch.tensor([1, 50, 99])
    some = triton_encode.encode(x, prepared, chosen, tiles=TILES)
    assert_same(some, triton_encode.encode(x, weights, chosen, tiles=TILES))


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
def test_scoring_mends_what_bfloat16_got_wrong(outliers):
    weights, x = build(d_in=300, width=70, threshold=60.0), draw_tokens(200, 300)
    if outliers:
        x[:, 7] *= 100
    codes = triton_encode.encode(x, weights, tiles=TILES)
    fires = x.double() @ weights.w_enc.double() + weights.b_enc > weights.threshold.double()
    rough = x.bfloat16().float() @ weights.w_enc.bfloat16().float() + weights.b_enc
    assert torch.equal(codes.to_dense(70) != 0, fires)
    assert not torch.equal(rough > weights.threshold, fires)  # there was something to mend


def test_a_gpu_on_which_it_cannot_run_takes_torch_and_says_why(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    triton_encode.why_not.cache_clear()
    choice = choose(device)
    assert (choice.impl, "which this GPU does not (7.x" in choice.reason) == ("torch", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    triton_encode.why_not.cache_clear()
    choice = choose(device)  # there is none, which no launch survives
    assert (choice.impl, "'triton' cannot run: " in choice.reason) == ("torch", True)
    triton_encode.why_not.cache_clear()


def test_the_seam_takes_it_where_it_runs():
    weights, x = build(), draw_tokens(20)
    check(encode(x, weights, "triton"), x, weights)
    assert choose(torch.device("cuda", 0), "triton").impl == "triton"
    assert choose(torch.device("cuda", 0)).impl == "triton"
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


def test_what_rounding_took_from_input_and_weights_alike_is_found():
    """Each value lies half a unit above what bfloat16 makes of it; so do bias and threshold."""
    d_in = 96
    step = 1 + 2.0**-8
    weights = EncoderWeights(
        torch.full((d_in, 3), step), torch.tensor([0.0, step, 0.0]),
        torch.tensor([1.007 * d_in, 1.007 * d_in + 1, 1.01 * d_in]),
    )  # fmt: skip
    codes = triton_encode.encode(torch.full((2, d_in), step), weights, tiles=TILES)
    assert codes.features.tolist() == [0, 1, 0, 1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy tells of infinity
def test_the_largest_numbers_are_scored():
    """In bfloat16 they are infinite, and so are their norms in float32: what comes of it is NaN."""
    above = EncoderWeights(torch.tensor([[1e-38], [-5e-39]]), torch.zeros(1), torch.tensor([0.5]))
    codes = triton_encode.encode(torch.full((1, 2), 3.4e38), above, tiles=TILES)
    assert codes.activations.tolist() == pytest.approx([1.7], rel=1e-5)
    by_bias = EncoderWeights(torch.zeros(2, 2), torch.tensor([1.0, 0.0]), torch.full((2,), 0.5))
    codes = triton_encode.encode(torch.full((1, 2), 3e38), by_bias, tiles=TILES)
    assert codes.features.tolist() == [0]


def test_the_least_numbers_are_not_lost_in_norms():
    """Their squares are below what float32 holds; so rounding is still bounded by what it took."""
    step = (1 + 2.0**-8) * 2.0**-70
    weights = EncoderWeights(
        torch.full((4, 2), step), torch.zeros(2), torch.tensor([3.9, 4.04]) * 2.0**-70
    )
    x = torch.full((1, 4), 1.0)
    codes = triton_encode.encode(x, weights, tiles=TILES)
    assert codes.features.tolist() == [0]
    near = EncoderWeights(weights.w_enc, weights.b_enc, torch.tensor([4.01, 4.02]) * 2.0**-70)
    assert triton_encode.encode(x, near, tiles=TILES).features.tolist() == [0]
