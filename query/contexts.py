"""Top contexts: where a feature is strongest, with the text around it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pyarrow as pa

from scopelake.names import ContextRanking
from scopelake.query.connect import Connection
from scopelake.query.context_rows import (
    add_windows,
    check_window,
    context_table,
    contexts_html,
    contexts_text,
)
from scopelake.query.partial import note
from scopelake.query.rank_contexts import Ranking

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TopContexts:
    """A feature's strongest contexts, strongest first."""

    sae: str
    feature: int
    table: pa.Table
    """rank, corpus, context, position (of the peak), activation (of the peak), value (what ranks
    it), document, start, stop (window, positions [start, stop)), tokens and activations (of the
    window; null where it is not known), text."""
    note: str = ""
    """What the answer is short of: corpora of which not all firings are known, or whose
    ingest is not complete."""
    by: ContextRanking = "max"
    """What the value is."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return the contexts as lines of text, the firing tokens marked."""
        if self.table.num_rows == 0:
            return self._never()
        by = "" if self.by == "max" else f", by {self.by} of its firings in a context"
        lines = [f"feature {self.feature} of {self.sae}{by}"]
        lines += contexts_text(self.table.to_pylist(), color=color)
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        rows = self.table.to_pylist()
        if not rows:
            return f"<p>{escape(self._never())}</p>"
        value = "activation" if self.by == "max" else self.by
        return (
            f"<b>feature {self.feature}</b> of {escape(self.sae)}"
            f"{contexts_html(rows, value)}{escape(self.note)}"
        )

    def _never(self) -> str:
        asked = f"feature {self.feature} of {self.sae}"
        if self.note:
            return f"{asked} is in nothing that is known ({self.note})"
        return f"{asked} never fires in what was asked for"


def top_contexts(
    connection: Connection, ranking: Ranking, *, window: int | None = 16
) -> TopContexts:
    """Return the contexts in which a feature is strongest.

    Args:
        connection: from `connect`.
        ranking: which contexts.
        window: tokens on either side of the peak, 0 or more; the whole context if None.

    Raises:
        InvalidArgumentError: `window` is too small.
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError: the SAE was not run on it.
        QueryError: the ranking's `where` fails, or too little is known.
    """
    check_window(window)
    sae, corpus = ranking.sae, ranking.corpus
    connection.coverage.check_known(sae, corpus)
    rows = ranking.find(connection)
    add_windows(connection, sae, ranking.feature, rows, window, bos=ranking.bos)
    said = note(connection.coverage, sae, corpus)
    return TopContexts(sae.name, ranking.feature, context_table(rows), said, ranking.by)
