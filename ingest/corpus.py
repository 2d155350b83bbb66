"""Making a corpus: read, tokenize, cut into contexts, commit as one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from uuid import uuid4

import pyarrow as pa

from scopelake.errors import CorpusExistsError, CorpusSourceError, InvalidArgumentError
from scopelake.ingest.digest import digest_text
from scopelake.ingest.replies import Replier
from scopelake.ingest.sources import Document, Source, check_unique
from scopelake.ingest.tokens import TokenizedText, Tokenizer
from scopelake.ingest.windows import Window, split, to_table
from scopelake.names import check_name, check_whole
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard, write_contexts

_BATCH = 64
_CONTEXTS_PER_FILE = 4096


@dataclass(frozen=True)
class CorpusConfig:
    """How a corpus is cut."""

    name: str
    context_length: int = 1024
    """Most tokens in a context, BOS included."""
    shard_contexts: int = 256
    """Contexts in a shard, the unit of retry and commit."""

    def __post_init__(self) -> None:
        check_name("corpus", self.name)
        check_whole("context_length", self.context_length)
        check_whole("shard_contexts", self.shard_contexts)
        if self.context_length < 2:
            raise InvalidArgumentError(
                f"context_length={self.context_length} was asked for; a context holds BOS and at "
                "least one token; give 2 or more"
            )
        if self.shard_contexts < 1:
            raise InvalidArgumentError(
                f"shard_contexts={self.shard_contexts} was asked for; give 1 or more"
            )


@dataclass(frozen=True)
class CorpusSummary:
    """What was added."""

    corpus: str
    n_documents: int
    n_split: int
    """Documents longer than one context, cut into several."""
    n_contexts: int
    n_tokens: int
    """BOS included."""
    snapshot: int


def add_corpus(
    store: LakeStore,
    config: CorpusConfig,
    source: Source,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None = None,
    replier: Replier | None = None,
) -> CorpusSummary:
    """Tokenize `source` into contexts and commit them all at once, or nothing.

    Args:
        store: the lake.
        config: the corpus.
        source: its documents.
        tokenizer: shared by all models that will read the corpus.
        progress: called with (documents read, tokens made).
        replier: writes the reply to chats that end with the user.

    Raises:
        CorpusExistsError: the lake has a corpus of that name.
        CorpusSourceError: a source file is missing, empty, not UTF-8 or malformed.
        InvalidArgumentError: a chat and its reply are longer than the model's context.
        LakeBusyError: other writers came first again and again.
    """
    with Writer(store) as writer:
        _check_new(store, store.snapshot(), config.name)
        making = _Making(store, config, source, tokenizer, replier, progress)
        receipts = making.write()
        try:
            snapshot = writer.commit(
                receipts,
                transaction=f"corpus:{config.name}:{uuid4().hex}",
                reason=f"add corpus {config.name}",
                rows={"corpora": pa.Table.from_pylist([making.row()], schema=SCHEMAS["corpora"])},
                revise=making.check_new,
            )
        except CorpusExistsError:
            discard(store.root, receipts)
            raise
    return CorpusSummary(
        config.name, making.n_documents, making.n_split, making.n_contexts, making.n_tokens,
        snapshot.id,
    )  # fmt: skip


def _check_new(store: LakeStore, snapshot: Snapshot, name: str) -> None:
    filters = [("corpus", "=", name)]
    if store.read("corpora", snapshot, ["corpus"], filters).num_rows:
        raise CorpusExistsError(
            f"corpus {name!r} was to be added; the lake has one of that name; choose another name"
        )


@dataclass
class _Making:
    """One corpus while it is made, and what it holds so far."""

    store: LakeStore
    config: CorpusConfig
    source: Source
    tokenizer: Tokenizer
    replier: Replier | None
    progress: Callable[[int, int], None] | None
    n_documents: int = 0
    n_split: int = 0
    n_contexts: int = 0
    n_tokens: int = 0
    ids: set[str] = field(default_factory=set)

    def check_new(self, commit: Commit, snapshot: Snapshot) -> Commit:
        """Refuse the name if another writer has taken it meanwhile."""
        _check_new(self.store, snapshot, self.config.name)
        return commit

    def write(self) -> list[Receipt]:
        """Write every file of the corpus, or none: what a refusal interrupts is removed again."""
        receipts: list[Receipt] = []
        name, root = self.config.name, self.store.root
        try:
            windows = self._windows()
            while part := list(islice(windows, _CONTEXTS_PER_FILE)):
                table = to_table(part, name, self.n_contexts)
                self.n_contexts += len(part)
                receipts += write_contexts(root, table, corpus=name, run=f"corpus:{name}")
            if self.n_contexts == 0:
                raise CorpusSourceError(
                    f"corpus {name!r} was to be added; its files hold no text; name others"
                )
        except BaseException:
            discard(root, receipts)
            raise
        return receipts

    def row(self) -> dict[str, object]:
        """Return its row of the corpora table."""
        source, digest = self.source.describe(), self.source.digest()
        if self.replier is not None:
            replies = self.replier.describe()
            source += f"; {replies}"
            digest = digest_text(f"{digest}; {replies} {self.replier.model.digest}")
        return {
            "corpus": self.config.name,
            "source": source,
            "chat": self.source.chat,
            "tokenizer": self.tokenizer.name,
            "tokenizer_digest": self.tokenizer.digest,
            "chat_template_digest": digest_text(self.tokenizer.chat_template),
            "context_length": self.config.context_length,
            "shard_contexts": self.config.shard_contexts,
            "n_documents": self.n_documents,
            "n_split": self.n_split,
            "n_contexts": self.n_contexts,
            "n_tokens": self.n_tokens,
            "n_bos": self.n_contexts,
            "source_digest": digest,
            "created_at": datetime.now(UTC),
        }

    def _windows(self) -> Iterator[Window]:
        length, bos_id = self.config.context_length, self.tokenizer.bos_id
        for document, tokens in self._tokenize(self.source.documents()):
            windows = list(split(document, tokens, context_length=length, bos_id=bos_id))
            for window in windows:
                window.row["document_index"] = self.n_documents
            self.n_documents += 1
            self.n_split += len(windows) > 1
            self.n_tokens += sum(w.n_tokens for w in windows)
            if self.progress is not None:
                self.progress(self.n_documents, self.n_tokens)
            yield from windows

    def _tokenize(self, documents: Iterator[Document]) -> Iterator[tuple[Document, TokenizedText]]:
        encode = self.tokenizer
        while batch := list(islice(documents, _BATCH)):
            for document in batch:
                check_unique(self.ids, document)
            texts = iter(encode.encode_texts([d.text for d in batch if d.text is not None]))
            tokens = [next(texts) if d.text is not None else encode.encode_chat(d) for d in batch]
            if self.replier is not None:
                _add_replies(batch, tokens, self.replier)
            yield from zip(batch, tokens, strict=True)


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
