"""Statistics of features: written once for each coder, when all of a corpus is committed."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from scopelake.errors import LakeBusyError
from scopelake.ingest.budget import StatisticsShare
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.decoder_rows import decoder_columns
from scopelake.ingest.encoder_norms import encoder_norms
from scopelake.ingest.plan import IngestPlan, find_corpus
from scopelake.store.catalog import committed_shards
from scopelake.store.keeping import parse_keep
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.summary import feature_statistics
from scopelake.store.tallies import read_tallies, tallied_statistics
from scopelake.store.writer import write_features

WeightColumns = MutableMapping[str, Mapping[str, pa.Array]]
"""By coder name, its `weight_columns`."""


def without_statistics(store: LakeStore, plan: IngestPlan) -> list[CoderFiles]:
    """Return the coders whose shards are all committed, but not their statistics."""
    done = committed_shards(store, store.snapshot(), plan.corpus["corpus"])
    return [
        coder
        for coder in undescribed(store, plan)
        if all((coder.name, index) in done for index in range(plan.n_shards))
    ]


def undescribed(store: LakeStore, plan: IngestPlan) -> list[CoderFiles]:
    """Return the coders that have no statistics on the corpus."""
    files = store.data_files("features", store.snapshot(), corpus=plan.corpus["corpus"])
    described = {file.partition["sae"] for file in files}
    return [coder for coder in plan.coders if coder.name not in described]


def weight_columns(
    coder: CoderFiles, device: torch.device, readout: torch.Tensor | None
) -> dict[str, pa.Array]:
    """Return the columns of the features table that follow from a coder's weights, each [width].

    Args:
        coder: the coder.
        device: where they are computed.
        readout: as in `decoder_columns`.

    Raises:
        CoderFileError: a value is not finite.
    """
    columns = decoder_columns(coder, device, readout)
    return columns | {"encoder_norm": pa.array(encoder_norms(coder, device))}


def statistics_files(store: LakeStore, plan: IngestPlan, keep: str) -> dict[str, list[str]]:
    """Return by coder the files that its statistics on a corpus are made of.

    Args:
        store: the lake.
        plan: of the ingest.
        keep: which firings are stored; if not all, statistics are of the tallies.

    Raises:
        LakeBusyError: documents were appended to the corpus since the plan was made.
    """
    corpus, snapshot = plan.corpus, store.snapshot()
    now = find_corpus(store, snapshot, corpus["corpus"])
    if now["n_tokens"] != corpus["n_tokens"]:
        raise LakeBusyError(
            f"statistics on {corpus['corpus']!r} were to be written; documents were appended to it "
            "meanwhile; ingest again, which does what is new"
        )
    table = "postings" if parse_keep(keep).is_all else "tallies"
    found: dict[str, list[str]] = {coder.name: [] for coder in plan.coders}
    for file in store.data_files(table, snapshot, corpus=corpus["corpus"]):
        found.setdefault(file.partition["sae"], []).append(file.path)
    return found


def write_statistics(
    store: LakeStore,
    plan: IngestPlan,
    coder: CoderFiles,
    weights: Mapping[str, pa.Array],
    files: Sequence[str],
    share: StatisticsShare,
    keep: str,
    scratch: Path,
) -> Receipt:
    """Write the features of a coder whose shards are all committed; return the receipt.

    Args:
        store: the lake.
        plan: of the ingest.
        coder: the coder.
        weights: its `weight_columns`.
        files: its `statistics_files`.
        share: how much memory and how many threads they may take.
        keep: as in `statistics_files`.
        scratch: as in `write_parquet`.
    """
    corpus = plan.corpus
    n_tokens = int(corpus["n_tokens"]) - int(corpus["n_bos"])
    if parse_keep(keep).is_all:
        found = feature_statistics(
            store.root,
            files,
            coder.width,
            n_tokens,
            most_bytes=share.n_bytes,
            threads=share.threads,
        )
    else:
        found = tallied_statistics(read_tallies(store.root, files), coder.width, n_tokens)
    columns = {name: found[name] for name in found.column_names}
    columns |= weights
    columns["sae"] = pa.array([coder.name] * coder.width)
    columns["corpus"] = pa.array([corpus["corpus"]] * coder.width)
    schema = SCHEMAS["features"]
    full = pa.table({f.name: columns[f.name] for f in schema}).cast(schema)
    return write_features(
        store.root, full, sae=coder.name, corpus=corpus["corpus"], run=plan.run, scratch=scratch
    )
