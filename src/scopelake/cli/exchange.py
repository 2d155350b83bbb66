"""Verbs that take labels in: label."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_sae
from scopelake.cli.parsing import add_json, add_lake, add_verb
from scopelake.errors import InvalidArgumentError
from scopelake.render import to_json


def _add_label(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "label", _label, "add labels of features, or take them out")
    add_lake(parser, snapshot=False)
    # Text, not paths, as for corpora.
    parser.add_argument(
        "source", nargs="*",
        help="CSV, Parquet or JSON lines with columns feature and label (also .gz, .zst, .bz2, "
             ".xz), Neuronpedia's explanations/batch-*.jsonl.gz, folders of these, or patterns",
    )  # fmt: skip
    add_sae(parser)
    parser.add_argument("--name", metavar="SOURCE", help="who gave them; by default what the "
                        "files say, or their names")  # fmt: skip
    parser.add_argument(
        "--replace", action="store_true", help="labels of the same sources leave the lake"
    )
    parser.add_argument(
        "--remove", metavar="SOURCE", help="instead take out the labels that this source gave"
    )
    add_json(parser)


def _label(arguments: argparse.Namespace) -> None:
    if (arguments.remove is None) == (not arguments.source):
        raise InvalidArgumentError(
            "labels were to be added or removed; files to add and --remove SOURCE are one or the "
            "other; give one of the two"
        )
    lake = scopelake.open(arguments.lake)
    asked = {"sae": arguments.sae, "layer": arguments.layer, "site": arguments.site}
    if arguments.remove is None:
        done: Any = lake.add_labels(
            arguments.source, name=arguments.name, replace=arguments.replace, **asked
        )
    else:
        if arguments.replace or arguments.name or arguments.layer is not None or arguments.site:
            raise InvalidArgumentError(
                "--remove was asked for with an option of adding; only --sae goes with it; leave "
                "the others out"
            )
        done = lake.remove_labels(arguments.remove, sae=arguments.sae)
    print(to_json(asdict(done)) if arguments.json else done)


VERBS: Final = (_add_label,)
