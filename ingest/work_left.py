"""What of an ingest is left to be done, in shapes: of a lake's corpus, or of so many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scopelake.errors import CoderMismatchError, InvalidArgumentError
from scopelake.ingest.estimate import Work
from scopelake.ingest.plan import find_corpus
from scopelake.ingest.shapes import (
    CoderShape,
    CorpusShape,
    ModelShape,
    Shards,
    corpus_of_tokens,
    shards_of_tokens,
)
from scopelake.names import SiteLayer
from scopelake.store.catalog import committed_dense_shards, committed_shards
from scopelake.store.context_numbers import ContextNumbers
from scopelake.store.keeping import KEEP_ALL, Keep
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import ACTIVATIONS, array_name
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class Asked:
    """What is to be made of a corpus."""

    model: ModelShape
    coders: tuple[CoderShape, ...]
    dense: tuple[SiteLayer, ...]
    activation_bits: int
    batch_tokens: int
    value_bytes: int
    keep: Keep = KEEP_ALL
    memory: str | int | None = None
    is_spread: bool = False
    """Whether a device map spreads the model."""

    def __post_init__(self) -> None:
        for coder in self.coders:
            for site in coder.sites:
                self._check(site, coder.d_in, f"coder {coder.name}")
        for site in self.dense:
            self._check(site, self.model.width(site), f"dense site {site}")

    def terms(self) -> dict[str, Any]:
        """Return what `Work` takes as it is."""
        names = (
            "activation_bits", "batch_tokens", "value_bytes", "keep", "memory", "is_spread",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _check(self, site: SiteLayer, width: int, what: str) -> None:
        if site.layer >= self.model.n_layers or self.model.width(site) != width:
            raise CoderMismatchError(
                f"{what} reads {width} values at {site}; {self.model.name} has layers 0 to "
                f"{self.model.n_layers - 1} and {self.model.width(site)} values there; use a coder "
                "of this model"
            )


def work_in_lake(
    store: LakeStore, snapshot: Snapshot, corpus: str, asked: Asked, disk_free: int | None = None
) -> Work:
    """Return what an ingest of a lake's corpus has left to do.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
    """
    row = find_corpus(store, snapshot, corpus)
    filters = [("corpus", "=", corpus)]
    table = store.read("contexts", snapshot, ["context", "n_tokens"], filters).sort_by("context")
    lengths = table["n_tokens"].to_numpy().astype(np.int64)
    numbers, per_shard = ContextNumbers.of(row), int(row["shard_contexts"])
    ranges = [numbers.shard(i) for i in range(numbers.n_shards)]
    at = np.searchsorted(table["context"].to_numpy(), np.array(ranges).reshape(-1, 2))
    cut = [lengths[start:stop] for start, stop in at.tolist()]
    of_codes = committed_shards(store, snapshot, corpus)
    of_dense = committed_dense_shards(store, snapshot, corpus, asked.model.name)
    left = {
        coder: {i for i in range(len(cut)) if (coder.name, i) not in of_codes}
        for coder in asked.coders
    }
    sites = {
        s: {i for i in range(len(cut)) if (s.site, s.layer, i) not in of_dense} for s in asked.dense
    }
    some = set().union(*left.values(), *sites.values())
    kept = np.concatenate([np.empty(0, np.int64), *(cut[i] for i in sorted(some))])
    of_length, counts = np.unique(kept, return_counts=True)
    known = store.read("saes", snapshot, ["sae", "digest"]).to_pylist()
    names = {r["sae"] for r in known if r["digest"] is not None}
    models = store.read("models", snapshot, ["model"])["model"].to_pylist()
    return Work(
        model=asked.model,
        coders=tuple((coder, _shards(cut, indexes)) for coder, indexes in left.items()),
        dense=tuple((site, _shards(cut, indexes)) for site, indexes in sites.items()),
        corpus=CorpusShape(
            corpus, int(row["context_length"]), per_shard, of_length, counts, is_stored=True
        ),
        shards=_shards(cut, some),
        versions=snapshot.versions,
        is_new_run=asked.model.name not in models or not names >= {c.name for c in asked.coders},
        first_shard=min(some, default=0),
        new_arrays=_new_arrays(store, corpus, asked),
        disk_free=disk_free,
        **asked.terms(),
    )


def work_of_tokens(n_tokens: int, context_length: int, shard_contexts: int, asked: Asked) -> Work:
    """Return what an ingest of a corpus of so many tokens, all in full contexts, would do.

    Raises:
        InvalidArgumentError: a number is not positive.
    """
    given = {"tokens": n_tokens, "context_length": context_length, "shard_contexts": shard_contexts}
    for name, value in given.items():
        if value < 1:
            raise InvalidArgumentError(
                f"a plan with {name}={value} was asked for; it is 1 or more; give a larger one"
            )
    corpus = corpus_of_tokens(n_tokens, context_length, shard_contexts)
    shards = shards_of_tokens(corpus)
    return Work(
        model=asked.model,
        coders=tuple((coder, shards) for coder in asked.coders),
        dense=tuple((site, shards) for site in asked.dense),
        corpus=corpus,
        shards=shards,
        new_arrays=len(asked.dense),
        **asked.terms(),
    )


def _shards(cut: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], left: set[int]) -> Shards:
    there = sum(len(part) for i, part in enumerate(cut) if i not in left)
    of = [cut[i] for i in sorted(left)]
    return Shards(tuple(len(c) for c in of), tuple(int(c.sum()) for c in of), there)


def _new_arrays(store: LakeStore, corpus: str, asked: Asked) -> int:
    paths: Mapping[SiteLayer, str] = {
        s: f"{ACTIVATIONS}/{array_name(corpus, asked.model.name, s.site, s.layer)}/zarr.json"
        for s in asked.dense
    }
    return sum(store.root.size(path) is None for path in paths.values())
