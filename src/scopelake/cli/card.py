"""Verbs about one feature and its neighbors: feature, contrast, add-neighbors."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_coders, add_feature, add_window
from scopelake.cli.parsing import add_json, add_lake, add_verb, show
from scopelake.render import to_json


def _add_feature(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "feature", _feature, "show a feature's card")
    add_lake(parser)
    add_feature(
        parser, k=10, of="nearest features of its SAE, of others, and features that fire with it"
    )
    parser.add_argument(
        "--coactive", action="store_true", help="also count the features that fire with it"
    )
    parser.add_argument("--explain", action="store_true", help="print the SQL that is run")
    add_json(parser)


def _feature(arguments: argparse.Namespace) -> None:
    lake = scopelake.open(arguments.lake, arguments.snapshot)
    names = ("layer", "site", "sae", "corpus", "k")
    asked = {name: getattr(arguments, name) for name in names}
    if arguments.explain:
        print(lake.explain_feature(arguments.feature, **asked), end="")
        return
    found = lake.feature(arguments.feature, coactive=arguments.coactive, **asked)
    if arguments.json:
        print(to_json(found.to_dict()))
    else:
        print(found.to_text(color=sys.stdout.isatty()))


def _add_contrast(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(
        verbs, "contrast", _contrast, "show where a feature is silent though its nearest ones fire"
    )
    add_lake(parser)
    add_feature(parser)
    add_window(parser)
    add_json(parser, "a context")


def _contrast(arguments: argparse.Namespace) -> None:
    names = ("layer", "site", "sae", "k", "window", "corpus")
    found = scopelake.open(arguments.lake, arguments.snapshot).contrast_contexts(
        arguments.feature, **{name: getattr(arguments, name) for name in names}
    )
    show(found, arguments.json)


def _add_neighbors(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(
        verbs, "add-neighbors", _neighbors, "find each feature's nearest by decoder cosine"
    )
    add_lake(parser, snapshot=False)
    add_coders(parser)
    parser.add_argument("--other", dest="others", action="append", metavar="SAE",
                        help="coders whose features are the neighbors, as --sae; may be given "
                             "again; by default those of --sae, each with each")  # fmt: skip
    parser.add_argument(
        "-k", type=int, default=16, help="neighbors of a feature in each coder; 16 by default"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, or auto, the default: a GPU if there is one",
    )
    add_json(parser)


def _neighbors(arguments: argparse.Namespace) -> None:
    from scopelake.progress import step_progress

    with step_progress() as progress:
        done = scopelake.open(arguments.lake).add_neighbors(
            arguments.saes,
            others=arguments.others,
            k=arguments.k,
            device=arguments.device,
            progress=progress,
        )
    print(to_json(asdict(done)) if arguments.json else done)


VERBS: Final = (_add_feature, _add_contrast, _add_neighbors)
