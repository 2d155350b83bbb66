"""What a lake has of coders' weights already: their columns of the features of another corpus.

They follow from the weights and the model alone, and cost, for wide coders, more than a prompt: the
decoder times the whole unembedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa

from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import ModelIdentity
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_COLUMNS: Final = (
    "decoder_norm", "top_tokens", "top_logits", "bottom_tokens", "bottom_logits", "encoder_norm",
)  # fmt: skip


def stored_weight_columns(
    store: LakeStore, snapshot: Snapshot, coders: Sequence[CoderFiles], model: ModelIdentity
) -> Iterator[tuple[str, Mapping[str, pa.Array]]]:
    """Yield names and `weight_columns` of those coders of which the lake has all of them.

    Args:
        store: the lake; its coders and its model of these names are these.
        snapshot: what of it is read.
        coders: those asked for.
        model: whose unembedding, in which precision, gave the columns of tokens.
    """
    filters = [("model", "=", model.name), ("dtype", "=", model.dtype)]
    runs = store.read("runs", snapshot, ["corpus", "saes"], filters).to_pylist()
    ran = {(sae, run["corpus"]) for run in runs for sae in run["saes"]}
    corpora: dict[str, str] = {}
    for file in store.data_files("features", snapshot):
        sae, corpus = file.partition["sae"], file.partition["corpus"]
        if (sae, corpus) in ran:
            corpora.setdefault(sae, corpus)
    for coder in coders:
        if coder.name not in corpora:
            continue
        of = [("sae", "=", coder.name), ("corpus", "=", corpora[coder.name])]
        rows = store.read("features", snapshot, ["feature", *_COLUMNS], of).sort_by("feature")
        columns = {name: rows[name].combine_chunks() for name in _COLUMNS}
        if rows.num_rows == coder.width and _are_whole(columns, coder):
            yield coder.name, columns


def _are_whole(columns: Mapping[str, pa.Array], coder: CoderFiles) -> bool:
    """Whether nothing is null but what always is: the tokens of what is read before W_O."""
    has_none = coder.targets[0].site == "attn_out"
    return all(
        column.null_count == (len(column) if has_none and "norm" not in name else 0)
        for name, column in columns.items()
    )
