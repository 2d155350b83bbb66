"""What an ingest says of itself: how far it is, and what it did."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scopelake.ingest.shard_files import FailedShard

LOG: Final = logging.getLogger("scopelake.ingest")
"""Of all that an ingest logs; a record's attribute `scopelake` has the fields."""


@dataclass(frozen=True)
class Progress:
    """How far an ingest has come."""

    tokens: int
    n_tokens: int
    firings: int
    n_bytes: int
    """Bytes of data files committed."""
    seconds: float
    """Since the ingest began, as `IngestSummary.seconds`."""


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did; all zero when everything was there already."""

    run: str
    snapshot: int
    n_shards: int
    """Shards with work, of the corpus's whole number."""
    n_evaluated: int
    """Coders whose reconstruction was evaluated."""
    tokens: int
    firings: int
    n_bytes: int
    seconds: float
    """From its begin to its last commit, with the model in memory already; as in ``runs``."""
    stages: Mapping[str, float]
    """Seconds of each stage, see `ingest.stages`."""
    failed: tuple[FailedShard, ...] = ()
    """Shards that were set aside; the next ingest tries them again."""
    n_left: int = 0
    """Shards that are left, because it was asked to stop or was a dry run."""
    n_tokens_left: int = 0
    """About how many tokens these have."""
    n_devices: int = 1
    """Over which the stages add up."""
    n_described: int = 0
    """Coders of which only the statistics were left to write."""

    @property
    def already_complete(self) -> bool:
        """Whether there was nothing to do."""
        return self.n_shards == self.n_evaluated == self.n_described == 0
