"""The tensors of a coder, and the sparse result of encoding with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CoderWeights:
    """Weights of one single-layer SAE or transcoder, float32, in Gemma Scope 2's orientation."""

    w_enc: torch.Tensor
    """[d_in, d_sae]; column i is the encoder direction of feature i."""
    b_enc: torch.Tensor
    """[d_sae]"""
    threshold: torch.Tensor
    """[d_sae], at least 0; feature i fires where its pre-activation is strictly above it."""
    w_dec: torch.Tensor
    """[d_sae, d_out]; row i is the decoder direction of feature i."""
    b_dec: torch.Tensor
    """[d_out]"""
    skip: torch.Tensor | None = None
    """[d_in, d_out], the untransposed affine connection of an affine transcoder, else None."""

    @property
    def d_in(self) -> int:
        """Width of the tensor that is encoded."""
        return int(self.w_enc.shape[0])

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.w_enc.shape[1])

    @property
    def d_out(self) -> int:
        """Width of the tensor that is reconstructed."""
        return int(self.w_dec.shape[1])

    def to(self, device: torch.device | str) -> CoderWeights:
        """Return the same weights on `device`."""
        return CoderWeights(
            self.w_enc.to(device),
            self.b_enc.to(device),
            self.threshold.to(device),
            self.w_dec.to(device),
            self.b_dec.to(device),
            None if self.skip is None else self.skip.to(device),
        )


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

    def to_dense(self, width: int) -> torch.Tensor:
        """Return the dense codes [n_tokens, width], float32."""
        dense = torch.zeros(self.n_tokens, width, device=self.activations.device)
        dense[self.token_index(), self.features.long()] = self.activations
        return dense
