"""Making a corpus: read, tokenize, cut into contexts, commit as one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pyarrow as pa

from scopelake.errors import CorpusExistsError, CorpusSourceError, InvalidArgumentError
from scopelake.ingest.digest import digest_files, digest_text
from scopelake.ingest.replies import Replier
from scopelake.ingest.sources import Document, check_unique, read_documents, source_files
from scopelake.ingest.tokens import TokenizedText, Tokenizer
from scopelake.ingest.windows import Window, split, to_table
from scopelake.names import check_name
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import discard, write_contexts

_BATCH = 64
_CONTEXTS_PER_FILE = 4096


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of."""

    name: str
    source: str | Path | Sequence[str | Path]
    """A file, a folder, or several of them."""
    context_length: int = 1024
    """Most tokens in a context, BOS included."""
    chat: bool = False
    """Whether the source holds chats (``messages``) rather than texts."""
    shard_contexts: int = 256
    """Contexts in a shard, the unit of retry and commit."""
    root: Path | None = None
    """Document ids of text files are relative to it."""

    def __post_init__(self) -> None:
        check_name("corpus", self.name)
        if self.context_length < 2:
            raise InvalidArgumentError(
                f"context_length {self.context_length} was asked for; a context holds BOS and at "
                "least one token; give 2 or more"
            )
        if self.shard_contexts < 1:
            raise InvalidArgumentError(
                f"shard_contexts {self.shard_contexts} was asked for; give 1 or more"
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
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None = None,
    replier: Replier | None = None,
) -> CorpusSummary:
    """Tokenize `config.source` into contexts and commit them all at once, or nothing.

    Args:
        store: the lake.
        config: the corpus.
        tokenizer: shared by all models that will read the corpus.
        progress: called with (documents read, tokens made).
        replier: writes the reply to chats that end with the user.

    Raises:
        CorpusExistsError: the lake has a corpus of that name.
        CorpusSourceError: a source file is missing, empty, not UTF-8 or malformed.
        LakeBusyError: another process is writing.
    """
    with Writer(store) as writer:
        names = store.read("corpora", store.snapshot(), columns=["corpus"])["corpus"].to_pylist()
        if config.name in names:
            raise CorpusExistsError(
                f"corpus {config.name!r} was to be added; the lake has one of that name; choose "
                "another name"
            )
        files = source_files(config.source)
        counts = _Counts()
        receipts = _write_all(store, config, tokenizer, files, counts, progress, replier)
        row = _corpus_row(config, tokenizer, files, counts, replier)
        snapshot = writer.commit(
            receipts,
            transaction=f"corpus:{config.name}",
            reason=f"add corpus {config.name}",
            rows={"corpora": pa.Table.from_pylist([row], schema=SCHEMAS["corpora"])},
        )
    return CorpusSummary(
        config.name, counts.n_documents, counts.n_split, counts.n_contexts, counts.n_tokens,
        snapshot.id,
    )  # fmt: skip


@dataclass
class _Counts:
    n_documents: int = 0
    n_split: int = 0
    n_contexts: int = 0
    n_tokens: int = 0


def _write_all(
    store: LakeStore,
    config: CorpusConfig,
    tokenizer: Tokenizer,
    files: list[Path],
    counts: _Counts,
    progress: Callable[[int, int], None] | None,
    replier: Replier | None,
) -> list[Receipt]:
    """Write every file of the corpus, or none: what a refusal interrupts is removed again."""
    receipts: list[Receipt] = []
    try:
        receipts.extend(_write(store, config, tokenizer, files, counts, progress, replier))
        if counts.n_contexts == 0:
            raise CorpusSourceError(
                f"corpus {config.name!r} was to be added; its files hold no text; name others"
            )
    except BaseException:
        discard(store.root, receipts)
        raise
    return receipts


def _write(
    store: LakeStore,
    config: CorpusConfig,
    tokenizer: Tokenizer,
    files: list[Path],
    counts: _Counts,
    progress: Callable[[int, int], None] | None,
    replier: Replier | None,
) -> Iterator[Receipt]:
    windows = _windows(config, tokenizer, files, counts, progress, replier)
    while part := list(islice(windows, _CONTEXTS_PER_FILE)):
        table = to_table(part, config.name, counts.n_contexts)
        counts.n_contexts += len(part)
        yield from write_contexts(
            store.root, table, corpus=config.name, run=f"corpus:{config.name}"
        )


def _windows(
    config: CorpusConfig,
    tokenizer: Tokenizer,
    files: list[Path],
    counts: _Counts,
    progress: Callable[[int, int], None] | None,
    replier: Replier | None,
) -> Iterator[Window]:
    documents = read_documents(files, chat=config.chat, root=config.root)
    for document, tokens in _tokenize(documents, tokenizer, replier, seen=set()):
        windows = list(
            split(document, tokens, context_length=config.context_length, bos_id=tokenizer.bos_id)
        )
        for window in windows:
            window.row["document_index"] = counts.n_documents
        counts.n_documents += 1
        counts.n_split += len(windows) > 1
        counts.n_tokens += sum(w.n_tokens for w in windows)
        if progress is not None:
            progress(counts.n_documents, counts.n_tokens)
        yield from windows


def _tokenize(
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    replier: Replier | None,
    seen: set[str],
) -> Iterator[tuple[Document, TokenizedText]]:
    while batch := list(islice(documents, _BATCH)):
        for document in batch:
            check_unique(seen, document)
        texts = iter(tokenizer.encode_texts([d.text for d in batch if d.text is not None]))
        tokens = [next(texts) if d.text is not None else tokenizer.encode_chat(d) for d in batch]
        if replier is not None:
            _add_replies(batch, tokens, replier)
        yield from zip(batch, tokens, strict=True)


def _add_replies(batch: list[Document], tokens: list[TokenizedText], replier: Replier) -> None:
    """Replace the tokens of chats that end with the user by those with a reply."""
    asked = [i for i, d in enumerate(batch) if d.messages and d.messages[-1]["role"] == "user"]
    turns = [len(batch[i].messages or ()) for i in asked]
    for index, extended in zip(
        asked, replier.extend([tokens[i] for i in asked], turns), strict=True
    ):
        tokens[index] = extended


def _corpus_row(
    config: CorpusConfig,
    tokenizer: Tokenizer,
    files: list[Path],
    counts: _Counts,
    replier: Replier | None,
) -> dict[str, object]:
    source = ", ".join(f.name for f in files[:8]) + (", ..." if len(files) > 8 else "")
    digest = digest_files(files)
    if replier is not None:
        source += f"; {replier.describe()}"
        digest = digest_text(f"{digest}; {replier.describe()} {replier.model.digest}")
    return {
        "corpus": config.name,
        "source": source,
        "chat": config.chat,
        "tokenizer": tokenizer.name,
        "tokenizer_digest": tokenizer.digest,
        "chat_template_digest": digest_text(tokenizer.chat_template),
        "context_length": config.context_length,
        "shard_contexts": config.shard_contexts,
        "n_documents": counts.n_documents,
        "n_split": counts.n_split,
        "n_contexts": counts.n_contexts,
        "n_tokens": counts.n_tokens,
        "n_bos": counts.n_contexts,
        "source_digest": digest,
        "created_at": datetime.now(UTC),
    }
