"""How much of a shard may be in memory at once, given what the process may take.

A shard is encoded piece by piece: consecutive contexts whose firings fit. How many fit is known
from what has fired so far; before anything has, half of all features may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from scopelake.errors import TooLittleMemoryError
from scopelake.ingest.machine import machine_memory, n_cores, taken_memory
from scopelake.names import SiteLayer, parse_bytes

HELD: Final = 8
"""Bytes of a firing that waits to be written: feature and activation."""

WRITTEN: Final = 160
"""Bytes of a firing that is being written, in both orders, with peaks and samples."""

_MOST_WRITERS: Final = 8
"""As threads more of them wait for each other: on 16 cores 4 wrote 14.7 million firings a second, 8
wrote 16.8, 12 wrote 16.9 (docs/performance.md)."""

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

_STATISTICS: Final = 0.6
"""Share of what is left that activations may take of which statistics are made; the rest is for
firings that were read, and pages beyond those that a feature mostly has."""

_LEAST_STATISTICS: Final = 8_000_000
"""Bytes that each thread may hold of them, however little memory there is."""


def parse_memory(memory: str | int | None, machine: int | None = None) -> int:
    """Return the bytes that a process may take.

    Args:
        memory: a number of bytes, ``8GB``, ``500MiB``, or ``auto`` or None: 60 % of the machine's,
            or of the control group's if that has less.
        machine: bytes that the machine has; None: this one.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    if memory is None or memory == "auto":
        return int(_AUTO * (machine or machine_memory()))
    return parse_bytes("memory", memory)


def writers(cores: int | None = None) -> int:
    """Return of how many coders files are written at once: 2 to 8.

    Args:
        cores: that the process may use, two for each; None: this one's.
    """
    return max(2, min(_MOST_WRITERS, (n_cores() if cores is None else cores) // 2))


@dataclass(frozen=True)
class Needs:
    """What parts of a shard take in memory, in bytes."""

    token: int
    """A token of a batch while it is computed, all sites together."""
    dense: int
    """The dense activations of a shard."""
    longest: int
    """Tokens of the longest context: no batch has fewer."""

    @classmethod
    def of(
        cls, token: int, dense_width: int, context_length: int, shard_contexts: int, n_tokens: int
    ) -> Needs:
        """Return those of a corpus.

        Args:
            token: bytes of a token of a batch while it is computed.
            dense_width: of all sites whose activations are stored, together.
            context_length: most tokens in a context.
            shard_contexts: contexts in a shard.
            n_tokens: of the whole corpus.
        """
        dense = 2 * context_length * shard_contexts * dense_width
        return cls(token, dense, min(context_length, n_tokens))


class Firing(Protocol):
    """What is known of a coder before it fires."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def width(self) -> int:
        """Number of features, of all encoders together."""

    @property
    def l0(self) -> float | None:
        """Firings a token, if it says."""

    @property
    def sites(self) -> tuple[SiteLayer, ...]:
        """What its encoders read."""


@dataclass(frozen=True)
class StatisticsShare:
    """How many make statistics, and of what."""

    coders: int
    """At once."""
    threads: int
    """Of each coder."""
    n_bytes: int
    """Of activations that each thread may hold."""


class Budget:
    """Cuts batches and pieces so that the process stays within `limit`.

    Args:
        limit: bytes that it may take in all.
        coders: those whose firings are counted.
        batch_tokens: most tokens in a batch, whatever the memory.
        cores: of the machine; None: those that this process may use.
    """

    def __init__(
        self, limit: int, coders: Sequence[Firing], batch_tokens: int, cores: int | None = None
    ) -> None:
        self._cores = n_cores() if cores is None else cores
        self.limit, self._batch_tokens, self.writers = limit, batch_tokens, writers(self._cores)
        # Of a coder that does not say 1 % of the features are taken to fire on every token.
        self._rates = {c.name: (c.l0 or 0.01 * c.width) * len(c.sites) for c in coders}
        self._is_measured = dict.fromkeys(self._rates, False)
        self._most = {c.name: c.width / 2 for c in coders}
        self._n_features = sum(c.width for c in coders)
        self._left: int | None = None
        self._readout = 0

    def expect_readout(self, n_bytes: int) -> None:
        """Take in what the decoders' way to the logits takes, once all shards are there."""
        self._readout = n_bytes

    def begin(self, needs: Needs, taken: int | None = None, beside: int = 0) -> None:
        """Take what the process takes besides shards.

        Args:
            needs: what parts of a shard take.
            taken: bytes that the process takes, with the model and the coders; None: as now.
            beside: bytes that processes take which write for it.

        Raises:
            TooLittleMemoryError: not even one context fits beside it.
        """
        self._needs = needs
        taken = taken_memory() if taken is None else taken
        taken += beside + COMMITS + _FEATURE * self._n_features
        self._left = self.limit - taken - PIECES * needs.dense
        of_firings = self._per_token(self._rates) / _FIRINGS
        least = int(needs.longest * max(needs.token / _BATCH, of_firings))
        # What the process takes is never the same twice.
        needed = 1.05 * max(self.limit - self._left + least, taken + self._readout)
        if self._left < least:
            raise TooLittleMemoryError(
                f"memory of {self.limit:,} bytes was asked for; the model, its coders and this "
                f"process take {taken / 1e9:.3g} GB, dense activations of {PIECES} shards "
                f"{PIECES * needs.dense / 1e9:.3g} GB, and a context of {needs.longest:,} tokens "
                f"needs {least / 1e9:.3g} GB; give {needed / 1e9:.2f}GB, "
                "fewer coders, or a corpus of smaller shards"
            )

    def check_readout(self, taken: int | None = None) -> None:
        """Refuse a limit that does not hold what `expect_readout` was told of.

        Args:
            taken: as in `begin`.

        Raises:
            TooLittleMemoryError: then.
        """
        taken = taken_memory() if taken is None else taken
        taken += COMMITS + _FEATURE * self._n_features
        if self._readout and self.limit - taken < self._readout:
            raise TooLittleMemoryError(
                f"memory of {self.limit:,} bytes was asked for; the model, its coders and this "
                f"process take {taken / 1e9:.3g} GB, and the unembedding, for the tokens that "
                f"features promote, {self._readout / 1e9:.3g} GB in the end; give "
                f"{1.05 * (taken + self._readout) / 1e9:.2f}GB"
            )

    def batch_tokens(self) -> int:
        """Return the most tokens, padding included, of a batch."""
        fits = int(_BATCH * self._room() / max(self._needs.token, 1))
        return max(1, min(self._batch_tokens, fits))

    def piece_tokens(self) -> int:
        """Return the most tokens of a piece.

        As long as a coder has not fired, half of its features may fire on every token.
        """
        rates = {n: self._rates[n] if self._is_measured[n] else self._most[n] for n in self._rates}
        return max(1, int(_FIRINGS * self._room() / max(self._per_token(rates), 1e-9)))

    def statistics(self, n_coders: int) -> StatisticsShare:
        """Return how statistics are made when nothing else is left to do."""
        spare = int(_STATISTICS * self.spare())
        at_once = max(1, min(self.writers, n_coders, spare // _LEAST_STATISTICS))
        most = max(at_once, min(self._cores, spare // _LEAST_STATISTICS))
        threads = -(-most // at_once)
        return StatisticsShare(
            at_once, threads, max(_LEAST_STATISTICS, spare // (at_once * threads))
        )

    def spare(self) -> int:
        """Return the bytes that the process may take beside what it takes now."""
        return max(0, self.limit - taken_memory())

    def measured(self, coder: str, firings: int, tokens: int) -> None:
        """Take in how much a coder fired in a piece."""
        if tokens:
            rate = 1.25 * firings / tokens
            known = self._rates[coder] if self._is_measured[coder] else 0.0
            self._rates[coder], self._is_measured[coder] = max(known, rate), True

    def takes(self, shard_tokens: int) -> Mapping[str, int]:
        """Return in bytes what shards take beside the process, by what it is.

        Args:
            shard_tokens: of the largest; a batch has a context at least, whatever the memory.
        """
        longest = self._needs.longest
        batch, piece = (
            min(max(n, longest), shard_tokens) for n in (self.batch_tokens(), self.piece_tokens())
        )
        return {
            "activations of one batch": batch * self._needs.token,
            "firings of two pieces": int(piece * self._per_token(self._rates)),
            "dense activations of two shards": PIECES * self._needs.dense,
            "writing and committing": COMMITS,
            "what peaks and samples look back at": _FEATURE * self._n_features,
        }

    def _room(self) -> int:
        if self._left is None:
            raise RuntimeError("begin comes first")
        return self._left

    def _per_token(self, by_coder: Mapping[str, float]) -> float:
        """Bytes that a token's firings take, while they wait and while they are written."""
        rates = sorted(by_coder.values(), reverse=True)
        # Each coder also counts the firings of each token.
        waiting = PIECES * (HELD * sum(rates) + 4 * len(rates))
        return waiting + WRITTEN * sum(rates[: self.writers])
