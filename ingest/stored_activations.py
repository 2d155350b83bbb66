"""Activations that an ingest stored, for coders that come later: no model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from scopelake.errors import CoderMismatchError, InvalidArgumentError
from scopelake.ingest.activations import Activations, ShardTokens
from scopelake.ingest.capture import site_width
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import ROUNDED, ModelFiles, ModelIdentity, weights_digest
from scopelake.ingest.readout import read_readout, read_readout_need
from scopelake.names import SiteLayer
from scopelake.store.dense import StoredSite, dense_filters
from scopelake.store.dense_reader import DenseReader, find_whole, open_reader
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_READERS: Final = 4


@dataclass(frozen=True)
class StoredActivations:
    """Those that an ingest with ``dense`` stored, as bfloat16."""

    model: ModelIdentity
    arrays: Mapping[SiteLayer, DenseReader]
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
            CoderMismatchError: `unembedding` is of another model, or what is stored is of several
                precisions.
            InvalidArgumentError: several models fit.
        """
        arrays: dict[SiteLayer, DenseReader] = {}
        found: dict[SiteLayer, StoredSite] = {}
        for site in sorted({site for coder in coders for site in coder.sites}, key=str):
            found[site] = find_whole(
                store, snapshot, site.layer, site.site, model=model, corpus=corpus["corpus"]
            )
            arrays[site] = open_reader(store, snapshot, found[site])
        if len({one.model for one in found.values()}) > 1:
            there = ", ".join(f"{site} of {one.model}" for site, one in found.items())
            raise InvalidArgumentError(
                f"sites of several models were asked for; stored are {there}; give model, and "
                "coders of one"
            )
        identity = _stored_model(store, snapshot, found, device, arrays)
        if unembedding is not None and weights_digest(unembedding) != identity.digest:
            raise CoderMismatchError(
                f"the unembedding of {unembedding.name} in {unembedding.path} was given; the "
                f"activations are of {identity.name} with digest {identity.digest}; give that "
                "model's files, or none"
            )
        return cls(identity, arrays, unembedding)

    def check(self, tokens: ShardTokens, corpus: str) -> None:
        """Do nothing: the model has run on these tokens."""

    @property
    def device(self) -> torch.device:
        """Where they are encoded."""
        return self.model.device

    def token_bytes(self, sites: Sequence[SiteLayer]) -> int:
        """Return what two batches take: one is read while the other is encoded."""
        return 2 * (2 + 4) * sum(site_width(self.model, site) for site in sites)

    def batches(
        self, tokens: ShardTokens, groups: Sequence[list[int]], sites: Sequence[SiteLayer]
    ) -> Iterator[Activations]:
        """Yield what is stored; the next group is read meanwhile.

        Raises:
            DamagedFileError: a chunk is not what was written.
        """
        with (
            ThreadPoolExecutor(_READERS, thread_name_prefix="scopelake-read") as readers,
            ThreadPoolExecutor(1, thread_name_prefix="scopelake-batch") as ahead,
        ):
            waiting: Future[Activations] | None = None
            for group in groups:
                following = ahead.submit(self._read, tokens, group, sites, readers)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    def _read(
        self,
        tokens: ShardTokens,
        group: Sequence[int],
        sites: Sequence[SiteLayer],
        readers: ThreadPoolExecutor,
    ) -> Activations:
        lengths = [len(tokens.token_ids[i]) for i in group]
        ends = np.cumsum([0, *lengths]).tolist()
        found = {}
        for site in sites:
            reader = self.arrays[site]
            # Of each context what has tokens; torch knows bfloat16, numpy only its bits.
            rows = np.empty((ends[-1], reader.array.shape[2]), np.int16)

            contexts = [tokens.first_context + i for i in group]
            for place, values in enumerate(readers.map(reader.read, contexts)):
                rows[ends[place] : ends[place + 1]] = values[: lengths[place]].view(np.int16)
            found[site] = torch.from_numpy(rows).view(torch.bfloat16).to(self.model.device)
        return found

    def readout_need(self) -> int:
        """Return what `readout` takes of this process's memory."""
        if self.unembedding is None:
            return 0
        return read_readout_need(self.unembedding, self.model.device)

    def readout(self) -> torch.Tensor | None:
        """Return the way from the stream to logits, if the model's files were given."""
        if self.unembedding is None:
            return None
        return read_readout(self.unembedding, self.model.device)


def _stored_model(
    store: LakeStore,
    snapshot: Snapshot,
    found: Mapping[SiteLayer, StoredSite],
    device: torch.device,
    arrays: Mapping[SiteLayer, DenseReader],
) -> ModelIdentity:
    """Return what the catalogue says of a model, and in which precision it ran."""
    name = next(iter(found.values())).model
    (row,) = store.read("models", snapshot, None, [("model", "=", name)]).to_pylist()
    attention = [r.array.shape[2] for site, r in arrays.items() if site.site == "attn_out"]
    return ModelIdentity(
        name=name,
        revision=row["revision"],
        digest=row["digest"],
        architecture=row["architecture"],
        n_layers=row["n_layers"],
        d_model=row["d_model"],
        attention_width=attention[0] if attention else 0,
        dtype=_precision(store, snapshot, found),
        device=device,
    )


def _precision(store: LakeStore, snapshot: Snapshot, found: Mapping[SiteLayer, StoredSite]) -> str:
    """Return what the stored values are: those of a bfloat16 model, or rounded ones.

    Raises:
        CoderMismatchError: some are the one, some the other.
    """
    runs = store.read("runs", snapshot, ["run", "dtype"]).to_pylist()
    dtype_of = {run["run"]: run["dtype"] for run in runs}
    sites = {}
    for site, stored in found.items():
        files = store.read("files", snapshot, ["run"], dense_filters(stored))["run"].to_pylist()
        sites[str(site)] = {dtype_of[run] for run in files}
    dtypes = set().union(*sites.values())
    if len(dtypes) > 1:
        there = ", ".join(f"{site} of {' and '.join(sorted(d))}" for site, d in sites.items())
        raise CoderMismatchError(
            f"stored activations were to be encoded; they are of models that ran in different "
            f"precisions ({there}), and a coder has one on a corpus; encode coders of sites of one "
            "precision by themselves"
        )
    # What ran in bfloat16 is stored as it was; what ran in float32 is rounded.
    return "bfloat16" if dtypes == {"bfloat16"} else ROUNDED
