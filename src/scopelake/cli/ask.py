"""Verbs that ask: top, sample, features-at, info."""

from __future__ import annotations

import argparse
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_feature, add_window
from scopelake.cli.parsing import add_json, add_lake, add_verb, show
from scopelake.names import CONTEXT_RANKINGS, FIRING_RANKINGS, SAMPLINGS
from scopelake.render import to_json


def _add_top(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "top", _top, "show the strongest contexts of a feature")
    _add_contexts(parser)
    parser.add_argument(
        "--by", choices=CONTEXT_RANKINGS, default="max",
        help="the strongest firing in a context, or the mean, sum or count of all; max by default",
    )  # fmt: skip
    add_json(parser, "a context")


def _add_sample(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "sample", _sample, "show contexts from all over a feature's range")
    _add_contexts(parser)
    parser.add_argument(
        "--how", choices=SAMPLINGS, default="quantile",
        help="bands of equally many contexts (quantile, the default) or of equal width (uniform)",
    )  # fmt: skip
    parser.add_argument("--bands", type=int, default=5, help="number of bands; 5 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the choice; 0 by default")
    add_json(parser, "a context")


def _add_contexts(parser: argparse.ArgumentParser) -> None:
    """Add which contexts of which feature."""
    add_lake(parser)
    add_feature(parser)
    add_window(parser)
    parser.add_argument("--where", help="SQL predicate, e.g. \"role = 'user'\"")
    parser.add_argument("--bos", action="store_true", help="count firings on BOS too")
    parser.add_argument(
        "--distinct", action="store_true", help="of each document only its first context"
    )


def _contexts(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("layer", "site", "sae", "k", "window", "corpus", "where", "bos", "distinct")
    return {name: getattr(arguments, name) for name in names}


def _top(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).top_contexts(
        arguments.feature, by=arguments.by, **_contexts(arguments)
    )
    show(found, arguments.json)


def _sample(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).sample_contexts(
        arguments.feature, arguments.how, n_bands=arguments.bands, seed=arguments.seed,
        **_contexts(arguments),
    )  # fmt: skip
    show(found, arguments.json)


def _add_at(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "features-at", _at, "show what fired in a context or at a token")
    add_lake(parser)
    parser.add_argument("context", type=int, help="its number in the corpus, from 0")
    parser.add_argument(
        "position",
        type=int,
        nargs="?",
        help="of a token in the context, from 0; all of them by default",
    )
    parser.add_argument("--corpus", help="which corpus, if the lake has several")
    parser.add_argument("--sae", help="only this SAE: its name, or a unique ending of it")
    parser.add_argument(
        "-k", type=int, help="at most so many for each SAE and token; all by default"
    )
    parser.add_argument(
        "--by", choices=FIRING_RANKINGS, default="activation",
        help="activation; it over the feature's mean or max; or its surprise in bits",
    )  # fmt: skip
    parser.add_argument(
        "--usual", metavar="CORPUS", help="whose statistics say what is usual; its own by default"
    )
    parser.add_argument(
        "--whole", action="store_true", help="each feature of the context once, at its highest"
    )
    add_json(parser, "a firing")


def _at(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).features_at(
        arguments.context, arguments.position, corpus=arguments.corpus, sae=arguments.sae,
        k=arguments.k, by=arguments.by, usual=arguments.usual, whole=arguments.whole,
    )  # fmt: skip
    show(found, arguments.json)


def _add_info(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "info", _info, "show what a lake holds")
    add_lake(parser)
    add_json(parser)


def _info(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).info()
    if arguments.json:
        print(to_json(found.to_dict()))
    else:
        print(found.to_text())


VERBS: Final = (_add_top, _add_sample, _add_at, _add_info)
