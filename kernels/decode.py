"""Decoding from sparse codes: each token gathers the decoder rows of its firings.

`reference.decode` is the definition; here no [n_tokens, width] array is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import embedding_bag

from scopelake.errors import InvalidArgumentError
from scopelake.kernels.weights import DecoderWeights, SparseCodes


def decode(
    codes: SparseCodes, weights: DecoderWeights, x: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the reconstruction [n_tokens, n_out, d_out], float32.

    Args:
        codes: over the coder's whole index space.
        weights: its decoder, on the device of `codes`.
        x: [n_tokens, n_out, d_in], what each layer's skip reads; needed by affine coders only.

    Raises:
        InvalidArgumentError: an affine coder was given no `x`.
    """
    y = weights.b_dec.float().expand(codes.n_tokens, *weights.b_dec.shape).clone()
    for w_dec, part in zip(weights.w_dec, _parts(codes, weights), strict=True):
        rows = embedding_bag(
            part.features.long(), w_dec.flatten(1), part.indptr[:-1], mode="sum",
            per_sample_weights=part.activations.to(w_dec.dtype),
        )  # fmt: skip
        y += rows.view_as(y)
    if weights.skip is None:
        return y
    if x is None:
        raise InvalidArgumentError(
            "the reconstruction of an affine coder was asked for without its input; give x"
        )
    return y + torch.einsum("tli,lid->tld", x.float(), weights.skip.float())


def _parts(codes: SparseCodes, weights: DecoderWeights) -> Iterator[SparseCodes]:
    """Yield the firings of each part of the decoder, features counted from its first."""
    if len(weights.w_dec) == 1:
        yield codes
        return
    token, start = codes.token_index(), 0
    for w_dec in weights.w_dec:
        stop = start + len(w_dec)
        mine = (codes.features >= start) & (codes.features < stop)
        indptr = torch.zeros_like(codes.indptr)
        counts = torch.bincount(token[mine], minlength=codes.n_tokens)
        torch.cumsum(counts, 0, out=indptr[1:])
        yield SparseCodes(indptr, codes.features[mine] - start, codes.activations[mine])
        start = stop
