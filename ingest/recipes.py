"""How to come by activations: what another process needs to open the same source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from scopelake.ingest.activations import ActivationSource, LiveActivations
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import DeviceMap, ModelFiles, ModelIdentity, choose_device, load_model
from scopelake.ingest.readout import read_readout, read_readout_need
from scopelake.ingest.stored_activations import StoredActivations
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot


class Recipe(Protocol):
    """Opens a source, here or elsewhere; it can be sent to other processes."""

    @property
    def origin(self) -> str:
        """How its activations come about: ``model`` or ``stored``."""

    @property
    def unembedding(self) -> ModelFiles | None:
        """The files of the model that they are of, if known."""

    def open(self) -> ActivationSource:
        """Open it; what a model needs is loaded."""


@dataclass(frozen=True)
class ModelRecipe:
    """Run a model; arguments as of `load_model`, its files under the same path everywhere."""

    files: ModelFiles
    device: str = "auto"
    dtype: str = "auto"
    device_map: DeviceMap = None
    origin: str = "model"

    @property
    def unembedding(self) -> ModelFiles:
        """The model's own files."""
        return self.files

    def open(self) -> LiveActivations:
        """Load the model.

        Raises:
            ModelError: it cannot be loaded.
        """
        loaded = load_model(
            self.files, device=self.device, dtype=self.dtype, device_map=self.device_map
        )
        return LiveActivations(loaded)


@dataclass(frozen=True)
class StoredRecipe:
    """Read what an ingest stored; arguments as of `StoredActivations.find`."""

    store: LakeStore
    snapshot: Snapshot
    corpus: Mapping[str, Any]
    coders: tuple[CoderFiles, ...]
    model: str | None
    device: str
    unembedding: ModelFiles | None = None
    origin: str = "stored"

    def open(self) -> StoredActivations:
        """Open the arrays.

        Raises:
            LayerNotFoundError, CoderMismatchError, InvalidArgumentError: as in `find`.
        """
        return StoredActivations.find(
            self.store, self.snapshot, self.corpus, self.coders,
            model=self.model, device=choose_device(self.device), unembedding=self.unembedding,
        )  # fmt: skip


@dataclass(frozen=True)
class Described:
    """A source that is open elsewhere: what the process that commits has to know of it."""

    model: ModelIdentity
    recipe: Recipe

    @property
    def origin(self) -> str:
        """How its activations come about."""
        return self.recipe.origin

    @property
    def device(self) -> torch.device:
        """Where this process computes: the model's device is another's."""
        return torch.device("cpu")

    def readout_need(self) -> int:
        """Return what `readout` takes here.

        Raises:
            ModelError: a file is damaged.
        """
        files = self.recipe.unembedding
        return 0 if files is None else read_readout_need(files, self.device)

    def readout(self) -> torch.Tensor | None:
        """Return the way from the stream to logits, read from the model's files if they are known.

        Raises:
            ModelError: a file is damaged.
        """
        files = self.recipe.unembedding
        return None if files is None else read_readout(files, self.device)
