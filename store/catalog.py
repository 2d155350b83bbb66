"""What is committed, from the ``files`` table."""

from __future__ import annotations

import json
from typing import Final

from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

IMPORTED: Final = "imported"
"""State of a run that brought published examples in; its config has their ``depth``."""


def published_examples(store: LakeStore, snapshot: Snapshot) -> dict[tuple[str, str], int]:
    """Return, by (sae, corpus) of which only published examples are known, their depth.

    The depth is the most firings of a feature that the publisher gives.
    """
    columns = ["saes", "corpus", "config"]
    rows = store.read("runs", snapshot, columns, [("state", "=", IMPORTED)]).to_pylist()
    return {
        (sae, row["corpus"]): int(json.loads(row["config"])["depth"])
        for row in rows
        for sae in row["saes"]
    }


def committed_shards(store: LakeStore, snapshot: Snapshot, corpus: str) -> set[tuple[str, int]]:
    """Return (sae, shard) of every shard of `corpus` whose firings are in the lake."""
    rows = store.read(
        "files", snapshot, ["sae", "shard"], [("kind", "=", "codes"), ("corpus", "=", corpus)]
    )
    return set(zip(rows["sae"].to_pylist(), rows["shard"].to_pylist(), strict=True))


def committed_dense_shards(
    store: LakeStore, snapshot: Snapshot, corpus: str, model: str
) -> set[tuple[str, int, int]]:
    """Return (site, layer, shard) of every dense shard of `corpus` and `model` in the lake."""
    rows = store.read(
        "files",
        snapshot,
        ["site", "layer", "shard"],
        [("kind", "=", "dense"), ("corpus", "=", corpus), ("model", "=", model)],
    )
    columns = (rows[name].to_pylist() for name in ("site", "layer", "shard"))
    return set(zip(*columns, strict=True))
