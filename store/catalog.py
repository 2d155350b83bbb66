"""What is committed, from the ``files`` table."""

from __future__ import annotations

from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot


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
