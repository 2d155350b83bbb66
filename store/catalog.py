"""What is committed, from the ``files`` table."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    of_corpus = ("corpus", "=", corpus)
    found: set[tuple[str, int]] = set()
    for table, filters in (("files", [("kind", "=", "codes"), of_corpus]), ("merged", [of_corpus])):
        rows = store.read(table, snapshot, ["sae", "shard"], filters)
        found |= set(zip(rows["sae"].to_pylist(), rows["shard"].to_pylist(), strict=True))
    return {(sae, shard) for sae, shard in found if shard is not None}


def shards_of_files(store: LakeStore, snapshot: Snapshot, paths: Sequence[str]) -> set[int]:
    """Return the numbers of the shards whose token-major firings are in these files."""
    found: set[int] = set()
    for table in ("files", "merged"):
        rows = store.read(table, snapshot, ["shard"], [("path", "in", list(paths))])
        found |= set(rows["shard"].drop_null().to_pylist())
    return found


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
