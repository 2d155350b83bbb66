"""Tokens around a peak, with the activation of every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.names import KIND_BOS, visible
from scopelake.query.connect import Connection
from scopelake.query.resolve import SaeInfo

Key = tuple[str, int]
"""corpus, context"""

Span = tuple[int, int]
"""Tokens [start, stop) of a context."""

_ALL: Final = (0, 1 << 31)

_TEXT: Final = ("context", "document", "text", "token_starts")


@dataclass(frozen=True)
class ContextText:
    """A context's tokens as text."""

    documents: list[tuple[int, str]]
    """Of each its first position and its id; one, but for a packed context."""
    text: str
    starts: npt.NDArray[np.int32]
    """[n_tokens + 1], characters; the last is where the text ends."""
    bos: frozenset[int] = frozenset()
    """Positions of BOS that are not in the text."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.starts) - 1

    def pieces(self, start: int, stop: int) -> list[str]:
        """Return tokens [start, stop): they spell the text, but for the ``<bos>`` of plain text."""
        ends = self.starts[start : stop + 1].tolist()
        found = [self.text[a:b] for a, b in pairwise(ends)]
        for position in self.bos:
            if start <= position < stop:
                found[position - start] = "<bos>"
        return found

    def tokens(self, char_start: int, char_end: int) -> Span:
        """Return the tokens that have one of the characters [char_start, char_end), not empty."""
        first = int(np.searchsorted(self.starts[:-1], char_start, side="right")) - 1
        # Tokens without text before it are of the same character, but for a BOS.
        while first and self.starts[first - 1] == self.starts[first] and first - 1 not in self.bos:
            first -= 1
        return first, int(np.searchsorted(self.starts[:-1], char_end, side="left"))

    def document(self, position: int) -> str:
        """Return the id of the document of a token."""
        return [name for start, name in self.documents if start <= position][-1]


def context_texts(
    connection: Connection, keys: list[Key], spans: Mapping[Key, Span] | None = None
) -> dict[Key, ContextText]:
    """Return the texts of the contexts named, of those that there are.

    Args:
        connection: from `connect`.
        keys: the contexts.
        spans: by context the tokens that will be asked for; all of them if None.
    """
    found: dict[Key, ContextText] = {}
    for corpus, numbers in _by_corpus(keys).items():
        filters = [("corpus", "=", corpus), ("context", "in", numbers)]
        # Lists of structs take longer to read than the text.
        is_packed = connection.coverage.is_packed(corpus)
        names = (*_TEXT, "documents") if is_packed else _TEXT
        rows = connection.rows("contexts", names, filters)
        for i, context in enumerate(rows["context"].to_pylist()):
            row = {name: rows[name][i] for name in names}
            listed = row["documents"].as_py() or () if is_packed else ()
            documents = [(d["position"], d["document"]) for d in listed]
            text = row["text"].as_py()
            starts = row["token_starts"].values.to_numpy()
            found[corpus, context] = ContextText(
                documents or [(0, row["document"].as_py())],
                text,
                np.append(starts, np.int32(len(text))),
            )
    return _with_bos(connection, found, spans or {})


def _with_bos(
    connection: Connection, found: dict[Key, ContextText], spans: Mapping[Key, Span]
) -> dict[Key, ContextText]:
    """Look up which tokens without text are BOS; few windows have any."""
    empty: dict[Key, npt.NDArray[np.int64]] = {}
    for key, text in found.items():
        start, stop = spans.get(key, _ALL)
        at = start + np.flatnonzero(np.diff(text.starts[start : stop + 1]) == 0)
        if len(at):
            empty[key] = at
    for corpus, numbers in _by_corpus(list(empty)).items():
        filters = [("corpus", "=", corpus), ("context", "in", numbers)]
        rows = connection.rows("contexts", ("context", "kinds"), filters)
        for i, context in enumerate(rows["context"].to_pylist()):
            key = (corpus, context)
            kinds = rows["kinds"][i].values.to_numpy()
            bos = empty[key][kinds[empty[key]] == KIND_BOS]
            found[key] = replace(found[key], bos=frozenset(bos.tolist()))
    return found


def documents_of(connection: Connection, keys: list[Key]) -> dict[Key, str | None]:
    """Return the document of each context named; None of packed ones, which have several."""
    found: dict[Key, str | None] = {}
    columns = ("context", "document", "documents")
    for corpus, numbers in _by_corpus(keys).items():
        filters = [("corpus", "=", corpus), ("context", "in", numbers)]
        for row in connection.rows("contexts", columns, filters).to_pylist():
            found[corpus, row["context"]] = None if row["documents"] else row["document"]
    return found


def activations_in(
    connection: Connection,
    sae: SaeInfo,
    feature: int,
    keys: list[Key],
    *,
    bos: bool,
) -> dict[Key, dict[int, float]]:
    """Return activation by position of a feature in the contexts named, as far as it is known."""
    found: dict[Key, dict[int, float]] = {key: {} for key in keys}
    for corpus, numbers in _by_corpus(keys).items():
        is_partial = corpus in sae.partial
        table = "peaks" if is_partial else "postings"
        filters = [
            ("sae", "=", sae.name), ("corpus", "=", corpus), ("feature", "=", feature),
            ("context", "in", numbers),
        ]  # fmt: skip
        names = ("context", "position", "activation", *(() if is_partial else ("kind",)))
        rows = connection.rows(table, names, filters)
        if not is_partial and not bos:
            rows = rows.filter(pc.not_equal(rows["kind"], KIND_BOS))
        columns = (rows[n].to_pylist() for n in names[:3])
        for context, position, activation in zip(*columns, strict=True):
            found[corpus, context][position] = activation
    return found


def to_terminal(tokens: list[str], activations: list[float | None], *, color: bool) -> str:
    """Return tokens on one line, those that fire marked: shaded, or as [[token]]."""
    known = [a or 0.0 for a in activations]
    highest = max(known, default=0.0)
    parts = []
    for token, activation in zip(tokens, known, strict=True):
        shown = visible(token)
        if activation <= 0:
            parts.append(shown)
        elif color:
            # 256-colour backgrounds from pale (230) to strong (208) orange.
            shade = (230, 229, 222, 216, 209, 208)[min(5, int(activation / highest * 6))]
            parts.append(f"\x1b[30;48;5;{shade}m{shown}\x1b[0m")
        else:
            parts.append(f"[[{shown}]]")
    return "".join(parts)


def to_html(tokens: list[str], activations: list[float | None], highest: float) -> str:
    """Return tokens as HTML spans, shaded by activation over `highest`, with it as the title."""
    spans = []
    for token, activation in zip(tokens, activations, strict=True):
        shown = escape(visible(token))
        if activation:
            alpha = 0.15 + 0.85 * min(activation / highest, 1.0)
            spans.append(
                f'<span style="background:rgba(255,140,0,{alpha:.2f})" '
                f'title="{activation:.4g}">{shown}</span>'
            )
        else:
            spans.append(shown)
    return "".join(spans)


def window_columns(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    """Return the list columns of window rows, typed even when there are none."""
    return {
        "tokens": pa.array([r["tokens"] for r in rows], pa.list_(pa.string())),
        "activations": pa.array([r["activations"] for r in rows], pa.list_(pa.float32())),
    }


def _by_corpus(keys: list[Key]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for corpus, context in dict.fromkeys(keys):
        grouped.setdefault(corpus, []).append(int(context))
    return grouped
