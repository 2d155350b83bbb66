"""Distinct documents, where contexts are packed or documents are cut into many."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scopelake.query.connect import connect
from scopelake.query.contexts import top_contexts
from scopelake.query.rank_contexts import Ranking
from scopelake.query.resolve import list_saes
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.running import Running
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts, write_firings

LENGTH = 4


def make(
    path,
    documents: list[list[tuple[int, str]]],
    activations: dict[tuple[int, int], float],
    shard_contexts: int = 1000,
):
    """A lake of contexts of 4 tokens, by the first positions of their documents."""
    store = LakeStore.create(path)
    rows = [
        {
            "corpus": "c", "context": i, "document": of[0][1], "document_index": 0, "part": 0,
            "text": "abcd", "n_tokens": LENGTH, "token_ids": [0] * 4, "token_starts": [0, 1, 2, 3],
            "roles": [0] * 4, "turns": [0] * 4, "kinds": [0] * 4, "metadata": "{}",
            "documents": [{"position": p, "document": d} for p, d in of] if len(of) > 1 else None,
        }
        for i, of in enumerate(documents)
    ]  # fmt: skip
    keys = sorted(activations)
    firings = Firings(
        np.array([c for c, _ in keys], np.int64), np.array([p for _, p in keys], np.int32),
        np.zeros(len(keys), np.int32), np.array([activations[k] for k in keys], np.float32),
        np.zeros(len(keys), np.int8),
    )  # fmt: skip
    sae = {"sae": "s", "site": "resid_post", "layer": 0, "layers": [0], "width": 1,
           "features_per_layer": 1}  # fmt: skip
    corpus = {"corpus": "c", "n_contexts": len(rows), "shard_contexts": shard_contexts,
              "context_ends": [len(rows)], "packing": any(len(of) > 1 for of in documents),
              }  # fmt: skip
    with Writer(store) as writer:
        table = pa.Table.from_pylist(rows, SCHEMAS["contexts"])
        receipts = write_contexts(store.root, table, "c", "r")
        running = Running(1)
        for shard in range(-(-len(rows) // shard_contexts)):
            of_shard = firings.take(firings.context // shard_contexts == shard)
            receipts += write_firings(
                store.root, of_shard, sae="s", corpus="c", shard=shard, run="r", bits=23,
                running=running,
            )  # fmt: skip
            running.accept(shard)
        catalogue = {
            "saes": pa.Table.from_pylist([sae], SCHEMAS["saes"]),
            "corpora": pa.Table.from_pylist([corpus], SCHEMAS["corpora"]),
        }
        writer.commit(receipts, transaction="all", reason="all", rows=catalogue)
    return store


def ask(store, **asked):
    (sae,) = list_saes(store, store.snapshot())
    connection = connect(store, store.snapshot())
    return top_contexts(connection, Ranking(sae, 0, distinct=True, **asked)).table


@pytest.mark.parametrize("where", [None, "true"])
def test_every_document_of_a_packed_context_counts(tmp_path, where):
    documents = [[(0, "a"), (2, "b")], [(0, "a")], [(0, "b"), (1, "c")]]
    activations = {(0, 0): 9.0, (0, 3): 2.0, (1, 1): 5.0, (2, 0): 3.0, (2, 2): 3.0}
    store = make(tmp_path / "lake", documents, activations)
    found = ask(store, where=where)
    assert found["document"].to_pylist() == ["a", "b", "c"]
    assert found["value"].to_pylist() == [9.0, 3.0, 3.0]
    assert found["context"].to_pylist() == [0, 2, 2]
    assert found["position"].to_pylist() == [0, 0, 2]


@pytest.mark.parametrize("where", [None, "true"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_more_documents_than_peaks_have(tmp_path, k, where):
    # The 300 strongest contexts are of one document, beyond the depth of peaks.
    documents = [[(0, "long")]] * 300 + [[(0, "x")], [(0, "y")]]
    activations = {(i, 1): 1000.0 - i for i in range(302)}
    store = make(tmp_path / "lake", documents, activations)
    found = ask(store, k=k, where=where)
    assert found["document"].to_pylist() == ["long", "x", "y"][:k]
    assert found["context"].to_pylist() == [0, 300, 301][:k]


@pytest.mark.parametrize("where", [None, "true"])
def test_documents_beyond_what_peaks_of_several_files_hold(tmp_path, where):
    # Shards of 300 contexts; peaks of each have 256, and look back at what is stronger.
    names = ["a"] * 150 + ["b"] * 150 + ["c"] * 150 + ["d"] * 148 + ["e", "f"]
    levels = {"a": 100.0, "b": 1.0, "c": 50.0, "d": 40.0, "e": 6.0, "f": 0.5}
    activations = {(i, 1): levels[name] + i * 1e-4 for i, name in enumerate(names)}
    store = make(tmp_path / "lake", [[(0, n)] for n in names], activations, shard_contexts=300)
    found = ask(store, k=5, where=where)
    assert found["document"].to_pylist() == ["a", "c", "d", "e", "b"]
