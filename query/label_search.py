"""Labels of features found by their words, best first, with DuckDB's full-text search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.names import counted
from scopelake.query.connect import Connection, extension
from scopelake.query.literals import literal
from scopelake.query.windows import visible

if TYPE_CHECKING:
    import pandas as pd

_BETWEEN: Final = r"[^\p{L}\p{N}]+"
"""What stands between words: all but letters and digits, of any script."""


@dataclass(frozen=True)
class LabelMatches:
    """Features whose labels have words that were asked for."""

    words: str
    table: pa.Table
    """sae, feature, label, source, score (BM25); highest score first, then SAE and feature."""
    n_labels: int
    """How many were searched."""
    note: str = ""
    """Words that were not looked for: the commonest."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:  # noqa: ARG002 - as of all results
        """Return a line for each label."""
        lines = [self._head()]
        lines += [
            f"{row['score']:7.3f}  {row['feature']:7d}  {row['sae']}  "
            f"{visible(row['label'])} ({visible(row['source'])})"
            for row in self.table.to_pylist()
        ]
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{row['score']:.3f}</td><td>{row['feature']}</td><td>{escape(row['sae'])}</td>"
            f"<td>{escape(visible(row['label']))}</td><td>{escape(visible(row['source']))}</td></tr>"
            for row in self.table.to_pylist()
        )
        head = "".join(f"<th>{n}</th>" for n in ("score", "feature", "SAE", "label", "source"))
        table = f"<table><tr>{head}</tr>{body}</table>"
        return f"<b>{escape(self._head())}</b>{table}{escape(self.note)}"

    def _head(self) -> str:
        found = counted(self.table.num_rows, "label")
        return f"{self.words!r}: {found} of {self.n_labels:,}"


class LabelSearch:
    """The labels of a snapshot, indexed by their words when they are first searched.

    Args:
        connection: from `connect`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(self, words: str, *, sae: str | None = None, k: int = 20) -> LabelMatches:
        """Return the labels that have one of the words or more, best first.

        Words are stemmed as English ones, and common ones are not looked for.

        Args:
            words: one or more.
            sae: only labels of this SAE, by its name.
            k: at most so many.

        Raises:
            InvalidArgumentError: there are no words, `k` is below 1, or the lake has no labels.
            MissingDependencyError: DuckDB's fts extension is not installed.
        """
        if not words.strip():
            raise InvalidArgumentError(
                "labels were searched for no words; every label has them; give one or more"
            )
        if k < 1:
            raise InvalidArgumentError(
                f"k={k} was asked for; k is a number of labels; give 1 or more"
            )
        cursor = self._index.cursor()
        count = "SELECT count(*) FROM labels WHERE $1 IS NULL OR sae = $1"
        (n_labels,) = cursor.execute(count, [sae]).fetchall()[0]
        if n_labels == 0:
            raise InvalidArgumentError(
                f"labels with {words!r} were searched for; {sae or 'the lake'} has none; add "
                "labels first"
            )
        query = (
            "SELECT sae, feature, label, source, score FROM "
            "(SELECT *, fts_main_labels.match_bm25(number, $1) AS score FROM labels) "
            "WHERE score IS NOT NULL AND ($2 IS NULL OR sae = $2) "
            "ORDER BY score DESC, sae, feature, source, label LIMIT $3"
        )
        table = cursor.execute(query, [words, sae, k]).to_arrow_table()
        common = "SELECT DISTINCT sw FROM fts_main_labels.stopwords WHERE list_contains($1, sw)"
        asked = re.findall(r"[^\W_]+", words.lower())
        left = {word for (word,) in cursor.execute(common, [asked]).fetchall()}
        note = f"not looked for, as too common: {', '.join(sorted(left))}" if left else ""
        return LabelMatches(words, table, n_labels, note)

    @cached_property
    def _index(self) -> duckdb.DuckDBPyConnection:
        """A database that has the labels and their words."""
        labels = self._connection.rows("labels", ("sae", "feature", "label", "source"), [])
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        database = duckdb.connect(":memory:", config=config)
        database.execute("SET enable_progress_bar = false")
        database.execute(f"LOAD {literal(extension('fts'))}")
        database.register("given", labels)
        database.execute(
            "CREATE TABLE labels AS SELECT row_number() OVER () AS number, * FROM given"
        )
        database.execute(
            f"PRAGMA create_fts_index('labels', 'number', 'label', ignore = {literal(_BETWEEN)})"
        )
        return database
