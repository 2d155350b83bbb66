"""The definition of encoding and decoding, in plain torch float32.

    pre = x @ w_enc + b_enc
    f   = pre where pre > threshold, else 0          (strict; the value is passed unchanged)
    y_l = sum over encoders i of f_i @ w_dec_i[:, l] + b_dec_l (+ x_l @ skip_l, untransposed)

The input is neither normalised nor shifted by b_dec: Gemma Scope 2 folded both into its weights.
Everything faster in this package is compared with these functions.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    pre = pre_activations(x, weights)
    fires = pre > weights.threshold
    if features is not None:
        is_wanted = torch.zeros(weights.width, dtype=torch.bool, device=x.device)
        is_wanted[features.long()] = True
        fires &= is_wanted
    indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(fires.sum(dim=1), dim=0, out=indptr[1:])
    token, feature = torch.nonzero(fires, as_tuple=True)
    return SparseCodes(indptr, feature.to(torch.int32), pre[token, feature])


def encode_dense(x: torch.Tensor, weights: EncoderWeights) -> torch.Tensor:
    """Encode `x` [n_tokens, d_in] to dense codes [n_tokens, width], float32."""
    pre = pre_activations(x, weights)
    return torch.where(pre > weights.threshold, pre, torch.zeros_like(pre))


def pre_activations(x: torch.Tensor, weights: EncoderWeights) -> torch.Tensor:
    """Return the pre-activations of `x` [n_tokens, d_in]: [n_tokens, width], float32."""
    return x.float() @ weights.w_enc.float() + weights.b_enc.float()


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


def reconstruction_error(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each token [n_tokens, n_out], float64.

    Args:
        y: reconstruction [n_tokens, n_out, d_out].
        target: what it should be, of the same shape.
    """
    return (target.double() - y.double()).square().sum(dim=-1)


@dataclass(frozen=True)
class TopTokens:
    """Each feature's strongest tokens so far, the strongest first; ties: the earliest first."""

    activations: torch.Tensor
    """[width, k] float32; -inf where a feature has fired fewer times."""
    tokens: torch.Tensor
    """[width, k] int64; -1 there."""

    @classmethod
    def none(cls, width: int, k: int) -> TopTokens:
        """Return those of no tokens."""
        shape = (width, k)
        return cls(torch.full(shape, -torch.inf), torch.full(shape, -1))

    def add(self, codes: SparseCodes, first_token: int) -> TopTokens:
        """Return those of the tokens so far and some more.

        Args:
            codes: of the next tokens.
            first_token: what the first of them is called; tokens come in ascending order.
        """
        width, k = self.activations.shape
        dense = codes.to_dense(width).T
        dense = torch.where(dense > 0, dense, torch.full_like(dense, -torch.inf))
        names = torch.arange(codes.n_tokens) + first_token
        values = torch.cat([self.activations, dense], dim=1)
        tokens = torch.cat([self.tokens, names.expand(width, -1)], dim=1)
        order = torch.argsort(values, dim=1, descending=True, stable=True)[:, :k]
        values, tokens = values.gather(1, order), tokens.gather(1, order)
        return TopTokens(values, torch.where(values > 0, tokens, torch.full_like(tokens, -1)))
