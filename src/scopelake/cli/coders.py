"""Verbs about SAEs and their published examples: saes, import-examples, check-sae."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import scopelake
from scopelake import tiny
from scopelake.cli.options import add_coders, add_placement, placement
from scopelake.cli.parsing import add_json, add_lake, add_verb
from scopelake.names import counted
from scopelake.render import to_json

if TYPE_CHECKING:
    from scopelake.ingest.list_coders import CoderListing


def _add_saes(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "saes", _saes, "list the SAEs of a folder or hub repository")
    parser.add_argument("repo", nargs="?",
                        help="folder, or hub id such as google/gemma-scope-2-1b-it; without one, "
                             "what ships here and what the hub's cache holds")  # fmt: skip
    parser.add_argument("pattern", nargs="?",
                        help="of <family>/<folder>, such as "
                             "'resid_post_all/*_width_16k_l0_small'")  # fmt: skip
    add_json(parser, "a repository")


def _saes(arguments: argparse.Namespace) -> None:
    from scopelake.ingest.list_coders import list_cached_coders, list_coders

    if arguments.repo is None:
        listings = [list_coders(tiny.coders_path()), *list_cached_coders()]
    else:
        is_tiny = arguments.repo == tiny.CODERS_REPO
        repo = tiny.coders_path() if is_tiny else arguments.repo
        listings = [list_coders(repo, arguments.pattern)]
    for found in listings:
        _show_listing(found, arguments.json)


def _show_listing(found: CoderListing, as_json: bool) -> None:
    from scopelake.render import print_table

    if as_json:
        values = {"repo": found.repo, "saes": found.table.to_pylist(), "missing": found.missing,
                  "incomplete": found.incomplete}  # fmt: skip
        print(to_json(values))
        return
    print_table(found.table)
    print(f"\n{counted(found.table.num_rows, 'SAE')} in {found.repo}")
    for what, names in (("missing from the grid", found.missing),
                        ("lacking a layer's file", found.incomplete)):  # fmt: skip
        if names:
            print(f"{len(names):,} {what}: {', '.join(names)}")


def _add_import(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "import-examples", _import,
                      "import the examples published beside SAEs, without a model")  # fmt: skip
    add_lake(parser, snapshot=False)
    add_coders(parser)
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--corpus", help="name for the examples' corpus")
    add_json(parser, "an SAE")


def _import(arguments: argparse.Namespace) -> None:
    from scopelake.progress import step_progress

    with step_progress() as progress:
        done = scopelake.open(arguments.lake).import_examples(
            arguments.saes,
            tokenizer=arguments.tokenizer,
            corpus=arguments.corpus,
            progress=progress,
        )
    for one in done:
        if arguments.json:
            print(to_json(asdict(one)))
            continue
        print(
            f"{one.sae} on {one.corpus}: {'there already, ' if one.already else ''}"
            f"{counted(one.n_firings, 'example')} of {counted(one.n_features, 'feature')} "
            f"({one.n_on_bos:,} on BOS "
            f"and {one.n_on_padding:,} on padding left out)"
        )


def _add_check(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "check-sae", _check,
                      "encode imported examples again and compare; exit status 1 if they disagree",
                      )  # fmt: skip
    add_lake(parser)
    add_coders(parser)
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--corpus", help="the examples' corpus, if there are several")
    parser.add_argument(
        "--contexts", type=int, default=32, metavar="N", help="sample size; 32 by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample; 0 by default")
    add_placement(parser)
    add_json(parser, "an SAE")


def _check(arguments: argparse.Namespace) -> int:
    from scopelake.progress import step_progress

    with step_progress() as progress:
        checks = scopelake.open(arguments.lake, arguments.snapshot).check_saes(
            arguments.saes,
            model=arguments.model,
            corpus=arguments.corpus,
            n_contexts=arguments.contexts,
            seed=arguments.seed,
            progress=progress,
            **placement(arguments),
        )
    for check in checks:
        print(to_json({**asdict(check), "agrees": check.agrees}) if arguments.json else check)
    return 0 if all(check.agrees for check in checks) else 1


VERBS: Final = (_add_saes, _add_import, _add_check)
