"""What a decoder says of each feature: its norm, and the tokens it promotes and suppresses.

Logits are W_U @ (direction * (1 + final_norm.weight)): the direct path to the unembedding with
the final norm's gain and without its division. A feature's direction is what it adds to the
residual stream: its decoder row; for a CLT the sum over the layers that it writes to; for a
crosscoder, which reconstructs the stream itself, the row of the last layer. For ``attn_out``, which
is read before W_O, there is none and the token columns are null.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from scopelake.errors import CoderWarning
from scopelake.ingest.budget import writers
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
TILE_BYTES: Final = 64 << 20
"""Of the logits of so many features at most."""


def readout_need(d_model: int, vocab: int, cores: int | None = None) -> int:
    """Return the bytes that the way to the logits takes, and the logits of coders at once.

    Args:
        d_model: width of the stream.
        vocab: tokens of the model.
        cores: as in `budget.writers`.
    """
    return 4 * d_model * vocab + writers(cores) * TILE_BYTES


def decoder_columns(
    coder: CoderFiles, device: torch.device, readout: torch.Tensor | None
) -> dict[str, pa.Array]:
    """Return the decoder columns of the features table, each [width].

    The decoder is read from its files a slice at a time, once.

    Args:
        coder: the coder.
        device: where it is computed.
        readout: from the stream to logits, [d_model, vocab], on it; without one the columns of
            tokens are null.

    Warns:
        CoderWarning: the rows of an SAE's decoder are not of unit norm, or features of a coder of
            several layers write to layers before their own.

    Raises:
        CoderFileError: a value is not finite.
    """
    norms = np.empty(coder.width, dtype=np.float32)
    n_early = done = 0
    with torch.inference_mode():
        if coder.targets[0].site == "attn_out":
            readout = None
        tokens = None if readout is None else _Tokens.empty(coder.width, readout.shape[1])
        for rows in decoder_rows(coder, device):
            n_early += _count_early(rows, done // coder.features_per_layer)
            norms[done : done + len(rows)] = rows.flatten(1).norm(dim=1).cpu().numpy()
            if readout is not None and tokens is not None:
                tokens.fill(done, direction_of(coder, rows), readout)
            done += len(rows)
    _check_norms(coder, norms)
    _check_causal(coder, n_early)
    fields = {name: SCHEMAS["features"].field(name).type for name in _TOKEN_COLUMNS}
    columns = {
        name: pa.nulls(coder.width, type_) if tokens is None else tokens.column(name).cast(type_)
        for name, type_ in fields.items()
    }
    return {"decoder_norm": pa.array(norms), **columns}


@dataclass(frozen=True)
class _Tokens:
    """The token columns of all features, as flat as they are stored."""

    values: dict[str, npt.NDArray[Any]]
    """By column, [width, k]."""

    @classmethod
    def empty(cls, width: int, n_tokens: int) -> _Tokens:
        k = min(N_TOKENS, n_tokens)
        dtypes = {name: np.int32 if "tokens" in name else np.float32 for name in _TOKEN_COLUMNS}
        return cls({name: np.empty((width, k), dtype) for name, dtype in dtypes.items()})

    def fill(self, first: int, directions: torch.Tensor, readout: torch.Tensor) -> None:
        """Set what features from `first` on promote and suppress, given their directions."""
        k = self.values[_TOKEN_COLUMNS[0]].shape[1]
        step = max(1, min(_TILE, TILE_BYTES // (4 * readout.shape[1])))
        for start in range(0, len(directions), step):
            logits = directions[start : start + step] @ readout
            top = logits.topk(k, dim=1)
            bottom = logits.topk(k, dim=1, largest=False)
            parts = (top.indices, top.values, bottom.indices, bottom.values)
            for name, part in zip(_TOKEN_COLUMNS, parts, strict=True):
                place = slice(first + start, first + start + len(part))
                self.values[name][place] = part.cpu().numpy()

    def column(self, name: str) -> pa.Array:
        """Return a column as lists, one of each feature."""
        values = self.values[name]
        offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
        return pa.ListArray.from_arrays(offsets, values.reshape(-1))


def _check_norms(coder: CoderFiles, norms: npt.NDArray[np.float32]) -> None:
    """Single-layer SAEs were trained with unit decoder rows; of the other types it is not known."""
    if coder.type != "sae":
        return
    odd = norms[np.abs(norms - 1.0) > UNIT_TOLERANCE]
    if len(odd):
        extent = f"{odd.min():.4g} to {odd.max():.4g}"
        warnings.warn(
            f"coder {coder.name} has {len(odd)} of {coder.width} decoder rows whose norm is not 1 "
            f"({extent}); Gemma Scope 2's SAEs have unit rows; check that "
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


def direction_of(coder: CoderFiles, rows: torch.Tensor) -> torch.Tensor:
    """From decoder rows [n, n_out, d_out] to what each adds to the stream [n, d_out]."""
    if coder.type == "crosscoder" or rows.shape[1] == 1:
        return rows[:, -1]
    return rows.sum(dim=1)


def readout_of(model: LoadedModel) -> torch.Tensor:
    """Return the way from the stream to logits, [d_model, vocab], float32."""
    gain = 1.0 + weight_of(model, text_model(model.module).norm)
    return (weight_of(model, model.module.get_output_embeddings()) * gain).T
