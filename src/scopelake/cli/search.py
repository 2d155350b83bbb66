"""Verbs that search: search, separate, search-labels."""

from __future__ import annotations

import argparse
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_sae, whole_or_all
from scopelake.cli.parsing import add_json, add_lake, add_verb, show
from scopelake.progress import step_progress


def _add_search(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "search", _search, "show where a text is in the corpora")
    _add_pattern(parser)
    parser.add_argument("-k", type=whole_or_all, default=100, metavar="N",
                        help="show so many, or all; all are counted")  # fmt: skip
    parser.add_argument(
        "--window", type=int, default=16, help="tokens on either side; 16 by default"
    )
    add_json(parser, "a match")


def _add_pattern(parser: argparse.ArgumentParser) -> None:
    add_lake(parser)
    parser.add_argument("pattern", help="text to look for, as it is spelt")
    parser.add_argument("--regex", action="store_true", help="it is a regular expression (RE2)")
    parser.add_argument("--ignore-case", action="store_true", help="A is a")
    parser.add_argument("--corpus", help="only this one")
    parser.add_argument(
        "--where", help="SQL predicate of a match's first token, e.g. \"role = 'user'\""
    )


def _found(arguments: argparse.Namespace, k: int | None, window: int) -> tuple[Any, Any]:
    lake = scopelake.open(arguments.lake, arguments.snapshot)
    names = ("regex", "ignore_case", "corpus", "where")
    options = {name: getattr(arguments, name) for name in names}
    with step_progress() as progress:
        return lake, lake.search(
            arguments.pattern, k=k, window=window,
            progress=lambda done, of: progress("contexts searched", done, of), **options,
        )  # fmt: skip


def _search(arguments: argparse.Namespace) -> None:
    _, found = _found(arguments, arguments.k, arguments.window)
    show(found, arguments.json)


def _add_separate(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(
        verbs, "separate", _separate, "rank features by how well they tell a text from the rest"
    )
    _add_pattern(parser)
    add_sae(parser)
    parser.add_argument(
        "--by", choices=("f1", "precision", "recall"), default="f1",
        help="precision: share of a feature's firings that are in matches; recall: share of the "
        "matches in which it fires; f1: both, the default",
    )  # fmt: skip
    parser.add_argument("-k", type=int, default=20, help="show so many; 20 by default")
    parser.add_argument("--least", type=int, default=1, help="leave out those of fewer matches")
    add_json(parser, "a feature")


def _separate(arguments: argparse.Namespace) -> None:
    lake, spans = _found(arguments, None, 0)
    found = lake.separate(
        spans, layer=arguments.layer, site=arguments.site, sae=arguments.sae, by=arguments.by,
        k=arguments.k, least=arguments.least,
    )  # fmt: skip
    show(found, arguments.json)


def _add_labels(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "search-labels", _labels, "show features whose labels have some words")
    add_lake(parser)
    parser.add_argument("words", help="one or more")
    add_sae(parser)
    parser.add_argument("-k", type=int, default=20, help="show so many; 20 by default")
    add_json(parser, "a label")


def _labels(arguments: argparse.Namespace) -> None:
    lake = scopelake.open(arguments.lake, arguments.snapshot)
    found = lake.search_labels(
        arguments.words, layer=arguments.layer, site=arguments.site, sae=arguments.sae,
        k=arguments.k,
    )  # fmt: skip
    show(found, arguments.json)


VERBS: Final = (_add_search, _add_separate, _add_labels)
"""What the command line adds."""
