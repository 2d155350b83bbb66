"""Documents to contexts: BOS first, then at most context_length - 1 tokens; never packed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.ingest.sources import Document
from scopelake.ingest.tokens import BOS, TokenizedText
from scopelake.names import ROLES
from scopelake.store.schema import SCHEMAS


@dataclass(frozen=True)
class Window:
    """One context of a document, as a row of the contexts table without its number."""

    row: dict[str, Any]
    n_tokens: int


def split(
    document: Document, tokens: TokenizedText, *, context_length: int, bos_id: int
) -> Iterator[Window]:
    """Yield the windows of a document, in order.

    Every window begins with BOS: the tokenizer's own where it is there (chats), else one that is
    added and covers no text.
    """
    has_bos = len(tokens.token_ids) > 0 and int(tokens.token_ids[0]) == bos_id
    start, part = 0, 0
    while start < len(tokens.token_ids):
        room = context_length if has_bos and start == 0 else context_length - 1
        stop = min(start + room, len(tokens.token_ids))
        yield _window(document, tokens, start, stop, part, bos_id)
        start, part = stop, part + 1


def whole(document: Document, tokens: TokenizedText) -> Window:
    """Return all tokens of a document as its one window, as they are: no BOS is added."""
    columns = _columns(tokens, 0, len(tokens.token_ids), 0)
    return _as_window(document, columns, 0, 0, len(tokens.text), tokens.text)


def to_table(windows: list[Window], corpus: str, first_context: int) -> pa.Table:
    """Return contexts numbered from `first_context`, in the schema of the contexts table."""
    rows = [
        {**window.row, "corpus": corpus, "context": first_context + i}
        for i, window in enumerate(windows)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["contexts"])


def _window(
    document: Document, tokens: TokenizedText, start: int, stop: int, part: int, bos_id: int
) -> Window:
    n_all = len(tokens.token_ids)
    char_start = int(tokens.starts[start]) if start else 0
    char_end = int(tokens.starts[stop]) if stop < n_all else len(tokens.text)
    columns = _columns(tokens, start, stop, char_start)
    if int(tokens.token_ids[start]) != bos_id or start:
        added: dict[str, int] = {
            "token_ids": bos_id,
            "token_starts": 0,
            "roles": ROLES.index("none"),
            "turns": -1,
            "kinds": BOS,
        }
        columns = {k: np.concatenate([[added[k]], v]).astype(v.dtype) for k, v in columns.items()}
    return _as_window(document, columns, part, char_start, char_end, tokens.text)


def _columns(
    tokens: TokenizedText, start: int, stop: int, char_start: int
) -> dict[str, npt.NDArray[Any]]:
    return {
        "token_ids": tokens.token_ids[start:stop],
        "token_starts": (tokens.starts[start:stop] - char_start).astype(np.int32),
        "roles": tokens.roles[start:stop],
        "turns": tokens.turns[start:stop],
        "kinds": tokens.kinds[start:stop],
    }


def _as_window(
    document: Document,
    columns: dict[str, npt.NDArray[Any]],
    part: int,
    char_start: int,
    char_end: int,
    text: str,
) -> Window:
    n_tokens = len(columns["token_ids"])
    row = {
        "document": document.id,
        "part": part,
        "char_start": char_start,
        "char_end": char_end,
        "text": text[char_start:char_end],
        "n_tokens": n_tokens,
        "metadata": json.dumps(
            _finite(document.metadata), sort_keys=True, default=str, allow_nan=False
        ),
        **columns,
    }
    return Window(row, n_tokens)


def _finite(value: object) -> object:
    """Return metadata with null for numbers that JSON has not: NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
