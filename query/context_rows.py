"""Contexts that were found for a feature: the tokens around their peaks, and how they are shown."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from html import escape

import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.names import visible
from scopelake.query.connect import Connection
from scopelake.query.rank_contexts import Rows
from scopelake.query.resolve import SaeInfo
from scopelake.query.windows import (
    Key,
    Span,
    activations_in,
    context_texts,
    to_html,
    to_terminal,
    window_columns,
)


def check_window(window: int | None) -> None:
    """Refuse a negative number of tokens.

    Raises:
        InvalidArgumentError: it is one.
    """
    if window is not None and window < 0:
        raise InvalidArgumentError(
            f"window={window} was asked for; a window is a number of tokens; give 0 or more"
        )


def contexts_text(rows: Rows, *, color: bool) -> list[str]:
    """Return two lines for each context, the firing tokens marked."""
    lines = []
    for row in rows:
        where = f"{row['corpus']} {visible(row['document'])} #{row['context']}:{row['position']}"
        lines.append(f"{row['value']:10.4g}  {where}")
        lines.append("    " + to_terminal(row["tokens"], row["activations"], color=color))
    return lines


def contexts_html(rows: Rows, value: str = "activation") -> str:
    """Return the contexts as a table, their tokens shaded by activation.

    Args:
        rows: one at least.
        value: what the value is.
    """
    highest = max(r["activation"] for r in rows)
    body = "".join(
        f"<tr><td>{r['value']:.4g}</td>"
        f"<td>{escape(r['corpus'])} {escape(visible(r['document']))} "
        f"#{r['context']}:{r['position']}"
        '</td><td style="text-align:left;font-family:monospace;white-space:pre-wrap">'
        f"{to_html(r['tokens'], r['activations'], highest)}</td></tr>"
        for r in rows
    )
    return f"<table><tr><th>{value}</th><th>where</th><th>context</th></tr>{body}</table>"


def add_windows(
    connection: Connection,
    sae: SaeInfo,
    feature: int,
    rows: Rows,
    window: int | None,
    *,
    bos: bool,
) -> None:
    """Add rank, document and what is in the window (None: the context) to the ranked `rows`."""
    keys = [(row["corpus"], row["context"]) for row in rows]
    # Both read files most of the time, each some of its own.
    with ThreadPoolExecutor(1) as pool:
        firing = pool.submit(activations_in, connection, sae, feature, keys, bos=bos)
        texts = context_texts(connection, keys, _spans(rows, window))
        fired = firing.result()
    for rank, (row, key) in enumerate(zip(rows, keys, strict=True)):
        text = texts[key]
        start, stop = 0, text.n_tokens
        if window is not None:
            start = max(row["position"] - window, 0)
            stop = min(row["position"] + window + 1, text.n_tokens)
        pieces = text.pieces(start, stop)
        row |= {
            "rank": rank,
            "document": text.document(row["position"]),
            "start": start,
            "stop": stop,
            "tokens": pieces,
            "activations": [
                fired[key].get(p, None if key[0] in sae.partial else 0.0)
                for p in range(start, stop)
            ],
            "text": "".join(pieces),
        }


def _spans(rows: Rows, window: int | None) -> dict[Key, Span] | None:
    """Return by context the tokens that are shown of it; None: all."""
    if window is None:
        return None
    spans: dict[Key, Span] = {}
    for row in rows:
        key, position = (row["corpus"], row["context"]), row["position"]
        start, stop = spans.get(key, (position, position))
        spans[key] = (min(start, max(position - window, 0)), max(stop, position + window + 1))
    return spans


def context_table(rows: Rows) -> pa.Table:
    """Return rows with windows as the table of `TopContexts`."""
    types = {
        "rank": pa.int32(),
        "corpus": pa.string(),
        "context": pa.int64(),
        "position": pa.int32(),
        "activation": pa.float32(),
        "value": pa.float64(),
        "document": pa.string(),
        "start": pa.int32(),
        "stop": pa.int32(),
    }
    columns = {name: pa.array([r[name] for r in rows], t) for name, t in types.items()}
    text = pa.array([r["text"] for r in rows], pa.string())
    return pa.table({**columns, **window_columns(rows), "text": text})
