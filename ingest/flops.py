"""Arithmetic of a forward pass and of encoding, exactly counted; a product counts two.

What is counted is what the result needs: projections, the gated MLP, and attention to the tokens
that a layer may see. Norms, rotations, the embedding's look-up and padding are left out, and so is
the unembedding, which never runs: the forward stops after the highest layer that is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from scopelake.ingest.shapes import CoderShape, CorpusShape, ModelShape
from scopelake.names import SiteLayer


def layers_run(sites: Iterable[SiteLayer]) -> int:
    """Return how many layers run so that all `sites` are read; 0 without sites."""
    return max((site.layer + 1 for site in sites), default=0)


def forward_flops(model: ModelShape, corpus: CorpusShape, n_layers: int) -> int:
    """Return the FLOPs of the first `n_layers` on every context of a corpus."""
    products = 2 * model.layer_params * corpus.n_tokens * n_layers
    pairs = sum(attended(corpus.lengths, corpus.counts, w) for w in model.windows[:n_layers])
    # Scores and weighted values: two products of a head's width for each pair of tokens.
    return products + 4 * model.attention_width * pairs


def attended(
    lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], window: int | None
) -> int:
    """Return how many pairs of a token and one that it attends to, itself included, there are.

    Args:
        lengths: of contexts.
        counts: how many have each length.
        window: the most tokens that one attends to; None: all before it.
    """
    seen = lengths if window is None else np.minimum(lengths, window)
    pairs = seen * (seen + 1) // 2 + (lengths - seen) * seen
    return int((pairs * counts).sum())


def encode_flops_a_token(coder: CoderShape) -> int:
    """Return the FLOPs of encoding a token at every site that a coder reads."""
    return 2 * coder.d_in * coder.width


def readout_flops(model: ModelShape, coder: CoderShape) -> int:
    """Return the FLOPs of the logits of a coder's features, computed once for each corpus."""
    return 2 * coder.width * model.d_model * model.vocab if coder.has_readout else 0
