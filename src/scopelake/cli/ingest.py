"""Verbs that make firings: ingest, encode, inspect."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

import scopelake
from scopelake.cli.options import add_coders, add_placement, placement
from scopelake.cli.parsing import add_lake, add_verb
from scopelake.cli.status import INTERRUPTED, SET_ASIDE
from scopelake.cli.watching import add_watching, watched
from scopelake.names import counted

if TYPE_CHECKING:
    from scopelake.ingest.report import IngestSummary


def _add_ingest(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "ingest", _ingest, "run a model over a corpus and store its firings")
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of the corpus")
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    add_coders(parser)
    parser.add_argument("--dense", action="append", default=[], metavar="SITE/LAYER",
                        help="store dense activations of this site too")  # fmt: skip
    _add_precision(parser)
    _add_running(parser)
    parser.add_argument("--evaluate", action="store_true",
                        help="measure how well the coders reconstruct, on a sample")  # fmt: skip
    add_placement(parser)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--activation-bits",
        type=int,
        default=10,
        metavar="BITS",
        help="mantissa bits kept of an activation; 10 by default, 23 is lossless",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=16384,
        metavar="TOKENS",
        help="most tokens at once, or a context; 16384 by default",
    )
    parser.add_argument(
        "--keep",
        default="all",
        help="firings to store: all, peaks (and statistics), or sample:0.01 for all those of a "
        "share of the documents beside",
    )
    parser.add_argument(
        "--memory",
        default="auto",
        metavar="SIZE",
        help="what the process may take, such as 8GB; by default 60 %% of the machine's",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a dask scheduler whose workers make the shards, or local:N for N workers here",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be made, stop"
    )
    add_watching(parser)


def _ingest(arguments: argparse.Namespace) -> int:
    lake = scopelake.open(arguments.lake)
    asked = {
        "model": arguments.model,
        "saes": arguments.saes,
        "dense": arguments.dense,
        "activation_bits": arguments.activation_bits,
        **placement(arguments),
    }
    with watched(arguments) as watching:
        done = lake.ingest(
            arguments.corpus,
            batch_tokens=arguments.batch_tokens,
            keep=arguments.keep,
            memory=arguments.memory,
            scheduler=arguments.scheduler,
            dry_run=arguments.dry_run,
            evaluate=arguments.evaluate,
            **watching,
            **asked,
        )
    return _show_ingested(arguments, done)


def _add_encode(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "encode", _encode, "encode stored dense activations; no model runs")
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of a corpus ingested with --dense")
    add_coders(parser)
    parser.add_argument("--model", metavar="NAME",
                        help="whose activations, if those of several models are "
                        "stored")  # fmt: skip
    parser.add_argument("--unembedding", metavar="MODEL",
                        help="folder or hub id of that model, for the tokens that features "
                        "promote; null without it")  # fmt: skip
    _add_precision(parser)
    _add_running(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def _encode(arguments: argparse.Namespace) -> int:
    lake = scopelake.open(arguments.lake)
    with watched(arguments) as watching:
        done = lake.encode(
            arguments.corpus,
            saes=arguments.saes,
            model=arguments.model,
            unembedding=arguments.unembedding,
            device=arguments.device,
            activation_bits=arguments.activation_bits,
            batch_tokens=arguments.batch_tokens,
            keep=arguments.keep,
            memory=arguments.memory,
            scheduler=arguments.scheduler,
            dry_run=arguments.dry_run,
            **watching,
        )
    return _show_ingested(arguments, done)


def _show_ingested(arguments: argparse.Namespace, done: IngestSummary) -> int:
    """Print what was done; return the exit status."""
    from scopelake.ingest.stages import stages_text

    corpus = arguments.corpus
    if done.already_complete:
        print(f"{corpus}: complete already, nothing to do (snapshot {done.snapshot})")
        return 0
    if arguments.dry_run:
        print(
            f"{corpus}: {counted(done.n_left, 'shard')} {'is' if done.n_left == 1 else 'are'} "
            f"left, "
            f"about {counted(done.n_tokens_left, 'token')}; "
            f"nothing was written (snapshot {done.snapshot})"
        )
        return 0
    print(
        f"{corpus}: {counted(done.tokens, 'token')}, {counted(done.firings, 'firing')}, "
        f"{done.n_bytes / 1e6:,.1f} MB in {done.seconds:,.1f} s (snapshot {done.snapshot})"
    )
    print(f"time: {stages_text(done.stages, done.seconds, done.n_devices)}")
    if done.n_left:
        print(
            f"scopelake: stopped with {done.n_left:,} of {counted(done.n_shards, 'shard')} left; "
            f"the lake "
            "is whole: run the same again to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    return SET_ASIDE if done.failed else 0


VERBS: Final = (_add_ingest, _add_encode)
