"""What a search found: where it is, in characters and tokens, with the text around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scopelake.names import counted, visible
from scopelake.query.connect import Connection
from scopelake.query.windows import Key, Span, context_texts

if TYPE_CHECKING:
    import pandas as pd

_SCHEMA = pa.schema(
    [
        ("corpus", pa.string()),
        ("context", pa.int64()),
        ("document", pa.string()),
        ("start", pa.int32()),
        ("stop", pa.int32()),
        ("char_start", pa.int32()),
        ("char_end", pa.int32()),
        ("match", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
    ]
)


@dataclass(frozen=True)
class Matches:
    """Where a text or a regular expression is, by corpus, context and place."""

    pattern: str
    table: pa.Table
    """corpus, context, document, start, stop (tokens [start, stop) that have a character of it),
    char_start, char_end (of the context's text), match, before and after (the text of the tokens
    around, less the match)."""
    n_matches: int
    """How many there are in all."""
    n_contexts: int
    """Contexts with one or more."""
    note: str = ""
    """What was not searched."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return a line for each match, it being marked."""
        on, off = ("\x1b[1;31m", "\x1b[0m") if color else ("[[", "]]")
        lines = [self._head()]
        for row in self.table.to_pylist():
            where = f"{row['corpus']} {visible(row['document'])} #{row['context']}:{row['start']}"
            before, match, after = (visible(row[n]) for n in ("before", "match", "after"))
            lines += [where, f"    {before}{on}{match}{off}{after}"]
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        body = "".join(f"<tr><td>{_where(row)}</td>{_shown(row)}</tr>" for row in self._rows())
        table = f"<table><tr><th>where</th><th>match</th></tr>{body}</table>" if body else ""
        return f"<b>{escape(self._head())}</b>{table}{escape(self.note)}"

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def _head(self) -> str:
        found = f"{counted(self.n_matches, 'time')} in {counted(self.n_contexts, 'context')}"
        shown = self.table.num_rows
        more = f"; the first {shown:,}" if shown < self.n_matches else ""
        return f"'{visible(self.pattern)}': {found}{more}"


def match_table(connection: Connection, spans: Sequence[tuple[Key, Span]], window: int) -> pa.Table:
    """Return the table of `Matches`.

    Args:
        connection: from `connect`.
        spans: contexts, and characters of their texts.
        window: tokens on either side.
    """
    texts = context_texts(connection, list(dict.fromkeys(key for key, _ in spans)))
    rows = []
    for key, (char_start, char_end) in spans:
        text = texts[key]
        start, stop = text.tokens(char_start, char_end)
        low, high = max(start - window, 0), min(stop + window, text.n_tokens)
        rows.append(
            {
                "corpus": key[0],
                "context": key[1],
                "document": text.document(start),
                "start": start,
                "stop": stop,
                "char_start": char_start,
                "char_end": char_end,
                "match": text.text[char_start:char_end],
                "before": text.text[int(text.starts[low]) : char_start],
                "after": text.text[char_end : int(text.starts[high])],
            }
        )
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _where(row: dict[str, Any]) -> str:
    return (
        f"{escape(row['corpus'])} {escape(visible(row['document']))} "
        f"#{row['context']}:{row['start']}"
    )


def _shown(row: dict[str, Any]) -> str:
    before, match, after = (escape(visible(row[n])) for n in ("before", "match", "after"))
    style = "text-align:left;font-family:monospace;white-space:pre-wrap"
    return f'<td style="{style}">{before}<mark>{match}</mark>{after}</td>'
