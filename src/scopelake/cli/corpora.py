"""The verb that makes a corpus: add-corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_device, add_replies
from scopelake.cli.parsing import add_lake, add_verb


def _add_corpus(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "add-corpus", _corpus, "tokenize text or chats into a corpus")
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of the new corpus")
    parser.add_argument("source", nargs="+", type=Path, help="files or folders")
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
    parser.add_argument("--chat", action="store_true", help="records hold 'messages'")
    add_replies(parser)
    add_device(parser)


def _corpus(arguments: argparse.Namespace) -> None:
    from scopelake.progress import corpus_progress

    with corpus_progress(arguments.corpus) as progress:
        added = scopelake.open(arguments.lake).add_corpus(
            arguments.corpus,
            arguments.source,
            tokenizer=arguments.tokenizer,
            context_length=arguments.context_length,
            chat=arguments.chat,
            shard_contexts=arguments.shard_contexts,
            generate=arguments.generate,
            temperature=arguments.temperature,
            seed=arguments.seed,
            device=arguments.device,
            dtype=arguments.dtype,
            device_map=arguments.device_map,
            progress=progress,
        )
    print(
        f"corpus {added.corpus}: {added.n_documents:,} documents ({added.n_split:,} longer than a "
        f"context, split), {added.n_contexts:,} contexts, {added.n_tokens:,} tokens"
    )


VERBS: Final = (_add_corpus,)
