"""Appending documents to a corpus: contexts that come behind those that are there.

They begin a shard of their own, so what was ingested stays as it is, and an ingest afterwards does
what is new. What is said of the corpus as a whole, statistics and evaluations, leaves the lake with
the append, and is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from scopelake.errors import (
    CorpusError,
    CorpusNotFoundError,
    InvalidArgumentError,
    LakeBusyError,
)
from scopelake.ingest.context_files import ContextFiles
from scopelake.ingest.corpus import (
    CorpusSummary,
    check_bos,
    check_duplicates,
    describe,
    summary,
)
from scopelake.ingest.digest import digest_text
from scopelake.ingest.documents import Source
from scopelake.ingest.kept_documents import read_kept
from scopelake.ingest.plan import find_corpus
from scopelake.ingest.replies import Replier
from scopelake.ingest.tokens import Tokenizer
from scopelake.ingest.windows import Cutting
from scopelake.store.catalog import published_examples
from scopelake.store.commit import Writer
from scopelake.store.context_numbers import ContextNumbers
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard


@dataclass(frozen=True)
class AppendConfig:
    """What is appended to, and what it is taken to be; what is None is taken as it is."""

    name: str
    context_length: int | None = None
    chat: bool | None = None
    bos: str | None = None
    stride: int | None = None
    packing: bool | None = None
    duplicates: str | None = None
    """What is done with duplicates of what is there or comes; by default as it was."""


def cutting_of(row: Mapping[str, Any]) -> Cutting:
    """Return how a corpus was cut; null is what the first lakes did."""
    return Cutting(
        int(row["context_length"]), row["bos"] or "each", row["stride"], bool(row["packing"])
    )


def find_appendable(store: LakeStore, snapshot: Snapshot, config: AppendConfig) -> dict[str, Any]:
    """Return the row of a corpus that takes what `config` says.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        CorpusError: it is that of published examples.
        InvalidArgumentError: it was made in another way than is asked for.
    """
    row = find_corpus(store, snapshot, config.name)
    if any(corpus == config.name for _, corpus in published_examples(store, snapshot)):
        raise CorpusError(
            f"documents were to be appended to corpus {config.name!r}; it is that of published "
            "examples, whose firings on others are not known; make a corpus of your own"
        )
    if config.duplicates is not None:
        check_duplicates(config.duplicates)
    there = {**vars(cutting_of(row)), "chat": bool(row["chat"])}
    for what, has in there.items():
        asked = getattr(config, what)
        if asked is not None and asked != has:
            raise InvalidArgumentError(
                f"{what}={asked!r} was asked for; corpus {config.name!r} was made "
                f"{_with(what, has)}, and all of a corpus is; leave {what} out, or make another "
                "corpus"
            )
    return row


def _with(what: str, has: object) -> str:
    """Return in words what a corpus was made with."""
    return f"with {what}={has!r}" if has else f"without {what}"


def append_corpus(
    store: LakeStore,
    config: AppendConfig,
    source: Source,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None = None,
    replier: Replier | None = None,
) -> CorpusSummary:
    """Tokenize `source` into contexts behind a corpus's, and commit them all at once, or nothing.

    Args:
        store: the lake.
        config: the corpus.
        source: the documents that come to it.
        tokenizer: the corpus's.
        progress: called with (documents read, tokens made).
        replier: writes the reply to chats that end with the user.

    Returns:
        What was appended.

    Raises:
        CorpusNotFoundError, CorpusError, InvalidArgumentError: as in `find_appendable`; or the
            tokenizer or chat template is another, or an id is in the corpus already.
        CorpusSourceError: a source file is missing, empty, not UTF-8 or malformed.
        LakeBusyError: another writer appended meanwhile.
    """
    with Writer(store) as writer:
        before = store.snapshot()
        row = find_appendable(store, before, config)
        _check_tokenizer(row, source, tokenizer)
        check_bos(cutting_of(row), source, tokenizer)
        duplicates = config.duplicates or row["duplicates"] or "keep"
        kept, n_known = read_kept(store, before, row)
        files = ContextFiles(
            store.root, config.name, cutting_of(row), tokenizer, replier, progress, kept,
            drop=duplicates == "drop",
        )  # fmt: skip
        receipts = files.write(source)
        new = _grown(row, source, replier, files, duplicates, n_known)
        try:
            snapshot = writer.commit(
                receipts,
                transaction=f"corpus:{config.name}:{uuid4().hex}",
                reason=f"append to corpus {config.name}",
                rows={"corpora": pa.Table.from_pylist([new], schema=SCHEMAS["corpora"])},
                replace={"corpora": ("corpus",)},
                revise=_Revise(store, row),
            )
        except (LakeBusyError, CorpusNotFoundError):
            discard(store.root, receipts)
            raise
    return summary(config.name, files, snapshot)


@dataclass(frozen=True)
class _Revise:
    """Checks that the corpus is as it was read, and takes out what is of all of it."""

    store: LakeStore
    row: Mapping[str, Any]

    def __call__(self, commit: Commit, snapshot: Snapshot) -> Commit:
        name = self.row["corpus"]
        now = find_corpus(self.store, snapshot, name)
        if (now["source_digest"], now["n_tokens"]) != (
            self.row["source_digest"], self.row["n_tokens"]
        ):  # fmt: skip
            raise LakeBusyError(
                f"documents were to be appended to corpus {name!r}; another writer appended some "
                "meanwhile; append again"
            )
        statistics = self.store.data_files("features", snapshot, corpus=name)
        evaluated = self.store.read("evaluations", snapshot, ["sae"], [("corpus", "=", name)])
        remove = {"evaluations": ("corpus", [name])} if evaluated.num_rows else {}
        return replace(commit, retire=tuple(file.path for file in statistics), remove=remove)


def _check_tokenizer(row: Mapping[str, Any], source: Source, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer or chat template that is not the corpus's."""
    asked = {"itself": (row["tokenizer_digest"], tokenizer.digest)}
    if source.chat:
        template = digest_text(tokenizer.chat_template)
        asked["its chat template"] = (row["chat_template_digest"], template)
    for what, (there, given) in asked.items():
        if there != given:
            raise InvalidArgumentError(
                f"tokenizer={tokenizer.name!r} was asked for, {what} {given}; corpus "
                f"{row['corpus']!r} was made with tokenizer={row['tokenizer']!r}, {what} {there}; "
                "give the same, or make another corpus"
            )


def _grown(
    row: Mapping[str, Any],
    source: Source,
    replier: Replier | None,
    files: ContextFiles,
    duplicates: str,
    n_known: int,
) -> dict[str, Any]:
    """Return the corpus's row with what was appended."""
    numbers = ContextNumbers.of(row)
    described, digest = describe(source, replier, files.digest)
    end = numbers.next_start + files.n_contexts
    counts = ("n_documents", "n_split", "n_contexts", "n_tokens", "n_bos")
    cutting = cutting_of(row)
    before = row["n_duplicates"]
    return {
        **row,
        **{name: row[name] + getattr(files, name) for name in counts},
        "source": f"{row['source']}; {described}",
        "source_digest": digest_text(f"{row['source_digest']}; {digest}"),
        "bos": cutting.bos,
        "packing": cutting.packing,
        "duplicates": duplicates,
        "n_duplicates": (n_known if before is None else before) + files.n_duplicates,
        "context_ends": [*numbers.ends, end],
    }
