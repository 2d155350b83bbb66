"""The definition of encoding and decoding, in plain torch float32.

    pre = x @ w_enc + b_enc
    f   = pre where pre > threshold, else 0          (strict; the value is passed unchanged)
    y   = f @ w_dec + b_dec (+ x @ skip)             (skip untransposed)

The input is neither normalised nor shifted by b_dec: Gemma Scope 2 folded both into its weights.
Everything faster in this package is compared with these functions.
"""

from __future__ import annotations

import torch

from scopelake.kernels.weights import CoderWeights, SparseCodes


def encode(x: torch.Tensor, weights: CoderWeights) -> SparseCodes:
    """Encode `x` [n_tokens, d_in] to its firings; memory grows with n_tokens times width."""
    codes = encode_dense(x, weights)
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum((codes > 0).sum(dim=1), dim=0, out=indptr[1:])
    token, feature = torch.nonzero(codes, as_tuple=True)
    return SparseCodes(indptr, feature.to(torch.int32), codes[token, feature])


def encode_dense(x: torch.Tensor, weights: CoderWeights) -> torch.Tensor:
    """Encode `x` [n_tokens, d_in] to dense codes [n_tokens, width], float32."""
    pre = x.float() @ weights.w_enc + weights.b_enc
    return torch.where(pre > weights.threshold, torch.relu(pre), torch.zeros_like(pre))


def decode(codes: SparseCodes, weights: CoderWeights, x: torch.Tensor) -> torch.Tensor:
    """Return the reconstruction [n_tokens, d_out]; `x` [n_tokens, d_in] feeds the affine skip."""
    y = codes.to_dense(weights.width) @ weights.w_dec + weights.b_dec
    return y if weights.skip is None else y + x.float() @ weights.skip
