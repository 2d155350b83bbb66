"""Making a corpus: read, tokenize, cut into contexts, commit as one snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import pyarrow as pa

from scopelake.errors import CorpusExistsError, InvalidArgumentError
from scopelake.ingest.context_files import ContextFiles, Kept
from scopelake.ingest.digest import digest_text
from scopelake.ingest.documents import Source
from scopelake.ingest.replies import Replier
from scopelake.ingest.tokens import Tokenizer
from scopelake.ingest.windows import Cutting
from scopelake.names import check_name, check_whole
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard

DUPLICATES = ("keep", "drop")


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is called, and how it is made."""

    name: str
    cutting: Cutting = field(default_factory=Cutting)
    shard_contexts: int = 256
    """Contexts in a shard, the unit of retry and commit."""
    duplicates: str = "keep"
    """Whether a document whose content is, to the byte, that of an earlier one is kept, or left
    out (``drop``); they are counted either way."""

    def __post_init__(self) -> None:
        check_name("corpus", self.name)
        check_whole("shard_contexts", self.shard_contexts)
        if self.shard_contexts < 1:
            raise InvalidArgumentError(
                f"shard_contexts={self.shard_contexts} was asked for; give 1 or more"
            )
        check_duplicates(self.duplicates)


@dataclass(frozen=True)
class CorpusSummary:
    """What was added."""

    corpus: str
    n_documents: int
    n_split: int
    """Documents that are in several contexts."""
    n_duplicates: int
    """Documents with the content of an earlier one: kept, or left out of the others."""
    n_contexts: int
    n_tokens: int
    """BOS included."""
    snapshot: int


def check_duplicates(duplicates: str) -> None:
    """Refuse what is not to be done with duplicates.

    Raises:
        InvalidArgumentError: it is neither ``keep`` nor ``drop``.
    """
    if duplicates not in DUPLICATES:
        raise InvalidArgumentError(
            f"duplicates={duplicates!r} was asked for; they are counted, and kept or dropped; give "
            f"{' or '.join(DUPLICATES)}"
        )


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
        InvalidArgumentError: a chat and its reply are longer than the model's context, or chats
            were to have no BOS.
        LakeBusyError: other writers came first again and again.
    """
    name = config.name
    check_bos(config.cutting, source, tokenizer)

    def check_new(commit: Commit, snapshot: Snapshot) -> Commit:
        _check_new(store, snapshot, name)
        return commit

    with Writer(store) as writer:
        _check_new(store, store.snapshot(), name)
        files = ContextFiles(
            store.root, name, config.cutting, tokenizer, replier, progress, Kept(),
            drop=config.duplicates == "drop",
        )  # fmt: skip
        receipts = files.write(source)
        row = _row(config, source, tokenizer, replier, files)
        try:
            snapshot = writer.commit(
                receipts,
                transaction=f"corpus:{name}:{uuid4().hex}",
                reason=f"add corpus {name}",
                rows={"corpora": pa.Table.from_pylist([row], schema=SCHEMAS["corpora"])},
                revise=check_new,
            )
        except CorpusExistsError:
            discard(store.root, receipts)
            raise
    return summary(name, files, snapshot)


def check_bos(cutting: Cutting, source: Source, tokenizer: Tokenizer) -> None:
    """Refuse chats without BOS, which their template writes.

    Raises:
        InvalidArgumentError: then.
    """
    if source.chat and cutting.bos == "none":
        raise InvalidArgumentError(
            f"bos='none' was asked for chats; the template of {tokenizer.name} begins each chat "
            "with BOS, which is part of it; give each or document"
        )


def summary(name: str, files: ContextFiles, snapshot: Snapshot) -> CorpusSummary:
    """Return what was made."""
    return CorpusSummary(
        name, files.n_documents, files.n_split, files.n_duplicates, files.n_contexts,
        files.n_tokens, snapshot.id,
    )  # fmt: skip


def describe(source: Source, replier: Replier | None, digest: str) -> tuple[str, str]:
    """Return what a corpus is made of, in words, and its digest."""
    if replier is None:
        return source.describe(), digest
    replies = replier.describe()
    digest = digest_text(f"{digest}; {replies} {replier.model.digest}")
    return f"{source.describe()}; {replies}", digest


def _check_new(store: LakeStore, snapshot: Snapshot, name: str) -> None:
    filters = [("corpus", "=", name)]
    if store.read("corpora", snapshot, ["corpus"], filters).num_rows:
        raise CorpusExistsError(
            f"corpus {name!r} was to be added; the lake has one of that name; choose another name"
        )


def _row(
    config: CorpusConfig,
    source: Source,
    tokenizer: Tokenizer,
    replier: Replier | None,
    files: ContextFiles,
) -> dict[str, object]:
    """Return a corpus's row of the corpora table."""
    described, digest = describe(source, replier, files.digest)
    cutting = config.cutting
    return {
        "corpus": config.name,
        "source": described,
        "chat": source.chat,
        "tokenizer": tokenizer.name,
        "tokenizer_digest": tokenizer.digest,
        "chat_template_digest": digest_text(tokenizer.chat_template),
        "context_length": cutting.context_length,
        "shard_contexts": config.shard_contexts,
        "n_documents": files.n_documents,
        "n_split": files.n_split,
        "n_contexts": files.n_contexts,
        "n_tokens": files.n_tokens,
        "n_bos": files.n_bos,
        "source_digest": digest,
        "created_at": datetime.now(UTC),
        "bos": cutting.bos,
        "stride": cutting.stride,
        "packing": cutting.packing,
        "duplicates": config.duplicates,
        "n_duplicates": files.n_duplicates,
        "context_ends": [files.n_contexts],
    }
