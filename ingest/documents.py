"""What a corpus is made of: documents, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from scopelake.errors import CorpusSourceError, InvalidArgumentError
from scopelake.names import ROLES, is_text

Message = Mapping[str, str]
"""One message of a chat: ``role`` and ``content``."""

CHAT_ROLES: Final = ("assistant", *ROLES[1:])
"""Roles of a message; assistant and model are the same."""


@dataclass(frozen=True)
class Document:
    """One document of a corpus: either a text or a chat."""

    id: str
    origin: str
    """File, and line or row where it has one, for messages."""
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Where the documents of a corpus come from."""

    @property
    def chat(self) -> bool:
        """Whether they are chats."""
        ...

    def describe(self) -> str:
        """Return in words what it is."""
        ...

    def documents(self) -> Iterator[Document]:
        """Yield the documents, in order."""
        ...


def checked(document: Document) -> Document:
    """Return a document whose every string is text, which halves of surrogate pairs are not.

    Raises:
        CorpusSourceError: one is not.
    """
    metadata = document.metadata
    if is_text(f"{document.id}{document.text or ''}") and not (metadata or document.messages):
        return document  # most are no more than that
    for what, value in (
        ("text", document.text),
        ("messages", document.messages),
        ("id", document.id),
        ("metadata", metadata),
    ):
        if not _all_text(value):
            raise CorpusSourceError(
                f"{document.origin} was asked for; its {what} has half of a surrogate pair "
                "(\\ud800 to \\udfff), which is no text; mend or drop it"
            )
    return document


def _all_text(value: object) -> bool:
    if isinstance(value, str):
        return is_text(value)
    if isinstance(value, Mapping):
        return all(_all_text(part) for pair in value.items() for part in pair)
    return not isinstance(value, (list, tuple)) or all(map(_all_text, value))


def check_unique(seen: set[str], document: Document) -> None:
    """Refuse a second document of the same id.

    Raises:
        InvalidArgumentError: the id is in `seen` already.
    """
    if document.id in seen:
        raise InvalidArgumentError(
            f"{document.origin} has document id {document.id!r}; an earlier document has it too; "
            "give every document its own id"
        )
    seen.add(document.id)
