"""Activations that an ingest stored, for coders that come later: no model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from scopelake.errors import CoderMismatchError, InvalidArgumentError
from scopelake.ingest.activations import Activations, ShardTokens
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import ModelFiles, ModelIdentity, weights_digest
from scopelake.ingest.readout import read_readout
from scopelake.names import SiteLayer
from scopelake.store.dense import DenseArray, find_whole, open_stored, read_context
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class StoredActivations:
    """Those that an ingest with ``dense`` stored, as bfloat16."""

    model: ModelIdentity
    arrays: Mapping[SiteLayer, DenseArray]
    unembedding: ModelFiles | None = None
    """The model's files, for what its unembedding says of features."""
    origin: str = "stored"

    @classmethod
    def find(
        cls,
        store: LakeStore,
        snapshot: Snapshot,
        corpus: Mapping[str, Any],
        coders: Sequence[CoderFiles],
        *,
        model: str | None,
        device: torch.device,
        unembedding: ModelFiles | None = None,
    ) -> StoredActivations:
        """Return what is stored of every site that `coders` read.

        Args:
            store: the lake.
            snapshot: whose shards are read.
            corpus: its row of the corpora table.
            coders: what is to be encoded with.
            model: whose activations; needed if those of several are stored.
            device: where the encoding runs.
            unembedding: the model's files, if they are at hand.

        Raises:
            LayerNotFoundError: a site is not stored, or not on the whole corpus.
            CoderMismatchError: `unembedding` is of another model.
            InvalidArgumentError: several models fit.
        """
        name, arrays, models = corpus["corpus"], {}, {}
        for site in sorted({site for coder in coders for site in coder.sites}, key=str):
            found = find_whole(store, snapshot, site.layer, site.site, model=model, corpus=name)
            arrays[site] = open_stored(store, snapshot, found)
            models[found.model] = site
        if len(models) > 1:
            raise InvalidArgumentError(
                f"sites of several models were asked for; stored are "
                f"{', '.join(f'{site} of {name}' for name, site in models.items())}; give model, "
                "and coders of one"
            )
        identity = _stored_model(store, snapshot, name, next(iter(models)), device, arrays)
        if unembedding is not None and weights_digest(unembedding) != identity.digest:
            raise CoderMismatchError(
                f"the unembedding of {unembedding.name} in {unembedding.path} was given; the "
                f"activations are of {identity.name} with digest {identity.digest}; give that "
                "model's files, or none"
            )
        return cls(identity, arrays, unembedding)

    def check(self, tokens: ShardTokens, corpus: str) -> None:
        """Do nothing: the model has run on these tokens."""

    def batches(
        self, tokens: ShardTokens, groups: Sequence[list[int]], sites: Sequence[SiteLayer]
    ) -> Iterator[Activations]:
        """Yield what is stored; the next group is read meanwhile.

        Raises:
            DamagedFileError: a chunk is not what was written.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="scopelake-read") as pool:
            waiting: list[Future[Activations]] = []
            for group in [*groups, None]:
                if group is not None:
                    waiting.append(pool.submit(self._read, tokens, group, sites))
                if len(waiting) > 1 or (group is None and waiting):
                    yield waiting.pop(0).result()

    def _read(
        self, tokens: ShardTokens, group: Sequence[int], sites: Sequence[SiteLayer]
    ) -> Activations:
        contexts = [tokens.first_context + i for i in group]
        lengths = [len(tokens.token_ids[i]) for i in group]
        found = {}
        for site in sites:
            array = self.arrays[site]
            # Of each context what has tokens; torch knows bfloat16, numpy only its bits.
            rows = np.empty((sum(lengths), array.shape[2]), np.int16)
            ends = np.cumsum([0, *lengths]).tolist()
            for context, (start, stop) in zip(contexts, pairwise(ends), strict=True):
                rows[start:stop] = read_context(array, context)[: stop - start].view(np.int16)
            bits = torch.from_numpy(rows).view(torch.bfloat16)
            found[site] = bits.to(self.model.device)
        return found

    def readout(self) -> torch.Tensor | None:
        """Return the way from the stream to logits, if the model's files were given."""
        if self.unembedding is None:
            return None
        return read_readout(self.unembedding, self.model.device)


def _stored_model(
    store: LakeStore,
    snapshot: Snapshot,
    corpus: str,
    name: str,
    device: torch.device,
    arrays: Mapping[SiteLayer, DenseArray],
) -> ModelIdentity:
    """Return what the catalogue says of a model, and in which precision it ran."""
    (row,) = store.read("models", snapshot, None, [("model", "=", name)]).to_pylist()
    filters = [("corpus", "=", corpus), ("model", "=", name)]
    runs = store.read("runs", snapshot, ["dtype", "dense"], filters).to_pylist()
    dtypes = {run["dtype"] for run in runs if set(map(str, arrays)) & set(run["dense"] or [])}
    attention = [array.shape[2] for site, array in arrays.items() if site.site == "attn_out"]
    return ModelIdentity(
        name=name,
        revision=row["revision"],
        digest=row["digest"],
        architecture=row["architecture"],
        n_layers=row["n_layers"],
        d_model=row["d_model"],
        attention_width=attention[0] if attention else 0,
        # What ran in bfloat16 is stored as it was; what ran in float32 is rounded.
        dtype="bfloat16" if dtypes == {"bfloat16"} else "bfloat16 of float32",
        device=device,
    )
