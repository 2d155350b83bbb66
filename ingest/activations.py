"""Where activations come from: a model that runs, or what an ingest stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from scopelake.ingest.capture import PaddingSide, capture, site_width
from scopelake.ingest.decoder_rows import readout_need, readout_of
from scopelake.ingest.model import LoadedModel, ModelIdentity, check_vocabulary
from scopelake.names import SiteLayer

Activations = Mapping[SiteLayer, torch.Tensor]
"""By site [n_tokens, width] on the device: the tokens of the first context, then the second's."""


@dataclass(frozen=True)
class ShardTokens:
    """The contexts of a shard."""

    first_context: int
    token_ids: tuple[npt.NDArray[np.int32], ...]
    kinds: tuple[npt.NDArray[np.int8], ...]
    documents: tuple[str, ...] = ()
    """Id of each context's document, the first of a packed one, where it is needed."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens, BOS included."""
        return sum(len(ids) for ids in self.token_ids)

    def between(self, start: int, stop: int) -> ShardTokens:
        """Return contexts `start` to `stop` of these, counted from the first."""
        return ShardTokens(
            self.first_context + start, self.token_ids[start:stop], self.kinds[start:stop]
        )


class ActivationSource(Protocol):
    """What gives the activations of a corpus's tokens."""

    @property
    def model(self) -> ModelIdentity:
        """The model that they are of."""

    @property
    def origin(self) -> str:
        """How they come about, for the catalogue: ``model`` or ``stored``."""

    def check(self, tokens: ShardTokens, corpus: str) -> None:
        """Refuse tokens that it has no activations of."""

    def token_bytes(self, sites: Sequence[SiteLayer]) -> int:
        """Return the bytes of host memory that a token of a batch takes, all sites together."""

    def batches(
        self, tokens: ShardTokens, groups: Sequence[list[int]], sites: Sequence[SiteLayer]
    ) -> Iterator[Activations]:
        """Yield the activations of each group of contexts, given as indexes into `tokens`."""

    @property
    def device(self) -> torch.device:
        """Where they come out."""

    def readout_need(self) -> int:
        """Bytes of this process's memory that `readout` takes, with what is computed by it."""

    def readout(self) -> torch.Tensor | None:
        """From the stream to logits, [d_model, vocab], float32; None if it is not known."""


def live_token_bytes(widths: Iterable[int], layer_floats: int) -> int:
    """Return what a token takes on a CPU: sites of such widths, captured and joined, and a layer.

    Args:
        widths: of the sites that are captured.
        layer_floats: numbers that a layer holds of each token.
    """
    return 4 * (2 * sum(widths) + layer_floats)


@dataclass(frozen=True)
class LiveActivations:
    """Those of a model that runs."""

    model: LoadedModel
    padding_side: PaddingSide = "right"
    """Does not change the result."""
    origin: str = "model"

    def check(self, tokens: ShardTokens, corpus: str) -> None:
        """Refuse token ids that the model does not know.

        Raises:
            ModelError: there is one.
        """
        check_vocabulary(self.model, tokens.token_ids, corpus)

    def token_bytes(self, sites: Sequence[SiteLayer]) -> int:
        """Return what captured sites and a layer take; nothing of the host's if on a GPU."""
        if self.model.device.type != "cpu":
            return 0
        return live_token_bytes([site_width(self.model, s) for s in sites], self.model.layer_floats)

    def batches(
        self, tokens: ShardTokens, groups: Sequence[list[int]], sites: Sequence[SiteLayer]
    ) -> Iterator[Activations]:
        """Yield what each forward pass gives."""
        for group in groups:
            contexts = [tokens.token_ids[i] for i in group]
            yield capture(self.model, contexts, sites, padding_side=self.padding_side)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def readout_need(self) -> int:
        """Return what `readout` takes of this process's memory: nothing on another device."""
        model = self.model
        return readout_need(model.d_model, model.vocab_size) if model.device.type == "cpu" else 0

    def readout(self) -> torch.Tensor:
        """Return the way from the stream to logits."""
        return readout_of(self.model)
