"""The tensors of a coder, and the sparse result of encoding with it.

A coder has one encoder for each layer that it reads (one in all but crosscoders and CLTs). Its
features form one index space: those of the first encoder, then those of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HalfWeights:
    """An encoder in bfloat16, and how far it is from the true one."""

    w_enc: torch.Tensor
    """[d_in, width] bfloat16"""
    error: torch.Tensor
    """[width] float32: Euclidean norm of what rounding took from each feature's direction."""
    norm: torch.Tensor
    """[width] float32: of the rounded direction."""

    def take(self, features: torch.Tensor) -> HalfWeights:
        """Return some features of it."""
        return HalfWeights(self.w_enc[:, features], self.error[features], self.norm[features])


@dataclass(frozen=True)
class EncoderWeights:
    """The encoder of one layer, in Gemma Scope 2's orientation."""

    w_enc: torch.Tensor
    """[d_in, width]; column i is the encoder direction of feature i."""
    b_enc: torch.Tensor
    """[width]"""
    threshold: torch.Tensor
    """[width], at least 0; feature i fires where its pre-activation is strictly above it."""
    half: HalfWeights | None = None
    """What `kernels.encode.prepare` makes of it where a GPU encodes."""

    @property
    def d_in(self) -> int:
        """Width of the tensor that is encoded."""
        return int(self.w_enc.shape[0])

    @property
    def width(self) -> int:
        """Number of features of this encoder."""
        return int(self.w_enc.shape[1])

    def to(self, device: torch.device | str) -> EncoderWeights:
        """Return the same weights on `device`."""
        return EncoderWeights(
            self.w_enc.to(device), self.b_enc.to(device), self.threshold.to(device)
        )


@dataclass(frozen=True)
class Operands:
    """What is encoded at a time, checked."""

    x: torch.Tensor
    """[n_tokens, d_in], any float dtype, finite."""
    weights: EncoderWeights
    features: torch.Tensor | None = None
    """Those to encode with, int64, ascending; None for all."""


@dataclass(frozen=True)
class DecoderWeights:
    """The decoder of a coder: from all its features to each layer that it writes to."""

    w_dec: tuple[torch.Tensor, ...]
    """For each encoder [features of the encoder, n_out, d_out]; n_out is 1 in single-layer coders.
    A CLT's and a crosscoder's entries for layers below the encoder's are zero."""
    b_dec: torch.Tensor
    """[n_out, d_out]"""
    skip: torch.Tensor | None = None
    """[n_out, d_in, d_out], the untransposed affine connection from each layer's own input."""


@dataclass(frozen=True)
class SparseCodes:
    """Firings of n tokens as CSR over tokens; features ascend within a token."""

    indptr: torch.Tensor
    """[n_tokens + 1], int64; the firings of token t are [indptr[t], indptr[t + 1])."""
    features: torch.Tensor
    """[n_firings], int32"""
    activations: torch.Tensor
    """[n_firings], float32, each above its feature's threshold."""

    @property
    def n_tokens(self) -> int:
        """Number of encoded tokens."""
        return len(self.indptr) - 1

    def token_index(self) -> torch.Tensor:
        """Return the token of each firing, int64 [n_firings]."""
        counts = torch.diff(self.indptr)
        return torch.repeat_interleave(torch.arange(self.n_tokens, device=counts.device), counts)

    def feature_major(self, width: int) -> FeatureMajorCodes:
        """Return the same firings feature after feature.

        Args:
            width: number of features.
        """
        order = torch.argsort(self.features, stable=True)
        indptr = torch.zeros(width + 1, dtype=torch.int64, device=self.features.device)
        torch.cumsum(torch.bincount(self.features, minlength=width), 0, out=indptr[1:])
        return FeatureMajorCodes(indptr, self.token_index()[order], self.activations[order])

    def to_dense(self, width: int) -> torch.Tensor:
        """Return the dense codes [n_tokens, width], float32."""
        dense = torch.zeros(self.n_tokens, width, device=self.activations.device)
        dense[self.token_index(), self.features.long()] = self.activations
        return dense


@dataclass(frozen=True)
class FeatureMajorCodes:
    """Firings as CSR over features; tokens ascend within a feature."""

    indptr: torch.Tensor
    """[width + 1], int64; the firings of feature f are [indptr[f], indptr[f + 1])."""
    tokens: torch.Tensor
    """[n_firings], int64"""
    activations: torch.Tensor
    """[n_firings], float32"""


def join_layers(codes: Sequence[SparseCodes], widths: Sequence[int]) -> SparseCodes:
    """Return the codes of several encoders on the same tokens as codes of one coder.

    Args:
        codes: of each encoder, features counted from 0 in each; at least one.
        widths: number of features of each encoder.
    """
    if len(codes) == 1:
        return codes[0]
    offsets = torch.tensor([0, *widths[:-1]]).cumsum(0).tolist()
    token = torch.cat([c.token_index() for c in codes])
    features = torch.cat([c.features + o for c, o in zip(codes, offsets, strict=True)])
    # Encoder by encoder their features ascend already, so a stable sort by token suffices.
    order = torch.argsort(token, stable=True)
    indptr = torch.stack([c.indptr for c in codes]).sum(dim=0)
    activations = torch.cat([c.activations for c in codes])
    return SparseCodes(indptr, features[order].to(torch.int32), activations[order])
