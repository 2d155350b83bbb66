"""The verbs that make a corpus and add to it: add-corpus, append-corpus."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

import scopelake
from scopelake.cli.options import add_device, add_replies
from scopelake.cli.parsing import add_lake, add_verb
from scopelake.names import counted

if TYPE_CHECKING:
    from scopelake.ingest.corpus import CorpusSummary

_SOURCE: Final = (
    "files (also .gz, .zst, .bz2, .xz), folders, patterns, s3://<bucket>/<key>, folders of saved "
    "data sets, or hf://<org>/<name>[@revision][:config][/split]"
)
_SHARED: Final = (
    "context_length", "text_column", "bos", "stride", "duplicates", "generate", "temperature",
    "seed", "device", "dtype", "device_map", "tokenizer",
)  # fmt: skip
"""Options of both verbs, named as arguments of the library."""


def _add_corpus(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "add-corpus", _corpus, "tokenize text or chats into a corpus")
    _add_source(parser, "name of the new corpus")
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument(
        "--context-length",
        type=int,
        default=1024,
        metavar="TOKENS",
        help="most tokens in a context; 1024 by default",
    )
    parser.add_argument(
        "--shard-contexts",
        type=int,
        default=256,
        metavar="N",
        help="contexts in a shard, the unit of commit; 256 by default",
    )
    parser.add_argument("--chat", action="store_true", help="records hold messages")
    parser.add_argument(
        "--packing", action="store_true", help="fill contexts with the documents that follow"
    )
    _add_cutting(parser, {"bos": "each", "duplicates": "keep"})


def _append_corpus(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "append-corpus", _append, "put documents behind those of a corpus")
    _add_source(parser, "name of the corpus")
    parser.add_argument(
        "--tokenizer", help="folder or hub id of its tokenizer; by default the one it names"
    )
    parser.add_argument(
        "--context-length", type=int, metavar="TOKENS", help="refuse a corpus of another"
    )
    parser.add_argument(
        "--chat", action="store_true", default=None, help="refuse a corpus that is not of chats"
    )
    parser.add_argument(
        "--packing", action="store_true", default=None, help="refuse a corpus that is not packed"
    )
    _add_cutting(parser, {})


def _add_source(parser: argparse.ArgumentParser, what: str) -> None:
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help=what)
    # Text, not paths: these make one slash of the two in a URL.
    parser.add_argument("source", nargs="+", help=_SOURCE)


def _add_cutting(parser: argparse.ArgumentParser, defaults: dict[str, str]) -> None:
    """Add how documents are read and cut; of what is there already, what it has to be."""
    parser.add_argument(
        "--text-column", metavar="KEY", help="key of the text, or of the messages, in a record"
    )
    parser.add_argument(
        "--bos",
        choices=("each", "document", "none"),
        default=defaults.get("bos"),
        help="contexts that begin with BOS: each, the first of a document, or none",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="TOKENS",
        help="from the start of one context of a document to the next's, so that they overlap",
    )
    parser.add_argument(
        "--duplicates",
        choices=("keep", "drop"),
        default=defaults.get("duplicates"),
        help="what is done with documents of the same content as an earlier one",
    )
    add_replies(parser)
    add_device(parser)


def _corpus(arguments: argparse.Namespace) -> None:
    from scopelake.progress import corpus_progress

    with corpus_progress(arguments.corpus) as progress:
        added = scopelake.open(arguments.lake).add_corpus(
            arguments.corpus,
            arguments.source,
            chat=arguments.chat,
            packing=arguments.packing,
            shard_contexts=arguments.shard_contexts,
            progress=progress,
            **{name: getattr(arguments, name) for name in _SHARED},
        )
    print(f"corpus {added.corpus}: {_counted(added, arguments.duplicates)}")


def _append(arguments: argparse.Namespace) -> None:
    from scopelake.progress import corpus_progress

    with corpus_progress(arguments.corpus) as progress:
        added = scopelake.open(arguments.lake).append_corpus(
            arguments.corpus,
            arguments.source,
            chat=arguments.chat,
            packing=arguments.packing,
            progress=progress,
            **{name: getattr(arguments, name) for name in _SHARED},
        )
    print(
        f"appended to corpus {added.corpus}: {_counted(added, arguments.duplicates)}; ingest it "
        "again to do what is new"
    )


def _counted(added: CorpusSummary, duplicates: str | None) -> str:
    same = {"drop": " (dropped)", "keep": " (kept)"}.get(duplicates or "", "")
    repeated = f", {counted(added.n_duplicates, 'duplicate')}{same}" if added.n_duplicates else ""
    return (
        f"{counted(added.n_documents, 'document')} ({added.n_split:,} longer than a context, split)"
        f"{repeated}, {counted(added.n_contexts, 'context')}, {counted(added.n_tokens, 'token')}"
    )


VERBS: Final = (_add_corpus, _append_corpus)
