"""How much of a shard may be in memory at once, given what the process may take.

A shard is encoded piece by piece: consecutive contexts whose firings fit. How many fit is known
from what has fired so far; before anything has, half of all features may.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from scopelake.errors import InvalidArgumentError, TooLittleMemoryError
from scopelake.ingest.coders import CoderFiles

HELD: Final = 8
"""Bytes of a firing that waits to be written: feature and activation."""

WRITTEN: Final = 160
"""Bytes of a firing that is being written, in both orders, with peaks and samples."""

WRITERS: Final = 2
"""Coders whose files are written, or whose statistics are made, at once."""

PIECES: Final = 2
"""Pieces in memory: one is encoded while the one before is written."""

_AUTO: Final = 0.6
"""Share of the memory that a process may take unless it is told otherwise."""

_BATCH: Final = 0.3
"""Share of what is left that a batch may take while it is computed."""

_FIRINGS: Final = 0.6
"""Share that firings may take; the rest is for what is not counted."""

COMMITS: Final = 150_000_000
"""Bytes that writing and committing take once, whatever a shard has (measured)."""

_FEATURE: Final = 1_200
"""Bytes that are kept of each feature's strongest contexts and samples, in the end."""

_STATISTICS: Final = 80
"""Bytes of a firing of which statistics are made."""

_FEWEST_ROWS: Final = 100_000
"""Firings to make statistics of at once, however little memory there is."""

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
                 "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\Z", re.IGNORECASE)


def parse_memory(memory: str | int | None) -> int:
    """Return the bytes that a process may take.

    Args:
        memory: a number of bytes, ``8GB``, ``500MiB``, or ``auto`` or None: 60 % of the machine's,
            or of the control group's if that has less.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    if memory is None or memory == "auto":
        return int(_AUTO * _machine_memory())
    if isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    found = _MEMORY.match(memory.strip()) if isinstance(memory, str) else None
    n_bytes = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if n_bytes < 1:
        raise InvalidArgumentError(
            f"memory={memory!r} was asked for; it is no size; give for example '8GB', or 'auto'"
        )
    return n_bytes


def _machine_memory() -> int:
    found: int = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue  # no such group here
        if text.isdigit():
            found = min(found, int(text))
    return found


@dataclass(frozen=True)
class Needs:
    """What parts of a shard take in memory, in bytes."""

    token: int
    """A token of a batch while it is computed, all sites together."""
    dense: int
    """The dense activations of a shard."""
    longest: int
    """Tokens of the longest context: no batch has fewer."""


class Budget:
    """Cuts batches and pieces so that the process stays within `limit`.

    Args:
        limit: bytes that it may take in all.
        coders: those whose firings are counted.
        batch_tokens: most tokens in a batch, whatever the memory.
    """

    def __init__(self, limit: int, coders: Sequence[CoderFiles], batch_tokens: int) -> None:
        self.limit, self._batch_tokens = limit, batch_tokens
        # Of a coder that does not say 1 % of the features are taken to fire on every token.
        self._rates = {c.name: (c.l0 or 0.01 * c.width) * len(c.sites) for c in coders}
        self._is_measured = dict.fromkeys(self._rates, False)
        self._most = {c.name: c.width / 2 for c in coders}
        self._n_features = sum(c.width for c in coders)
        self._left: int | None = None

    def begin(self, needs: Needs) -> None:
        """Take what the process takes now as what it needs besides shards.

        Raises:
            TooLittleMemoryError: not even one context fits beside it.
        """
        taken: int = psutil.Process().memory_info().rss
        taken += COMMITS + _FEATURE * self._n_features
        self._left = self.limit - taken - PIECES * needs.dense
        of_firings = _per_token(self._rates) / _FIRINGS
        least = int(needs.longest * max(needs.token / _BATCH, of_firings))
        # What the process takes is never the same twice.
        needed = 1.05 * (self.limit - self._left + least)
        if self._left < least:
            raise TooLittleMemoryError(
                f"memory of {self.limit:,} bytes was asked for; the model, its coders and this "
                f"process take {taken / 1e9:.3g} GB, dense activations of {PIECES} shards "
                f"{PIECES * needs.dense / 1e9:.3g} GB, and a context of {needs.longest:,} tokens "
                f"needs {least / 1e9:.3g} GB; give {needed / 1e9:.2f}GB, "
                "fewer coders, or a corpus of smaller shards"
            )
        self._needs = needs

    def batch_tokens(self) -> int:
        """Return the most tokens, padding included, of a batch."""
        fits = int(_BATCH * self._room() / max(self._needs.token, 1))
        return max(1, min(self._batch_tokens, fits))

    def piece_tokens(self) -> int:
        """Return the most tokens of a piece.

        As long as a coder has not fired, half of its features may fire on every token.
        """
        rates = {n: self._rates[n] if self._is_measured[n] else self._most[n] for n in self._rates}
        return max(1, int(_FIRINGS * self._room() / max(_per_token(rates), 1e-9)))

    def statistics_rows(self) -> int:
        """Return the most firings that each of `WRITERS` may make statistics of at once."""
        left = self.limit - psutil.Process().memory_info().rss
        return max(_FEWEST_ROWS, int(left / WRITERS / _STATISTICS))

    def measured(self, coder: str, firings: int, tokens: int) -> None:
        """Take in how much a coder fired in a piece."""
        if tokens:
            rate = 1.25 * firings / tokens
            known = self._rates[coder] if self._is_measured[coder] else 0.0
            self._rates[coder], self._is_measured[coder] = max(known, rate), True

    def _room(self) -> int:
        if self._left is None:
            raise RuntimeError("begin comes first")
        return self._left


def _per_token(by_coder: Mapping[str, float]) -> float:
    """Bytes that a token's firings take, while they wait and while they are written."""
    rates = sorted(by_coder.values(), reverse=True)
    # Each coder also counts the firings of each token.
    return PIECES * (HELD * sum(rates) + 4 * len(rates)) + WRITTEN * sum(rates[:WRITERS])
