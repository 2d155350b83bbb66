"""How many tokens a corpus has, by position, role and kind: what densities divide by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scopelake.names import KIND_BOS, KINDS, ROLES
from scopelake.query.connect import Connection
from scopelake.query.literals import literal
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE

Counts = npt.NDArray[np.int64]
"""[positions, roles, kinds]"""

_ROWS_AT_ONCE = 1024


class TokenCounts:
    """Counts of a snapshot's corpora; each corpus is read once, when it is first asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._found: dict[str, Counts] = {}

    def of(self, corpus: str, *, is_plain: bool, n_bos: int) -> Counts:
        """Return the tokens of a corpus by position, role and kind.

        Args:
            corpus: its name.
            is_plain: whether it is of text, one document a context: then the lengths of contexts
                tell, since no token has a role and BOS comes first or not at all.
            n_bos: contexts of it that begin with BOS, if it is plain.
        """
        if corpus not in self._found:
            if is_plain:
                self._found[corpus] = by_lengths(self._connection, corpus, n_bos)
            else:
                self._found[corpus] = by_tokens(self._connection, corpus)
        return self._found[corpus]


def by_tokens(connection: Connection, corpus: str) -> Counts:
    """Return the counts by reading role and kind of every token."""
    query = f"SELECT roles, kinds FROM {PRIVATE}.contexts WHERE corpus = {literal(corpus)}"
    reads = {"contexts": [("corpus", "=", corpus)]}
    n_cells = len(ROLES) * len(KINDS)
    total = np.zeros(0, np.int64)
    for batch in connection.execute(query, None, reads).to_arrow_reader(_ROWS_AT_ONCE):
        lists = batch["roles"]
        lengths = lists.value_lengths().to_numpy()
        starts = np.cumsum(lengths) - lengths
        position = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        roles, kinds = (batch[name].flatten().to_numpy() for name in ("roles", "kinds"))
        cell = (position * len(ROLES) + roles) * len(KINDS) + kinds
        n = max(len(total), int(lengths.max(initial=0)) * n_cells)
        total = _padded(total, n) + np.bincount(cell, minlength=n)
    return total.reshape(-1, len(ROLES), len(KINDS))


def by_lengths(connection: Connection, corpus: str, n_bos: int) -> Counts:
    """Return the counts of a corpus of text from the lengths of its contexts."""
    rows = run(
        connection,
        f"SELECT n_tokens, count(*) AS n FROM {PRIVATE}.contexts WHERE corpus = ? GROUP BY ALL",
        [corpus],
        {"contexts": [("corpus", "=", corpus)]},
    )
    lengths, n = rows["n_tokens"].to_numpy(), rows["n"].to_numpy()
    contexts = np.bincount(lengths, weights=n).astype(np.int64)
    counts = np.zeros((max(len(contexts) - 1, 0), len(ROLES), len(KINDS)), np.int64)
    counts[:, 0, 0] = np.cumsum(contexts[::-1])[::-1][1:]
    if len(counts):
        counts[0, 0, 0] -= n_bos
        counts[0, 0, KIND_BOS] = n_bos
    return counts


def add_up(counts: list[Counts]) -> Counts:
    """Return the counts of several corpora together, BOS left out."""
    n = max((len(c) for c in counts), default=0)
    total = np.zeros((n, len(ROLES), len(KINDS)), np.int64)
    for one in counts:
        total[: len(one)] += one
    total[:, :, KIND_BOS] = 0
    return total


def _padded(values: npt.NDArray[np.int64], n: int) -> npt.NDArray[Any]:
    return np.pad(values, (0, n - len(values)))
