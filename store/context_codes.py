"""A coder's firings as they come from a device: context by context, tokens in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scopelake.store.firings import Firings


@dataclass(frozen=True)
class ContextPart:
    """A coder's firings in one context."""

    index: int
    """Of the context among those that are encoded together."""
    counts: npt.NDArray[np.int32]
    """Firings of each token."""
    features: npt.NDArray[np.int32]
    activations: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ContextCodes:
    """A coder's firings in consecutive contexts: half the bytes of `Firings`."""

    first_context: int
    kinds: Sequence[npt.NDArray[np.int8]]
    """Of each context's tokens."""
    parts: Sequence[ContextPart]
    """In any order."""

    def firings(self) -> Firings:
        """Return them as columns, token-major."""
        # Contexts are put in order, nothing is sorted.
        parts = sorted(self.parts, key=lambda part: part.index)
        n_firings = [len(part.features) for part in parts]
        empty = np.empty(0, np.int32)
        counts = np.concatenate([empty, *(p.counts for p in parts)])
        contexts = np.array([self.first_context + p.index for p in parts], dtype=np.int64)
        positions = np.concatenate(
            [empty, *(np.arange(len(p.counts), dtype=np.int32) for p in parts)]
        )
        of_token = np.concatenate([empty.astype(np.int8), *(self.kinds[p.index] for p in parts)])
        return Firings(
            context=np.repeat(contexts, n_firings),
            position=np.repeat(positions, counts),
            feature=np.concatenate([empty, *(p.features for p in parts)]),
            activation=np.concatenate([empty.astype(np.float32), *(p.activations for p in parts)]),
            kind=np.repeat(of_token, counts),
        )
