"""Records to documents: a text, or a chat in one of its common shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scopelake.errors import CorpusSourceError
from scopelake.ingest.documents import CHAT_ROLES, Document, Message

TEXT_COLUMN: Final = "text"
CHAT_COLUMNS: Final = ("messages", "conversations")
"""Where chats are looked for, in turn."""

SPEAKERS: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}
"""Roles by the speaker that ShareGPT's messages name in ``from``."""


@dataclass(frozen=True)
class Reading:
    """How records are read."""

    chat: bool = False
    """Whether they hold the messages of a chat rather than a text."""
    column: str | None = None
    """Which of their keys; by default ``text``, of chats ``messages`` or ``conversations``."""
    root: Path | None = None
    """Document ids that files give are relative to it where possible."""

    def key(self, record: Mapping[str, Any]) -> str:
        """Return the key of a record's text or chat."""
        if self.column is not None:
            return self.column
        if not self.chat:
            return TEXT_COLUMN
        return next((key for key in CHAT_COLUMNS if key in record), CHAT_COLUMNS[0])


def to_document(record: Any, where: str, default_id: str, reading: Reading) -> Document:  # noqa: ANN401
    """Return the document that a record holds.

    Args:
        record: of a file or data set.
        where: it is, for messages.
        default_id: its id, if it names none.
        reading: what is looked for in it.

    Raises:
        CorpusSourceError: it has no text or chat, or another of its keys is not as it must be.
    """
    key = reading.key(record) if isinstance(record, dict) else reading.column or TEXT_COLUMN
    value = _value(record, key, where, reading)
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise CorpusSourceError(f"{where} has a 'metadata' that is no object; make it an object")
    extra = {k: v for k, v in record.items() if k not in ("id", key, "metadata")}
    named = record.get("id")
    document_id = default_id if named is None else str(named)
    everything = {**extra, **metadata}
    if reading.chat:
        return Document(document_id, where, messages=messages(value, where), metadata=everything)
    if not isinstance(value, str):
        raise CorpusSourceError(f"{where} has a {key!r} that is no string; make it a string")
    return Document(document_id, where, text=value, metadata=everything)


def _value(record: Any, key: str, where: str, reading: Reading) -> Any:  # noqa: ANN401
    value = record.get(key) if isinstance(record, dict) else None
    if value is not None:
        return value
    if isinstance(record, dict) and key in record:
        raise CorpusSourceError(
            f"{where} was asked for its {key!r}; it is null; give every record a {key!r}, or drop "
            "this one"
        )
    names = list(map(str, record)) if isinstance(record, dict) else [type(record).__name__]
    is_chat = not reading.chat and any(name in CHAT_COLUMNS for name in names)
    hint = "; pass chat=True for chats" if is_chat else ", or name another with text_column"
    raise CorpusSourceError(
        f"{where} was asked for its {key!r}; it has {', '.join(names) or 'nothing'}; give "
        f"every record a {key!r}{hint}"
    )


def messages(value: Any, where: str) -> tuple[Message, ...]:  # noqa: ANN401
    """Return the messages of a chat: of ``role`` and ``content``, or ShareGPT's.

    Raises:
        CorpusSourceError: one is neither, or its role or speaker is unknown.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise CorpusSourceError(f"{where} has no messages; give a non-empty list of them")
    return tuple(_message(message, where) for message in value)


def _message(message: Any, where: str) -> Message:  # noqa: ANN401
    values = message if isinstance(message, dict) else {}
    # Rows of a table have every key: those of the other shape are null.
    shared = values.get("from") is not None and values.get("role") is None
    who, content = (values.get(k) for k in (("from", "value") if shared else ("role", "content")))
    if not isinstance(who, str) or not isinstance(content, str):
        raise CorpusSourceError(
            f"{where} has a message without text 'role' and 'content', or 'from' and 'value'; give "
            "every message both"
        )
    known = tuple(SPEAKERS) if shared else CHAT_ROLES
    if who not in known:
        what = "from" if shared else "of role"
        raise CorpusSourceError(
            f"{where} has a message {what} {who!r}; {'speakers' if shared else 'roles'} are "
            f"{', '.join(known)}; rename it"
        )
    return {"role": SPEAKERS[who] if shared else who, "content": content}
