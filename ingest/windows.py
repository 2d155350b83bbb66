"""Documents to contexts: cut, overlapping if asked, or several packed into one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.ingest.documents import Document
from scopelake.ingest.tokens import BOS, TokenizedText
from scopelake.names import ROLES, check_whole
from scopelake.store.schema import SCHEMAS

BOS_POLICIES: Final = ("each", "document", "none")
"""Which contexts begin with BOS: each, those in which a document begins, or none."""

_TOKEN_COLUMNS: Final = {
    "token_ids": np.int32, "token_starts": np.int32, "roles": np.int8, "turns": np.int32,
    "kinds": np.int8,
}  # fmt: skip


@dataclass(frozen=True)
class Cutting:
    """How documents become contexts; all of it is recorded with the corpus."""

    context_length: int = 1024
    """Most tokens in a context, BOS included."""
    bos: str = "each"
    """One of `BOS_POLICIES`. The BOS that a chat template writes is a chat's own and stays."""
    stride: int | None = None
    """Tokens from the start of one window of a document to that of the next, BOS not counted; None:
    each begins where the one before ends. Tokens in an overlap are in the corpus twice."""
    packing: bool = False
    """Whether a context is filled with the documents that follow, rather than left short."""

    def __post_init__(self) -> None:
        check_whole("context_length", self.context_length)
        if self.context_length < 2:
            raise InvalidArgumentError(
                f"context_length={self.context_length} was asked for; a context holds BOS and at "
                "least one token; give 2 or more"
            )
        if self.bos not in BOS_POLICIES:
            raise InvalidArgumentError(
                f"bos={self.bos!r} was asked for; there are {', '.join(BOS_POLICIES)}; choose one "
                "of them"
            )
        if self.stride is not None:
            self._check_stride(check_whole("stride", self.stride))

    def _check_stride(self, stride: int) -> None:
        most = self.context_length - (self.bos != "none")
        if not 1 <= stride <= most:
            raise InvalidArgumentError(
                f"stride={stride} was asked for; a context of {self.context_length} tokens has "
                f"room for {most} of a document's; give 1 to {most}"
            )
        if self.packing:
            raise InvalidArgumentError(
                f"stride={stride} was asked for with packing; packed documents are cut where a "
                "context is full, without overlap; give one of them"
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, stop) of a document in a context, and the BOS that is put before them."""

    document: str
    document_index: int
    metadata: str
    tokens: TokenizedText
    start: int
    stop: int
    part: int
    """Number of the piece in its document."""
    adds_bos: bool
    n_tokens: int
    """With a BOS that is added."""
    char_start: int
    char_end: int
    """Where its text is in the document's."""

    @classmethod
    def of(
        cls, document: Document, index: int, metadata: str, tokens: TokenizedText, start: int,
        stop: int, part: int, *, adds_bos: bool,
    ) -> Piece:  # fmt: skip
        """Return a piece of a document."""
        starts = tokens.starts
        return cls(
            document.id, index, metadata, tokens, start, stop, part, adds_bos,
            stop - start + adds_bos,
            int(starts[start]) if start else 0,
            int(starts[stop]) if stop < len(starts) else len(tokens.text),
        )  # fmt: skip


Context = Sequence[Piece]
"""One piece; of a packed corpus one or more."""


def whole(document: Document, tokens: TokenizedText, index: int = 0) -> Context:
    """Return all tokens of a document as its one context, as they are: no BOS is added."""
    n_tokens = len(tokens.token_ids)
    return [Piece.of(document, index, _json(document), tokens, 0, n_tokens, 0, adds_bos=False)]


def split(
    document: Document, tokens: TokenizedText, cutting: Cutting, *, bos_id: int, index: int = 0
) -> list[Context]:
    """Return the contexts of a document, in order; none of one without tokens.

    Where a context begins with BOS it is the tokenizer's own, if it is there (chats), else one that
    is added and covers no text.
    """
    n_tokens = len(tokens.token_ids)
    has_bos = n_tokens > 0 and int(tokens.token_ids[0]) == bos_id
    metadata = _json(document)
    contexts: list[Context] = []
    start = stop = 0
    while stop < n_tokens:
        wanted = cutting.bos == "each" or (cutting.bos == "document" and start == 0)
        adds_bos = wanted and not (has_bos and start == 0)
        stop = min(start + cutting.context_length - adds_bos, n_tokens)
        part = len(contexts)
        piece = Piece.of(document, index, metadata, tokens, start, stop, part, adds_bos=adds_bos)
        contexts.append([piece])
        start = stop if cutting.stride is None else start + cutting.stride
    return contexts


class Packer:
    """Fills contexts with documents, one behind the other; the last one is what is left."""

    def __init__(self, cutting: Cutting, bos_id: int) -> None:
        self._cutting, self._bos_id = cutting, bos_id
        self._open: list[Piece] = []
        self._n_tokens = 0
        self.parts = 0
        """Pieces of the last document."""

    def add(self, document: Document, tokens: TokenizedText, index: int) -> Iterator[Context]:
        """Put a document behind the others; yield the contexts that are full."""
        n_tokens, metadata = len(tokens.token_ids), _json(document)
        has_bos = n_tokens > 0 and int(tokens.token_ids[0]) == self._bos_id
        start = part = self.parts = 0
        while start < n_tokens:
            first = not self._open if self._cutting.bos == "each" else start == 0
            adds_bos = first and self._cutting.bos != "none" and not (has_bos and start == 0)
            room = self._cutting.context_length - self._n_tokens - adds_bos
            if room < 1:  # a BOS would be all that fits
                yield from self.rest()
                continue
            stop = min(start + room, n_tokens)
            piece = Piece.of(
                document, index, metadata, tokens, start, stop, part, adds_bos=adds_bos
            )
            self._open.append(piece)
            self._n_tokens += piece.n_tokens
            start, part = stop, part + 1
            self.parts = part
            if self._n_tokens == self._cutting.context_length:
                yield from self.rest()

    def rest(self) -> Iterator[Context]:
        """Yield the context that is open, if it holds anything."""
        if self._open:
            yield self._open
        self._open, self._n_tokens = [], 0


def to_table(
    contexts: Sequence[Context], corpus: str, first_context: int, *, bos_id: int,
    packed: bool = False,
) -> pa.Table:  # fmt: skip
    """Return contexts numbered from `first_context`, in the schema of the contexts table.

    Args:
        contexts: in order.
        corpus: its name.
        first_context: number of the first.
        bos_id: of the BOS that pieces add.
        packed: whether the row of a context lists its documents, rather than being of one.
    """
    n = len(contexts)
    n_tokens = np.array([n_tokens_of(context) for context in contexts], dtype=np.int32)
    columns: dict[str, Any] = {
        "corpus": pa.repeat(pa.scalar(corpus), n),
        "context": np.arange(first_context, first_context + n, dtype=np.int64),
        "n_tokens": n_tokens,
        "text": [_text(context) for context in contexts],
        **_token_columns(contexts, n_tokens, bos_id),
    }
    if packed:
        columns["documents"] = [_listed(context) for context in contexts]
    else:
        columns |= _document_columns([context[0] for context in contexts])
    schema = SCHEMAS["contexts"]
    return pa.table(
        [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type)
            for f in schema
        ],
        schema=schema,
    )


def n_tokens_of(context: Context) -> int:
    """Return the tokens of a context."""
    return context[0].n_tokens if len(context) == 1 else sum(p.n_tokens for p in context)


def _text(context: Context) -> str:
    return "".join([p.tokens.text[p.char_start : p.char_end] for p in context])


def _document_columns(pieces: Iterable[Piece]) -> dict[str, list[Any]]:
    rows = [
        (p.document, p.document_index, p.part, p.char_start, p.char_end, p.metadata) for p in pieces
    ]
    names = ("document", "document_index", "part", "char_start", "char_end", "metadata")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _listed(context: Context) -> list[dict[str, Any]]:
    """Return what a packed context says of each of its documents."""
    names = ("document", "document_index", "part", "char_start", "char_end", "metadata")
    position, listed = 0, []
    for piece in context:
        listed.append({"position": position, **{name: getattr(piece, name) for name in names}})
        position += piece.n_tokens
    return listed


def _token_columns(
    contexts: Sequence[Context], n_tokens: npt.NDArray[np.int32], bos_id: int
) -> dict[str, pa.Array]:
    """Return the list columns; nothing is made of Python's numbers token by token."""
    pieces = [piece for context in contexts for piece in context]
    counts = np.array([piece.n_tokens for piece in pieces])
    bos_at = (np.cumsum(counts) - counts)[[piece.adds_bos for piece in pieces]]
    is_own = np.ones(int(counts.sum()), dtype=bool)
    is_own[bos_at] = False
    # From offsets in the document's text to those in the context's.
    text_at = np.array(_text_starts(contexts))
    shifts = np.repeat(text_at - [piece.char_start for piece in pieces],
                       [piece.stop - piece.start for piece in pieces])  # fmt: skip
    own: dict[str, list[npt.NDArray[Any]]] = {
        "token_ids": [p.tokens.token_ids[p.start : p.stop] for p in pieces],
        "token_starts": [p.tokens.starts[p.start : p.stop] for p in pieces],
        "roles": [p.tokens.roles[p.start : p.stop] for p in pieces],
        "turns": [p.tokens.turns[p.start : p.stop] for p in pieces],
        "kinds": [p.tokens.kinds[p.start : p.stop] for p in pieces],
    }
    added: dict[str, Any] = {
        "token_ids": bos_id,
        "token_starts": text_at[[piece.adds_bos for piece in pieces]],
        "roles": ROLES.index("none"),
        "turns": -1,
        "kinds": BOS,
    }
    offsets = np.zeros(len(n_tokens) + 1, dtype=np.int32)
    np.cumsum(n_tokens, out=offsets[1:])
    lists, columns = pa.array(offsets), {}
    for name, dtype in _TOKEN_COLUMNS.items():
        values = np.empty(len(is_own), dtype)
        found = np.concatenate(own.pop(name))
        values[is_own] = found + shifts if name == "token_starts" else found
        values[bos_at] = added[name]
        columns[name] = pa.ListArray.from_arrays(lists, pa.array(values))
    return columns


def _text_starts(contexts: Sequence[Context]) -> list[int]:
    """Return, of every piece, where its text begins in its context's."""
    starts = []
    for context in contexts:
        at = 0
        for piece in context:
            starts.append(at)
            at += piece.char_end - piece.char_start
    return starts


def _json(document: Document) -> str:
    if not document.metadata:
        return "{}"
    values = _finite(document.metadata)
    return json.dumps(values, sort_keys=True, default=str, allow_nan=False)


def _finite(value: object) -> object:
    """Return metadata with null for numbers that JSON has not: NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
