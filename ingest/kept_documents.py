"""The documents of a corpus, read back from its contexts, so that new ones are told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from scopelake.ingest.context_files import Kept, content_digest
from scopelake.ingest.tokens import GENERATED
from scopelake.store.context_numbers import ContextNumbers
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_TOKENS_AT_ONCE: Final = 1 << 22
_PLACE: Final = ("document", "document_index", "char_start", "char_end")
_TOKENS: Final = ("token_starts", "turns", "kinds")


def read_kept(store: LakeStore, snapshot: Snapshot, row: Mapping[str, Any]) -> tuple[Kept, int]:
    """Read what tells the documents of a corpus apart, one document in memory.

    Args:
        store: the lake.
        snapshot: of it.
        row: the corpus's, of the corpora table.

    Returns:
        What is kept, and how many documents have the content of an earlier one.
    """
    kept = Kept(ContextNumbers.of(row).next_start, int(row["n_documents"]))
    n_duplicates = 0
    for document, text in _documents(store, snapshot, row):
        kept.ids.add(document)
        digest = content_digest(text)
        n_duplicates += digest in kept.digests
        kept.digests.add(digest)
    return kept, n_duplicates


@dataclass(slots=True)
class _Gathered:
    """A document of which some pieces were read."""

    document: str
    index: int
    text: str = ""
    turn: int = -1
    """The highest so far."""
    turn_start: int = 0
    """Where it begins in `text`."""
    has_reply: bool = False

    def add(self, piece: Mapping[str, Any], row: Mapping[str, Any], *, chat: bool) -> None:
        """Put a piece behind the others, from where it overlaps them."""
        at, start = piece["text_start"], piece["char_start"]
        self.text = self.text[:start] + row["text"][at : at + piece["char_end"] - start]
        if not chat:
            return
        where = slice(piece["position"], piece["stop"])
        turns = np.array(row["turns"][where])
        if (highest := int(turns.max(initial=-1))) > self.turn:
            first = int(row["token_starts"][piece["position"] + int((turns == highest).argmax())])
            self.turn, self.turn_start = highest, start + first - at
        self.has_reply |= GENERATED in row["kinds"][where]

    def content(self) -> str:
        """Return its text without a reply that was generated, which is the last turn."""
        return self.text[: self.turn_start] if self.has_reply else self.text


def _documents(
    store: LakeStore, snapshot: Snapshot, row: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield id and content of each document."""
    gathered: _Gathered | None = None
    for context in _contexts(store, snapshot, row):
        for piece in _pieces(context):
            if gathered is None or piece["document_index"] != gathered.index:
                if gathered is not None:
                    yield gathered.document, gathered.content()
                gathered = _Gathered(piece["document"], piece["document_index"])
            gathered.add(piece, context, chat=bool(row["chat"]))
    if gathered is not None:
        yield gathered.document, gathered.content()


def _contexts(
    store: LakeStore, snapshot: Snapshot, row: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    step = max(1, _TOKENS_AT_ONCE // int(row["context_length"]))
    columns = ["context", "text", "n_tokens", "documents", *_PLACE]
    columns += _TOKENS if row["chat"] else ()
    for start in range(0, ContextNumbers.of(row).end, step):
        filters = [
            ("corpus", "=", row["corpus"]), ("context", ">=", start), ("context", "<", start + step)
        ]  # fmt: skip
        yield from store.read("contexts", snapshot, columns, filters).sort_by("context").to_pylist()


def _pieces(context: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the documents of a context, with where they are in its tokens and its text."""
    listed = context["documents"] or [{"position": 0, **{c: context[c] for c in _PLACE}}]
    stops = [*(piece["position"] for piece in listed[1:]), context["n_tokens"]]
    text_start = 0
    for piece, stop in zip(listed, stops, strict=True):
        yield {**piece, "text_start": text_start, "stop": stop}
        text_start += piece["char_end"] - piece["char_start"]
