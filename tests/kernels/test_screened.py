"""Screened encoding: the same bits as without a screen, on input that 8 bits do badly on."""

import numpy as np
import pytest
import torch

from scopelake.kernels import _screen, screened
from scopelake.kernels.encode import encode
from scopelake.kernels.screened import Screen
from scopelake.kernels.weights import EncoderWeights


def build(d_in=300, width=700, seed=0, threshold=30.0):
    draw = torch.Generator().manual_seed(seed)
    return EncoderWeights(
        torch.randn(d_in, width, generator=draw),
        torch.randn(width, generator=draw),
        torch.rand(width, generator=draw) * 2 * threshold,
    )


def check(screen, x):
    found, whole = screen.encode(x), encode(x, screen.coder, "cpu")
    for name in ("indptr", "features", "activations"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    return whole


@pytest.mark.parametrize("n", [0, 1, 63, 1023])
@pytest.mark.parametrize("tokens_at_once", [100, 1024])
def test_firings_are_the_same_bits(n, tokens_at_once, monkeypatch):
    monkeypatch.setattr(screened, "_TOKENS", tokens_at_once)
    monkeypatch.setattr(screened, "_FEATURES", 333)
    x = torch.randn(n, 300, generator=torch.Generator().manual_seed(1))
    check(Screen.of(build()), x)


@pytest.mark.parametrize("kind", ["outliers", "a mean", "tiny", "huge", "zero", "one channel"])
def test_also_of_input_that_8_bits_do_badly_on(kind):
    x = torch.randn(100, 300, generator=torch.Generator().manual_seed(2))
    if kind == "outliers":
        x[:, :3] *= 1000
    elif kind == "a mean":
        x += 50
    elif kind == "tiny":
        x *= 1e-20
    elif kind == "huge":
        x *= 1e15
    elif kind == "zero":
        x *= 0
    else:
        x[:, 1:] = 0
    check(Screen.of(build()), x)


def test_thresholds_that_are_just_met_and_just_missed():
    """Each feature's threshold is one of its own pre-activations, or the number below it."""
    coder, x = build(threshold=0.0), torch.randn(200, 300)
    dense = encode(x, coder, "cpu").to_dense(700)
    highest = dense.amax(dim=0)
    below = torch.nextafter(highest, torch.zeros_like(highest))
    for threshold, n in ((highest, 0), (below, 700)):
        screen = Screen.of(EncoderWeights(coder.w_enc, coder.b_enc, threshold))
        assert len(check(screen, x).features) == n


def test_what_fires_everywhere_and_nowhere():
    coder, x = build(), torch.randn(50, 300)
    for value, n in ((-torch.inf, 50 * 700), (torch.inf, 0)):
        threshold = torch.full((700,), value)
        screen = Screen.of(EncoderWeights(coder.w_enc, coder.b_enc, threshold))
        assert len(check(screen, x).features) == n


def test_most_are_not_scored():
    coder = build(d_in=512, width=4096, threshold=0.0)
    coder = EncoderWeights(coder.w_enc, coder.b_enc, torch.full((4096,), 60.0))
    x = torch.randn(100, 512)
    screen = Screen.of(coder)
    n_fired = len(check(screen, x).features)
    assert n_fired < screen.count_candidates(x) < 0.1 * 100 * 4096


def test_the_extension_refuses_what_does_not_fit():
    n, width, d = 2, 5, 3
    product = np.zeros((n, width), np.int32)
    tokens, features = np.zeros((3, n), np.float32), np.zeros((4, width), np.float32)
    counts, names = _screen.candidates(product, n, width, tokens, features, 0)
    assert np.frombuffer(counts, np.int32).tolist() == [5, 5]  # nothing is lacking
    with pytest.raises(ValueError, match="tokens: 8 bytes"):
        _screen.candidates(product, n, width, tokens[:1].copy(), features, 0)
    x, rows = np.ones((n, d), np.float32), np.ones((width, d), np.float32)
    bias, threshold = np.zeros(width, np.float32), np.zeros(width, np.float32)
    piece = _screen.score(x, n, d, rows, bias, threshold, width, counts, names)
    assert np.frombuffer(piece[2], np.float32).tolist() == [3.0] * 10
    wrong = np.array([0, 1, 2, 3, 5] * 2, np.int32)
    with pytest.raises(ValueError, match="feature 5 of 5"):
        _screen.score(x, n, d, rows, bias, threshold, width, counts, wrong)
    with pytest.raises(ValueError, match="features: 4 bytes"):
        _screen.score(x, n, d, rows, bias, threshold, width, counts, wrong[:1].copy())
