"""What coders miss of a prompt: how far each reconstruction is from what it should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from scopelake.ingest.activations import Activations, LiveActivations, ShardTokens
from scopelake.ingest.coder_weights import load_decoder_rows
from scopelake.ingest.coders import CoderFiles
from scopelake.kernels.decode import decode
from scopelake.kernels.reference import reconstruction_error
from scopelake.kernels.weights import SparseCodes
from scopelake.names import KIND_BOS, SiteLayer

ERRORS: Final = pa.schema(
    [
        ("sae", pa.string()),
        ("layer", pa.int32()),
        ("site", pa.string()),
        ("position", pa.int32()),
        ("unexplained", pa.float64()),
        ("error", pa.float64()),
        ("norm", pa.float64()),
    ]
)
"""A row for each token but BOS, of each coder and each place that it writes to:

- ``error`` ||t - y||, of the target t (what the coder reconstructs; a transcoder's is the MLP's
  output, not what it reads) and the reconstruction y of the stored firings, a skip included;
- ``norm`` ||t||;
- ``unexplained`` ||t - y||^2 / ||t - b||^2, b what the decoder writes where nothing fires (b_dec):
  0 is a perfect reconstruction, 1 one that is no better than no firing at all; null where t is b.
"""


TOKENS_AT_ONCE: Final = 1024
"""Reconstructed together: of a CLT each is a vector for every layer."""


@dataclass(frozen=True)
class RecordedActivations(LiveActivations):
    """Those of a model that runs, kept for one prompt, with those that coders write to."""

    targets: tuple[SiteLayer, ...] = ()
    """Read besides what is asked for."""
    seen: dict[SiteLayer, torch.Tensor] = field(default_factory=dict)
    """By site [n_tokens, width], of the prompt that came last."""

    def token_bytes(self, sites: Sequence[SiteLayer]) -> int:
        """Return what a token of all that is read takes."""
        return super().token_bytes(sorted({*sites, *self.targets}, key=str))

    def batches(
        self, tokens: ShardTokens, groups: Sequence[list[int]], sites: Sequence[SiteLayer]
    ) -> Iterator[Activations]:
        """Yield what each forward pass gives; of a prompt there is one."""
        everything = sorted({*sites, *self.targets}, key=str)
        for found in super().batches(tokens, groups, everything):
            self.seen.update(found)
            yield found


def prompt_errors(
    coders: Sequence[CoderFiles],
    seen: Activations,
    firings: pa.Table,
    kinds: npt.NDArray[np.int8],
) -> pa.Table:
    """Return the rows of ERRORS, coder by coder, place by place, by position.

    Args:
        coders: what encoded the prompt.
        seen: by site [n_tokens, width]; every site that they read with a skip or write to.
        firings: sae, position, feature, activation: of all coders.
        kinds: of the tokens, [n_tokens].

    Raises:
        CoderFileError: a value of a decoder is not finite.
    """
    tables = [ERRORS.empty_table()]
    counted = np.flatnonzero(kinds != KIND_BOS)
    sae = firings["sae"].to_numpy(zero_copy_only=False)
    columns = {name: firings[name].to_numpy() for name in ("position", "feature", "activation")}
    for coder in coders:
        own = {name: values[sae == coder.name] for name, values in columns.items()}
        squares, variation, norms = (v.cpu().numpy() for v in _errors(coder, seen, own, len(kinds)))
        for i, target in enumerate(coder.targets):
            rest, of = squares[counted, i], variation[counted, i]
            tables.append(
                pa.table(
                    {
                        "sae": pa.array([coder.name] * len(counted), pa.string()),
                        "layer": pa.array([target.layer] * len(counted), pa.int32()),
                        "site": pa.array([target.site] * len(counted), pa.string()),
                        "position": pa.array(counted, pa.int32()),
                        "unexplained": pa.array(rest / np.where(of > 0, of, 1), mask=of <= 0),
                        "error": np.sqrt(rest),
                        "norm": norms[counted, i],
                    }
                )
            )
    return pa.concat_tables(tables).combine_chunks()


def _errors(
    coder: CoderFiles,
    seen: Activations,
    firings: Mapping[str, npt.NDArray[Any]],
    n_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return squared error, squared distance from b_dec and norm, each [n_tokens, n_out]."""
    if n_tokens <= TOKENS_AT_ONCE:
        return _errors_between(coder, seen, firings, 0, n_tokens)
    parts = []
    for start in range(0, n_tokens, TOKENS_AT_ONCE):
        stop = min(start + TOKENS_AT_ONCE, n_tokens)
        within = (firings["position"] >= start) & (firings["position"] < stop)
        own = {name: values[within] for name, values in firings.items()}
        parts.append(_errors_between(coder, seen, own, start, stop))
    squares, variation, norms = (torch.cat(part) for part in zip(*parts, strict=True))
    return squares, variation, norms


def _errors_between(
    coder: CoderFiles,
    seen: Activations,
    firings: Mapping[str, npt.NDArray[Any]],
    start: int,
    stop: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `_errors` does, of tokens [start, stop) and their firings."""
    target = torch.stack([seen[site][start:stop].float() for site in coder.targets], dim=1)
    device, position = target.device, firings["position"].astype(np.int64) - start
    features, index = np.unique(firings["feature"].astype(np.int64), return_inverse=True)
    order = np.lexsort((index, position))
    counts = np.bincount(position, minlength=stop - start)
    codes = SparseCodes(
        torch.from_numpy(np.append(0, np.cumsum(counts))).to(device),
        torch.from_numpy(index[order].astype(np.int32)).to(device),
        torch.from_numpy(firings["activation"][order].astype(np.float32)).to(device),
    )
    with torch.inference_mode():
        weights = load_decoder_rows(coder, features, device)
        x = None
        if coder.affine:
            x = torch.stack([seen[site][start:stop].float() for site in coder.sites], dim=1)
        y = decode(codes, weights, x)
        silent = weights.b_dec.expand_as(target)
        return (
            reconstruction_error(y, target),
            reconstruction_error(silent, target),
            target.double().norm(dim=-1),
        )
