"""Exit statuses beside 0 (done), 1 (a check that failed) and 2 (refused)."""

from __future__ import annotations

from typing import Final

SET_ASIDE: Final = 3
"""Done but for shards that failed every time."""

INTERRUPTED: Final = 130

TERMINATED: Final = 143
