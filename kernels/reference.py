"""The definition of encoding and decoding, in plain torch float32.

    pre = x @ w_enc + b_enc
    f   = pre where pre > threshold, else 0          (strict; the value is passed unchanged)
    y_l = sum over encoders i of f_i @ w_dec_i[:, l] + b_dec_l (+ x_l @ skip_l, untransposed)

The input is neither normalised nor shifted by b_dec: Gemma Scope 2 folded both into its weights.
Everything faster in this package is compared with these functions.
"""

from __future__ import annotations

import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels.weights import DecoderWeights, EncoderWeights, SparseCodes


def encode(
    x: torch.Tensor, weights: EncoderWeights, features: torch.Tensor | None = None
) -> SparseCodes:
    """Encode `x` [n_tokens, d_in] to its firings; memory grows with n_tokens times width.

    Args:
        x: finite activations, any float dtype, on the device of `weights`.
        weights: the coder.
        features: those to encode with, ascending; None for all.
    """
    codes = encode_dense(x, weights)
    if features is not None:
        is_wanted = torch.zeros(weights.width, dtype=torch.bool, device=x.device)
        is_wanted[features.long()] = True
        codes = codes * is_wanted
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum((codes > 0).sum(dim=1), dim=0, out=indptr[1:])
    token, feature = torch.nonzero(codes, as_tuple=True)
    return SparseCodes(indptr, feature.to(torch.int32), codes[token, feature])


def encode_dense(x: torch.Tensor, weights: EncoderWeights) -> torch.Tensor:
    """Encode `x` [n_tokens, d_in] to dense codes [n_tokens, width], float32."""
    pre = x.float() @ weights.w_enc.float() + weights.b_enc.float()
    return torch.where(pre > weights.threshold, torch.relu(pre), torch.zeros_like(pre))


def decode(
    codes: SparseCodes, weights: DecoderWeights, x: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the reconstruction [n_tokens, n_out, d_out], float32.

    Args:
        codes: over the coder's whole index space.
        weights: its decoder.
        x: [n_tokens, n_out, d_in], what each layer's skip reads; needed by affine coders only.

    Raises:
        InvalidArgumentError: an affine coder was given no `x`.
    """
    y = weights.b_dec.expand(codes.n_tokens, *weights.b_dec.shape).clone()
    dense = codes.to_dense(sum(len(w) for w in weights.w_dec))
    start = 0
    for w_dec in weights.w_dec:
        part = dense[:, start : start + len(w_dec)]
        y += torch.einsum("tf,fld->tld", part, w_dec)
        start += len(w_dec)
    if weights.skip is None:
        return y
    if x is None:
        raise InvalidArgumentError(
            "the reconstruction of an affine coder was asked for without its input; give x"
        )
    return y + torch.einsum("tli,lid->tld", x.float(), weights.skip)
