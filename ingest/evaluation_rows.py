"""Rows of the evaluations table: which contexts are evaluated on, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pyarrow as pa

from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.evaluate import EvaluationContext, evaluate, model_loss
from scopelake.ingest.model import LoadedModel
from scopelake.names import KIND_BOS
from scopelake.store.context_numbers import ContextNumbers
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

SAMPLE_TOKENS: Final = 65_536
"""About so many tokens of a corpus are evaluated on, in contexts spread evenly over it."""


def unevaluated(
    store: LakeStore, snapshot: Snapshot, corpus: str, coders: Sequence[CoderFiles]
) -> list[CoderFiles]:
    """Return those of `coders` that have no evaluation on `corpus`."""
    filters = [("corpus", "=", corpus)]
    done = set(store.read("evaluations", snapshot, ["sae"], filters)["sae"].to_pylist())
    return [coder for coder in coders if coder.name not in done]


def evaluation_table(
    store: LakeStore,
    snapshot: Snapshot,
    corpus: dict[str, Any],
    model: LoadedModel,
    coders: Sequence[CoderFiles],
    run: str,
) -> pa.Table:
    """Evaluate `coders` one after the other; return their rows.

    Args:
        store: the lake.
        snapshot: where `corpus` is read.
        corpus: its row of the corpora table.
        model: fits the coders.
        coders: those to evaluate.
        run: what the rows belong to.
    """
    contexts = _sample(store, snapshot, corpus)
    rows: list[dict[str, Any]] = []
    if any(context.counts.any() for context in contexts):
        loss = model_loss(model, contexts)
        for coder in coders:
            rows += [
                {"sae": coder.name, "corpus": corpus["corpus"], "run": run, **asdict(result)}
                for result in evaluate(coder, model, contexts, loss)
            ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["evaluations"])


def _sample(
    store: LakeStore, snapshot: Snapshot, corpus: dict[str, Any]
) -> list[EvaluationContext]:
    numbers = ContextNumbers.of(corpus).all()
    n_contexts = len(numbers)
    mean_tokens = max(1.0, int(corpus["n_tokens"]) / n_contexts)
    n_wanted = min(n_contexts, max(1, round(SAMPLE_TOKENS / mean_tokens)))
    chosen = numbers[np.linspace(0, n_contexts - 1, n_wanted).round().astype(int)].tolist()
    table = store.read(
        "contexts",
        snapshot,
        ["context", "token_ids", "kinds"],
        [("corpus", "=", corpus["corpus"]), ("context", "in", chosen)],
    ).sort_by("context")
    return [
        EvaluationContext(
            np.array(row["token_ids"], dtype=np.int32), np.array(row["kinds"]) != KIND_BOS
        )
        for row in table.to_pylist()
    ]
