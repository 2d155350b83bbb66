"""Corpus files to documents: text, jsonl and parquet, each with its own reader.

A reader refuses what it cannot read whole, naming file and line; it never skips.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import CorpusSourceError, InvalidArgumentError
from scopelake.ingest.digest import digest_files, digest_text
from scopelake.names import ROLES, is_text

Message = Mapping[str, str]
"""One message of a chat: ``role`` and ``content``."""

TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".py", ".text")
JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
NAMED_SUFFIXES: Final = (
    "", ".log", ".csv", ".tsv", ".html", ".htm", ".xml", ".tex", ".c", ".h", ".cc", ".cpp", ".hpp",
    ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh", ".sql", ".css", ".toml", ".yaml", ".yml",
    ".ini", ".cfg",
)  # fmt: skip
"""Further suffixes of text files, read as they are: those named one by one, not in a folder."""

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

    def digest(self) -> str:
        """Return the digest of its content."""
        ...

    def documents(self) -> Iterator[Document]:
        """Yield the documents, in order."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Corpus files, told apart by suffix."""

    files: tuple[Path, ...]
    chat: bool = False
    """Whether records hold ``messages`` rather than ``text``."""
    root: Path | None = None
    """Document ids of text files are relative to it where possible."""

    @classmethod
    def find(
        cls, source: str | Path | Sequence[str | Path], *, chat: bool = False,
        root: Path | None = None,
    ) -> FileSource:  # fmt: skip
        """Return the source of the files that `source` names.

        Raises:
            CorpusSourceError: a path is missing, or a folder holds no file of a known kind.
        """
        return cls(tuple(source_files(source)), chat, root)

    def describe(self) -> str:
        """Return the names of the first files."""
        names = [file.name.encode(errors="replace").decode() for file in self.files[:8]]
        return ", ".join([*names, "..."] if len(self.files) > 8 else names)

    def digest(self) -> str:
        """Return the digest of the files."""
        return digest_files(self.files)

    def documents(self) -> Iterator[Document]:
        """Yield every document, in the order of the files.

        Raises:
            CorpusSourceError: a file is unreadable, not UTF-8, malformed, or empty.
        """
        return read_documents(self.files, chat=self.chat, root=self.root)


@dataclass(frozen=True)
class PromptSource:
    """One prompt: a text, or the messages of a chat."""

    prompt: str | Sequence[Message]

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, (str, list, tuple)):
            raise InvalidArgumentError(
                f"prompt {self.prompt!r} was given; it is of type {type(self.prompt).__name__}; "
                "give a text, or a list of messages"
            )

    @property
    def chat(self) -> bool:
        """Whether it is a chat."""
        return not isinstance(self.prompt, str)

    def describe(self) -> str:
        """Return what it is."""
        return "prompt"

    def digest(self) -> str:
        """Return the digest of the prompt."""
        return digest_text(self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt))

    def documents(self) -> Iterator[Document]:
        """Yield the one document.

        Raises:
            CorpusSourceError: it is empty, or a message lacks its role or content.
        """
        if isinstance(self.prompt, str):
            if not self.prompt.strip():
                raise CorpusSourceError("an empty prompt was given; give some text")
            yield _checked(Document("prompt", "the prompt", text=self.prompt))
        else:
            messages = _messages(list(self.prompt), "the prompt")
            yield _checked(Document("prompt", "the prompt", messages=messages))


def source_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that `source` names: a file, a folder (searched whole), or several.

    Raises:
        CorpusSourceError: a path is missing, or a folder holds no file of a known kind.
    """
    if isinstance(source, (str, Path)):
        return _files_of(Path(source))
    if not source:
        raise CorpusSourceError("a corpus of no files was asked for; name at least one file")
    return [file for one in source for file in _files_of(Path(one))]


def read_documents(files: Sequence[Path], *, chat: bool, root: Path | None) -> Iterator[Document]:
    """Yield every document of `files`, in their order.

    Args:
        files: corpus files, told apart by suffix.
        chat: whether records hold ``messages`` rather than ``text``.
        root: document ids of text files are relative to it where possible.

    Raises:
        CorpusSourceError: a file is unreadable, not UTF-8, malformed, or empty.
    """
    for path in files:
        yield from map(_checked, _read(path, chat=chat, root=root))


def _read(path: Path, *, chat: bool, root: Path | None) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        yield from _read_jsonl(path, chat=chat)
    elif suffix == ".parquet":
        yield from _read_parquet(path, chat=chat)
    elif chat:
        raise CorpusSourceError(
            f"{path} was given as a chat corpus; chats are read from .jsonl or .parquet with "
            "a 'messages' column; convert it, or leave chat=True out"
        )
    else:
        yield _read_text(path, root)


def _checked(document: Document) -> Document:
    """Return a document whose every string is text, which halves of surrogate pairs are not."""
    for what, value in (
        ("text", document.text),
        ("messages", document.messages),
        ("id", document.id),
        ("metadata", document.metadata),
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


def _files_of(path: Path) -> list[Path]:
    known = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")
    if path.is_file():
        if path.suffix.lower() not in (*known, *NAMED_SUFFIXES):
            raise CorpusSourceError(
                f"{path} was asked for; {path.suffix} is no suffix of text or records; give "
                f"{', '.join(known)} files, or rename it to .txt if it is text"
            )
        return [path]
    if not path.exists():
        raise CorpusSourceError(f"{path} was asked for; there is no such file; check the path")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in known)
    if not found:
        raise CorpusSourceError(
            f"{path} was asked for; the folder holds no {', '.join(known)} file; name other files"
        )
    return found


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusSourceError(
            f"{path} was asked for; it cannot be read ({error.strerror}); check its permissions"
        ) from error
    if not data.strip():
        raise CorpusSourceError(f"{path} was asked for; it is empty; leave it out")
    return data


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusSourceError(
            f"{where} was asked for; byte {error.start} is not valid UTF-8; convert it to UTF-8"
        ) from error


def _read_text(path: Path, root: Path | None) -> Document:
    text = _decode(_read_bytes(path), str(path))
    if "\0" in text:
        raise CorpusSourceError(
            f"{path} was asked for; character {text.index(chr(0))} is NUL, so it is no "
            "text; leave it out"
        )
    relative = path.relative_to(root) if root and path.is_relative_to(root) else Path(path.name)
    return Document(relative.as_posix(), str(path), text=text)


def _read_jsonl(path: Path, *, chat: bool) -> Iterator[Document]:
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(_decode(line, where))
        except json.JSONDecodeError as error:
            raise CorpusSourceError(
                f"{where} was asked for; the line is not JSON ({error.msg} at column "
                f"{error.colno}); mend or drop the line"
            ) from error
        yield _record(record, where, f"{path.stem}:{number}", chat=chat)


def _read_parquet(path: Path, *, chat: bool) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise CorpusSourceError(
            f"{path} was asked for; it is not a Parquet file ({error}); check the file"
        ) from error
    row = 0
    with file:
        for batch in file.iter_batches(batch_size=1024):
            for record in _records(batch, path, row):
                yield _record(record, f"{path} row {row}", f"{path.stem}:{row}", chat=chat)
                row += 1
    if row == 0:
        raise CorpusSourceError(f"{path} was asked for; it has no rows; leave it out")


def _records(batch: pa.RecordBatch, path: Path, first: int) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise CorpusSourceError(
            f"{path} was asked for; among rows {first} to {first + batch.num_rows - 1} is text "
            "that is not valid UTF-8; write the file again"
        ) from error
    return found


def _record(record: Any, where: str, default_id: str, *, chat: bool) -> Document:  # noqa: ANN401
    key = "messages" if chat else "text"
    if isinstance(record, dict) and key in record and record[key] is None:
        raise CorpusSourceError(
            f"{where} was asked for its {key!r}; it is null; give every record a {key!r}, or drop "
            "this one"
        )
    if not isinstance(record, dict) or record.get(key) is None:
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        hint = "; pass chat=True for chats" if "messages" in found else ""
        raise CorpusSourceError(
            f"{where} was asked for its {key!r}; it has {found or 'nothing'}; give every record "
            f"a {key!r}{hint}"
        )
    metadata = record.get("metadata") or {}
    extra = {k: v for k, v in record.items() if k not in ("id", key, "metadata")}
    if not isinstance(metadata, dict):
        raise CorpusSourceError(f"{where} has a 'metadata' that is no object; make it an object")
    document_id = str(record.get("id", default_id))
    everything = {**extra, **metadata}
    if chat:
        messages = _messages(record[key], where)
        return Document(document_id, where, messages=messages, metadata=everything)
    if not isinstance(record[key], str):
        raise CorpusSourceError(f"{where} has a 'text' that is no string; make it a string")
    return Document(document_id, where, text=record[key], metadata=everything)


def _messages(value: Any, where: str) -> tuple[Message, ...]:  # noqa: ANN401
    if not isinstance(value, list) or not value:
        raise CorpusSourceError(f"{where} has no messages; give a non-empty list of them")
    for message in value:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise CorpusSourceError(
                f"{where} has a message without text 'role' and 'content'; give every message both"
            )
        if message["role"] not in CHAT_ROLES:
            raise CorpusSourceError(
                f"{where} has a message of role {message['role']!r}; roles are "
                f"{', '.join(CHAT_ROLES)}; rename it"
            )
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


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
