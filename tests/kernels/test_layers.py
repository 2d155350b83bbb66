"""Coders of several layers: one index space, and reconstruction at every layer, written out."""

import pytest
import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels import reference, streamed
from scopelake.kernels.decode import decode as gather_decode
from scopelake.kernels.encode import encode
from scopelake.kernels.weights import DecoderWeights, EncoderWeights, SparseCodes, join_layers

D_IN, D_OUT = 12, 9


def build_encoder(width, seed, threshold=2.0):
    generator = torch.Generator().manual_seed(seed)
    return EncoderWeights(
        torch.randn(D_IN, width, generator=generator),
        torch.randn(width, generator=generator),
        torch.full((width,), threshold),
    )


@pytest.mark.parametrize("n_tokens", [0, 1, 63, 200])
@pytest.mark.parametrize("widths", [(7,), (5, 5), (1, 30, 4, 11)])
def test_joined_codes_are_the_dense_codes_side_by_side(n_tokens, widths):
    encoders = [build_encoder(width, seed) for seed, width in enumerate(widths)]
    xs = [torch.randn(n_tokens, D_IN) for _ in widths]
    pairs = list(zip(xs, encoders, strict=True))
    joined = join_layers([encode(x, e, "reference") for x, e in pairs], widths)
    expected = torch.cat([reference.encode_dense(x, e) for x, e in pairs], dim=1)
    assert torch.equal(joined.to_dense(sum(widths)), expected)
    assert joined.features.dtype == torch.int32
    for token in range(n_tokens):
        features = joined.features[joined.indptr[token] : joined.indptr[token + 1]].tolist()
        assert features == sorted(set(features))


def test_layers_that_never_fire_leave_no_gap():
    silent, loud = build_encoder(4, 0, threshold=1e9), build_encoder(4, 1, threshold=0.0)
    x = torch.randn(20, D_IN)
    joined = join_layers([encode(x, silent), encode(x, loud), encode(x, silent)], (4, 4, 4))
    assert set(joined.features.tolist()) <= {4, 5, 6, 7}
    assert joined.indptr[-1] == len(joined.features) > 0


@pytest.mark.parametrize("decode", [reference.decode, gather_decode])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("n_tokens", [0, 1, 63, 257])
def test_decode_is_the_written_out_sum(n_tokens, n_layers, affine, decode):
    width = 6
    generator = torch.Generator().manual_seed(3)
    w_dec = tuple(torch.randn(width, n_layers, D_OUT, generator=generator) for _ in range(n_layers))
    b_dec = torch.randn(n_layers, D_OUT, generator=generator)
    skip = torch.randn(n_layers, D_IN, D_OUT, generator=generator) if affine else None
    xs = torch.randn(n_tokens, n_layers, D_IN, generator=generator)
    encoders = [build_encoder(width, seed) for seed in range(n_layers)]
    codes = join_layers([encode(xs[:, i], e) for i, e in enumerate(encoders)], [width] * n_layers)
    found = decode(codes, DecoderWeights(w_dec, b_dec, skip), xs)
    assert found.shape == (n_tokens, n_layers, D_OUT)
    for layer in range(n_layers):
        expected = b_dec[layer].double().repeat(n_tokens, 1)
        for i, encoder in enumerate(encoders):
            pre = xs[:, i].double() @ encoder.w_enc.double() + encoder.b_enc.double()
            fired = torch.where(pre > encoder.threshold, pre, 0.0)
            expected += fired @ w_dec[i][:, layer].double()
        if skip is not None:
            expected += xs[:, layer].double() @ skip[layer].double()
        # float32 sums of some tens of terms of order 10
        torch.testing.assert_close(found[:, layer].double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("decode", [reference.decode, gather_decode])
def test_an_affine_coder_needs_its_input(decode):
    weights = DecoderWeights((torch.zeros(2, 1, 3),), torch.zeros(1, 3), torch.zeros(1, 4, 3))
    codes = SparseCodes(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int32), torch.empty(0))
    with pytest.raises(InvalidArgumentError, match="give x"):
        decode(codes, weights)


@pytest.mark.parametrize("n_tokens", [0, 1, 63, 200])
def test_feature_major_codes_are_the_columns(n_tokens):
    codes = encode(torch.randn(n_tokens, D_IN), build_encoder(30, 0))
    found, dense = codes.feature_major(30), codes.to_dense(30)
    for feature in range(30):
        mine = slice(int(found.indptr[feature]), int(found.indptr[feature + 1]))
        tokens = dense[:, feature].nonzero().squeeze(1)
        assert torch.equal(found.tokens[mine], tokens)
        assert torch.equal(found.activations[mine], dense[tokens, feature])


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("step", [1, 7, 40])
def test_top_tokens_are_those_of_a_plain_sort(k, step):
    weights = build_encoder(9, 0, threshold=1.0)
    x = torch.randn(40, D_IN).round()  # many ties
    weights = EncoderWeights(weights.w_enc.round(), weights.b_enc.round(), weights.threshold)
    top = reference.TopTokens.none(9, k)
    for start in range(0, 40, step):
        top = top.add(encode(x[start : start + step], weights), start)
    dense = encode(x, weights).to_dense(9)
    for feature in range(9):
        fired = [(-float(dense[t, feature]), t) for t in range(40) if dense[t, feature] > 0]
        wanted = [t for _, t in sorted(fired)][:k]
        assert top.tokens[feature].tolist() == wanted + [-1] * (k - len(wanted))
        values = top.activations[feature, : len(wanted)]
        assert torch.equal(values, dense[wanted, feature])


def test_the_error_is_the_squared_distance():
    y, target = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    found = reference.reconstruction_error(y, target)
    for token in range(5):
        for layer in range(2):
            pairs = zip(y[token, layer].tolist(), target[token, layer].tolist(), strict=True)
            wanted = sum((a - b) ** 2 for a, b in pairs)
            assert float(found[token, layer]) == pytest.approx(wanted, rel=1e-12)


def test_no_features_come_over_as_none():
    codes = streamed.encode(torch.randn(4, D_IN), build_encoder(0, 0), encode)
    assert codes.indptr.tolist() == [0] * 5


@pytest.mark.parametrize("n_tokens", [0, 1, 63])
@pytest.mark.parametrize("slice_bytes", [1, 4 * D_IN * 7, 1 << 20])
def test_weights_that_come_slice_by_slice_give_the_same(n_tokens, slice_bytes):
    x, weights = torch.randn(n_tokens, D_IN), build_encoder(30, 0)
    widths = []

    def one(x, part):
        widths.append(part.width)
        return encode(x, part)

    found, whole = streamed.encode(x, weights, one, slice_bytes), encode(x, weights)
    assert sum(widths) == 30
    assert max(widths) * 4 * D_IN <= max(slice_bytes, 4 * D_IN)
    for name in ("indptr", "features", "activations"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
