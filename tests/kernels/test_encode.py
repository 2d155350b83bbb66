"""The fast encoder against the definition written out in float64, on awkward input."""

import numpy as np
import pytest
import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels import cpu, tiled
from scopelake.kernels.encode import encode
from scopelake.kernels.weights import EncoderWeights

IMPLS = ("reference", "torch", "cpu")


def build_weights(d_in=24, width=100, threshold=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return EncoderWeights(
        w_enc=torch.randn(d_in, width, generator=generator),
        b_enc=torch.randn(width, generator=generator),
        threshold=torch.rand(width, generator=generator) * 8 if threshold is None else threshold,
    )


def oracle(x, weights):
    """Firings as {(token, feature): value} in float64, and those too near a threshold to tell."""
    pre = x.double().numpy() @ weights.w_enc.double().numpy() + weights.b_enc.double().numpy()
    threshold = weights.threshold.double().numpy()
    tokens, features = np.nonzero(pre > threshold)
    fired = {(t, f): pre[t, f] for t, f in zip(tokens.tolist(), features.tolist(), strict=True)}
    near = np.abs(pre - threshold) <= 1e-4 * np.maximum(np.abs(threshold), 1e-3)
    return fired, set(zip(*(index.tolist() for index in np.nonzero(near)), strict=True))


def as_dict(codes):
    keys = zip(codes.token_index().tolist(), codes.features.tolist(), strict=True)
    return dict(zip(keys, codes.activations.tolist(), strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n_tokens", [0, 1, 63, 100, 1023])
@pytest.mark.parametrize("width", [1, 100, 513])
def test_firings_equal_the_float64_oracle(impl, n_tokens, width, monkeypatch):
    # Tiles, blocks and chunks that divide nothing evenly.
    monkeypatch.setattr(tiled, "TILE_BYTES", 4 * width * 37)
    monkeypatch.setattr(cpu, "TOKENS_AT_ONCE", 301)
    monkeypatch.setattr(cpu, "_BLOCK", 41)
    monkeypatch.setattr(cpu, "_CHUNK", 45)
    weights = build_weights(width=width)
    x = torch.randn(n_tokens, 24, generator=torch.Generator().manual_seed(1))
    found = as_dict(encode(x, weights, impl))
    expected, near = oracle(x, weights)
    assert set(found) ^ set(expected) <= near
    for key in found.keys() & expected.keys():
        # float32 sums of 24 products of order 1: a few units of 2**-24 each
        assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_and_none_firing(impl):
    x = torch.ones(70, 24)
    always = build_weights(threshold=torch.zeros(100))
    always = EncoderWeights(torch.ones_like(always.w_enc), torch.zeros(100), always.threshold)
    codes = encode(x, always, impl)
    assert codes.indptr.tolist() == list(range(0, 7001, 100))
    assert codes.features.tolist() == list(range(100)) * 70
    never = build_weights(threshold=torch.full((100,), 1e9))
    assert encode(x, never, impl).indptr.tolist() == [0] * 71


@pytest.mark.parametrize("impl", IMPLS)
def test_threshold_is_strict(impl):
    weights = EncoderWeights(torch.eye(3), torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]))
    next_up = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    codes = encode(torch.tensor([[1.0, float(next_up), 0.0]]), weights, impl)
    assert codes.features.tolist() == [1]
    assert codes.activations.tolist() == [float(next_up)]


def test_bfloat16_input_is_cast_up_not_the_weights_down():
    weights = build_weights()
    x = torch.randn(40, 24).to(torch.bfloat16)
    assert as_dict(encode(x, weights)) == as_dict(encode(x.float(), weights))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 23), r"shape \(3, 23\)"),
        (torch.zeros(24), r"shape \(24,\)"),
        (torch.tensor([[float("nan")] * 24]), "1 tokens with NaN"),
        (torch.tensor([[float("inf")] * 24]), "1 tokens with NaN or infinite"),
        (torch.full((2, 24), 1e300, dtype=torch.float64), "2 tokens with NaN or infinite"),
        ([[0.0] * 24], "a list; it takes a tensor"),
    ],
)
def test_unusable_input_is_refused(x, message):
    with pytest.raises(InvalidArgumentError, match=message):
        encode(x, build_weights())


def test_unknown_implementation_is_refused():
    with pytest.raises(InvalidArgumentError, match="'quick'"):
        encode(torch.zeros(1, 24), build_weights(), "quick")
