"""Spans of tokens that a user names: checked against the lake, and laid out token by token."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.query.connect import Connection
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE

SPAN_COLUMNS: Final = ("corpus", "context", "start", "stop")
"""Columns of a table of spans: tokens [start, stop) of a context."""


def checked_spans(connection: Connection, spans: pa.Table) -> pa.Table:
    """Return spans in the order of their tokens, without other columns.

    Args:
        connection: from `connect`.
        spans: of `SPAN_COLUMNS`.

    Raises:
        InvalidArgumentError: there are none, they are no such table, share a token, or are beyond
            their context.
        CorpusNotFoundError: the lake has no such corpus.
    """
    if missing := [c for c in SPAN_COLUMNS if c not in spans.column_names]:
        raise InvalidArgumentError(
            f"spans were given without {', '.join(missing)}; a span has {', '.join(SPAN_COLUMNS)}; "
            "give these columns"
        )
    types = [pa.string(), pa.int64(), pa.int64(), pa.int64()]
    try:
        found = spans.select(SPAN_COLUMNS).cast(
            pa.schema(list(zip(SPAN_COLUMNS, types, strict=True)))
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidArgumentError(
            f"spans were given as {spans.select(SPAN_COLUMNS).schema.types}; a corpus is text, the "
            "others are whole numbers; give such columns"
        ) from error
    if found.num_rows == 0 or any(column.null_count for column in found.columns):
        what = "no span was given" if found.num_rows == 0 else "spans were given with nulls"
        raise InvalidArgumentError(f"{what}; give one or more, with all columns")
    found = found.sort_by([(name, "ascending") for name in SPAN_COLUMNS])
    for corpus in set(found["corpus"].to_pylist()):
        connection.coverage.check_corpus(corpus)
    _check_places(connection, found)
    return found


def _check_places(connection: Connection, spans: pa.Table) -> None:
    """Refuse spans that are beyond their context, or share a token."""
    corpus = spans["corpus"].to_numpy(zero_copy_only=False)
    context, start, stop = (spans[name].to_numpy() for name in SPAN_COLUMNS[1:])
    follows = (corpus[1:] == corpus[:-1]) & (context[1:] == context[:-1])
    shared = np.flatnonzero(follows & (start[1:] < stop[:-1]))
    if len(shared):
        at = int(shared[0])
        raise InvalidArgumentError(
            f"spans [{start[at]}, {stop[at]}) and [{start[at + 1]}, {stop[at + 1]}) of context "
            f"{context[at]} of {corpus[at]!r} were given; they share a token; make one of them"
        )
    lengths = np.zeros(len(spans), np.int64)
    for name in np.unique(corpus.astype(str)).tolist():
        of = np.flatnonzero(corpus == name)
        numbers, which = np.unique(context[of], return_inverse=True)
        rows = run(
            connection,
            f"SELECT context, n_tokens FROM {PRIVATE}.contexts WHERE corpus = $1 "
            "AND context IN (SELECT unnest($2::BIGINT[]))",
            [name, numbers.tolist()],
            {"contexts": [("corpus", "=", name)]},
        )
        known = dict(zip(rows["context"].to_pylist(), rows["n_tokens"].to_pylist(), strict=True))
        lengths[of] = np.array([known.get(n, -1) for n in numbers.tolist()])[which]
    wrong = np.flatnonzero((start < 0) | (start >= stop) | (stop > lengths))
    if len(wrong):
        at = int(wrong[0])
        there = f"it has {lengths[at]:,} tokens" if lengths[at] >= 0 else "there is no such context"
        raise InvalidArgumentError(
            f"span [{start[at]}, {stop[at]}) of context {context[at]} of {corpus[at]!r} was given; "
            f"{there}; give tokens that are there, one or more"
        )


def merged_spans(spans: pa.Table) -> pa.Table:
    """Return spans, those that share a token as one.

    Args:
        spans: of `SPAN_COLUMNS`, sorted by them.
    """
    merged: list[dict[str, Any]] = []
    for span in spans.select(SPAN_COLUMNS).to_pylist():
        last = merged[-1] if merged else None
        place = ("corpus", "context")
        if last and all(last[n] == span[n] for n in place) and span["start"] < last["stop"]:
            last["stop"] = max(last["stop"], span["stop"])
        else:
            merged.append(span)
    return pa.Table.from_pylist(merged, spans.select(SPAN_COLUMNS).schema)


def tokens_of(spans: pa.Table) -> pa.Table:
    """Return corpus, context, position and number of the span of each token in one."""
    start, stop = spans["start"].to_numpy(), spans["stop"].to_numpy()
    lengths = stop - start
    span = np.repeat(np.arange(len(lengths)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pa.table(
        {
            "corpus": spans["corpus"].take(pa.array(span)),
            "context": spans["context"].to_numpy()[span],
            "position": np.arange(len(span)) - first + start[span],
            "span": span,
        }
    )
