"""What a user names as the source of a corpus, found; nothing of it is read before it is needed.

A reader refuses what it cannot read whole, naming file and line; it never skips.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Final, Protocol

from scopelake.errors import CorpusSourceError, InvalidArgumentError
from scopelake.ingest.corpus_datasets import (
    HUB,
    from_folder,
    from_hub,
    from_object,
    is_dataset,
    is_saved,
)
from scopelake.ingest.corpus_files import (
    KNOWN_SUFFIXES,
    CorpusFile,
    LocalFile,
    check_named,
    is_known,
    read_file,
)
from scopelake.ingest.documents import Document, Message, checked
from scopelake.ingest.records import Reading, messages
from scopelake.store.root import S3

_PATTERN: Final = re.compile(r"[*?\[]")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]+:/")

Spec = Any
"""A file, folder, pattern, ``s3://`` or ``hf://`` URL, or a data set object."""


class Part(Protocol):
    """One of the things that a source consists of."""

    @property
    def where(self) -> str:
        """What it is, for messages."""
        ...

    def documents(self, reading: Reading) -> Iterator[Document]:
        """Yield its documents, in order."""
        ...


@dataclass(frozen=True)
class FilePart:
    """A file, here or in an object store."""

    file: CorpusFile

    @property
    def where(self) -> str:
        """Its path or URL."""
        return self.file.where

    def documents(self, reading: Reading) -> Iterator[Document]:
        """Yield the documents in it."""
        return read_file(self.file, reading)


@dataclass(frozen=True)
class CorpusSource:
    """Files and data sets, one after the other."""

    parts: tuple[Part, ...]
    reading: Reading

    @classmethod
    def find(
        cls, source: Spec, *, chat: bool = False, root: Path | None = None,
        text_column: str | None = None,
    ) -> CorpusSource:  # fmt: skip
        """Return the source of what `source` names.

        Args:
            source: a file, a folder (searched whole), a pattern, an ``s3://`` or ``hf://`` URL, a
                data set, or several of these.
            chat: records hold the messages of a chat rather than a text.
            root: document ids of files are relative to it where possible.
            text_column: key of the text, or of the messages, in a record.

        Raises:
            CorpusSourceError: a path is missing, or a folder holds no file of a known kind.
            InvalidArgumentError: a URL is of no known kind, or a data set is several splits.
            MissingDependencyError: an ``hf://`` URL without the package ``datasets``.
            ObjectStoreError: an object store refuses or does not answer.
        """
        one = isinstance(source, (str, Path)) or is_dataset(source)
        if not one and not isinstance(source, Iterable):
            raise InvalidArgumentError(
                f"a corpus of {source!r} was asked for; it is of type {type(source).__name__}; "
                "give a path, a data set, or a list of these"
            )
        specs = [source] if one else list(source)
        if not specs:
            raise CorpusSourceError("a corpus of no files was asked for; name at least one file")
        parts = tuple(part for spec in specs for part in _parts_of(spec))
        return cls(parts, Reading(chat, text_column, root))

    @property
    def chat(self) -> bool:
        """Whether its documents are chats."""
        return self.reading.chat

    def describe(self) -> str:
        """Return the names of the first files and data sets."""
        names = [_last_name(part.where) for part in self.parts[:8]]
        return ", ".join([*names, "..."] if len(self.parts) > 8 else names)

    def documents(self) -> Iterator[Document]:
        """Yield every document, in order.

        Raises:
            CorpusSourceError: something is unreadable, not UTF-8, malformed, or empty.
        """
        for part in self.parts:
            yield from map(checked, part.documents(self.reading))


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

    @property
    def may_be_answered(self) -> bool:
        """Whether it is a chat that ends with the user."""
        return not isinstance(self.prompt, str) and any(
            document.messages and document.messages[-1]["role"] == "user"
            for document in self.documents()
        )

    def describe(self) -> str:
        """Return what it is."""
        return "prompt"

    def documents(self) -> Iterator[Document]:
        """Yield the one document.

        Raises:
            CorpusSourceError: it is empty, or a message lacks its role or content.
        """
        if isinstance(self.prompt, str):
            if not self.prompt.strip():
                raise CorpusSourceError("an empty prompt was given; give some text")
            yield checked(Document("prompt", "the prompt", text=self.prompt))
        else:
            found = messages(list(self.prompt), "the prompt")
            if not any(message["content"].strip() for message in found):
                raise CorpusSourceError("an empty prompt was given; give a message some text")
            yield checked(Document("prompt", "the prompt", messages=found))


def read_messages(path: str | Path) -> list[Message]:
    """Return the messages in a JSON file: a list of them, or an object that has one.

    Raises:
        CorpusSourceError: there is no such file, it is no JSON, or holds no messages.
    """
    where = str(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CorpusSourceError(
            f"the messages in {where} were asked for; it cannot be read ({error.strerror}); name a "
            "JSON file of messages, or give what the user says as the prompt, before --chat"
        ) from error
    except ValueError as error:
        raise CorpusSourceError(
            f"the messages in {where} were asked for; it is no JSON in UTF-8; give a list of "
            "messages with role and content"
        ) from error
    if isinstance(value, dict):
        value = value.get(Reading(chat=True).key(value))
    return list(messages(value, where))


def _last_name(where: str) -> str:
    """Return how a part is called in the catalogue: a file by its name alone."""
    name = where if "://" in where else where.rstrip("/").rpartition("/")[2]
    return name.encode(errors="replace").decode()


def _parts_of(spec: Spec) -> list[Part]:
    if is_dataset(spec):
        return [from_object(spec)]
    if not isinstance(spec, (str, Path)) or spec == "":
        # As a path an empty text would be the current folder.
        raise InvalidArgumentError(
            f"a corpus of {spec!r} was asked for; that names no file; give a path, or a data set"
        )
    text = str(spec)
    if text.startswith(S3):
        from scopelake.ingest.corpus_objects import find_objects

        return [FilePart(file) for file in find_objects(text)]
    if text.startswith(HUB):
        return [from_hub(text)]
    path = Path(spec)
    if not path.exists() and _SCHEME.match(text):
        lost = "; a Path loses a slash, so give it as text" if isinstance(spec, Path) else ""
        raise InvalidArgumentError(
            f"{text} was asked for; corpora are read from files, {S3} and {HUB}; give one of these"
            f"{lost}"
        )
    return _local_parts(path)


def _local_parts(path: Path) -> list[Part]:
    if path.is_file():
        check_named(path, str(path))
        return [FilePart(LocalFile(path))]
    if path.is_dir() and is_saved(path):
        return [from_folder(path)]
    if not path.exists():
        found = sorted(map(Path, glob(str(path), recursive=True)))
        if not found:
            what = (
                "no file fits this pattern"
                if _PATTERN.search(str(path))
                else "there is no such file"
            )
            raise CorpusSourceError(f"{path} was asked for; {what}; check the path")
        # A pattern may name a folder and what is in it.
        return list({part.where: part for one in found for part in _local_parts(one)}.values())
    files = sorted(p for p in path.rglob("*") if p.is_file() and is_known(p))
    if not files:
        raise CorpusSourceError(
            f"{path} was asked for; the folder holds no {', '.join(KNOWN_SUFFIXES)} file; name "
            "other files"
        )
    return [FilePart(LocalFile(file)) for file in files]
