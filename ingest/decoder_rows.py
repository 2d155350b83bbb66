"""What a decoder says of each feature: its norm, and the tokens it promotes and suppresses.

Logits are W_U @ (w_dec * (1 + final_norm.weight)): the direct path to the unembedding with the
final norm's gain and without its division. They exist where a decoder writes into the residual
stream (``resid_post``, ``mlp_out``, transcoders); for ``attn_out``, which is read before W_O, the
token columns are null.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from scopelake.ingest.capture import text_model
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import LoadedModel
from scopelake.kernels.weights import CoderWeights
from scopelake.store.schema import SCHEMAS

N_TOKENS = 10
_TILE = 1024


def decoder_columns(
    coder: CoderFiles, weights: CoderWeights, model: LoadedModel
) -> dict[str, pa.Array]:
    """Return the decoder columns of the features table, each [width]."""
    norms = weights.w_dec.norm(dim=1).cpu().numpy()
    schema = SCHEMAS["features"]
    names = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
    if coder.site.site == "attn_out":
        columns: dict[str, Any] = {n: pa.nulls(coder.width, schema.field(n).type) for n in names}
    else:
        values = _logits(weights, model)
        columns = {n: pa.array(v, schema.field(n).type) for n, v in zip(names, values, strict=True)}
    return {"decoder_norm": pa.array(norms, pa.float32()), **columns}


def _logits(weights: CoderWeights, model: LoadedModel) -> tuple[list[Any], ...]:
    unembedding = model.module.get_output_embeddings().weight.float()  # [vocab, d_model]
    gain = 1.0 + text_model(model.module).norm.weight.float()
    k = min(N_TOKENS, len(unembedding))
    out: tuple[list[Any], ...] = ([], [], [], [])
    with torch.inference_mode():
        for start in range(0, weights.width, _TILE):
            logits = (weights.w_dec[start : start + _TILE] * gain) @ unembedding.T
            top = logits.topk(k, dim=1)
            bottom = logits.topk(k, dim=1, largest=False)
            parts = (top.indices, top.values, bottom.indices, bottom.values)
            for column, part in zip(out, parts, strict=True):
                column.extend(part.tolist())
    return out
