"""Decoding from sparse codes: each token gathers the decoder rows of its firings.

`reference.decode` is the definition; here no [n_tokens, width] array is made.
"""

from __future__ import annotations

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
    token, start = codes.token_index(), 0
    for w_dec in weights.w_dec:
        stop = start + len(w_dec)
        mine = (codes.features >= start) & (codes.features < stop)
        counts = torch.bincount(token[mine], minlength=codes.n_tokens)
        offsets = torch.cumsum(counts, 0) - counts
        rows = embedding_bag(
            codes.features[mine].long() - start, w_dec.flatten(1), offsets, mode="sum",
            per_sample_weights=codes.activations[mine].to(w_dec.dtype),
        )  # fmt: skip
        y += rows.view_as(y)
        start = stop
    if weights.skip is None:
        return y
    if x is None:
        raise InvalidArgumentError(
            "the reconstruction of an affine coder was asked for without its input; give x"
        )
    return y + torch.einsum("tli,lid->tld", x.float(), weights.skip.float())
