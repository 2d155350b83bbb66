"""Files of a corpus, told apart by suffix; compressed ones are read as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import CorpusSourceError
from scopelake.ingest.compressed import opened, without_compression
from scopelake.ingest.documents import Document
from scopelake.ingest.records import Reading, to_document

TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".py", ".text")
JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
NAMED_SUFFIXES: Final = (
    "", ".log", ".csv", ".tsv", ".html", ".htm", ".xml", ".tex", ".c", ".h", ".cc", ".cpp", ".hpp",
    ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh", ".sql", ".css", ".toml", ".yaml", ".yml",
    ".ini", ".cfg",
)  # fmt: skip
"""Further suffixes of text files, read as they are: those named one by one, not in a folder."""

KNOWN_SUFFIXES: Final = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")
_ROWS: Final = 1024


class CorpusFile(Protocol):
    """A file of a corpus, here or in an object store."""

    @property
    def where(self) -> str:
        """Its path or URL, for messages."""
        ...

    @property
    def path(self) -> PurePath:
        """Its path, which names it."""
        ...

    def local(self) -> AbstractContextManager[Path]:
        """Return a context with a file of this machine that has its bytes."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    @property
    def where(self) -> str:
        """Its path."""
        return str(self.path)

    def local(self) -> AbstractContextManager[Path]:
        """Return itself."""
        return nullcontext(self.path)


def is_known(path: PurePath) -> bool:
    """Whether a file of a folder is one of a corpus."""
    return _is_one_of(path, KNOWN_SUFFIXES)


def check_named(path: PurePath, where: str) -> None:
    """Refuse a file that is named, and is no text by its suffix.

    Raises:
        CorpusSourceError: then.
    """
    if not _is_one_of(path, (*KNOWN_SUFFIXES, *NAMED_SUFFIXES)):
        raise CorpusSourceError(
            f"{where} was asked for; {path.suffix} is no suffix of text or records; give "
            f"{', '.join(KNOWN_SUFFIXES)} files, or rename it to .txt if it is text"
        )


def _is_one_of(path: PurePath, suffixes: tuple[str, ...]) -> bool:
    inner = without_compression(path)
    # The pages of a Parquet file are compressed already; it has to be read from its end.
    is_packed_parquet = inner != path and inner.suffix.lower() == ".parquet"
    return inner.suffix.lower() in suffixes and not is_packed_parquet


def read_file(file: CorpusFile, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a file; one of records is not in memory whole.

    Raises:
        CorpusSourceError: it is unreadable, not UTF-8, malformed, or empty.
    """
    inner = without_compression(file.path)
    suffix = inner.suffix.lower()
    with file.local() as path:
        if suffix in JSON_SUFFIXES:
            yield from _read_jsonl(file, path, reading)
        elif suffix == ".parquet":
            yield from _read_parquet(file, path, reading)
        elif reading.chat:
            raise CorpusSourceError(
                f"{file.where} was given as a chat corpus; chats are read from .jsonl or .parquet "
                "with a 'messages' column; convert it, or leave chat=True out"
            )
        else:
            yield _read_text(file, path, reading)


def _name(file: CorpusFile, reading: Reading) -> PurePosixPath:
    """Return the path by which a file's documents are called."""
    path, root = file.path, reading.root
    return PurePosixPath(
        path.relative_to(root) if root and path.is_relative_to(root) else path.name
    )


def _record_name(file: CorpusFile, reading: Reading) -> str:
    return without_compression(_name(file, reading)).with_suffix("").as_posix()


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusSourceError(
            f"{where} was asked for; byte {error.start} is not valid UTF-8; convert it to UTF-8"
        ) from error


def _read_text(file: CorpusFile, path: Path, reading: Reading) -> Document:
    with opened(path, file.where) as stream:
        data = stream.read()
    if not data.strip():
        raise _empty(file)
    text = _decode(data, file.where)
    if "\0" in text:
        raise CorpusSourceError(
            f"{file.where} was asked for; character {text.index(chr(0))} is NUL, so it is no "
            "text; leave it out"
        )
    return Document(_name(file, reading).as_posix(), file.where, text=text)


def _empty(file: CorpusFile) -> CorpusSourceError:
    return CorpusSourceError(f"{file.where} was asked for; it is empty; leave it out")


def _read_jsonl(file: CorpusFile, path: Path, reading: Reading) -> Iterator[Document]:
    is_empty, name = True, _record_name(file, reading)
    with opened(path, file.where) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            is_empty = False
            where = f"{file.where}:{number}"
            yield to_document(_parse(line, where), where, f"{name}:{number}", reading)
    if is_empty:
        raise _empty(file)


def _parse(line: bytes, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(_decode(line.rstrip(b"\n"), where))
    except json.JSONDecodeError as error:
        raise CorpusSourceError(
            f"{where} was asked for; the line is not JSON ({error.msg} at column "
            f"{error.colno}); mend or drop the line"
        ) from error


def _read_parquet(file: CorpusFile, path: Path, reading: Reading) -> Iterator[Document]:
    try:
        table = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise CorpusSourceError(
            f"{file.where} was asked for; it is not a Parquet file ({error}); check the file"
        ) from error
    with table:
        batches = table.iter_batches(batch_size=_ROWS)
        yield from read_batches(batches, file.where, _record_name(file, reading), reading)


def read_batches(
    batches: Iterator[pa.RecordBatch], where: str, name: str, reading: Reading
) -> Iterator[Document]:
    """Yield the documents of the rows of a table.

    Args:
        batches: of its rows.
        where: it is, for messages.
        name: begins the ids of rows that name none.
        reading: what is looked for in them.

    Raises:
        CorpusSourceError: a row is malformed, or there is none.
    """
    row = 0
    for batch in batches:
        for record in _records(batch, where, row):
            yield to_document(record, f"{where} row {row}", f"{name}:{row}", reading)
            row += 1
    if row == 0:
        raise CorpusSourceError(f"{where} was asked for; it has no rows; leave it out")


def _records(batch: pa.RecordBatch, where: str, first: int) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise CorpusSourceError(
            f"{where} was asked for; among rows {first} to {first + batch.num_rows - 1} is text "
            "that is not valid UTF-8; write the file again"
        ) from error
    return found
