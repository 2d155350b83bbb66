"""Verbs that ask: top, features-at, info."""

from __future__ import annotations

import argparse
from typing import Any, Final

import scopelake
from scopelake.cli.parsing import add_json, add_lake, add_verb, show
from scopelake.names import SITES
from scopelake.render import to_json


def _add_top(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "top", _top, "show the strongest contexts of a feature")
    add_lake(parser)
    parser.add_argument("feature", type=int, help="its index in the SAE, from 0")
    parser.add_argument("--layer", type=int, help="the SAE of this layer, if only one fits")
    parser.add_argument("--site", choices=SITES, help="the SAE of this site")
    parser.add_argument("--sae", help="name of the SAE, or a unique ending of it")
    parser.add_argument("-k", type=int, default=20, help="number of contexts; 20 by default")
    parser.add_argument(
        "--window", type=int, default=16, help="tokens on either side; 16 by default"
    )
    parser.add_argument("--corpus", help="only this corpus; all by default")
    parser.add_argument("--where", help="SQL predicate, e.g. \"role = 'user'\"")
    parser.add_argument("--bos", action="store_true", help="count firings on BOS too")
    add_json(parser, "a context")


def _top(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).top_contexts(
        arguments.feature, layer=arguments.layer, site=arguments.site, sae=arguments.sae,
        k=arguments.k, window=arguments.window, corpus=arguments.corpus, where=arguments.where,
        bos=arguments.bos,
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
    add_json(parser, "a firing")


def _at(arguments: argparse.Namespace) -> None:
    found = scopelake.open(arguments.lake, arguments.snapshot).features_at(
        arguments.context, arguments.position, corpus=arguments.corpus, sae=arguments.sae,
        k=arguments.k,
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


VERBS: Final = (_add_top, _add_at, _add_info)
