"""Tokens around a peak, with the activation of every one of them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, Final

import pyarrow as pa

from scopelake.names import KIND_BOS
from scopelake.query.connect import Connection
from scopelake.query.resolve import SaeInfo
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE

Key = tuple[str, int]
"""corpus, context"""

_VISIBLE: Final = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    **dict.fromkeys(range(0x7F, 0xA0), "\ufffd"),
    ord("\n"): "↵",
    ord("\t"): "⇥",
}


@dataclass(frozen=True)
class ContextText:
    """A context's tokens as text."""

    documents: list[tuple[int, str]]
    """Of each its first position and its id; one, but for a packed context."""
    pieces: list[str]
    """[n_tokens]; they spell the text, but for the ``<bos>`` of plain text."""

    def document(self, position: int) -> str:
        """Return the id of the document of a token."""
        return [name for start, name in self.documents if start <= position][-1]


def context_texts(connection: Connection, keys: list[Key]) -> dict[Key, ContextText]:
    """Return the texts of the contexts named, of those that there are."""
    found: dict[Key, ContextText] = {}
    for corpus, numbers in _by_corpus(keys).items():
        rows = run(
            connection,
            "SELECT context, document, documents, text, token_starts, kinds "
            f"FROM {PRIVATE}.contexts "
            f"WHERE corpus = ? AND context IN ({_listed(numbers)})",
            [corpus],
            {"contexts": [("corpus", "=", corpus), ("context", "in", numbers)]},
        ).to_pylist()
        for row in rows:
            listed = row["documents"]
            documents = [(d["position"], d["document"]) for d in listed or ()]
            documents = documents or [(0, row["document"])]
            found[corpus, row["context"]] = ContextText(documents, _pieces(row))
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
        rows = run(
            connection,
            f"SELECT context, position, activation FROM {PRIVATE}.{table} "
            f"WHERE sae = ? AND corpus = ? AND feature = ? AND context IN ({_listed(numbers)})"
            + ("" if bos or is_partial else f" AND kind <> {KIND_BOS}"),
            [sae.name, corpus, feature],
            {
                table: [
                    ("sae", "=", sae.name),
                    ("corpus", "=", corpus),
                    ("feature", "=", feature),
                    ("context", "in", numbers),
                ]
            },
        )
        columns = (rows[n].to_pylist() for n in ("context", "position", "activation"))
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


def visible(token: str) -> str:
    """Return `token` with signs for control characters: text could command a terminal."""
    return token.translate(_VISIBLE)


def _by_corpus(keys: list[Key]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for corpus, context in dict.fromkeys(keys):
        grouped.setdefault(corpus, []).append(int(context))
    return grouped


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _pieces(row: dict[str, Any]) -> list[str]:
    starts, text = row["token_starts"], row["text"]
    pieces = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [
        "<bos>" if kind == KIND_BOS and not piece else piece
        for kind, piece in zip(row["kinds"], pieces, strict=True)
    ]
