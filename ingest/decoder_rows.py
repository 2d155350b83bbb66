"""What a decoder says of each feature: its norm, and the tokens it promotes and suppresses.

Logits are W_U @ (direction * (1 + final_norm.weight)): the direct path to the unembedding with
the final norm's gain and without its division. A feature's direction is what it adds to the
residual stream: its decoder row; for a CLT the sum over the layers that it writes to; for a
crosscoder, which reconstructs the stream itself, the row of the last layer. For ``attn_out``, which
is read before W_O, there is none and the token columns are null.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import pyarrow as pa
import torch

from scopelake.errors import CoderWarning
from scopelake.ingest.capture import text_model
from scopelake.ingest.coder_weights import decoder_rows
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import LoadedModel, weight_of
from scopelake.store.schema import SCHEMAS

N_TOKENS: Final = 10
UNIT_TOLERANCE: Final = 0.01
EARLY_SHARE: Final = 0.01
"""Of a row's norm, at layers before its encoder's."""
_TOKEN_COLUMNS: Final = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
_TILE: Final = 1024


def decoder_columns(coder: CoderFiles, model: LoadedModel) -> dict[str, pa.Array]:
    """Return the decoder columns of the features table, each [width].

    The decoder is read from its files a slice at a time, once.

    Warns:
        CoderWarning: the rows of an SAE's decoder are not of unit norm, or features of a coder of
            several layers write to layers before their own.

    Raises:
        CoderFileError: a value is not finite.
    """
    norms: list[float] = []
    n_early = 0
    tokens: tuple[list[Any], ...] = ([], [], [], [])
    with torch.inference_mode():
        readout = None if coder.targets[0].site == "attn_out" else _readout(model)
        for rows in decoder_rows(coder, model.device):
            n_early += _count_early(rows, len(norms) // coder.features_per_layer)
            norms += rows.flatten(1).norm(dim=1).tolist()
            if readout is not None:
                _add_tokens(tokens, _direction(coder, rows), readout)
    _check_norms(coder, norms)
    _check_causal(coder, n_early)
    schema = SCHEMAS["features"]
    columns = {
        name: pa.array(values or [None] * coder.width, schema.field(name).type)
        for name, values in zip(_TOKEN_COLUMNS, tokens, strict=True)
    }
    return {"decoder_norm": pa.array(norms, pa.float32()), **columns}


def _check_norms(coder: CoderFiles, norms: list[float]) -> None:
    """Single-layer SAEs were trained with unit decoder rows; of the other types it is not known."""
    if coder.type != "sae":
        return
    odd = [norm for norm in norms if abs(norm - 1.0) > UNIT_TOLERANCE]
    if odd:
        warnings.warn(
            f"coder {coder.name} has {len(odd)} of {coder.width} decoder rows whose norm is not 1 "
            f"({min(odd):.4g} to {max(odd):.4g}); Gemma Scope 2's SAEs have unit rows; check that "
            "its file is whole and not rescaled",
            CoderWarning,
            stacklevel=2,
        )


def _count_early(rows: torch.Tensor, encoder: int) -> int:
    """Count features of an encoder with a share of their rows at layers before it."""
    early = rows[:, :encoder].flatten(1).norm(dim=1)
    return int((early > EARLY_SHARE * rows.flatten(1).norm(dim=1)).sum())


def _check_causal(coder: CoderFiles, n_early: int) -> None:
    """Decoders are stored over all layers; were they stored relative to the encoder's, it shows."""
    if n_early:
        warnings.warn(
            f"coder {coder.name} has {n_early} of {coder.width} features that write to layers "
            "before the one that they read; in Gemma Scope 2's their decoder is zero there; check "
            "that its files are whole and in order",
            CoderWarning,
            stacklevel=2,
        )


def _direction(coder: CoderFiles, rows: torch.Tensor) -> torch.Tensor:
    """From decoder rows [n, n_out, d_model] to what each adds to the stream [n, d_model]."""
    return rows[:, -1] if coder.type == "crosscoder" else rows.sum(dim=1)


def _readout(model: LoadedModel) -> torch.Tensor:
    """From the stream to logits, [d_model, vocab], float32."""
    gain = 1.0 + weight_of(model, text_model(model.module).norm)
    return (weight_of(model, model.module.get_output_embeddings()) * gain).T


def _add_tokens(
    columns: tuple[list[Any], ...], directions: torch.Tensor, readout: torch.Tensor
) -> None:
    k = min(N_TOKENS, readout.shape[1])
    for start in range(0, len(directions), _TILE):
        logits = directions[start : start + _TILE] @ readout
        top = logits.topk(k, dim=1)
        bottom = logits.topk(k, dim=1, largest=False)
        parts = (top.indices, top.values, bottom.indices, bottom.values)
        for column, part in zip(columns, parts, strict=True):
            column.extend(part.tolist())
