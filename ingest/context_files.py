"""Documents to the files of a corpus: tokenized, cut, written; invisible until committed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow.compute as pc
import xxhash

from scopelake.errors import CorpusSourceError
from scopelake.ingest.documents import Document, Source, check_unique
from scopelake.ingest.replies import Replier
from scopelake.ingest.tokens import TokenizedText, Tokenizer
from scopelake.ingest.windows import Context, Cutting, Packer, n_tokens_of, split, to_table
from scopelake.names import KIND_BOS
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.writer import discard, write_contexts

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 22
"""Of documents that are tokenized at once; one alone may have more."""

_FILE_CONTEXTS = 4096
_FILE_TOKENS = 1 << 22
"""Most in a file, and so in memory: 14 bytes a token besides the text."""


@dataclass
class Kept:
    """What is in a corpus already: as much of it as telling apart what comes needs."""

    first_context: int = 0
    """Number of the next context."""
    first_document: int = 0
    """Index of the next document."""
    ids: set[str] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    """Of the contents, 16 bytes each."""


@dataclass
class ContextFiles:
    """The files of a corpus, or of what is appended to one, and what they hold so far."""

    root: Root
    name: str
    cutting: Cutting
    tokenizer: Tokenizer
    replier: Replier | None
    progress: Callable[[int, int], None] | None
    kept: Kept
    drop: bool = False
    """Whether duplicates are left out."""
    n_documents: int = 0
    n_split: int = 0
    n_duplicates: int = 0
    n_contexts: int = 0
    n_tokens: int = 0
    n_bos: int = 0
    _digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    @property
    def digest(self) -> str:
        """Digest of the ids, contents and metadata of all documents that were read."""
        return f"xxh3:{self._digest.hexdigest()}"

    def write(self, source: Source) -> list[Receipt]:
        """Write every file, or none: what a refusal interrupts is removed again.

        Raises:
            CorpusSourceError: the source is unreadable or malformed, or holds no text.
            InvalidArgumentError: an id occurs twice, or a chat and its reply are too long.
        """
        receipts: list[Receipt] = []
        try:
            for part in self._files(self._contexts(source)):
                receipts += self._write(part)
            if self.n_contexts == 0:
                raise self._nothing()
        except BaseException:
            discard(self.root, receipts)
            raise
        return receipts

    def _nothing(self) -> CorpusSourceError:
        if self.n_duplicates:
            return CorpusSourceError(
                f"documents were to be added to corpus {self.name!r}; all {self.n_duplicates:,} "
                "are duplicates, which were to be dropped; give others, or keep duplicates"
            )
        return CorpusSourceError(
            f"documents were to be added to corpus {self.name!r}; its files hold no text; name "
            "others"
        )

    def _write(self, contexts: list[Context]) -> list[Receipt]:
        table = to_table(
            contexts, self.name, self.kept.first_context + self.n_contexts,
            bos_id=self.tokenizer.bos_id, packed=self.cutting.packing,
        )  # fmt: skip
        self.n_contexts += len(contexts)
        kinds = table["kinds"].combine_chunks().flatten()
        self.n_bos += pc.sum(pc.equal(kinds, KIND_BOS)).as_py() or 0
        return write_contexts(self.root, table, corpus=self.name, run=f"corpus:{self.name}")

    def _files(self, contexts: Iterator[Context]) -> Iterator[list[Context]]:
        """Yield the contexts of each file."""
        part: list[Context] = []
        n_tokens = 0
        for context in contexts:
            part.append(context)
            n_tokens += n_tokens_of(context)
            if len(part) == _FILE_CONTEXTS or n_tokens >= _FILE_TOKENS:
                yield part
                part, n_tokens = [], 0
        if part:
            yield part

    def _contexts(self, source: Source) -> Iterator[Context]:
        cutting, bos_id = self.cutting, self.tokenizer.bos_id
        packer = Packer(cutting, bos_id) if cutting.packing else None
        for document, tokens in self._tokenize(source):
            index = self.kept.first_document + self.n_documents
            self.n_documents += 1
            if packer is None:
                contexts = split(document, tokens, cutting, bos_id=bos_id, index=index)
                self.n_split += len(contexts) > 1
            else:
                contexts = list(packer.add(document, tokens, index))
                self.n_split += packer.parts > 1
            yield from self._counted(contexts)
        if packer is not None:
            yield from self._counted(list(packer.rest()))

    def _counted(self, contexts: list[Context]) -> list[Context]:
        self.n_tokens += sum(map(n_tokens_of, contexts))
        if self.progress is not None:
            self.progress(self.n_documents, self.n_tokens)
        return contexts

    def _tokenize(self, source: Source) -> Iterator[tuple[Document, TokenizedText]]:
        encode = self.tokenizer
        documents = source.documents()
        while batch := list(_batch(documents)):
            for document in batch:
                check_unique(self.kept.ids, document)
            texts = iter(encode.encode_texts([d.text for d in batch if d.text is not None]))
            tokens = [next(texts) if d.text is not None else encode.encode_chat(d) for d in batch]
            batch, tokens = self._told_apart(batch, tokens)
            if self.replier is not None:
                _add_replies(batch, tokens, self.replier)
            yield from zip(batch, tokens, strict=True)

    def _told_apart(
        self, batch: list[Document], tokens: list[TokenizedText]
    ) -> tuple[list[Document], list[TokenizedText]]:
        """Count documents of a content that was there, and leave them out if so asked."""
        is_kept = []
        for document, one in zip(batch, tokens, strict=True):
            digest = content_digest(one.text)
            metadata = document.metadata
            said = json.dumps(metadata, sort_keys=True, default=str) if metadata else ""
            self._digest.update(f"{len(document.id)} {document.id} {said}".encode() + digest)
            is_new = digest not in self.kept.digests
            self.kept.digests.add(digest)
            self.n_duplicates += not is_new
            is_kept.append(is_new or not self.drop)
        pairs = [
            p for p, keep in zip(zip(batch, tokens, strict=True), is_kept, strict=True) if keep
        ]
        return [d for d, _ in pairs], [t for _, t in pairs]


def content_digest(text: str) -> bytes:
    """Return the digest, 16 bytes, by which equal contents are found: of a chat, as rendered."""
    return xxhash.xxh3_128_digest(text.encode())


def _batch(documents: Iterator[Document]) -> Iterator[Document]:
    """Yield the next documents, as many as are tokenized at once."""
    n_characters = 0
    for document in islice(documents, _BATCH_DOCUMENTS):
        yield document
        n_characters += len(document.text or "")
        if n_characters >= _BATCH_CHARACTERS:
            return


def _add_replies(batch: list[Document], tokens: list[TokenizedText], replier: Replier) -> None:
    """Replace the tokens of chats that end with the user by those with a reply."""
    asked = [i for i, d in enumerate(batch) if d.messages and d.messages[-1]["role"] == "user"]
    for index in asked:
        replier.check_length(tokens[index], batch[index].origin)
    turns = [len(batch[i].messages or ()) for i in asked]
    for index, extended in zip(
        asked, replier.extend([tokens[i] for i in asked], turns), strict=True
    ):
        tokens[index] = extended
