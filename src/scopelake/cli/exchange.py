"""Verbs that take in what others say, and write what others read: label, import-delphi,
export.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_sae
from scopelake.cli.parsing import add_json, add_lake, add_verb
from scopelake.errors import InvalidArgumentError
from scopelake.names import SITES
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


def _add_import(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(
        verbs, "import-delphi", _import, "import the tokens and firings of a delphi cache"
    )
    add_lake(parser, snapshot=False)
    parser.add_argument("path", help="folder of one module of the cache")
    parser.add_argument("corpus", help="name of the corpus that its tokens become")
    parser.add_argument(
        "--sae", required=True, help="what to call its SAE: <repo>/<family>/<folder>"
    )
    parser.add_argument("--layer", type=int, required=True, help="that it reads")
    parser.add_argument("--site", choices=SITES, required=True, help="that it reads")
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--model", help="that ran; by default what config.json names")
    add_json(parser)


def _import(arguments: argparse.Namespace) -> None:
    from scopelake.progress import step_progress

    names = ("sae", "layer", "site", "tokenizer", "model")
    with step_progress() as progress:
        done = scopelake.open(arguments.lake).import_delphi(
            arguments.path,
            arguments.corpus,
            progress=progress,
            **{name: getattr(arguments, name) for name in names},
        )
    print(to_json(asdict(done)) if arguments.json else done)


def _add_export(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "export", _export, "write an SAE's firings as another tool reads them")
    add_lake(parser)
    parser.add_argument(
        "format", help="delphi, neuronpedia, circuit-tracer, or datasets (Hugging Face's)"
    )
    parser.add_argument("path", help="folder to write; it must not be there")
    add_sae(parser)
    parser.add_argument("--corpus", help="the corpus, if the SAE was run on several")
    parser.add_argument(
        "--feature", dest="features", action="append", type=_features, metavar="N",
        help="only this feature, or these: 0-99; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "-k", type=_many, metavar="N",
        help="contexts of a feature on a dashboard, or all; 20 by default",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=_many, metavar="N",
        help="tokens on either side of its peak, or all; 32 by default",
    )  # fmt: skip
    parser.add_argument(
        "--n-splits", type=int, metavar="N", help="files of a delphi cache; 5 by default"
    )
    add_json(parser)


def _features(text: str) -> range:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no feature and no range such as 0-99")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _many(text: str) -> int | str:
    if text != "all" and not re.fullmatch(r"-?\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number and not all")
    return text if text == "all" else int(text)


def _export(arguments: argparse.Namespace) -> None:
    from scopelake.progress import step_progress

    names = ("sae", "layer", "site", "corpus", "k", "window", "n_splits")
    asked = {name: getattr(arguments, name) for name in names}
    if arguments.features is not None:
        asked["features"] = [f for features in arguments.features for f in features]
    lake = scopelake.open(arguments.lake, arguments.snapshot)
    with step_progress() as progress:
        done = lake.export(arguments.format, arguments.path, progress=progress, **asked)
    print(to_json({**asdict(done), "path": str(done.path)}) if arguments.json else done)


VERBS: Final = (_add_label, _add_import, _add_export)
