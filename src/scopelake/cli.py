"""The command line: parsing and printing only; every verb calls the library.

Exit status: 0 done, 2 refused or failed with one line on stderr, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import scopelake
from scopelake import tiny
from scopelake.errors import CoderWarning, InvalidArgumentError, ScopelakeError
from scopelake.names import SITES, Site


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with _one_line_warnings():
            status: int = arguments.run(arguments) or 0
    except ScopelakeError as error:
        print(f"scopelake: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"scopelake: {arguments.verb} failed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scopelake: interrupted; the lake is whole: run it again to go on", file=sys.stderr)
        return 130
    return status


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show our own warnings as one line; others as Python does."""
    with warnings.catch_warnings():
        plain = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, CoderWarning):
                print(f"scopelake: warning: {message}", file=sys.stderr)
            else:
                plain(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scopelake",
        description="The activation store and query layer for Gemma 3 and Gemma Scope 2.",
    )
    parser.add_argument("--version", action="version", version=scopelake.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_add_demo, _add_create, _add_corpus, _add_saes, _add_ingest, _add_top, _add_at,
                _add_sql, _add_info):  # fmt: skip
        add(verbs)
    return parser


def _verb(
    verbs: Any,  # noqa: ANN401
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    help_text: str,  # noqa: ANN401
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help_text, description=help_text[0].upper() + help_text[1:] + "."
    )
    parser.set_defaults(run=run)
    return parser


def _add_lake(parser: argparse.ArgumentParser, *, snapshot: bool = True) -> None:
    parser.add_argument("lake", type=Path, help="folder of the lake")
    if snapshot:
        parser.add_argument("--snapshot", type=int, help="read this snapshot, not the latest")


def _add_demo(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "demo", _demo, "build a lake from real text with the tiny model")
    parser.add_argument("lake", type=Path, nargs="?", default=Path("demo-lake"))


def _demo(arguments: argparse.Namespace) -> None:
    from scopelake.demo import run_demo

    run_demo(arguments.lake)


def _add_create(verbs: Any) -> None:  # noqa: ANN401
    _add_lake(_verb(verbs, "create", _create, "create an empty lake"), snapshot=False)


def _create(arguments: argparse.Namespace) -> None:
    lake = scopelake.create(arguments.lake)
    print(f"created an empty lake in {lake.path}")


def _add_corpus(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "add-corpus", _corpus, "tokenize text or chats into a corpus")
    _add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of the new corpus")
    parser.add_argument("source", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--context-length", type=int, default=1024, metavar="TOKENS")
    parser.add_argument("--shard-contexts", type=int, default=256, metavar="N")
    parser.add_argument("--chat", action="store_true", help="records hold 'messages'")
    parser.add_argument("--generate", type=int, metavar="TOKENS",
                        help="let the model answer chats that end with the user")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")


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
            progress=progress,
        )
    print(
        f"corpus {added.corpus}: {added.n_documents:,} documents ({added.n_split:,} longer than a "
        f"context, split), {added.n_contexts:,} contexts, {added.n_tokens:,} tokens"
    )


def _add_saes(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "saes", _saes, "list the SAEs of a folder or hub repository")
    parser.add_argument("repo", help="folder, or hub id such as google/gemma-scope-2-1b-it")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _saes(arguments: argparse.Namespace) -> None:
    from scopelake.ingest.list_coders import list_coders
    from scopelake.render import print_table

    repo = tiny.coders_path() if arguments.repo == tiny.CODERS_REPO else arguments.repo
    found = list_coders(repo)
    if arguments.json:
        values = {"repo": found.repo, "saes": found.table.to_pylist(), "missing": found.missing,
                  "incomplete": found.incomplete}  # fmt: skip
        print(json.dumps(values))
        return
    print_table(found.table, max_rows=10_000)
    print(f"\n{found.table.num_rows:,} SAEs in {found.repo}")
    for what, names in (("missing from the grid", found.missing),
                        ("lacking a layer's file", found.incomplete)):  # fmt: skip
        if names:
            print(f"{len(names):,} {what}: {', '.join(names)}")


def _add_ingest(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "ingest", _ingest, "run a model over a corpus and store its firings")
    _add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of the corpus")
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--sae", dest="saes", required=True, action="append", metavar="SAE",
                        help="folder, pattern or hub id of coders; may be given again")  # fmt: skip
    parser.add_argument("--dense", action="append", default=[], metavar="SITE/LAYER",
                        help="store dense activations of this site too")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--activation-bits", type=int, default=10, metavar="BITS")
    parser.add_argument("--batch-tokens", type=int, default=16384, metavar="TOKENS")
    parser.add_argument("--evaluate", action="store_true",
                        help="measure how well the coders reconstruct, on a sample")  # fmt: skip
    parser.add_argument("--model-name", help="what the coders call the model")


def _ingest(arguments: argparse.Namespace) -> None:
    from scopelake.progress import ingest_progress

    lake = scopelake.open(arguments.lake)
    with ingest_progress(arguments.corpus) as progress:
        done = lake.ingest(
            arguments.corpus,
            model=arguments.model,
            saes=arguments.saes,
            dense=[_site(text) for text in arguments.dense],
            device=arguments.device,
            dtype=arguments.dtype,
            activation_bits=arguments.activation_bits,
            batch_tokens=arguments.batch_tokens,
            evaluate=arguments.evaluate,
            model_name=arguments.model_name,
            progress=progress,
        )
    if done.already_complete:
        print(f"{arguments.corpus}: complete already, nothing to do (snapshot {done.snapshot})")
        return
    print(
        f"{arguments.corpus}: {done.tokens:,} tokens, {done.firings:,} firings, "
        f"{done.n_bytes / 1e6:,.1f} MB in {done.seconds:,.1f} s (snapshot {done.snapshot})"
    )


def _site(text: str) -> tuple[Site, int]:
    name, _, layer = text.partition("/")
    for site in SITES:
        if name == site and layer.isdigit():
            return site, int(layer)
    raise InvalidArgumentError(
        f"dense site {text!r} was asked for; a site is <name>/<layer> with {', '.join(SITES)}; "
        "give for example resid_post/3"
    )


def _add_top(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "top", _top, "show the strongest contexts of a feature")
    _add_lake(parser)
    parser.add_argument("feature", type=int)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--site", choices=SITES)
    parser.add_argument("--sae", help="name of the SAE, or a unique ending of it")
    parser.add_argument("-k", type=int, default=20, help="number of contexts")
    parser.add_argument("--window", type=int, default=16, help="tokens on either side")
    parser.add_argument("--corpus")
    parser.add_argument("--where", help="SQL predicate, e.g. \"role = 'user'\"")
    parser.add_argument("--bos", action="store_true", help="count firings on BOS too")
    parser.add_argument("--json", action="store_true")


def _top(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).top_contexts(
        arguments.feature, layer=arguments.layer, site=arguments.site, sae=arguments.sae,
        k=arguments.k, window=arguments.window, corpus=arguments.corpus, where=arguments.where,
        bos=arguments.bos,
    )  # fmt: skip
    _show(found, arguments.json)


def _add_at(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "features-at", _at, "show what fired in a context or at a token")
    _add_lake(parser)
    parser.add_argument("context", type=int)
    parser.add_argument("position", type=int, nargs="?")
    parser.add_argument("--corpus")
    parser.add_argument("--sae")
    parser.add_argument("-k", type=int, help="at most so many for each SAE and token")
    parser.add_argument("--json", action="store_true")


def _at(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).features_at(
        arguments.context, arguments.position, corpus=arguments.corpus, sae=arguments.sae,
        k=arguments.k,
    )  # fmt: skip
    _show(found, arguments.json)


def _add_sql(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "sql", _sql, "run one SQL query over the lake's views")
    _add_lake(parser)
    parser.add_argument("query", nargs="?")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--init", action="store_true",
                        help="print SQL that makes the views in any DuckDB client")  # fmt: skip


def _sql(arguments: argparse.Namespace) -> None:
    from scopelake.render import print_table

    lake = scopelake.open(arguments.lake, arguments.snapshot)
    if arguments.init:
        print(lake.sql_init())
        return
    if arguments.query is None:
        raise InvalidArgumentError("sql was asked for no query; give one, or --init")
    table = lake.sql(arguments.query)
    if arguments.json:
        for row in table.to_pylist():
            print(json.dumps(row, default=str))
        return
    print_table(table)


def _add_info(verbs: Any) -> None:  # noqa: ANN401
    parser = _verb(verbs, "info", _info, "show what a lake holds")
    _add_lake(parser)
    parser.add_argument("--json", action="store_true")


def _info(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).info()
    if arguments.json:
        print(json.dumps(found.to_dict(), default=str))
    else:
        print(found.to_text())


def _show(result: Any, as_json: bool) -> None:  # noqa: ANN401
    if as_json:
        for row in result.table.to_pylist():
            print(json.dumps(row, default=str))
    else:
        print(result.to_text(color=sys.stdout.isatty()))
