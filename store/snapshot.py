"""A version of a lake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Snapshot:
    """One version of the lake: the Delta version of every table it consists of."""

    id: int
    """Counts from 1, without gaps."""
    created_at: datetime
    """When the commit began, UTC."""
    reason: str
    run: str | None
    """The run that it belongs to, if any."""
    versions: Mapping[str, int]
    """Delta version by table name; a table that is not named is empty."""
